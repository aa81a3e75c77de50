"""Recipes that tests of the plan start from, and targets of their own."""

from pathlib import Path

import yaml

from targets.profile import PROFILES

RECIPE = """\
vitrim: 1
name: planned
model: {timm: vit_tiny_patch16_224, pretrained: false, image_size: 16, classes: 10, arguments: {patch_size: 8}}
data:
  fit: {dataset: digits, share: [0, 0.2]}
  train: {dataset: digits, share: [0, 0.2]}
  select: {dataset: digits, share: [0.2, 0.4]}
  evaluate: {dataset: digits, share: [0.4, 1]}
steps:
  - finetune: {epochs: 1}
  - prune_mlp: {keep: 0.5}
  - distill: {images_seen: 64}
  - export
  - quantize
"""

TRAINED = RECIPE.replace("  - export\n  - quantize\n", "  - quantize_aware: {alpha: 0.5, images: 20, opset: 19}\n")
LADDER = RECIPE.replace("  - quantize\n", "  - quantize: {precision: auto, alphas: [0.5]}\n")


def own_target(folder: Path, name: str, **changes: object) -> Path:
    facts = yaml.safe_load((PROFILES / "cpu.yaml").read_text())
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**facts, "name": name, **changes}))
    return path
