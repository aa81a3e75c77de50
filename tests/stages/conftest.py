"""Tiny models and synthetic pictures, for stages that train or prune."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.data.images import ImageSet, Item
from stages.stage import Role, StageContext
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

PALETTE = np.array([[220, 40, 40], [40, 200, 60], [40, 60, 220], [210, 200, 30]], dtype=np.uint8)


@pytest.fixture
def tiny_spec() -> Callable[..., ViTSpec]:
    """tiny_spec(width=32, depth=2, classes=4, ...): 16x16 pixels, patches of 8, two heads."""

    def spec(*, width: int = 32, depth: int = 2, mlp_width: int = 64, classes: int = 4, **changes: object) -> ViTSpec:
        block = BlockSpec(
            heads=2, d_qk=width // 2, d_v=width // 2, scale=0.25, mlp_width=mlp_width, norm1_eps=1e-6, norm2_eps=1e-6
        )
        fields = {
            "architecture": "tiny",
            "preprocess": Preprocess(height=16, width=16, interpolation="bilinear"),
            "patch_size": (8, 8),
            "width": width,
            "classes": classes,
            "blocks": (block,) * depth,
        }
        return ViTSpec.model_validate({**fields, **changes})

    return spec


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Callable[..., Path]:
    """tiny_folder(spec, seed=0, name="model"): a model folder with random weights."""

    def write(spec: ViTSpec, *, seed: int = 0, name: str = "model") -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = ViT(spec.model_dump(mode="json"))
        save_model(tmp_path / name, spec, model.state_dict())
        return tmp_path / name

    return write


@pytest.fixture
def colours() -> Callable[..., ImageSet]:
    """colours(count, classes=4, labelled=True): noisy pictures of one colour each, which is their class."""

    def make(
        count: int, *, classes: int = 4, labelled: bool = True, named: bool = True, seed: int = 0, side: int = 20
    ) -> ImageSet:
        draw = np.random.default_rng(seed)
        labels = draw.permutation(np.arange(count) % classes)
        noise = draw.normal(0, 40, (count, side, side, 3))
        pixels = np.clip(PALETTE[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
        items = tuple(
            Item(f"colours/{seed}/{i:04}", f"{seed:032x}{i:032x}", int(labels[i]) if labelled else None)
            for i in range(count)
        )
        names = tuple(f"colour {i}" for i in range(classes)) if named and labelled else None
        return ImageSet(role=Role.TRAIN, items=items, places=tuple(pixels), classes=names)

    return make


@pytest.fixture
def train_context(tmp_path: Path) -> Callable[..., StageContext]:
    """train_context(input, images, source=..., name="run"): what a stage gets that reads training images."""

    def make(
        model: Path, images: ImageSet, *, source: Path | None = None, name: str = "run", seed: int = 0
    ) -> StageContext:
        output, scratch = tmp_path / name / "output", tmp_path / name / "scratch"
        for folder in (output, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        return StageContext(
            input=model,
            source=source or model,
            output=output,
            scratch=scratch,
            images={Role.TRAIN: images},
            seed=seed,
        )

    return make
