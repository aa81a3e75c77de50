"""TargetProfile: one YAML file per target, facts and choices, strictly validated."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from targets.record import Record

PROFILES = Path(__file__).parent / "profiles"

Precision = Literal["fp32", "bf16", "fp16", "int8"]


class Budget(Record):
    """What must hold; an absent value is not judged."""

    accuracy_drop_points: float | None = Field(default=None, ge=0, description="percentage points of the metric")
    latency_p50_ms: float | None = Field(default=None, gt=0)
    latency_p99_ms: float | None = Field(default=None, gt=0)
    latency_ratio: float | None = Field(default=None, gt=0, description="engine / unpruned, same runtime and precision")
    memory_bytes: int | None = Field(default=None, gt=0)
    engine_bytes: int | None = Field(default=None, gt=0)


class Board(Record):
    """Facts of the hardware."""

    kind: Literal["cpu", "gpu", "jetson"]
    description: str
    architecture: Literal["any", "x86_64", "aarch64"] = "any"
    instruction_sets: tuple[str, ...] = ()
    """what it must have, e.g. avx512_vnni; probed before building"""


class RuntimeChoice(Record):
    """One runtime of a target, with what it may run."""

    name: str
    versions: str = Field(default=">=0", description="PEP 440 range of the runtime's package")
    precisions: tuple[Precision, ...] = ("fp32",)


class TargetProfile(Record):
    """What someone deploys to."""

    format: Literal["vitrim.target/1"] = "vitrim.target/1"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    summary: str
    board: Board
    runtimes: tuple[RuntimeChoice, ...] = Field(min_length=1)
    """in order of preference; the first in fp32 is the baseline's"""
    onnx_opset_max: int = Field(default=20, ge=17)
    batch: int = Field(default=1, gt=0)
    threads: int | None = Field(default=None, gt=0, description="null: all cores that this process may use")
    reached: Literal["local"] = "local"
    verified: Literal["on hardware", "engine built", "not yet"]
    budget: Budget = Budget()
