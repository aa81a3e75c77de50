"""TensorRT 10 and 11: an engine is built on the GPU that runs it, from a graph that says every precision itself.

Not yet run on hardware; docs/runtimes/tensorrt.md says what was checked and how.
"""

from targets.runtimes.nvidia.loading import functions
from targets.runtimes.nvidia.options import TENSORRT

name = TENSORRT
available, version, binding, build, load = functions(name)
