"""What stages know of models that came as ONNX graphs."""
