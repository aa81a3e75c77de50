"""A small ViT as an fp32 graph and as an int8 graph, and a way to compile them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.compile.stage import CompileOptions, compile_engine
from stages.data.images import ImageSet, Item
from stages.export.stage import ExportOptions, export
from stages.quantize.stage import QuantizeOptions, quantize
from stages.stage import Role, StageContext, StageResult
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess
from targets.profile import Board, RuntimeChoice, TargetProfile

Told = list[tuple[str, float | None]]


@dataclass(frozen=True)
class Graphs:
    """The same model as two graphs, each in a folder as its stage leaves it, and pictures for it."""

    fp32: Path
    int8: Path
    int8_dynamic: Path
    int8_weights: Path
    pixels: np.ndarray
    """uint8 [N, H, W, 3]"""
    preprocess: Preprocess


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Two blocks of width 32, 16x16 pixels."""
    folder = tmp_path_factory.mktemp("graphs")
    block = BlockSpec(heads=2, d_qk=16, d_v=16, scale=0.25, mlp_width=64, norm1_eps=1e-6, norm2_eps=1e-6)
    preprocess = Preprocess(height=16, width=16, interpolation="bilinear")
    spec = ViTSpec(
        architecture="small", preprocess=preprocess, patch_size=(8, 8), width=32, classes=6, blocks=(block,) * 2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(folder / "model", spec, ViT(spec.model_dump(mode="json")).state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    items = tuple(Item(f"{i:04}", f"{i:064x}", None) for i in range(len(pixels)))
    images = ImageSet(role=Role.FIT, items=items, places=tuple(pixels))

    def context(source: Path, name: str) -> StageContext:
        for one in (name, f"{name}-scratch"):
            (folder / one).mkdir()
        return StageContext(
            input=source,
            source=folder / "model",
            output=folder / name,
            scratch=folder / f"{name}-scratch",
            images={Role.FIT: images, Role.SELECT: images},
        )

    export(ExportOptions(), context(folder / "model", "fp32"))
    quantize(QuantizeOptions(alphas=("off",), images=16, select_images=16), context(folder / "fp32", "int8"))
    for precision in ("int8_dynamic", "int8_weights"):
        quantize(QuantizeOptions(precision=precision, select_images=16), context(folder / "fp32", precision))
    made = {name: folder / name for name in ("fp32", "int8", "int8_dynamic", "int8_weights")}
    return Graphs(**made, pixels=pixels, preprocess=preprocess)


@pytest.fixture(scope="session")
def make_target() -> Callable[..., TargetProfile]:
    """make_target(batch=..., threads=..., ...): a target with both runtimes of a CPU."""

    def make(**changes: Any) -> TargetProfile:
        fields: dict[str, Any] = {
            "name": "small",
            "summary": "a CPU",
            "board": Board(kind="cpu", description="any"),
            "runtimes": (
                RuntimeChoice(name="onnxruntime", precisions=("fp32", "int8", "int8_dynamic", "int8_weights")),
                RuntimeChoice(name="openvino", precisions=("fp32", "bf16", "int8", "int8_weights")),
            ),
            "batch": 3,
            "verified": "not yet",
            "threads": 1,
        }
        return TargetProfile.model_validate({**fields, **changes})

    return make


@pytest.fixture(scope="session")
def run_compile(make_target: Callable[..., TargetProfile]) -> Callable[..., tuple[StageResult, Told]]:
    """run_compile(graph folder, output folder, options..., target=...): the stage as the runner calls it."""

    def run(
        graph: Path, output: Path, *, target: TargetProfile | None = None, **options: Any
    ) -> tuple[StageResult, Told]:
        output.mkdir(parents=True, exist_ok=True)
        told: Told = []
        context = StageContext(
            input=graph,
            source=graph,
            output=output,
            scratch=output,
            images={},
            profile=target or make_target(),
            tell=lambda message, share: told.append((message, share)),
        )
        return compile_engine(CompileOptions(**options), context), told

    return run
