"""OpenVINO on the integrated GPU of an Intel processor, or on an Arc card: fp16, int8, and fp32 where it is asked for.

Without an explicit hint the GPU plugin takes fp16, so fp32 would not be fp32. Not yet run on hardware.
"""

from targets.runtimes.intel.engine import functions
from targets.runtimes.intel.options import GPU

name = GPU
available, version, binding, build, load = functions(name)
