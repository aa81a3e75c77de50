"""A pruned model goes through export: ONNX Runtime answers as torch does, whatever the shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.export.stage import ExportOptions, export
from stages.prune_attention.options import PruneAttentionOptions
from stages.prune_attention.prune import prune
from stages.stage import StageContext
from stages.vit.files import load_model, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.worker import Worker

MakeModel = Callable[..., tuple[ViT, ViTSpec]]


@pytest.mark.parametrize(
    "shapes",
    [
        [(3, 4, 4), (3, 8, 8), (3, 8, 5)],
        [(1, 3, 6), (2, 8, 1), (1, 1, 8)],
    ],
    ids=["widths of their own", "one head, odd widths"],
)
def test_onnx_runtime_answers_as_torch_does(
    shapes: list[tuple[int, int, int]], make_model: MakeModel, pictures: list[Tensor], tmp_path: Path
) -> None:
    model, spec = make_model(proj_bias=False)
    asked: list[dict[str, Any]] = [{"heads": h, "d_qk": q, "d_v": v} for h, q, v in shapes]
    pruned, pruned_spec, _ = prune(model, spec, PruneAttentionOptions.model_validate({"shapes": asked}), pictures)
    save_model(tmp_path / "model", pruned_spec, pruned.state_dict())
    images = pictures[0][:5]
    with torch.no_grad():
        expected = load_model(tmp_path / "model")(images).numpy()

    (tmp_path / "graph").mkdir()
    folder = tmp_path / "model"
    context = StageContext(input=folder, source=folder, output=tmp_path / "graph", scratch=tmp_path, images={})
    export(ExportOptions(), context)

    with Worker(threads=1) as worker:
        worker.load(tmp_path / "graph" / "model.onnx", runtime="onnxruntime")
        found = worker.infer(images.numpy(), batch=5)
    assert float(np.abs(found["logits"] - expected).max()) < 1e-4 * float(np.abs(expected).max())
