"""What ONNX Runtime's providers share: the library, its profile, sessions, options for GPUs, refusal of fallbacks."""
