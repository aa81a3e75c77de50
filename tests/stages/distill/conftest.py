"""A teacher whose random answers depend on the picture, and the stage as a function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.data.images import ImageSet
from stages.distill.stage import STAGE, DistillOptions
from stages.stage import StageContext
from stages.vit.files import load_spec, load_state, save_model
from stages.vit.model import ViT

SPREAD = 12.0
"""factor on a random teacher's weights that makes its answers differ between pictures"""


@pytest.fixture
def teacher(tiny_spec: Any, tmp_path: Path) -> Path:
    """A ViT whose random answers depend on the picture."""
    spec = tiny_spec()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ViT(spec.model_dump(mode="json"))
        torch.nn.init.normal_(model.head.weight, std=1.0)
        torch.nn.init.zeros_(model.head.bias)
    for block in model.blocks:
        block.mlp.fc2.weight.data *= SPREAD
    save_model(tmp_path / "teacher", spec, model.state_dict())
    return tmp_path / "teacher"


@pytest.fixture
def pruned(teacher: Path, tmp_path: Path) -> Path:
    """The teacher with half of the neurons of each MLP."""
    spec, state = load_spec(teacher), load_state(teacher)
    for index in range(len(spec.blocks)):
        prefix = f"blocks.{index}.mlp"
        state[f"{prefix}.fc1.weight"] = state[f"{prefix}.fc1.weight"][:32]
        state[f"{prefix}.fc1.bias"] = state[f"{prefix}.fc1.bias"][:32]
        state[f"{prefix}.fc2.weight"] = state[f"{prefix}.fc2.weight"][:, :32]
    smaller = spec.replace(blocks=tuple(block.replace(mlp_width=32) for block in spec.blocks))
    save_model(tmp_path / "pruned", smaller, state, labels=["a", "b", "c", "d"])
    return tmp_path / "pruned"


@pytest.fixture
def diluting(teacher: Path, tmp_path: Path) -> Path:
    """The teacher with an attention that is to fade out."""
    spec = load_spec(teacher)
    fading = spec.replace(blocks=(spec.blocks[0].replace(attention="diluting"), *spec.blocks[1:]))
    save_model(tmp_path / "diluting", fading, load_state(teacher))
    return tmp_path / "diluting"


@pytest.fixture
def run(teacher: Path, train_context: Callable[..., StageContext]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """run(options, model, images, source=..., name=..., seed=...): the output folder and the facts."""

    def distil(options: DistillOptions, model: Path, images: ImageSet, **context: Any) -> tuple[Path, dict[str, Any]]:
        prepared = train_context(model, images, **{"source": teacher, **context})
        return prepared.output, dict(STAGE.run(options, prepared).facts)

    return distil
