"""What every result file says about the machine and the code it was measured with."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    *("torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "numpy"),
    *("tensorrt", "tensorrt-rtx"),
)


def assets() -> Path:
    """The folder with real weights and images; ends the script where there is none."""
    folder = Path(os.environ.get("VITRIM_ASSETS") or ROOT.parent / "shared" / "assets")
    if not (folder / "vit_tiny_patch16_224").is_dir():
        raise SystemExit(f"no assets at {folder}: set VITRIM_ASSETS to a folder with real weights and images")
    return folder


def conditions() -> dict[str, Any]:
    """Machine, versions, commit and time."""
    from targets.facts import probe

    facts = probe()
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "versions": found,
        "cpu": facts["cpu_model"],
        "cores": facts["cores"],
        "instruction_sets": facts["instruction_sets"],
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def _git(*arguments: str) -> str:
    """What git says of this checkout; empty in a copy without its history and where there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def write_result(name: str, data: dict[str, Any]) -> Path:
    """Write one result file, with its conditions first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"script": f"benchmarks/{name}.py", "conditions": conditions(), **data}, indent=1) + "\n"
    )
    return path
