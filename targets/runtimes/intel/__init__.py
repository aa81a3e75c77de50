"""What the runtimes `openvino`, `openvino_gpu` and `openvino_npu` share: one library, three devices."""
