"""Where to look for the cause of a change: what differs between two nights, and between the layers of their engines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.nightly.record import Culprit
from pipeline.nightly.repository import SHOWN, bare, between

LAYERS = 5
"""layers that a hint names"""
GREW = 0.03
"""share of the whole time by which a layer has to have grown to be named"""
CAUSES = (
    ("driver", ("driver", "gpus", "cuda", "jetpack", "l4t")),
    ("runtime", ("tensorrt", "tensorrt_rtx", "onnxruntime", "openvino", "cudnn", "runtime")),
    ("clocks", ("governors", "turbo", "clock", "power_mode", "nvpmodel", "frequency")),
    ("system", ("kernel", "os", "python", "agent")),
)
"""kinds of causes, by words in the names of what changed"""


def hints(
    culprit: Culprit,
    *,
    good_layers: Sequence[Mapping[str, Any]] = (),
    bad_layers: Sequence[Mapping[str, Any]] = (),
    repository: Path | None = None,
) -> tuple[str, ...]:
    """Say what changed between two nights, likeliest first. layers: of the reports of their builds."""
    good, bad = culprit.last_good, culprit.first_bad
    found = [f"{_cause(one.partition(' ')[0])}: {one}" for one in culprit.environment_changes]
    found += _kernels(good_layers, bad_layers)
    found += _code(culprit, repository)
    if good.vitrim != bad.vitrim:
        found.append(f"vitrim: {good.vitrim or 'unknown'} → {bad.vitrim or 'unknown'}")
    if good.artifact and good.artifact == bad.artifact:
        found.append("board: the engine is byte for byte the same; look at clocks, heat and other work on the board")
    elif good.artifact and not found:
        found.append("build: the engine differs, and nothing else that is known: builds are not always alike")
    return tuple(found)


def _cause(name: str) -> str:
    return next((cause for cause, words in CAUSES if any(word in name.lower() for word in words)), "environment")


def _kernels(good: Sequence[Mapping[str, Any]], bad: Sequence[Mapping[str, Any]]) -> list[str]:
    """Layers that run by another kernel or in another precision, or take a larger share of the time."""
    before = {str(one["name"]): one for one in good}
    after = {str(one["name"]): one for one in bad}
    if not before or not after:
        return []
    changed = []
    for name, one in after.items():
        was = before.get(name)
        if was is None:
            continue
        parts = [
            f"{key} {was[key]} → {one[key]}" for key in ("kernel", "precision", "provider") if was[key] != one[key]
        ]
        if parts:
            changed.append((float(one["share"]), f"tactic: layer {name}: {', '.join(parts)}"))
        elif one["share"] - was["share"] > GREW:
            grew = f"tactic: layer {name} takes {one['share']:.0%} of the time, {was['share']:.0%} before"
            changed.append((float(one["share"]), grew))
    gone, new = len(before.keys() - after.keys()), len(after.keys() - before.keys())
    found = [text for _, text in sorted(changed, key=lambda pair: -pair[0])]
    more = [f"tactic: {len(found) - LAYERS} more layers changed"] if len(found) > LAYERS else []
    other = [f"tactic: {gone} layers are gone, {new} are new: the graph or its fusion changed"] if gone or new else []
    return [*found[:LAYERS], *more, *other]


def _code(culprit: Culprit, repository: Path | None) -> list[str]:
    good, bad = culprit.last_good, culprit.first_bad
    if bare(good.commit) == bare(bad.commit):
        changed = " with uncommitted changes" if bad.commit.endswith("+changes") else ""
        return [f"code: commit {bare(bad.commit)[:12]}{changed}"] if changed else []
    found = between(repository, good.commit, bad.commit) if repository else []
    if not found:
        return [f"code: commit {bare(good.commit)[:12] or 'unknown'} → {bare(bad.commit)[:12] or 'unknown'}"]
    lines = [f"code: {commit[:12]} {subject}" for commit, subject in found[-SHOWN:]]
    return [*([f"code: {len(found)} commits, the last {SHOWN} of them:"] if len(found) > SHOWN else []), *lines]
