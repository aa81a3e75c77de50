"""OpenVINO on the NPU of an Intel Core Ultra: fp16 and int8, fixed shapes only.

An NPU computes in fp16 and integers, and does not tell which layer ran in which. Not yet run on hardware.
"""

from targets.runtimes.intel.engine import functions
from targets.runtimes.intel.options import NPU

name = NPU
available, version, binding, build, load = functions(name)
