"""Model folders whose every weight matters, and a way to export them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.export.stage import ExportOptions, export
from stages.stage import StageContext, StageResult
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec


@pytest.fixture(scope="session")
def write_model() -> Callable[[Path, ViTSpec], Path]:
    """write_model(folder, spec): random weights, no gain of one, no bias of zero."""

    def write(folder: Path, spec: ViTSpec, *, seed: int = 0) -> Path:
        draw = torch.Generator().manual_seed(seed)
        state = {
            name: (0.2 * torch.randn(tensor.shape, generator=draw) + (0.8 if tensor.ndim == 1 else 0.0))
            for name, tensor in ViT(spec.model_dump(mode="json")).state_dict().items()
        }
        save_model(folder, spec, state, labels=[f"class {i}" for i in range(spec.classes)] if spec.classes else None)
        return folder

    return write


@pytest.fixture(scope="session")
def run_export() -> Callable[..., StageResult]:
    """run_export(model folder, output folder, opset=..., ...): the stage as the runner calls it."""

    def run(model: Path, output: Path, **options: Any) -> StageResult:
        output.mkdir(parents=True, exist_ok=True)
        context = StageContext(input=model, source=model, output=output, scratch=output, images={})
        return export(ExportOptions(**options), context)

    return run
