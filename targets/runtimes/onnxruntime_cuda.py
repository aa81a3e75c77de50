"""ONNX Runtime with its CUDA provider: an engine is the graph after its optimisations, for one batch and one GPU.

Not yet run on hardware; docs/runtimes/onnxruntime.md says what was checked and how.
"""

from targets.runtimes.nvidia.options import ORT_CUDA
from targets.runtimes.ort.gpu import functions

name = ORT_CUDA
available, version, binding, build, load = functions(name)
