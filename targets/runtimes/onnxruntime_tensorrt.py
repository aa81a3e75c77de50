"""ONNX Runtime with its TensorRT provider: an engine is what TensorRT built, named by a graph of one node (EP context).

Not yet run on hardware; docs/runtimes/onnxruntime.md says what was checked and how.
"""

from targets.runtimes.nvidia.options import ORT_TENSORRT
from targets.runtimes.ort.gpu import functions

name = ORT_TENSORRT
available, version, binding, build, load = functions(name)
