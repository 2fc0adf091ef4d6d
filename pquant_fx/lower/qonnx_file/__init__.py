"""Reading QONNX files, ours and other tools', back into a frozen graph."""
