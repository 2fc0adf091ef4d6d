"""The hls4ml importer: a QONNX file becomes an hls4ml project whose every type is set from exact bounds."""
