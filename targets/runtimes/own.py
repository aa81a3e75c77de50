"""Options that a profile or recipe gives one runtime, checked by that runtime's own table. Standard library only.

A profile does not say when an option counts: what counts at the build goes there, the rest holds at every load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from targets.errors import InputError, suggest
from targets.runtimes.intel.options import DEVICES
from targets.runtimes.nvidia import options as nvidia
from targets.runtimes.options import BUILD, LOAD, Option
from targets.runtimes.ort import options as ort

ELSEWHERE = {
    "precision": "the profile's precisions and the recipe's quantize say it",
    "batch": "the profile's batch says it",
    "threads": "the profile's threads says it",
    "hint": "it stands beside the runtime's name",
    "streams": "it stands beside the runtime's name",
    "compute_capability": "the profile's board.gpu says it",
    "device": "choose the GPU with CUDA_VISIBLE_DEVICES",
    "weights": "it is the graph that the engine was built from",
}
"""options that are set by something else -> by what"""
BATCHES = ("batch_min", "batch_max")
"""options that are of one batch size"""


@dataclass(frozen=True)
class Split:
    """Options by when they count."""

    build: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)


def own_table(runtime: str) -> dict[str, Option]:
    """What a profile may set of a runtime, by name; empty where there is nothing."""
    every = {**nvidia.OPTIONS} if runtime in nvidia.BOTH else {**ort.OPTIONS} if runtime in ort.RUNTIMES else {}
    return {name: one for name, one in every.items() if runtime in one.runtimes and name not in ELSEWHERE}


def split_options(runtime: str, given: Mapping[str, Any], *, batch: int = 1) -> Split:
    """Check options and split them; raises InputError for the first that is wrong. batch: images per query."""
    table = own_table(runtime)
    for name in given:
        if name in ELSEWHERE and name not in table:
            raise InputError(f"option {name!r} is not set here: {ELSEWHERE[name]}")
        if name not in table:
            known = suggest(name, table) if table else f"it has none{_beside(runtime)}"
            raise InputError(f"runtime {runtime!r} has no option {name!r}; {known}")
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    found = Split()
    for name, value in plain.items():
        (found.build if BUILD in table[name].when else found.load)[name] = value
    if table:
        read = nvidia.read_options if runtime in nvidia.BOTH else ort.read_options
        read(runtime, BUILD, {"batch": batch, **found.build})
        read(runtime, LOAD, found.load)
    return found


def options_obstacle(runtime: str, given: Mapping[str, Any], *, batch: int = 1) -> str | None:
    """Why a runtime does not take these options, in one line; None where it does."""
    try:
        split_options(runtime, given, batch=batch)
    except InputError as error:
        return str(error)
    return None


def _beside(runtime: str) -> str:
    return "; hint and streams stand beside its name" if runtime in DEVICES else "; threads and cores are the profile's"
