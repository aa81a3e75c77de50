"""Stage `source_onnx`: a trained model that is an ONNX graph already."""
