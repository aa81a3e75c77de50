"""Small random models of every kind of attention, and pictures for them."""

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

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Build a model of three blocks with random weights that all matter, and its spec: make(qkv_bias=False, ...)."""

    def make(*, heads: int = 3, d_qk: int = 8, d_v: int = 8, seed: int = 0, **changes: Any) -> tuple[ViT, ViTSpec]:
        block = BlockSpec(heads=heads, d_qk=d_qk, d_v=d_v, scale=8**-0.5, mlp_width=16, norm1_eps=1e-6, norm2_eps=1e-6)
        spec = ViTSpec.model_validate(
            {
                "architecture": "small",
                "preprocess": Preprocess(height=32, width=32),
                "patch_size": (8, 8),
                "width": 24,
                "classes": 5,
                "blocks": (block,) * 3,
                **changes,
            }
        )
        model = ViT(spec.model_dump(mode="json"))
        generator = torch.Generator().manual_seed(seed)
        if spec.rope:
            for one in model.blocks:
                half = one.attn.rope.shape[-1] // 2
                angles = 2 * torch.pi * torch.rand(*one.attn.rope.shape[1:3], half, generator=generator)
                one.attn.rope = torch.stack([angles.sin(), angles.cos()]).repeat(1, 1, 1, 2)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
                offset = 0.0 if parameter.ndim > 1 else 0.7
                parameter.copy_(offset + spread * torch.randn(parameter.shape, generator=generator))
        return model.eval(), spec

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Tensor]:
    """Batches of 60 inputs, [B, 3, 32, 32]."""
    images = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    return list(images.split(25))


@pytest.fixture(scope="session")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 pictures in a folder, opened as the pipeline does."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for index in range(40):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 36)).save(folder / f"{index:03}.png")
    return open_images(DataSource(images=folder), Role.FIT, index_cache=None)
