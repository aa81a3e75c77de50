"""What a board is: facts and figures of hardware, each with its source and how sure it is.

Units stand in the names. GB and GB/s are the vendor's decimal ones; an operation is a multiplication or an addition.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from targets.record import Record

Precision = Literal["fp32", "bf16", "fp16", "int8", "int8_dynamic", "int8_weights", "fp8"]
"""int8: weights and activations; int8_dynamic: ranges of activations anew in every query; int8_weights: weights only"""

COMPUTES = {"int8_dynamic": "int8", "int8_weights": "fp32"}
"""precision of a graph -> that in which its products run, where the two differ"""

Confidence = Literal["datasheet", "derived", "recalled", "probed"]
"""read in the vendor's document | computed, the source says how | known, not read again: check before you promise
anything by it | read from such a machine"""

RuntimeOptions = dict[str, bool | int | str]
"""options of a runtime's own, by name; what they may be is in the runtime's table (`targets.runtimes.own`)"""


class Figure(Record):
    """A number of the hardware; its unit stands in the key."""

    value: float = Field(gt=0)
    source: str = Field(min_length=1, description="where the value is from, or how it was computed")
    confidence: Confidence


class Fact(Record):
    """A name or version of the hardware or its software."""

    value: str = Field(min_length=1)
    source: str = Field(min_length=1, description="where the value is from")
    confidence: Confidence


def is_range(text: str) -> str:
    """Return a PEP 440 range as it is; ValueError for anything else."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError("is no range of versions; write it like >=1.23,<2") from error
    return text


Versions = Annotated[str, AfterValidator(is_range)]


class VersionRange(Record):
    """Versions that a target needs."""

    value: Versions = Field(description="PEP 440 range")
    source: str = Field(min_length=1, description="where the range is from")
    confidence: Confidence


class Gpu(Record):
    """What NVML tells of the GPU, and what its vendor does."""

    name: str = Field(min_length=1, description="words that NVML's name of the device holds, e.g. RTX 4090")
    compute_capability: Fact
    multiprocessors: Figure | None = None
    clock_mhz: Figure | None = Field(default=None, description="highest clock of the multiprocessors")

    @field_validator("compute_capability")
    @classmethod
    def _is_major_and_minor(cls, fact: Fact) -> Fact:
        major, point, minor = fact.value.partition(".")
        if not (point and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
            raise ValueError(f'is no compute capability; write it like "8.6", got {fact.value!r}')
        return fact

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as numbers that can be compared."""
        major, minor = self.compute_capability.value.split(".")
        return int(major), int(minor)


class Board(Record):
    """Facts of the hardware."""

    kind: Literal["cpu", "gpu", "jetson"]
    description: str
    architecture: Literal["any", "x86_64", "aarch64"] = "any"
    instruction_sets: tuple[str, ...] = ()
    """what it must have, e.g. avx512_vnni; probed before building"""
    gpu: Gpu | None = None
    part_numbers: tuple[str, ...] = ()
    """of a Jetson's module, as /proc/device-tree/compatible names it, e.g. p3767-0005"""
    memory_gb: Figure | None = Field(default=None, description="of the GPU; of the whole board where it has only one")
    memory_bandwidth_gb_s: Figure | None = None
    cache_mb: Figure | None = Field(
        default=None,
        description="MiB of all that may keep weights from query to query: the last level, what is not copied there",
    )
    peak_tera_ops_s: dict[Precision, Figure] = Field(
        default={}, description="dense, by precision: 10^12 additions and multiplications per second"
    )
    power_min_w: Figure | None = None
    power_max_w: Figure | None = None


class Software(Record):
    """Versions of what lies under the runtimes; an absent one is not demanded."""

    jetpack: VersionRange | None = None
    driver: VersionRange | None = None
    cuda: VersionRange | None = Field(default=None, description="that the driver, or JetPack, brings")


class Power(Record):
    """In what state of the board engines are built and measured."""

    mode: Fact | None = Field(default=None, description="name of nvpmodel's mode")
    clocks: Literal["floating", "pinned"] = "floating"
    """pinned: jetson_clocks, nvidia-smi --lock-gpu-clocks, or the governor `performance`; by the user, not by vitrim"""
