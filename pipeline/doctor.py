"""Doctor: what this machine has, what it lacks for a target, and the remedy for each."""

import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pipeline.keys import ROOT

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    found: str
    remedy: str = ""


def examine(target: str | None = None, *, store_root: Path) -> list[Finding]:
    """Look at Python, packages, providers, disk and memory, and at what a target needs."""
    from targets.facts import probe
    from targets.profile import load_profile, usable_runtimes

    facts = probe()
    findings = [_python(), *_packages(), _own_packages(), _ort_twins(), _disk(store_root), _memory(facts)]
    profile = load_profile(target or "cpu")
    for choice, reason in usable_runtimes(profile):
        findings.append(
            Finding(
                what=f"{profile.name}: {choice.name}",
                state="ok" if reason is None else "warning",
                found=reason or f"{_installed(_DISTRIBUTIONS.get(choice.name, choice.name))} usable",
                remedy="" if reason is None else _REMEDIES.get(choice.name, ""),
            )
        )
    return findings


_DISTRIBUTIONS = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
_REMEDIES = {
    "onnxruntime": 'pip install "vitrim[cpu]"',
    "openvino": 'pip install "vitrim[openvino]"',
}
_NEEDED = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "nncf",
    "numpy",
    "pillow",
    "safetensors",
    "scikit-learn",
)


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding(
        what="python", state="ok" if good else "missing", found=text, remedy="" if good else "use Python 3.11 or newer"
    )


def _packages() -> list[Finding]:
    found = []
    for name in _NEEDED:
        installed = _installed(name)
        remedy = 'pip install "vitrim[cpu]"' if installed == "absent" else ""
        found.append(Finding(what=name, state="missing" if remedy else "ok", found=installed, remedy=remedy))
    return found


def _own_packages() -> Finding:
    foreign = [
        f"{name} is imported from {spec.origin}"
        for name in ("pipeline", "stages", "targets")
        if (spec := find_spec(name)) and spec.origin and Path(spec.origin).parent != ROOT / name
    ]
    return Finding(
        what="packages of vitrim",
        state="missing" if foreign else "ok",
        found="; ".join(foreign) or "not hidden by others",
        remedy="uninstall the package that has the same name" if foreign else "",
    )


def _ort_twins() -> Finding:
    names = [
        name for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino") if _installed(name) != "absent"
    ]
    if len(names) > 1:
        return Finding(
            what="onnxruntime packages",
            state="missing",
            found=f"{' and '.join(names)} overwrite each other's files",
            remedy=f"pip uninstall {' '.join(names)}, then install one extra: cpu or cuda",
        )
    return Finding(
        what="onnxruntime packages",
        state="ok" if names else "missing",
        found=", ".join(names) or "none",
        remedy="" if names else 'pip install "vitrim[cpu]"',
    )


def _disk(root: Path) -> Finding:
    folder = root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    return Finding(
        what="disk for the store",
        state="ok" if free > 5 else "warning",
        found=f"{free:.1f} GiB free at {root}",
        remedy="" if free > 5 else "`vitrim store gc` frees what is not used, or set VITRIM_STORE to another disk",
    )


def _memory(facts: dict[str, object]) -> Finding:
    size = facts.get("memory_bytes")
    gib = float(size) / 2**30 if isinstance(size, int | float) else 0.0
    return Finding(
        what="memory",
        state="ok" if gib >= 4 else "warning",
        found=f"{gib:.1f} GiB, {facts.get('cores', '?')} cores",
        remedy="" if gib >= 4 else "ViT-B needs about 4 GiB; use fewer calibration images",
    )


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
