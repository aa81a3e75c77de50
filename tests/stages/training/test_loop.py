"""The training loop."""

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.training.loop import EVALUATIONS, Training, train
from stages.training.optimizer import set_weight_decay
from stages.training.pictures import Batch
from targets.errors import StageError

TARGET = torch.tensor([[1.0, -2.0, 0.5]])


class Line:
    """A linear regression whose batches are pure functions of the step; `fail_at` stops it like a power cut."""

    def __init__(self, *, fail_at: int | None = None, batch_size: int = 8) -> None:
        self.module = nn.Linear(3, 1)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)
        self.fail_at, self.batch_size = fail_at, batch_size
        self.seen: list[int] = []

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.images.flatten(1)
        return {"squares": F.mse_loss(self.module(x), x @ TARGET.T)}

    def data(self, start: int, stop: int) -> Generator[Batch, None, None]:
        for step in range(start, stop):
            if step == self.fail_at:
                raise KeyboardInterrupt
            self.seen.append(step)
            draw = torch.Generator().manual_seed(step)
            yield Batch(step=step, images=torch.randn(self.batch_size, 3, generator=draw))

    def train(self, scratch: Path, training: Training, **options: Any) -> dict[str, Any]:
        facts = train(self.module, self.loss, self.data, training, scratch=scratch, **options)
        return {name: value for name, value in facts.items() if "second" not in name}


PLAIN = Training(steps=60, lr=0.1, weight_decay=0.0)


def test_the_loss_falls_and_the_weights_are_found(tmp_path: Path) -> None:
    line = Line()
    facts = line.train(tmp_path, PLAIN)

    curve = facts["loss_curve"]
    assert curve[-1]["loss"] < 0.01 * curve[0]["loss"]
    assert torch.allclose(line.module.weight, TARGET, atol=0.1)
    assert facts["steps"] == 60
    assert facts["images_seen"] == 480
    assert facts["precision"] == "fp32"


@pytest.mark.parametrize("fail_at", [11, 25, 59])
@pytest.mark.parametrize(
    "training",
    [PLAIN, replace(PLAIN, ema_decay=0.9, accumulate=3), replace(PLAIN, clip=None, weight_decay=0.2)],
    ids=["plain", "average", "decay"],
)
def test_an_interrupted_training_ends_as_if_it_had_not_been(fail_at: int, training: Training, tmp_path: Path) -> None:
    whole, cut, resumed = Line(), Line(fail_at=fail_at), Line()
    expected = whole.train(tmp_path / "whole", training)
    with pytest.raises(KeyboardInterrupt):
        cut.train(tmp_path / "cut", training, checkpoint_seconds=0)
    facts = resumed.train(tmp_path / "cut", training, checkpoint_seconds=0)

    assert 0 < resumed.seen[0] <= fail_at
    assert facts == expected
    assert torch.equal(resumed.module.weight, whole.module.weight)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, again = Line(), Line()
    expected = first.train(tmp_path, PLAIN)
    facts = again.train(tmp_path, PLAIN)

    assert again.seen == []
    assert facts == expected
    assert torch.equal(first.module.weight, again.module.weight)


@pytest.mark.parametrize("change", [{"training": replace(PLAIN, lr=0.05)}, {"identity": "other images"}])
def test_a_checkpoint_of_other_options_is_not_used(change: dict[str, Any], tmp_path: Path) -> None:
    Line().train(tmp_path, PLAIN)
    line = Line()
    line.train(tmp_path, change.pop("training", PLAIN), **change)

    assert line.seen[0] == 0


@pytest.mark.parametrize(("batch_size", "parts"), [(8, 2), (8, 3), (4, 9)])
def test_a_batch_cut_in_parts_makes_the_same_step(batch_size: int, parts: int, tmp_path: Path) -> None:
    whole, cut = Line(batch_size=batch_size), Line(batch_size=batch_size)
    whole.train(tmp_path / "whole", PLAIN)
    cut.train(tmp_path / "cut", replace(PLAIN, accumulate=parts))

    assert torch.allclose(whole.module.weight, cut.module.weight, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 99, 100, 101, 250, 1234])
def test_the_curve_has_at_most_100_points_and_ends_at_the_last_step(steps: int, tmp_path: Path) -> None:
    curve = Line().train(tmp_path, replace(PLAIN, steps=steps))["loss_curve"]

    assert len(curve) <= 100
    assert curve[-1]["step"] == steps
    assert all(set(point) == {"step", "loss", "squares"} for point in curve)


def test_a_point_of_the_curve_is_the_mean_since_the_one_before(tmp_path: Path) -> None:
    line = Line()
    losses: list[float] = []

    def loss(batch: Batch) -> dict[str, Tensor]:
        parts = line.loss(batch)
        losses.append(float(parts["squares"].detach()))
        return parts

    facts = train(line.module, loss, line.data, replace(PLAIN, steps=250), scratch=tmp_path)

    assert [point["step"] for point in facts["loss_curve"][:2]] == [3, 6]
    assert facts["loss_curve"][1]["loss"] == pytest.approx(sum(losses[3:6]) / 3, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_says_where_and_what_to_try(value: float, tmp_path: Path) -> None:
    line = Line()

    def loss(batch: Batch) -> dict[str, Tensor]:
        return {"squares": line.loss(batch)["squares"] * (value if batch.step == 17 else 1.0)}

    with pytest.raises(StageError, match=r"at step 18 of 60 .*learning rate .*; try half of lr 0.1"):
        train(line.module, loss, line.data, PLAIN, scratch=tmp_path)


def test_a_last_step_that_ruins_the_weights_is_found(tmp_path: Path) -> None:
    line = Line()

    def loss(batch: Batch) -> dict[str, Tensor]:
        squares = line.loss(batch)["squares"]
        if batch.step == PLAIN.steps - 1:
            squares = squares + (line.module.weight * 0).sum().sqrt()  # 0, with an infinite derivative
        return {"squares": squares}

    with pytest.raises(StageError, match="the last step left weights that are no numbers"):
        train(line.module, loss, line.data, PLAIN, scratch=tmp_path)


def test_the_moving_average_is_the_result(tmp_path: Path) -> None:
    line = Line()
    training = replace(PLAIN, ema_decay=0.8, steps=30)
    weights: list[Tensor] = []

    def data(start: int, stop: int) -> Generator[Batch, None, None]:
        for batch in line.data(start, stop):
            weights.append(line.module.weight.detach().clone())
            yield batch

    train(line.module, line.loss, data, training, scratch=tmp_path / "average")
    plain = Line()
    plain.train(tmp_path / "plain", replace(training, ema_decay=None))
    average = weights[0]
    for step, after in enumerate([*weights[1:], plain.module.weight.detach()]):
        average = average.lerp(after, 1 - min(0.8, (1 + step) / (10 + step)))

    assert torch.allclose(line.module.weight, average, atol=1e-6)
    assert not torch.allclose(line.module.weight, plain.module.weight, atol=1e-3)


def held_out() -> list[Batch]:
    return [Batch(step=0, images=torch.eye(3))]


def test_training_stops_when_held_out_images_gain_nothing_and_keeps_the_best_weights(tmp_path: Path) -> None:
    line = Line()
    values = iter([9.0, 4.0, 2.0, 1.0, 3.0, 1.0, 0.9999, 5.0, 5.0, 5.0])
    weights: list[Tensor] = []

    def loss(batch: Batch) -> dict[str, Tensor]:
        if line.module.training:
            return line.loss(batch)
        weights.append(line.module.weight.detach().clone())
        return {"squares": torch.tensor(next(values))}

    facts = train(line.module, loss, line.data, replace(PLAIN, steps=200), scratch=tmp_path, held_out=held_out)

    assert facts["stopped_early"]
    assert facts["best_step"] == 3 * 200 // EVALUATIONS
    assert facts["steps"] == (3 + 4) * 200 // EVALUATIONS + 20  # four looks without gain, then the rate falls
    assert torch.equal(line.module.weight, weights[3])


def test_once_training_is_flat_the_learning_rate_falls_to_its_end_and_a_gain_in_that_still_counts(
    tmp_path: Path,
) -> None:
    line = Line()
    values = iter([2.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 0.5])
    rates: list[float] = []

    def loss(batch: Batch) -> dict[str, Tensor]:
        return line.loss(batch) if line.module.training else {"squares": torch.tensor(next(values))}

    training = replace(PLAIN, steps=200)
    with patch("stages.training.loop.set_learning_rate", lambda optimizer, rate: rates.append(rate)):
        facts = train(line.module, loss, line.data, training, scratch=tmp_path, held_out=held_out)

    assert rates[:50] == [training.lr_at(step) for step in range(50)]  # flat at step 50
    assert rates[50] == pytest.approx(training.lr_at(50))
    assert torch.tensor(rates[50:]).diff().tolist() == pytest.approx(
        [-(rates[50] - training.floor_share * training.lr) / 20] * 19, rel=1e-4
    )
    assert len(rates) == facts["steps"] == facts["best_step"] == 70


def test_a_training_that_is_flat_near_its_end_goes_on_as_planned(tmp_path: Path) -> None:
    line = Line()
    looks = 0

    def loss(batch: Batch) -> dict[str, Tensor]:
        nonlocal looks
        if line.module.training:
            return line.loss(batch)
        looks += 1
        return {"squares": torch.tensor(1.0 / min(looks, 16))}

    facts = train(line.module, loss, line.data, replace(PLAIN, steps=200), scratch=tmp_path, held_out=held_out)

    assert not facts["stopped_early"]
    assert facts["steps"] == 200


def test_small_gains_add_up_to_one_that_counts(tmp_path: Path) -> None:
    line = Line()
    value = 1.0

    def loss(batch: Batch) -> dict[str, Tensor]:
        nonlocal value
        if line.module.training:
            return line.loss(batch)
        value *= 0.9995
        return {"squares": torch.tensor(value)}

    facts = train(line.module, loss, line.data, PLAIN, scratch=tmp_path, held_out=held_out)

    assert not facts["stopped_early"]
    assert facts["best_step"] == 54  # every third of the looks, which are three steps apart


@pytest.mark.parametrize(("looks", "patience"), [(20, 4), (10, 2), (4, 2)])
def test_patience_is_a_share_of_the_looks(looks: int, patience: int, tmp_path: Path) -> None:
    line = Line()

    def loss(batch: Batch) -> dict[str, Tensor]:
        return line.loss(batch) if line.module.training else {"squares": torch.tensor(1.0)}

    training = replace(PLAIN, steps=100, evaluations=looks)
    facts = train(line.module, loss, line.data, training, scratch=tmp_path, held_out=held_out)

    assert facts["steps"] == patience * 100 // looks + 10


def test_weight_decay_moves_to_its_end_on_half_a_cosine_and_only_where_there_is_any(tmp_path: Path) -> None:
    line = Line()
    seen: list[list[float]] = []

    def loss(batch: Batch) -> dict[str, Tensor]:
        return line.loss(batch)

    def note(optimizer: torch.optim.Optimizer, decay: float) -> None:
        set_weight_decay(optimizer, decay)
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
        assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}

    training = Training(steps=8, lr=0.1, weight_decay=0.04, weight_decay_end=0.2, betas=(0.8, 0.9))
    with patch("stages.training.loop.set_weight_decay", note):
        train(line.module, loss, line.data, training, scratch=tmp_path)

    wanted = [0.2 - 0.16 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [one[0] for one in seen] == pytest.approx(wanted)
    assert wanted[0] == pytest.approx(0.04)
    assert {one[1] for one in seen} == {0.0}  # the bias


def test_a_training_that_still_gains_is_not_stopped(tmp_path: Path) -> None:
    facts = Line().train(tmp_path, replace(PLAIN, lr=0.03), held_out=held_out)

    assert not facts["stopped_early"]
    assert facts["steps"] == 60
    assert len(facts["held_out_curve"]) == 1 + EVALUATIONS


def test_progress_is_told_with_loss_and_speed(tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    Line().train(tmp_path, PLAIN, tell=lambda message, share: told.append((message, share)))

    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(message.startswith("loss ") and message.endswith("images/s") for message, _ in told)


@pytest.mark.parametrize(("clip", "norm"), [(1.0, 1.0), (0.1, 0.1)])
def test_clipping_limits_the_gradient(clip: float, norm: float, tmp_path: Path) -> None:
    line = Line()
    line.train(tmp_path, replace(PLAIN, steps=1, clip=clip))
    gradient = torch.cat([parameter.grad.flatten() for parameter in line.module.parameters()])

    assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4)


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    line = Line()
    before = torch.random.get_rng_state()
    line.train(tmp_path, PLAIN)

    assert torch.equal(torch.random.get_rng_state(), before)
