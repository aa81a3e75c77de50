"""What an accident is, where it is staged, and what vitrim said to it: the parts that `accidents.py` is made of."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.conditions import ROOT
from stages.data.images import ImageSet, open_images
from stages.data.source import DataSource
from stages.export.stage import ExportOptions, export
from stages.quantize.stage import QuantizeOptions, quantize
from stages.stage import Role, StageContext, StageResult
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import VitrimError
from targets.preprocess import Preprocess

SIDE, CLASSES = 16, 10
SHARES = {"fit": (0.0, 0.3), "train": (0.0, 0.3), "select": (0.3, 0.5), "evaluate": (0.5, 1.0)}
TRAINED = {"finetune": {"epochs": 40, "batch_size": 32, "from_scratch": True, "flip": False, "lr": 0.003}}
ELSEWHERE = "..."
"""stands for folders of the machine that ran this"""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What came of an accident."""

    caught: bool
    said: str
    """vitrim's own words; empty where it said nothing"""
    exit_code: int | None = None
    """of the command line; None where no command was run"""
    found: str = ""
    """figures beside it"""


@dataclass(frozen=True, kw_only=True)
class Accident:
    """One row of the table."""

    name: str
    done: str
    """what was done, in words"""
    by: str
    """what should notice"""
    stage: Callable[["Workshop"], Said]
    tests: tuple[str, ...]
    """tests of the same: FILE::NAME"""
    hole: str = ""
    """why vitrim cannot notice; then it does not count as missed"""
    quick: bool = True
    """takes seconds, and needs no build of a whole model"""
    needs: str = ""
    """a package without which it cannot be staged"""


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str


def said_by(act: Callable[[], object], *words: str) -> Said:
    """Do what must be refused; caught where the refusal is vitrim's and holds all of the words."""
    try:
        act()
    except VitrimError as error:
        said = str(error)
        return Said(caught=all(word in said for word in words), said=said)
    return Said(caught=False, said="")


def said_by_command(answer: Answer, code: int, *words: str) -> Said:
    """Caught where a command ended with this exit code, in one line with all of the words and no traceback."""
    told = answer.err.strip()
    caught = answer.code == code and all(word in told for word in words) and "\n" not in told
    return Said(caught=caught, said=told, exit_code=answer.code)


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """What a logger of vitrim warns of meanwhile."""
    heard: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    handler = Listening(level=logging.WARNING)
    logging.getLogger(name).addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger(name).removeHandler(handler)


class Workshop:
    """A folder to stage accidents in, and what several of them need."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def folder(self, name: str) -> Path:
        """Return a new, empty folder."""
        path = self.place / name
        path.mkdir(parents=True)
        return path

    def clean(self, text: str) -> str:
        """Without folders of this machine."""
        return text.replace(str(self.place), ELSEWHERE).replace(str(ROOT), ELSEWHERE)

    def vitrim(self, *words: str | Path) -> Answer:
        """Run the command line in a process of its own, with a store of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={
                **os.environ,
                "VITRIM_STORE": str(self.place / "store"),
                "COLUMNS": "200",
                "NO_COLOR": "1",
                "OMP_NUM_THREADS": "1",  # so small a model only waits for a second thread
            },
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def recipe(self, name: str, model: dict[str, Any], steps: Sequence[Any], **more: Any) -> Path:
        """Write a recipe over handwritten digits for the target cpu."""
        data = {role: {"dataset": "digits", "share": list(share)} for role, share in SHARES.items()}
        path = self.place / f"{name}.yaml"
        told: dict[str, Any] = {"vitrim": 1, "name": name, "model": model, "data": data, "steps": list(steps)}
        told |= {"targets": ["cpu"], "runtimes": ["onnxruntime"], "measure": {"level": "quick", "batches": [1]}}
        path.write_text(yaml.safe_dump({**told, "budget": {"accuracy_drop_points": 3}, **more}, sort_keys=False))
        return path

    def build(self, recipe: Path, *words: str | Path) -> tuple[Answer, dict[str, Any]]:
        """Build a recipe; also its report, empty where there is none."""
        out = self.place / f"out-{recipe.stem}"
        answer = self.vitrim("build", recipe, "--output", out, *words)
        reports = sorted(out.glob("*/report.json"))
        return answer, json.loads(reports[0].read_text()) if reports else {}

    @cached_property
    def bundle(self) -> Path:
        """A bundle of a small ViT that was trained on digits: fp32, ONNX Runtime."""
        return self.trained[1]

    @cached_property
    def trained(self) -> tuple[dict[str, Any], Path]:
        """Report and bundle of that."""
        model = {"timm": "vit_tiny_patch16_224", "pretrained": False, "image_size": SIDE, "classes": CLASSES}
        model["arguments"] = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
        recipe = self.recipe("trained", model, [TRAINED, "export"])
        answer, report = self.build(recipe)
        if answer.code:
            raise SystemExit(f"a plain build failed: {answer.err}")
        return report, self.place / "out-trained" / "cpu" / "bundle"

    @cache  # noqa: B019 (a workshop lives as long as the script)
    def model(self, outlier: float) -> Path:
        """A folder of a small ViT with random weights; two channels behind its norms are larger by a factor.

        Real ViTs have such channels. The layers behind take them back, so the factor does not change the answers.
        """
        spec, folder = small_vit(), self.folder(f"model-{outlier:g}")
        draw = torch.Generator().manual_seed(0)
        state = {
            name: torch.randn(tensor.shape, generator=draw) * (tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.3)
            + (1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) else 0.0)
            for name, tensor in ViT(spec.model_dump(mode="json")).state_dict().items()
        }
        state["head.weight"] *= 5
        for block in range(len(spec.blocks)):
            for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
                state[f"blocks.{block}.{norm}.weight"][:2] *= outlier
                state[f"blocks.{block}.{norm}.bias"][:2] *= outlier
                state[f"blocks.{block}.{linear}.weight"][:, :2] /= outlier
        save_model(folder, spec, state)
        return folder

    @cache  # noqa: B019
    def graph(self, outlier: float = 1.0) -> Path:
        """The folder of its fp32 graph, as the export stage leaves it."""
        model, folder = self.model(outlier), self.folder(f"graph-{outlier:g}")
        context = StageContext(input=model, source=model, output=folder, scratch=self.place, images={})
        export(ExportOptions(), context)
        return folder

    def quantize(self, name: str, graph: Path, **options: Any) -> tuple[StageResult, Path]:
        """Run the stage on digits; returns what it found and its graph."""
        output, scratch = self.folder(f"{name}/output"), self.folder(f"{name}/scratch")
        images = {role: digits(role) for role in (Role.FIT, Role.SELECT)}
        context = StageContext(input=graph, source=graph, output=output, scratch=scratch, images=images)
        return quantize(QuantizeOptions(**options), context), output / "model.onnx"


def small_vit() -> ViTSpec:
    """16 x 16 pixels, patches of 8, two blocks of width 32."""
    block = BlockSpec(heads=2, d_qk=16, d_v=16, scale=0.25, mlp_width=64, norm1_eps=1e-6, norm2_eps=1e-6)
    return ViTSpec(
        architecture="small",
        preprocess=Preprocess(height=SIDE, width=SIDE, interpolation="bilinear"),
        patch_size=(8, 8),
        width=32,
        classes=CLASSES,
        blocks=(block,) * 2,
    )


def digits(role: Role) -> ImageSet:
    """Images of a role, apart from those of the others."""
    return open_images(DataSource(dataset="digits", share=SHARES[role.value]), role, index_cache=None)
