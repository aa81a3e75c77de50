"""A small ViT that knows the digits and whose activations have outliers, as those of real ones do, and the stage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.export.stage import ExportOptions, export
from stages.finetune.stage import FinetuneOptions, finetune
from stages.quantize.stage import QuantizeOptions, quantize
from stages.quantize_aware.stage import QuantizeAwareOptions, quantize_aware
from stages.stage import Role, StageContext, StageResult
from stages.vit.files import load_labels, load_state, save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

OUTLIER = 40.0
"""how much larger two channels are than the others; real ViTs have such channels behind their norms"""
SHARES = {Role.FIT: (0, 0.1), Role.TRAIN: (0.1, 0.5), Role.SELECT: (0.5, 1)}


@dataclass
class Ran:
    """A stage that ran: its folders and what it found."""

    context: StageContext
    result: StageResult

    @property
    def graph(self) -> Path:
        """What it made."""
        return self.context.output / "model.onnx"


@pytest.fixture(scope="session")
def spec() -> ViTSpec:
    """16x16 pixels, patches of 4, two blocks of width 32, with LayerScale."""
    block = BlockSpec(heads=2, d_qk=16, d_v=16, scale=0.25, mlp_width=64, norm1_eps=1e-6, norm2_eps=1e-6)
    return ViTSpec.model_validate(
        {
            "architecture": "small",
            "preprocess": Preprocess(height=16, width=16, interpolation="bilinear"),
            "patch_size": (4, 4),
            "width": 32,
            "classes": 10,
            "layer_scale": True,
            "blocks": (block,) * 2,
        }
    )


@pytest.fixture(scope="session")
def digits() -> dict[Role, ImageSet]:
    """Handwritten digits by role; no two share an image."""
    return {
        role: open_images(DataSource.model_validate({"dataset": "digits", "share": share}), role, index_cache=None)
        for role, share in SHARES.items()
    }


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, spec: ViTSpec, digits: dict[Role, ImageSet]) -> Path:
    """The model's folder, trained for some seconds; then two channels behind every norm grow, its function the same."""
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random = ViT(spec.model_dump(mode="json")).state_dict()
    save_model(folder / "random", spec, random, labels=[str(digit) for digit in range(10)])
    options = FinetuneOptions(epochs=15, batch_size=32, from_scratch=True, flip=False, lr=3e-3, precision="fp32")
    finetune(options, _context(folder / "random", folder / "trained", {Role.TRAIN: digits[Role.TRAIN]}))
    state = load_state(folder / "trained" / "output")
    for block in range(len(spec.blocks)):
        for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            state[f"blocks.{block}.{norm}.weight"][:2] *= OUTLIER
            state[f"blocks.{block}.{norm}.bias"][:2] *= OUTLIER
            state[f"blocks.{block}.{linear}.weight"][:, :2] /= OUTLIER
    save_model(folder / "grown", spec, state, labels=load_labels(folder / "trained" / "output"))
    return folder / "grown"


@pytest.fixture(scope="session")
def run(model: Path, digits: dict[Role, ImageSet]) -> Callable[..., Ran]:
    """run(working folder, options..., model=, images=, tell=): the stage as the runner calls it."""
    usual = model

    def call(
        folder: Path, *, model: Path = usual, images: dict[Role, ImageSet] = digits, tell: Any = None, **options: Any
    ) -> Ran:
        told = {"images_seen": 64, "batch_size": 16, "flip": False, "crop_scale": (0.8, 1), "images": 64, **options}
        context = _context(model, folder, images, tell=tell)
        return Ran(context, quantize_aware(QuantizeAwareOptions(**told), context))

    return call


@pytest.fixture(scope="session")
def run_untrained(model: Path, digits: dict[Role, ImageSet]) -> Callable[..., Ran]:
    """run_untrained(working folder, options...): export and quantize, with the same images."""

    def call(folder: Path, **options: Any) -> Ran:
        exported = _context(model, folder / "export", {})
        export(ExportOptions(), exported)
        context = _context(exported.output, folder, {role: digits[role] for role in (Role.FIT, Role.SELECT)})
        return Ran(context, quantize(QuantizeOptions(images=64, **options), context))

    return call


def _context(model: Path, folder: Path, images: dict[Role, ImageSet], *, tell: Any = None) -> StageContext:
    for name in ("output", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return StageContext(
        input=model,
        source=model,
        output=folder / "output",
        scratch=folder / "scratch",
        images=images,
        tell=tell or (lambda message, share: None),
    )
