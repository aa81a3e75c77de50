"""Python, the packages of vitrim and of its runtimes."""

import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.doctor.finding import Finding, fix, good, warning
from pipeline.doctor.openvino import examine_openvino
from pipeline.doctor.sources import Sources
from pipeline.keys import ROOT
from targets.profile import TargetProfile

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
_TWINS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


def examine_software(profile: TargetProfile, sources: Sources) -> list[Finding]:
    """Look at what Python can import, whether ONNX Runtime's providers work, and which devices OpenVINO has."""
    wants_ort = any(choice.name.startswith("onnxruntime") for choice in profile.runtimes)
    return [
        _python(),
        *(_package(name, sources) for name in _NEEDED),
        _own_packages(),
        _twins(sources, needed=wants_ort),
        *_providers(sources),
        *examine_openvino(profile, sources),
    ]


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    return good("python", text) if sys.version_info >= (3, 11) else fix("python", text, "use Python 3.11 or newer")


def _package(name: str, sources: Sources) -> Finding:
    installed = sources.package(name)
    return fix(name, "absent", 'pip install "vitrim[cpu]"') if installed is None else good(name, installed)


def _own_packages() -> Finding:
    foreign = [
        f"{name} is imported from {spec.origin}"
        for name in ("pipeline", "stages", "targets")
        if (spec := find_spec(name)) and spec.origin and Path(spec.origin).parent != ROOT / name
    ]
    if foreign:
        return fix("packages of vitrim", "; ".join(foreign), "uninstall the package that has the same name")
    return good("packages of vitrim", "not hidden by others")


def _twins(sources: Sources, *, needed: bool) -> Finding:
    names = [name for name in _TWINS if sources.package(name) is not None]
    if len(names) > 1:
        return fix(
            "onnxruntime packages",
            f"{' and '.join(names)} overwrite each other's files",
            f"pip uninstall {' '.join(names)}, then install one extra: cpu or cuda",
        )
    if not names:
        say = fix if needed else warning
        return say("onnxruntime packages", "none", 'pip install "vitrim[cpu]"')
    return good("onnxruntime packages", names[0])


def _providers(sources: Sources) -> list[Finding]:
    """Those that are listed and cannot be used would be taken for granted."""
    found = []
    for name, reason in sources.providers().items():
        what = name.removesuffix("ExecutionProvider") + " provider"
        if reason is None:
            found.append(good(what, "a tiny graph runs on it"))
        elif name == "CPUExecutionProvider":
            found.append(fix(what, f"listed, but cannot be used: {reason}", "install onnxruntime anew"))
        else:
            remedy = "install what it needs (driver, CUDA, cuDNN, TensorRT); until then ONNX Runtime falls back to CPU"
            found.append(warning(what, f"listed, but cannot be used: {reason}", remedy))
    return found
