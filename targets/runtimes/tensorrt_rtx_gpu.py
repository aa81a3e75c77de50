"""TensorRT-RTX: an engine is built ahead of time, without a GPU, for one or more compute capabilities.

Kernels are compiled on the GPU at the first query. Builds are tested; running is not yet run on hardware
(docs/runtimes/tensorrt_rtx.md).
"""

from targets.runtimes.nvidia.loading import functions
from targets.runtimes.nvidia.options import RTX

name = RTX
available, version, binding, build, load = functions(name)
