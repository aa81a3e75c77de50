"""The runtime `tensorrt` on the fakes, for an agent in a process of its own: a Jetson Orin with TensorRT 10.3."""
# ruff: noqa: E402  # the agent does not have this folder on its path

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from fake_cuda import FakeCudart
from fake_tensorrt import fake_tensorrt

from targets.runtimes import tensorrt_gpu
from targets.runtimes.nvidia import cuda

cudart = FakeCudart()
cuda.find_library = lambda: cudart
sys.modules["tensorrt"] = fake_tensorrt("10.3.0", cudart)

name = "fake_tensorrt"
available, version, binding, build, load = (
    tensorrt_gpu.available,
    tensorrt_gpu.version,
    tensorrt_gpu.binding,
    tensorrt_gpu.build,
    tensorrt_gpu.load,
)
