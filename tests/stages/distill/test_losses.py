"""How far a student is from its teacher."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.distill.losses import (
    DistillationLoss,
    Student,
    Weights,
    divergence,
    feature_energies,
    merged_error,
    relative_error,
    teacher_outputs,
)
from stages.training.pictures import Batch
from stages.vit.model import ViT


@pytest.fixture
def teacher(tiny_spec: Any) -> ViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViT(tiny_spec().model_dump(mode="json")).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_always_giving_the_mean_feature_is_a_relative_error_of_one(teacher: ViT) -> None:
    energies = feature_energies(teacher, [images(64)[:40], images(64)[40:]], "fp32")
    features = teacher_outputs(teacher, images(64), ["class_token", "patch_tokens"], "fp32")

    for name, wanted in features.items():
        mean = wanted.flatten(0, -2).mean(dim=0).expand_as(wanted)
        assert float(relative_error(mean, wanted, energies[name])) == pytest.approx(1.0, rel=1e-4)


@given(scale=st.floats(1e-2, 1e2))
def test_the_relative_error_does_not_depend_on_the_scale_of_the_features(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    given_, wanted = torch.randn(2, 16, 8, generator=draw)
    energy = float(wanted.var())

    scaled = relative_error(given_ * scale, wanted * scale, energy * scale**2)
    assert float(scaled) == pytest.approx(float(relative_error(given_, wanted, energy)), rel=1e-3)


def test_a_teacher_that_says_the_same_of_everything_has_a_usable_energy(teacher: ViT) -> None:
    teacher.norm.weight.data.zero_()

    assert feature_energies(teacher, [images(8)], "fp32") == {"class_token": 1.0, "patch_tokens": 1.0}


@given(seed=st.integers(0, 99))
def test_a_merged_token_has_the_error_of_its_patches_less_what_no_token_can_say(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    holder = torch.cat([torch.arange(4), torch.randint(4, (5,), generator=draw)])  # token that holds each patch
    sources = torch.nn.functional.one_hot(holder, 4).T[None].expand(2, -1, -1).double()  # [2, 4, 9]
    wanted, given_ = torch.randn(2, 9, 3, generator=draw), torch.randn(2, 4, 3, generator=draw)
    means = torch.stack([wanted[:, holder == token].mean(dim=1) for token in range(4)], dim=1)
    by_patch = (given_[:, holder] - wanted).square().mean() - (means[:, holder] - wanted).square().mean()

    assert float(merged_error(given_, wanted, sources)) == pytest.approx(float(by_patch), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("merge", [(0, 0), (2, 1)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_that_merges_equal_patches_has_no_error(merge: Any, precision: Any, tiny_spec: Any) -> None:
    spec = tiny_spec(position="none")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = ViT(spec.model_dump(mode="json")).eval()
    student = ViT(spec.replace(merge=merge).model_dump(mode="json")).eval()
    student.load_state_dict(teacher.state_dict())
    flat = torch.randn(3, 3, 1, 1).expand(3, 3, 16, 16)  # every patch is the same
    weights = Weights(features=1.0, logits=1.0, labels=0.0, temperature=1.0)
    loss = DistillationLoss(
        Student(student, teacher_width=32, seed=0),
        teacher,
        {"class_token": 1.0, "patch_tokens": 1.0},
        weights,
        precision=precision,
        answers=True,
    )

    with torch.no_grad():
        parts = loss(Batch(images=flat, labels=None, step=0))

    assert set(parts) == {"class_token", "patch_tokens", "logits"}
    assert all(float(part) == pytest.approx(0.0, abs=1e-3 if precision == "bf16" else 1e-6) for part in parts.values())


def test_the_divergence_is_that_of_the_formula() -> None:
    wanted, given_ = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    share = 1 / (1 + math.exp(-1.0))  # temperature 2
    expected = share * math.log(share / 0.5) + (1 - share) * math.log((1 - share) / 0.5)

    assert float(divergence(given_, wanted, temperature=2.0)) == pytest.approx(4 * expected, rel=1e-5)


@given(shift=st.floats(-20, 20), temperature=st.floats(0.5, 8))
def test_the_divergence_ignores_a_constant_added_to_all_logits(shift: float, temperature: float) -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))

    assert float(divergence(logits + shift, logits, temperature=temperature)) == pytest.approx(0.0, abs=1e-4)


def test_a_student_of_the_same_width_has_no_map(teacher: ViT) -> None:
    assert list(Student(teacher, teacher_width=32, seed=0).map.parameters()) == []


@pytest.mark.parametrize("teacher_width", [16, 64])
def test_the_map_of_another_width_is_orthogonal_and_depends_on_the_seed(teacher: ViT, teacher_width: int) -> None:
    first, again, other = (Student(teacher, teacher_width=teacher_width, seed=seed).map.weight for seed in (0, 0, 1))
    small = min(first.shape)
    gram = first @ first.T if len(first) == small else first.T @ first

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.allclose(gram, torch.eye(small), atol=1e-5)
