"""How the engine of a bundle is built once more: for another batch size, or on the board that it is for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from targets.bundle.write import BUILT
from targets.profile import TargetProfile
from targets.runtimes.engine import ENGINE_FILE
from targets.runtimes.intel.options import DEVICES
from targets.runtimes.own import BATCHES, own_table, split_options

SAME = ("hint", "streams")
"""options of a runtime that stand beside its name"""
PLACED = ("cores", "threads")
"""where and by how many threads an engine runs, of those that hold at every load"""


@dataclass(frozen=True)
class Again:
    """Beside runtime, precision and batch."""

    threads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """of the build, that the runtime alone has"""
    at_load: dict[str, Any] = field(default_factory=dict)
    """options that hold at every load"""


def build_again(bundle: Path, manifest: Mapping[str, Any], *, batch: int | None = None) -> Again:
    """As the bundle's engine was built, also one that a package left out; else as the profile in target.json says.

    batch: images per query, where it is not the bundle's own.
    """
    target = bundle / "target.json"
    for built in (bundle / "engine" / ENGINE_FILE, bundle / BUILT):
        if built.is_file():
            return _as_engine(json.loads(built.read_text()))
    if target.is_file():
        return _as_profile(TargetProfile.model_validate_json(target.read_text()), manifest, batch)
    return Again()


def _as_engine(engine: Mapping[str, Any]) -> Again:
    options, own = engine["options"], [one for one in own_table(engine["runtime"]) if one not in BATCHES]
    return Again(
        threads=options.get("threads"),
        options={name: options[name] for name in (*SAME, *own) if options.get(name) is not None},
        at_load={name: one for name, one in engine.get("at_load", {}).items() if name in (*own, *PLACED)},
    )


def _as_profile(profile: TargetProfile, manifest: Mapping[str, Any], batch: int | None) -> Again:
    choice = next((one for one in profile.runtimes if one.name == manifest["runtime"]), None)
    if choice is None:
        return Again(threads=profile.threads, at_load={"threads": profile.threads} if profile.threads else {})
    own = split_options(choice.name, choice.options, batch=int(manifest["batch"]))
    other = batch not in (None, int(manifest["batch"]))
    build = {name: one for name, one in own.build.items() if not (other and name in BATCHES)}
    beside = {"hint": choice.hint, "streams": choice.streams} if choice.name in DEVICES else {}
    return Again(
        threads=profile.threads,
        options={**build, **{name: one for name, one in beside.items() if one is not None}},
        at_load={
            **own.load,
            **({"cores": list(profile.cores)} if profile.cores else {}),
            **({"threads": profile.threads} if profile.threads else {}),
        },
    )
