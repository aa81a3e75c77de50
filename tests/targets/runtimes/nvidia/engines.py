"""Engines of the fakes, made and loaded as the agent does it."""

from pathlib import Path
from typing import Any

from tiny_graphs import save_fp32

from targets.runtimes import tensorrt_gpu, tensorrt_rtx_gpu
from targets.runtimes.engine import write_engine
from targets.runtimes.nvidia.session import GpuSession

MODULES = {"tensorrt": tensorrt_gpu, "tensorrt_rtx": tensorrt_rtx_gpu}


def make_engine(folder: Path, runtime: str = "tensorrt", **options: Any) -> Path:
    """Build an engine of tiny_graphs' fp32 graph; returns the path of its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"precision": "fp32", "batch": 4, "threads": 1, **options}
    model = save_fp32(folder.parent / "graph.onnx")
    made = MODULES[runtime].build(model, folder, asked)
    facts = {"runtime": runtime, "version": MODULES[runtime].version(), "precision": "fp32", "batch": 4}
    write_engine(folder, options=asked, **facts, **made)
    return folder / made["files"][0]


def open_engine(plan: Path, runtime: str = "tensorrt", **options: Any) -> GpuSession:
    return MODULES[runtime].load(plan, {"threads": 1, "optimized": True, "batch": None, **options})
