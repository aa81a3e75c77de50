"""Small models for the tests of the model layer."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

MakeSpec = Callable[..., ViTSpec]


def randomize(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters: no gain of one, no bias of zero, no LayerScale of 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            offset = 0.0 if parameter.ndim > 1 else 0.5
            parameter.copy_(offset + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """One torch thread: the models are so small that waiting for a second one takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="randomize")
def randomize_fixture() -> Callable[..., nn.Module]:
    """The function above."""
    return randomize


@pytest.fixture
def make_spec() -> MakeSpec:
    """Build a spec: two blocks, four patches, everything else by keyword; `block` changes all blocks."""

    def make(*, block: dict[str, Any] | None = None, **changes: Any) -> ViTSpec:
        one = {
            "heads": 2,
            "d_qk": 8,
            "d_v": 8,
            "scale": 8**-0.5,
            "mlp_width": 24,
            "norm1_eps": 1e-6,
            "norm2_eps": 1e-6,
            **(block or {}),
        }
        return ViTSpec.model_validate(
            {
                "architecture": "small",
                "preprocess": Preprocess(height=16, width=16),
                "patch_size": (8, 8),
                "width": 16,
                "classes": 5,
                "blocks": (BlockSpec.model_validate(one),) * 2,
                **changes,
            }
        )

    return make


@pytest.fixture
def make_model() -> Callable[[ViTSpec], ViT]:
    """Build the module of a spec with random weights."""

    def make(spec: ViTSpec, *, seed: int = 0) -> ViT:
        model = ViT(spec.model_dump(mode="json"))
        randomize(model, seed=seed)
        return model

    return make


@pytest.fixture
def tiny_timm() -> Callable[..., VisionTransformer]:
    """Build timm's VisionTransformer: depth 2, width 32, 16 patches, random weights; everything else by keyword."""

    def make(**changes: Any) -> VisionTransformer:
        arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
        model = VisionTransformer(**{**arguments, **changes})
        randomize(model)
        return model

    return make
