"""Stage export: a model folder becomes an ONNX graph, compared with torch every time."""
