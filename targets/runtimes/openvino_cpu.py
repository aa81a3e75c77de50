"""OpenVINO on a CPU: an engine is the graph in OpenVINO's own format (IR) for one batch, its precision written out.

Without an explicit hint the CPU plugin takes bf16 where the processor has it, so fp32 would not be fp32.
"""

from targets.runtimes.intel.engine import functions
from targets.runtimes.intel.options import CPU

name = CPU
available, version, binding, build, load = functions(name)
