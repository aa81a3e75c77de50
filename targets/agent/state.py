"""What a board is and in what state: facts, power mode, clocks, heat, GPU, disk. In plain JSON."""

import os
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from targets.facts import ROOT, probe, read_text
from targets.jetson import read_jetson
from targets.measure.conditions import read_conditions
from targets.measure.sources.jetson import power_mode
from targets.nvidia import read_gpus

PROTOCOL = "vitrim.board/1"


def board_state(folder: Path, root: Path = ROOT) -> dict[str, Any]:
    """Look at the board now. folder: of the agent, whose disk counts."""
    jetson = read_jetson(root)
    return {
        "protocol": PROTOCOL,
        "facts": probe(root),
        "jetson": asdict(jetson) if jetson else None,
        "power_mode": power_mode(root),
        "gpus": asdict(read_gpus()),
        "conditions": read_conditions(root),
        "disk": disk_of(folder),
        "boot": boot_of(root),
        "host": platform.node(),
        "numpy": _numpy(),
    }


def disk_of(folder: Path) -> dict[str, int]:
    """Bytes of the file system that a folder is, or will be, on: free to this user, and in all."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    status = os.statvfs(there)
    return {"free_bytes": status.f_bavail * status.f_frsize, "total_bytes": shutil.disk_usage(there).total}


def boot_of(root: Path = ROOT) -> str:
    """What is another one after every start of the board."""
    return read_text(root / "proc/sys/kernel/random/boot_id")


def _numpy() -> str | None:
    try:
        return version("numpy")
    except PackageNotFoundError:
        return None
