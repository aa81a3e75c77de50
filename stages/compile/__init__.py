"""Stage `compile`: an ONNX graph becomes the engine of one runtime, for one batch, on this machine."""
