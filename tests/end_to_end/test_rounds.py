"""Prune and distil in rounds: each round starts from the one before, and the source teaches in all of them."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pipeline.report.record import Report

pytestmark = pytest.mark.slow

ROUNDS = """\
  - finetune: {epochs: 12, batch_size: 32, from_scratch: true, flip: false, lr: 0.003}
  - prune_mlp: {keep: 0.75, method: l2, repair: none}
  - distill: {images_seen: 512, flip: false}
  - prune_mlp: {keep: 0.5, method: l2, repair: none}
  - distill: {images_seen: 512, flip: false, lr: 0.0002}
  - export
"""


def test_each_round_prunes_further_and_learns_from_the_source(
    recipe: Path, vitrim: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    text = recipe.read_text()
    begins, ends = text.index("  - finetune"), text.index("targets:")
    recipe.write_text(f"{text[:begins]}{ROUNDS}{text[ends:]}")
    out = tmp_path / "out"

    done = vitrim("build", recipe, "--output", out)

    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = Report.model_validate_json((out / "cpu" / "report.json").read_text())
    pruned = [row for row in report.stages if row.name.startswith("prune_mlp")]
    assert [[one["width_after"] for one in row.facts["blocks"]] for row in pruned] == [[96, 96], [48, 48]]
    first, second = (row.facts for row in report.stages if "teacher_feature_energy" in row.facts)
    # What the teacher says of the same crops: the same source both times, not what the first round left of it.
    assert second["teacher_feature_energy"] == first["teacher_feature_energy"]
    assert first["compared"] == second["compared"] == ["class_token", "patch_tokens", "logits"]
    # The second round begins where the first one and another cut left the student, so farther from the source.
    assert second["held_out_curve"][0]["loss"] > min(one["loss"] for one in first["held_out_curve"])
    assert all(facts["held_out_curve"][0]["step"] == 0 for facts in (first, second))
    assert {row.mlp_width.after for row in report.blocks} == {48}
