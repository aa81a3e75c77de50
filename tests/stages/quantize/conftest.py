"""A small ViT whose activations have outliers, as those of real ones do, its fp32 graph, and pictures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.data.images import ImageSet, Item
from stages.export.stage import ExportOptions, export
from stages.quantize.stage import QuantizeOptions, quantize
from stages.stage import Role, StageContext, StageResult
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

CLASSES = 6
OUTLIER = 60.0
"""how much larger two channels are than the others; real ViTs have such channels behind their norms"""


@dataclass
class Ran:
    """A stage that ran: its folders, what it found and what it told."""

    context: StageContext
    result: StageResult
    told: list[tuple[str, float | None]] = field(default_factory=list)


@pytest.fixture(scope="session")
def spec() -> ViTSpec:
    """16x16 pixels, patches of 8, two blocks of width 32."""
    block = BlockSpec(heads=2, d_qk=16, d_v=16, scale=0.25, mlp_width=64, norm1_eps=1e-6, norm2_eps=1e-6)
    return ViTSpec.model_validate(
        {
            "architecture": "small",
            "preprocess": Preprocess(height=16, width=16, interpolation="bilinear"),
            "patch_size": (8, 8),
            "width": 32,
            "classes": CLASSES,
            "blocks": (block,) * 2,
        }
    )


@pytest.fixture(scope="session")
def write_graph(spec: ViTSpec) -> Callable[..., Path]:
    """write_graph(folder, spec=..., batch=..., ...): a folder as the export stage leaves it."""
    usual = spec

    def write(folder: Path, *, spec: ViTSpec = usual, **options: Any) -> Path:
        draw = torch.Generator().manual_seed(0)
        state = {
            name: torch.randn(tensor.shape, generator=draw) * (tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.3)
            + (1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) else 0.0)
            for name, tensor in ViT(spec.model_dump(mode="json")).state_dict().items()
        }
        state["head.weight"] *= 5
        for block in range(len(spec.blocks)):  # the same function, with outliers in two channels
            for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
                state[f"blocks.{block}.{norm}.weight"][:2] *= OUTLIER
                state[f"blocks.{block}.{norm}.bias"][:2] *= OUTLIER
                state[f"blocks.{block}.{linear}.weight"][:, :2] /= OUTLIER
        save_model(folder / "model", spec, state, labels=[f"class {i}" for i in range(CLASSES)])
        (folder / "graph").mkdir()
        export(
            ExportOptions(**options),
            StageContext(
                input=folder / "model",
                source=folder / "model",
                output=folder / "graph",
                scratch=folder,
                images={},
            ),
        )
        return folder / "graph"

    return write


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory, write_graph: Callable[..., Path]) -> Path:
    """The fp32 graph's folder."""
    return write_graph(tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="session")
def make_pictures() -> Callable[..., ImageSet]:
    """make_pictures(role, count, seed=...): noise over a colour, held in memory."""
    return _pictures


def _pictures(role: Role, count: int, *, seed: int) -> ImageSet:
    draw = np.random.default_rng(seed)
    pixels = draw.uniform(0, 255, (count, 1, 1, 3)) + draw.normal(0, 20, (count, 16, 16, 3))
    items = tuple(Item(f"{role}/{i:04}", f"{seed:032x}{i:032x}", None) for i in range(count))
    return ImageSet(role=role, items=items, places=tuple(pixels.clip(0, 255).astype(np.uint8)))


@pytest.fixture(scope="session")
def run_quantize() -> Callable[..., Ran]:
    """run_quantize(graph folder, working folder, options..., fit=, select=): the stage as the runner calls it."""

    def run(graph: Path, folder: Path, *, fit: int = 64, select: int = 512, **options: Any) -> Ran:
        told: list[tuple[str, float | None]] = []
        for name in ("output", "scratch"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        context = StageContext(
            input=graph,
            source=graph.parent / "model",
            output=folder / "output",
            scratch=folder / "scratch",
            images={Role.FIT: _pictures(Role.FIT, fit, seed=1), Role.SELECT: _pictures(Role.SELECT, select, seed=2)},
            tell=lambda message, share: told.append((message, share)),
        )
        return Ran(context, quantize(QuantizeOptions(**options), context), told)

    return run


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory, graph: Path, run_quantize: Callable[..., Ran]) -> Ran:
    """The graph quantized with three alphas to choose from; its scratch folder still holds the candidates."""
    return run_quantize(graph, tmp_path_factory.mktemp("int8"), alphas=("off", 0.5, 0.95), images=48)


@pytest.fixture(scope="session")
def fp8(graph: Path, run_quantize: Callable[..., Ran], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The small graph in fp8, with the cost of every layer."""
    return run_quantize(graph, tmp_path_factory.mktemp("fp8"), precision="fp8", images=16, sensitivity=True)
