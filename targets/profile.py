"""TargetProfile: one YAML file per target, facts and choices, strictly validated."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from targets.errors import InputError, UnknownNameError
from targets.facts import RUNTIME_DISTRIBUTIONS, installed_version, probe
from targets.problems import load_record
from targets.record import Record

PROFILES = Path(__file__).parent / "profiles"

Precision = Literal["fp32", "bf16", "fp16", "int8"]

_NATIVE: dict[str, tuple[str, ...]] = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "asimdhp"),
}
"""instruction sets of which a CPU needs one to run a precision; elsewhere it is emulated, or silently fp32"""


class Budget(Record):
    """What must hold; an absent value is not judged."""

    accuracy_drop_points: float | None = Field(default=None, ge=0, description="percentage points of the metric")
    latency_p50_ms: float | None = Field(default=None, gt=0)
    latency_p99_ms: float | None = Field(default=None, gt=0)
    latency_ratio: float | None = Field(default=None, gt=0, description="engine / unpruned, same runtime and precision")
    memory_bytes: int | None = Field(default=None, gt=0)
    engine_bytes: int | None = Field(default=None, gt=0)
    parameters: int | None = Field(default=None, gt=0, description="of the whole model")
    macs: int | None = Field(default=None, gt=0, description="multiply-accumulates of one image")


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

    @field_validator("versions")
    @classmethod
    def _is_a_range(cls, text: str) -> str:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(text)
        except InvalidSpecifier as error:
            raise ValueError("is no range of versions; write it like >=1.23,<2") from error
        return text


class ShapeRules(Record):
    """Shapes that the target's fast kernels take, among which a search chooses. A model's own are always legal."""

    mlp_multiple: int = Field(default=16, gt=0)
    head_multiple: int = Field(default=8, gt=0, description="d_qk and d_v")
    head_widths: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="only these, where a fused kernel exists for no others"
    )
    equal_head_widths: bool = Field(default=False, description="d_qk equals d_v, as some fused kernels demand")

    def mlp_widths(self, most: int) -> tuple[int, ...]:
        """Legal widths of an MLP that has `most` neurons, rising, without 0."""
        return (*range(self.mlp_multiple, most, self.mlp_multiple), most) if most else ()

    def widths_of_heads(self, most: int) -> tuple[int, ...]:
        """Legal widths of a head that is `most` wide, rising."""
        if not most:
            return ()
        if self.head_widths is not None:
            return (*(width for width in sorted(set(self.head_widths)) if width < most), most)
        return (*range(self.head_multiple, most, self.head_multiple), most)


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
    shapes: ShapeRules = ShapeRules()


def list_profiles() -> list[str]:
    """Names of the targets that ship with vitrim."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def names_file(target: str) -> bool:
    """Whether a target is the path of the user's own file, and not the name of one that ships with vitrim."""
    return target.endswith((".yaml", ".yml")) or os.sep in target


def load_profile(name_or_path: str | Path) -> TargetProfile:
    """Read a target by its name, or the user's own YAML file by its path.

    Raises UnknownNameError for a name that is not known, RecipeError with every problem of a file at once.
    """
    text = str(name_or_path)
    path = Path(os.path.expanduser(text))  # unlike Path's own, leaves an unknown ~user as it is
    if not names_file(text):
        path = PROFILES / f"{text}.yaml"
        if text not in list_profiles():
            raise UnknownNameError("target", text, list_profiles(), hint="or give the path of your own YAML file")
    profile = load_record(TargetProfile, path, what="target")
    if profile.name != path.stem:
        raise InputError(f"target {str(path)!r} is called {profile.name!r} inside; file and name must be the same")
    return profile


def usable_runtimes(profile: TargetProfile) -> list[tuple[RuntimeChoice, str | None]]:
    """What of a profile can be used here, and why the rest cannot: (choice, None or the reason).

    A runtime comes twice where only some of its precisions can be used: once with these, once with the others.
    """
    facts = probe()
    found: list[tuple[RuntimeChoice, str | None]] = []
    for choice in profile.runtimes:
        reason = _board_obstacle(profile.board, facts) or _version_obstacle(choice)
        if reason is not None:
            found.append((choice, reason))
            continue
        lacking = {one: why for one in choice.precisions if (why := _precision_obstacle(one, facts)) is not None}
        fit = tuple(one for one in choice.precisions if one not in lacking)
        if fit:
            found.append((choice.replace(precisions=fit), None))
        found.extend((choice.replace(precisions=(one,)), why) for one, why in lacking.items())
    return found


def _board_obstacle(board: Board, facts: dict[str, Any]) -> str | None:
    if board.architecture not in ("any", facts["architecture"]):
        return f"the target is {board.architecture}, this machine is {facts['architecture']}"
    lacking = [one for one in board.instruction_sets if one not in facts["instruction_sets"]]
    return f"this processor lacks {', '.join(lacking)}" if lacking else None


def _version_obstacle(choice: RuntimeChoice) -> str | None:
    from packaging.specifiers import SpecifierSet

    if choice.name not in RUNTIME_DISTRIBUTIONS:
        return str(UnknownNameError("runtime", choice.name, RUNTIME_DISTRIBUTIONS))
    installed = installed_version(choice.name)
    if installed is None:
        return f"not installed; pip install '{choice.name}{choice.versions}'"
    if not SpecifierSet(choice.versions).contains(installed, prereleases=True):
        return f"version {installed} is installed, the target needs {choice.versions}"
    return None


def _precision_obstacle(precision: Precision, facts: dict[str, Any]) -> str | None:
    needed = _NATIVE.get(precision, ())
    if not needed or set(needed) & set(facts["instruction_sets"]):
        return None
    return f"{precision} needs {' or '.join(needed)}, this processor has none of them"
