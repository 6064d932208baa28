"""Identity of an ONNX graph with the network that it came from."""
