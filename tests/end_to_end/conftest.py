"""A whole build that is small enough to run many times: two blocks, 16 by 16 pixels, handwritten digits."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """\
vitrim: 1
name: tiny-digits
model:
  timm: vit_tiny_patch16_224
  pretrained: false
  image_size: 16
  classes: 10
  arguments: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}
data:
  fit: {dataset: digits, share: [0, 0.3]}
  train: {dataset: digits, share: [0, 0.3]}
  select: {dataset: digits, share: [0.3, 0.5]}
  evaluate: {dataset: digits, share: [0.5, 1]}
steps:
  - finetune: {epochs: 40, batch_size: 32, from_scratch: true, flip: false, lr: 0.003}
  - prune_mlp: {keep: 0.5, round_to: 8}
  - distill: {images_seen: 1024, flip: false}
  - export
  - quantize: {precision: int8, alphas: [0.5], images: 32}
targets: [cpu]
budget: {accuracy_drop_points: 30}
measure: {level: quick, batches: [1]}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe as a file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def vitrim(tmp_path: Path) -> Run:
    """Run the command line in a process of its own, with a store of its own."""

    def run(*words: str | Path, timeout: float = 1200, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={
                **os.environ,
                "VITRIM_STORE": str(tmp_path / "store"),
                "COLUMNS": "80",
                "OMP_NUM_THREADS": "1",  # so small a model only waits for a second thread
                **environment,
            },
            cwd=Path(__file__).resolve().parents[2],
        )

    return run
