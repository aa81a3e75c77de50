"""ONNX graphs of tiny Vision Transformers with random weights, in the precisions that TensorRT runs.

The graphs come from vitrim's own export and its own quantize stage, whose ranges are those of two pictures.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.images import ImageSet, Item
from stages.quantize.stage import QuantizeOptions, quantize
from stages.stage import Role, StageContext

SIDE = 32
NORMS = {"norm1_eps": 1e-6, "norm2_eps": 1e-6}
WHOLE: dict[str, Any] = {"heads": 4, "d_qk": 16, "d_v": 16, "scale": 0.25, "mlp_width": 128, **NORMS}
PRUNED: tuple[dict[str, Any], ...] = (
    {**WHOLE, "d_qk": 8, "d_v": 24, "mlp_width": 96},
    {**WHOLE, "heads": 1, "d_qk": 5, "d_v": 12, "mlp_width": 17},
    {**WHOLE, "heads": 0, "d_qk": 0, "d_v": 0, "attention": "off", "mlp_width": 48},
    {**WHOLE, "mlp": False, "mlp_width": 0},
)


def export_vit(folder: Path, blocks: Sequence[dict[str, Any]] = (WHOLE, WHOLE), *, opset: int = 20) -> Path:
    """Export a ViT of width 64 on 32 x 32 pixels with random weights; the batch is dynamic."""
    import torch

    from stages.export.stage import ExportOptions, export
    from stages.vit.files import save_model
    from stages.vit.model import ViT
    from stages.vit.spec import ViTSpec

    spec = ViTSpec.model_validate(
        {
            "architecture": "tiny",
            "preprocess": {"height": SIDE, "width": SIDE},
            "patch_size": (8, 8),
            "width": 64,
            "classes": 10,
            "blocks": tuple(blocks),
        }
    )
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as model:
        torch.manual_seed(0)
        save_model(Path(model), spec, ViT(spec.model_dump(mode="json")).state_dict())
        context = StageContext(input=Path(model), source=Path(model), output=folder, scratch=folder, images={})
        export(ExportOptions(opset=opset), context)
    return folder / "model.onnx"


def save_as(source: Path, path: Path, precision: str, **options: Any) -> Path:
    """Save an exported graph in another precision, as the quantize stage makes it for TensorRT or otherwise told."""
    for_tensorrt = {"int8": {"symmetric": True, "rest": "float16"}, "fp8": {"rest": "float16"}}.get(precision, {})
    told = QuantizeOptions(precision=precision, **{**for_tensorrt, **options}).quickly()  # type: ignore[arg-type]
    images = {role: pictures(role) for role in (Role.FIT, Role.SELECT)}
    with tempfile.TemporaryDirectory() as folder:
        output, scratch = Path(folder, "output"), Path(folder, "scratch")
        output.mkdir()
        scratch.mkdir()
        quantize(
            told, StageContext(input=source.parent, source=source.parent, output=output, scratch=scratch, images=images)
        )
        shutil.copyfile(output / "model.onnx", path)
    return path


def pictures(role: Role) -> ImageSet:
    """Two pictures of noise, no two roles the same."""
    draw = np.random.default_rng(list(Role).index(role))
    pixels = draw.uniform(0, 255, (2, SIDE, SIDE, 3)).astype(np.uint8)
    items = tuple(Item(f"{role}/{i}", f"{list(Role).index(role):032x}{i:032x}", None) for i in range(len(pixels)))
    return ImageSet(role=role, items=items, places=tuple(pixels))
