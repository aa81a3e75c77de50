"""What every result file says about the machine and the code it was measured with."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    *("torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "numpy"),
    *("tensorrt", "tensorrt-rtx"),
)

STAMP = ("measured_at", "commit", "uncommitted_changes", "cpu", "cores", "instruction_sets")
"""what a row says that was measured apart from others"""


def assets() -> Path:
    """The folder with real weights and images; ends the script where there is none."""
    folder = Path(os.environ.get("VITRIM_ASSETS") or ROOT.parent / "shared" / "assets")
    if not (folder / "vit_tiny_patch16_224").is_dir():
        raise SystemExit(f"no assets at {folder}: set VITRIM_ASSETS to a folder with real weights and images")
    return folder


def conditions() -> dict[str, Any]:
    """Machine, versions, commit and time."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        **measured_with(),
        "python": platform.python_version(),
        "versions": found,
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def measured_with() -> dict[str, Any]:
    """Time, commit and processor, for a whole file or, where it is measured in parts, for a row.

    Changes to result files alone do not count as changes of the code.
    """
    from targets.facts import probe

    facts = probe()
    changed = _git("status", "--porcelain", "--", ".", f":(exclude){RESULTS.relative_to(ROOT)}")
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(changed),
        "cpu": facts["cpu_model"],
        "cores": facts["cores"],
        "instruction_sets": facts["instruction_sets"],
    }


def _git(*arguments: str) -> str:
    """What git says of this checkout; empty in a copy without its history and where there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def read_result(name: str) -> dict[str, Any]:
    """What a result file says, each row with what it was measured with; empty where there is none."""
    path = RESULTS / f"{name}.json"
    data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if data:
        stamp = {key: one for key, one in data["conditions"].items() if key in STAMP}
        data["rows"] = [stamp | row for row in data["rows"]]
    return data


def add_resume(parser: "argparse.ArgumentParser") -> None:
    """Offer --resume."""
    parser.add_argument(
        "--resume", action="store_true", help="keep what the result file has, measure what is missing in it"
    )


def write_result(name: str, data: dict[str, Any]) -> Path:
    """Write one result file, with its conditions first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"script": f"benchmarks/{name}.py", "conditions": conditions(), **data}, indent=1) + "\n"
    )
    return path
