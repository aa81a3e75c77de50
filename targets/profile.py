"""TargetProfile: one YAML file per target, facts and choices, strictly validated."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from targets.board import COMPUTES, Power, Precision, RuntimeOptions, Software, Versions
from targets.board import Board as Board
from targets.errors import InputError, UnknownNameError
from targets.facts import RUNTIME_DISTRIBUTIONS, installed_version, probe
from targets.inherit import read_target
from targets.problems import check
from targets.record import Record
from targets.runtimes.catalog import CATALOG
from targets.runtimes.intel.devices import device_obstacle
from targets.runtimes.intel.options import CPU, DEVICES, HINTS, hint_obstacle
from targets.runtimes.nvidia.capability import LEGAL, pair_obstacle
from targets.runtimes.nvidia.options import RTX
from targets.runtimes.nvidia.trial import tensorrt_obstacle
from targets.runtimes.ort.ask import provider_obstacle
from targets.runtimes.own import options_obstacle
from targets.strict_yaml import Document

PROFILES = Path(__file__).parent / "profiles"

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
    power_w: float | None = Field(default=None, gt=0, description="mean power while it works, where something tells it")
    energy_mj: float | None = Field(
        default=None, gt=0, description="millijoules for one image, where something tells it"
    )


class RuntimeChoice(Record):
    """One runtime of a target, with what it may run."""

    name: str
    versions: Versions = Field(default=">=0", description="PEP 440 range of the runtime's package")
    precisions: tuple[Precision, ...] = Field(default=("fp32",), min_length=1)
    hint: Literal["latency", "throughput"] = Field(
        default="latency", description="openvino: one query as fast as it can be, or many at once"
    )
    streams: int | None = Field(
        default=None, gt=0, description="openvino with hint throughput: queries side by side; null: it chooses"
    )
    options: RuntimeOptions = Field(
        default={}, description="of the runtime's own table (docs/runtimes), e.g. workspace_mib: 1024"
    )


class ShapeRules(Record):
    """Shapes that the target's fast kernels take, among which a search chooses. A model's own are always legal."""

    mlp_multiple: int = Field(default=16, gt=0)
    head_multiple: int = Field(default=8, gt=0, description="d_qk and d_v")
    head_least: int = Field(default=1, gt=0, description="the narrowest d_qk and d_v that a fused kernel takes")
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
            return (*(width for width in sorted(set(self.head_widths)) if self.head_least <= width < most), most)
        multiples = range(self.head_multiple, most, self.head_multiple)
        return (*(width for width in multiples if width >= self.head_least), most)


class Demands(Record):
    """What must have happened in an engine; else the build fails."""

    fused_attention: bool = False
    """scores, softmax and weighted sum run as one kernel"""
    least_macs_share: float | None = Field(
        default=None, gt=0, le=1, description="of the multiply-accumulates that run in the engine's precision"
    )
    providers: tuple[str, ...] = Field(default=(), description="who may run layers; empty: whoever does")


class Input(Record):
    """What one query of the target holds."""

    image_size: int | None = Field(default=None, gt=0, description="height and width in pixels; null: the model's own")


class TargetProfile(Record):
    """What someone deploys to."""

    format: Literal["vitrim.target/1"] = "vitrim.target/1"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    summary: str
    extends: str | None = Field(
        default=None, description="name or file of a profile whose values hold where this one has none; one level"
    )
    status: Literal["supported", "unsupported"] = "supported"
    reason: str | None = Field(default=None, description="why the target is unsupported, and what to do")
    board: Board
    software: Software = Software()
    power: Power = Power()
    runtimes: tuple[RuntimeChoice, ...] = Field(min_length=1)
    """in order of preference; the first in fp32 is the baseline's"""
    prefer: tuple[Precision, ...] = Field(
        default=(),
        description="precisions, best first, where nothing can be measured; empty: by the highest peak of the board",
    )
    onnx_opset_max: int = Field(default=20, ge=17)
    batch: int = Field(default=1, gt=0)
    input: Input = Input()
    threads: int | None = Field(
        default=None, gt=0, description="null: as many as `cores`, else all this process may use"
    )
    cores: tuple[NonNegativeInt, ...] = Field(
        default=(),
        description="logical processors that engines run on, counted from 0; empty: wherever the kernel likes",
    )
    reached: Literal["local", "ssh", "none yet"] = "local"
    device: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name in devices.yaml, of a target that is reached by ssh",
    )
    verified: Literal["on hardware", "engine built", "not yet"]
    budget: Budget = Budget()
    demands: Demands = Demands()
    shapes: ShapeRules = ShapeRules()


def list_profiles() -> list[str]:
    """Names of the targets that ship with vitrim."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def names_file(target: str) -> bool:
    """Whether a target is the path of the user's own file, and not the name of one that ships with vitrim."""
    return target.endswith((".yaml", ".yml")) or os.sep in target


def profile_path(name_or_path: str | Path, folder: Path = Path()) -> Path:
    """File of a target; a relative path starts at the folder. Raises UnknownNameError for a name that is not known."""
    text = str(name_or_path)
    if names_file(text):
        return folder / os.path.expanduser(text)  # unlike Path's own, leaves an unknown ~user as it is
    if text not in list_profiles():
        raise UnknownNameError("target", text, list_profiles(), hint="or give the path of your own YAML file")
    return PROFILES / f"{text}.yaml"


def base_of(name_or_path: str | Path) -> str | None:
    """What a target extends; None where it stands for itself."""
    _, origin = read_target(profile_path(name_or_path), profile_path)
    return None if origin is None else origin.stem if origin.parent == PROFILES else str(origin)


def load_profile(name_or_path: str | Path) -> TargetProfile:
    """Read a target by its name, or the user's own YAML file by its path; what it extends is merged in.

    Raises UnknownNameError for a name that is not known, RecipeError with every problem of a file at once.
    """
    path = profile_path(name_or_path)
    document, origin = read_target(path, profile_path)
    if origin is not None:
        load_profile(origin)  # its own mistakes are told as its own
    profile = check(TargetProfile, document.data, document)
    if profile is not None:
        _tell_contradictions(profile, document)
    document.refuse_problems()
    assert profile is not None  # else a problem was told
    if profile.name != path.stem:
        raise InputError(f"target {str(path)!r} is called {profile.name!r} inside; file and name must be the same")
    return profile if profile.threads or not profile.cores else profile.replace(threads=len(profile.cores))


def refuse_image_size(profile: TargetProfile, size: tuple[int, int] | None) -> None:
    """Raise InputError where a model's images (height, width) are not those of the target; None: not known yet."""
    wanted = profile.input.image_size
    if wanted is not None and size is not None and size != (wanted, wanted):
        raise InputError(
            f"target {profile.name!r} takes images of {wanted} x {wanted} pixels, the model those of {size[0]} x "
            f"{size[1]}; set model.image_size: {wanted}, or change input.image_size of the target"
        )


def preference(profile: TargetProfile, precision: str) -> tuple[float, ...]:
    """How early a precision comes where nothing can be measured: the smaller, the earlier; equal ones by their order.

    The profile's `prefer` decides, what is not in it comes after. Without one, the highest peak of the board among
    those that are known, then those without.
    """
    if profile.prefer:
        order: tuple[str, ...] = profile.prefer
        return (float(order.index(precision) if precision in order else len(order)),)
    computes = COMPUTES.get(precision, precision)
    peak = next((one.value for name, one in profile.board.peak_tera_ops_s.items() if name == computes), 0.0)
    return (-peak,)


def refuse_unsupported(profile: TargetProfile) -> None:
    """Raise InputError for a target that cannot be served at all, with its reason."""
    if profile.status == "unsupported":
        raise InputError(f"target {profile.name!r} is not supported: {profile.reason}")


def usable_runtimes(
    profile: TargetProfile,
    *,
    facts: dict[str, Any] | None = None,
    installed: Callable[[str], str | None] | None = None,
    device: Callable[[str], str | None] = device_obstacle,
) -> list[tuple[RuntimeChoice, str | None]]:
    """What of a profile can be used here, and why the rest cannot: (choice, None or the reason).

    A runtime comes twice where only some of its precisions can be used: once with these, once with the others.
    facts, installed version by runtime, and why a runtime has no device: this machine's, unless others are given.
    """
    facts = probe() if facts is None else facts
    found: list[tuple[RuntimeChoice, str | None]] = []
    for choice in profile.runtimes:
        reason = (
            board_obstacle(profile, facts)
            or _gpu_obstacle(profile, choice.name, facts)
            or version_obstacle(choice, installed or installed_version)
            or (_trial(profile, choice.name) if installed is None else None)
            or device(choice.name)
        )
        if reason is not None:
            found.append((choice, reason))
            continue
        lacking = {one: why for one in choice.precisions if (why := _precision_obstacle(choice.name, one, facts))}
        fit = tuple(one for one in choice.precisions if one not in lacking)
        if fit:
            found.append((choice.replace(precisions=fit), None))
        found.extend((choice.replace(precisions=(one,)), why) for one, why in lacking.items())
    return found


def board_obstacle(profile: TargetProfile, facts: dict[str, Any]) -> str | None:
    """Why this machine is not such a board, as far as engines are concerned; None where it is."""
    board = profile.board
    if board.architecture not in ("any", facts["architecture"]):
        return f"the target is {board.architecture}, this machine is {facts['architecture']}"
    lacking = [one for one in board.instruction_sets if one not in facts["instruction_sets"]]
    return f"this processor lacks {', '.join(lacking)}" if lacking else None


def _trial(profile: TargetProfile, runtime: str) -> str | None:
    """Why a runtime that is installed does not work here, tried in a process of its own; None where it does."""
    gpu = profile.board.gpu
    return provider_obstacle(runtime) or tensorrt_obstacle(runtime, gpu.compute_capability.value if gpu else None)


def _gpu_obstacle(profile: TargetProfile, runtime: str, facts: dict[str, Any]) -> str | None:
    """Why none of this machine's GPUs will do; TensorRT-RTX builds without any. A Jetson's nvidia-smi tells nothing."""
    gpu, there = profile.board.gpu, facts["gpus"]
    if gpu is None or profile.board.kind != "gpu" or runtime not in LEGAL or runtime == RTX:
        return None
    wanted = gpu.compute_capability.value
    if not there:
        return f"needs a GPU of compute capability {wanted}, this machine shows none"
    if any(one["compute_capability"] == wanted for one in there):
        return None
    shown = ", ".join(f"{one['name']} ({one['compute_capability']})" for one in there)
    return f"needs a GPU of compute capability {wanted}, this machine has {shown}"


def version_obstacle(choice: RuntimeChoice, installed: Callable[[str], str | None]) -> str | None:
    """Why the runtime's package will not do: absent, or not of the versions that the target needs; None: it will."""
    from packaging.specifiers import SpecifierSet

    found = installed(choice.name)
    if found is None:
        package = RUNTIME_DISTRIBUTIONS[choice.name][0]
        return f"not installed; pip install '{package}{choice.versions}'"
    if not SpecifierSet(choice.versions).contains(found, prereleases=True):
        return f"version {found} is installed, the target needs {choice.versions}"
    return None


def _precision_obstacle(runtime: str, precision: Precision, facts: dict[str, Any]) -> str | None:
    elsewhere = runtime in LEGAL or (runtime in DEVICES and runtime != CPU)
    needed = () if elsewhere else _NATIVE.get(precision, ())
    if not needed or set(needed) & set(facts["instruction_sets"]):
        return None
    return f"{precision} needs {' or '.join(needed)}, this processor has none of them"


def _tell_contradictions(profile: TargetProfile, document: Document) -> None:
    """Tell what no board can be, and what its runtimes cannot run on it."""
    gpu = profile.board.gpu
    if profile.board.kind != "cpu" and gpu is None:
        document.tell(("board", "gpu"), f"is missing; a board of kind {profile.board.kind!r} has one")
    if profile.reached == "ssh" and profile.device is None:
        document.tell(("device",), "is missing; a target that is reached by ssh names a device of devices.yaml")
    if profile.reached != "ssh" and profile.device is not None:
        document.tell(("device",), f"goes with reached: ssh, got {profile.device!r} with {profile.reached!r}")
    if len(set(profile.cores)) < len(profile.cores):
        document.tell(("cores",), f"names one twice, got {list(profile.cores)}; name each once")
    if profile.cores and profile.threads is not None and profile.threads > len(profile.cores):
        document.tell(("threads",), f"must be at most the {len(profile.cores)} cores, got {profile.threads}")
    if profile.status == "unsupported" and not profile.reason:
        document.tell(("reason",), "is missing; a target that is unsupported says why, and what to do")
    if profile.status == "supported" and profile.reason:
        document.tell(("reason",), "stands for unsupported targets only; take it away, or set status: unsupported")
    for index, choice in enumerate(profile.runtimes):
        if choice.name not in CATALOG:
            document.tell(("runtimes", index, "name"), str(UnknownNameError("runtime", choice.name, CATALOG)))
        wrong = options_obstacle(choice.name, choice.options, batch=profile.batch) if choice.name in CATALOG else None
        if wrong is not None:
            document.tell(("runtimes", index, "options"), wrong)
        reason = hint_obstacle(choice.name, choice.hint, choice.streams)
        if reason is not None:
            document.tell(("runtimes", index, "hint" if choice.streams is None else "streams"), reason)
        for position, precision in enumerate(choice.precisions):
            if choice.name in DEVICES and precision not in HINTS[choice.name]:
                legal = ", ".join(HINTS[choice.name])
                document.tell(
                    ("runtimes", index, "precisions", position),
                    f"{choice.name} does not run {precision!r}; it runs {legal}",
                )
        if choice.name not in LEGAL or profile.status == "unsupported":
            continue
        if gpu is None:
            document.tell(("runtimes", index, "name"), f"{choice.name} needs a GPU, and board.gpu is missing")
            continue
        for position, precision in enumerate(choice.precisions):
            reason = pair_obstacle(choice.name, gpu.compute_capability.value, precision)
            if reason is not None:
                document.tell(("runtimes", index, "precisions", position), reason)
