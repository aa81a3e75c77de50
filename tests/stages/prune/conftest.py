"""Small models with random weights that all matter, and inputs for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.vit.model import ViT
from stages.vit.spec import ViTSpec

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.fixture
def make_model(tiny_spec: Callable[..., ViTSpec]) -> MakeModel:
    """make_model(depth=3, layer_scale=True, ...): a model and its spec."""

    def make(**changes: Any) -> tuple[ViT, ViTSpec]:
        spec = tiny_spec(**{"depth": 3, "width": 24, "mlp_width": 32, **changes})
        model = ViT(spec.model_dump(mode="json"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
                offset = 0.0 if parameter.ndim > 1 else 0.7
                parameter.copy_(offset + spread * torch.randn(parameter.shape, generator=generator))
        return model.eval(), spec

    return make


@pytest.fixture
def pictures() -> list[Tensor]:
    """Batches of 90 inputs, [B, 3, 16, 16]: five tokens each."""
    return list(torch.randn(90, 3, 16, 16, generator=torch.Generator().manual_seed(7)).split(30))
