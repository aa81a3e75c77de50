"""The most that a processor can compute, from what it tells of itself: a bound that no processor of its kind exceeds.

It is for the roofline floor, which refuses what lies below it. So every number here is the highest of any processor
that has the instruction set, every logical processor counts as a core of its own, and where the clock is not told, or
not told with its boost, it is the highest that is sold. A real processor reaches a fraction of it. Standard library
only.
"""

from pathlib import Path
from typing import Any

from targets.facts import ROOT, read_text

FASTEST_MHZ = {"x86_64": 6500.0, "aarch64": 5000.0}
"""above the highest boost of any processor that is sold (6200 and 4600)"""
TELLS_BOOST = ("intel_pstate", "intel_cpufreq", "amd-pstate", "amd-pstate-epp", "cppc_cpufreq", "cpufreq-dt")
"""drivers of Linux whose `cpuinfo_max_freq` has the boost in it; acpi-cpufreq's has not"""

_X86 = (
    ("fp32", "", 8),
    ("fp32", "avx2", 32),
    ("fp32", "avx512f", 64),
    ("bf16", "avx512_bf16", 128),
    ("bf16", "amx_bf16", 1024),
    ("fp16", "avx512_fp16", 128),
    ("int8", "avx2", 128),
    ("int8", "avx_vnni", 256),
    ("int8", "avx512f", 256),
    ("int8", "avx512_vnni", 256),
    ("int8", "amx_int8", 2048),
)
_ARM = (
    ("fp32", "", 64),
    ("bf16", "bf16", 256),
    ("fp16", "asimdhp", 128),
    ("int8", "", 128),
    ("int8", "asimddp", 256),
    ("int8", "i8mm", 512),
)
PER_CLOCK = {"x86_64": _X86, "aarch64": _ARM}
"""(precision, instruction set that a processor needs, additions and multiplications of one core per clock)

x86: two pipes of the widest vectors, a multiply-add of each lane is two operations: AVX2 2 x 8 x 2 = 32 in fp32,
AVX-512 64. int8 without dot products multiplies 32 or 64 numbers in a pipe; VNNI adds them up in the same
instruction (AVX-VNNI counts double, for cores with more pipes). AMX: a tile of 16 x 16 x 64 bytes takes 16 clocks.
Arm: eight pipes of 128 bits, twice the widest that there is, or SVE of 512 bits in two; SDOT has 16 multiply-adds of
int8 in 128 bits, SMMLA 32, BFMMLA 16 of bf16. Processors with SME have a unit of another kind and no bound here.
"""
_UNBOUNDED = ("sme", "sme2")


def cpu_peaks(facts: dict[str, Any], threads: int | None = None, *, root: Path = ROOT) -> dict[str, float]:
    """Operations per second by precision that so many threads cannot exceed; empty where there is no such bound.

    facts: of `targets.facts.probe`. threads: null: as many as this process may use.
    """
    table = PER_CLOCK.get(facts["architecture"])
    flags = set(_flags(root))
    if table is None or flags & set(_UNBOUNDED):
        return {}
    per_clock: dict[str, int] = {}
    for precision, needed, operations in table:
        if not needed or needed in facts["instruction_sets"]:
            per_clock[precision] = max(per_clock.get(precision, 0), operations)
    clocks_per_s = 1e6 * highest_mhz(facts["architecture"], root) * (threads or facts["cores"])
    return {precision: operations * clocks_per_s for precision, operations in per_clock.items()}


def highest_mhz(architecture: str, root: Path = ROOT) -> float:
    """Clock that no core goes above: what the kernel tells where that has the boost in it, else the highest sold."""
    told = []
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        text = read_text(folder / "cpuinfo_max_freq")
        if read_text(folder / "scaling_driver") in TELLS_BOOST and text.isdigit():
            told.append(int(text) / 1000)
    return max(told, default=FASTEST_MHZ[architecture])


def _flags(root: Path) -> list[str]:
    for line in read_text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Features":
            return value.split()
    return []
