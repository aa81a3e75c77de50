"""Stage quantize: an fp32 ONNX graph becomes an int8 one, its SmoothQuant alpha chosen on real images."""
