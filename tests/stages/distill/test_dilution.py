"""Attention fades out while the student learns, and what comes out has none."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.distill import distillation
from stages.distill.dilution import Dilution, set_dilution
from stages.distill.losses import DistillationLoss
from stages.distill.stage import STAGE, DistillOptions
from stages.training.loop import train
from stages.vit.files import load_model, load_spec, load_state
from stages.vit.fold import fold_doubling
from targets.errors import InputError

QUICK = DistillOptions(images_seen=800, batch_size=16, lr=2e-3, precision="fp32")


@given(shape=st.sampled_from(["linear", "cosine"]), steps=st.integers(1, 500))
def test_the_schedule_falls_from_one_to_zero(shape: Any, steps: int) -> None:
    values = [Dilution(shape, steps).at(step) for step in range(steps + 3)]

    assert values[0] == 1
    assert values[steps:] == [0, 0, 0]
    assert all(later < earlier for earlier, later in pairwise(values[: steps + 1]))


def test_the_schedules_are_those_of_the_formulas() -> None:
    assert Dilution("linear", 300).at(75) == pytest.approx(1 - 75 / 300)
    assert Dilution("cosine", 4).at(1) == pytest.approx(0.5 * (1 + 2**-0.5))


def test_the_result_has_no_attention_where_it_faded(run: Any, diluting: Path, colours: Any) -> None:
    output, facts = run(QUICK, diluting, colours(64, labelled=False))

    spec = load_spec(output)
    assert [block.attention for block in spec.blocks] == ["off", "on"]
    assert not [name for name in load_state(output) if name.startswith(("blocks.0.attn", "blocks.0.norm1"))]
    assert spec == STAGE.reshape(QUICK, load_spec(diluting))  # type: ignore[misc]
    assert spec.final_norm_eps == 1e-6 / 4
    assert facts["faded_out"] == [0]
    assert facts["dilution_steps"] == 38
    assert facts["summary"].endswith("attention of blocks 0 faded out")


def test_what_is_saved_answers_as_the_trained_model_without_attention(
    run: Any, diluting: Path, colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Any] = {}

    def spying(student: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        facts = train(student, *arguments, **named)
        trained["model"] = student.model
        return facts

    monkeypatch.setattr(distillation, "train", spying)
    output, _ = run(QUICK.replace(images_seen=320), diluting, colours(40))
    set_dilution(trained["model"], 0.0)
    images = torch.randn(4, 3, 16, 16)

    with torch.no_grad():
        assert torch.equal(load_model(output)(images), trained["model"](images))


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_each_step_has_its_dilution_and_held_out_images_see_none(
    shape: str, run: Any, diluting: Path, colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool, float]] = []
    compute = DistillationLoss._given

    def spying(self: Any, batch: Any, names: Any) -> dict[str, Tensor]:
        found = compute(self, batch, names)
        seen.append((batch.step, self._student.training, self._student.model.blocks[0].dilution))
        return found

    monkeypatch.setattr(DistillationLoss, "_given", spying)
    options = QUICK.replace(images_seen=640, dilution=shape, dilution_share=0.5, stop_when_flat=True)
    _, facts = run(options, diluting, colours(200))

    schedule = Dilution(shape, 20)  # type: ignore[arg-type]
    trained = [value for _, training, value in seen if training]
    assert len(trained) == facts["steps"] > 24  # it may stop before step 40
    assert trained == [schedule.at(step) for step in range(len(trained))]
    judged = [value for _, training, value in seen if not training]
    assert judged == [0.0] * len(judged) != []
    assert facts["held_out_curve"][0]["step"] == 22  # the first look behind step 20; every second step has one
    assert facts["best_step"] > 20


def test_a_resumed_run_ends_with_the_same_bytes(
    run: Any, diluting: Path, colours: Any, monkeypatch: pytest.MonkeyPatch, train_context: Any, teacher: Path
) -> None:
    options = QUICK.replace(images_seen=640, dilution_share=0.5, ema_decay=0.9)
    images = colours(40)
    whole = (run(options, diluting, images, name="whole")[0] / "model.safetensors").read_bytes()
    monkeypatch.setattr(distillation, "train", partial(train, checkpoint_seconds=0.0))

    class StoppedError(Exception):
        pass

    for stop in (0.3, 0.8):  # in the middle of the fading, and behind it
        there = train_context(diluting, images, source=teacher, name="stopped")

        def tell(message: str, share: float | None, *, stop: float = stop) -> None:
            if share is not None and share > stop:
                raise StoppedError

        with pytest.raises(StoppedError):
            STAGE.run(options, replace(there, tell=tell))
        assert list(there.scratch.glob("step-*.json"))
    output, _ = run(options, diluting, images, name="stopped")

    assert (output / "model.safetensors").read_bytes() == whole


def test_training_that_moves_nothing_gives_the_folded_input(run: Any, diluting: Path, colours: Any) -> None:
    output, _ = run(QUICK.replace(images_seen=64, lr=1e-30), diluting, colours(20))
    spec, state = fold_doubling(load_spec(diluting), load_state(diluting))

    assert load_spec(output) == spec
    assert load_state(output).keys() == state.keys()
    assert all(torch.allclose(load_state(output)[name], tensor, rtol=0, atol=1e-20) for name, tensor in state.items())


def test_a_finished_model_has_no_schedule(run: Any, pruned: Path, colours: Any) -> None:
    _, facts = run(QUICK.replace(images_seen=32), pruned, colours(20))

    assert "faded_out" not in facts
    assert STAGE.reshape(QUICK, load_spec(pruned)) == load_spec(pruned)  # type: ignore[misc]


def test_a_post_norm_model_that_is_to_fade_is_refused(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    spec = tiny_spec(norm_placement="post")
    fading = spec.replace(blocks=(spec.blocks[0].replace(attention="diluting"), *spec.blocks[1:]))

    with pytest.raises(InputError, match="this model is post-norm"):
        run(QUICK, tiny_folder(fading), colours(8))
