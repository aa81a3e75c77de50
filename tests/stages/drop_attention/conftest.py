"""Small random models of many kinds, and pictures for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.stage import Role
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

DEPTH = 4
MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Build a model of four blocks with random weights that all matter, and its spec: make(layer_scale=True, ...)."""

    def make(*, seed: int = 0, **changes: Any) -> tuple[ViT, ViTSpec]:
        block = BlockSpec(heads=2, d_qk=8, d_v=8, scale=8**-0.5, mlp_width=24, norm1_eps=1e-6, norm2_eps=1e-6)
        spec = ViTSpec.model_validate(
            {
                "architecture": "small",
                "preprocess": Preprocess(height=32, width=32),
                "patch_size": (8, 8),
                "width": 16,
                "classes": 5,
                "blocks": (block,) * DEPTH,
                **changes,
            }
        )
        model = ViT(spec.model_dump(mode="json"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
                offset = 0.0 if parameter.ndim > 1 else 0.7
                parameter.copy_(offset + spread * torch.randn(parameter.shape, generator=generator))
        return model.eval(), spec

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Tensor]:
    """Batches of 120 inputs, [B, 3, 32, 32]."""
    images = torch.randn(120, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    return list(images.split(50))


@pytest.fixture(scope="session")
def image_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, ImageSet]:
    """40 pictures each for fit and select, in folders, opened as the pipeline does."""
    random = np.random.default_rng(0)
    found = {}
    for role in (Role.FIT, Role.SELECT):
        folder: Path = tmp_path_factory.mktemp(role.value)
        for index in range(40):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 36)).save(folder / f"{index:03}.png")
        found[role] = open_images(DataSource(images=folder), role, index_cache=None)
    return found
