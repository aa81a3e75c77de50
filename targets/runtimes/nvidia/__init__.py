"""What TensorRT and TensorRT-RTX share: options, legal precisions, building, sessions. No torch, no pycuda."""
