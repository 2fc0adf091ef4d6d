"""The ONNX emitters: plain ONNX for any runtime, QONNX for other toolchains, and what runs both."""
