"""The distill stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.data.images import ImageSet
from stages.distill.distillation import drawn_at, looks
from stages.distill.stage import STAGE, DistillOptions
from stages.distill.teacher import resizing
from stages.stage import Role
from stages.vit.files import load_model, load_spec, load_state, save_model
from targets.errors import InputError, StageError
from targets.preprocess import normalise

QUICK = DistillOptions(images_seen=2400, batch_size=16, lr=2e-3, precision="fp32")


def answers(folder: Path, images: ImageSet) -> Tensor:
    preprocess = load_spec(folder).preprocess
    with torch.no_grad():
        return load_model(folder)(torch.from_numpy(normalise(images.uint8(preprocess), preprocess))).argmax(dim=1)


def agreement(one: Path, other: Path, images: ImageSet) -> float:
    return float((answers(one, images) == answers(other, images)).float().mean())


def test_a_pruned_model_recovers_most_of_the_lost_agreement(
    run: Any, teacher: Path, pruned: Path, colours: Any
) -> None:
    weights = (teacher / "model.safetensors").read_bytes()
    output, facts = run(QUICK, pruned, colours(300, labelled=False))

    unseen = colours(200, seed=1)
    lost = 1 - agreement(pruned, teacher, unseen)
    left = 1 - agreement(output, teacher, unseen)
    assert lost > 0.2
    assert left < 0.5 * lost
    assert facts["loss_curve"][-1]["loss"] < 0.5 * facts["loss_curve"][0]["loss"]
    assert (teacher / "model.safetensors").read_bytes() == weights
    assert load_spec(output) == load_spec(pruned)
    assert (output / "labels.json").read_bytes() == (pruned / "labels.json").read_bytes()


def test_a_student_equal_to_its_teacher_has_no_feature_error_and_stays_equal(
    run: Any, teacher: Path, colours: Any
) -> None:
    output, facts = run(QUICK.replace(images_seen=160, logits_weight=0.0), teacher, colours(20))

    assert all(point["loss"] == 0 for point in facts["loss_curve"])
    assert all(torch.equal(load_state(output)[name], tensor) for name, tensor in load_state(teacher).items())


def test_a_student_that_training_only_harms_is_given_back_with_held_out_images(
    run: Any, teacher: Path, colours: Any
) -> None:
    output, facts = run(QUICK.replace(stop_when_flat=True, lr=0.1), teacher, colours(200))

    assert facts["best_step"] == 0
    assert facts["stopped_early"]
    assert all(torch.equal(load_state(output)[name], tensor) for name, tensor in load_state(teacher).items())


@pytest.mark.parametrize("width", [16, 48])
def test_a_student_of_another_width_learns_through_a_map_that_is_dropped(
    width: int, run: Any, teacher: Path, tiny_spec: Any, tiny_folder: Any, colours: Any
) -> None:
    student = tiny_folder(tiny_spec(width=width), seed=3, name="other width")
    output, facts = run(QUICK.replace(logits_weight=0.0, images_seen=800), student, colours(100))

    curve = facts["loss_curve"]
    assert curve[-1]["patch_tokens"] < 0.7 * curve[0]["patch_tokens"]
    assert load_state(output).keys() == load_state(student).keys()
    assert load_spec(output) == load_spec(student)


def test_without_a_head_only_features_are_compared(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    spec = tiny_spec(classes=0, pooling="avg", class_token=False)
    one, other = tiny_folder(spec, seed=1, name="one"), tiny_folder(spec, seed=2, name="other")
    _, facts = run(QUICK.replace(images_seen=64), one, colours(20), source=other)

    assert set(facts["loss_curve"][0]) == {"step", "loss", "patch_tokens"}
    assert set(facts["teacher_feature_energy"]) == {"patch_tokens"}


@pytest.mark.parametrize("pooling", [{}, {"pooling": "avg", "class_token": False}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_that_merges_tokens_learns_from_a_teacher_that_does_not(
    precision: Any, pooling: dict[str, Any], run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any
) -> None:
    spec = tiny_spec(preprocess={"height": 32, "width": 32, "interpolation": "bilinear"}, **pooling)
    source = tiny_folder(spec, seed=1, name="source")
    student = tiny_folder(spec.replace(merge=(5, 3)), seed=2, name="student")
    _, facts = run(QUICK.replace(images_seen=1600, precision=precision), student, colours(100), source=source)

    curve = facts["loss_curve"]
    assert curve[-1]["patch_tokens"] < 0.7 * curve[0]["patch_tokens"]
    assert curve[-1]["logits"] < 0.7 * curve[0]["logits"]


def test_a_teacher_that_merges_tokens_is_refused(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    model = tiny_folder(tiny_spec(merge=(1, 1)))

    with pytest.raises(InputError, match="a teacher with all patches, but the source model merges tokens"):
        run(QUICK, model, colours(8), source=model)


def test_labels_can_be_a_part_of_the_loss(run: Any, pruned: Path, colours: Any) -> None:
    options = QUICK.replace(images_seen=800, labels_weight=1.0, feature_weight=0.0, logits_weight=0.0)
    _, facts = run(options, pruned, colours(100))

    curve = facts["loss_curve"]
    assert set(curve[0]) == {"step", "loss", "labels"}
    assert curve[-1]["labels"] < 0.5 * curve[0]["labels"]


def test_bf16_learns_as_well(run: Any, pruned: Path, colours: Any) -> None:
    _, facts = run(QUICK.replace(images_seen=800, precision="bf16"), pruned, colours(100))

    assert facts["precision"] == "bf16"
    assert facts["loss_curve"][-1]["loss"] < 0.7 * facts["loss_curve"][0]["loss"]


def test_a_repeated_run_gives_the_same_bytes(run: Any, pruned: Path, colours: Any) -> None:
    options = QUICK.replace(images_seen=96)
    first, again, other = (
        (run(options, pruned, colours(20), name=name, seed=seed)[0] / "model.safetensors").read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )

    assert first == again != other


def test_held_out_images_decide_when_it_is_enough(run: Any, pruned: Path, colours: Any) -> None:
    _, facts = run(QUICK.replace(images_seen=640, stop_when_flat=True), pruned, colours(200))

    assert facts["held_out_images"] == 10
    assert facts["held_out_curve"][-1]["loss"] < facts["held_out_curve"][0]["loss"]


def test_a_divergence_says_what_to_try(run: Any, pruned: Path, colours: Any) -> None:
    options = QUICK.replace(lr=1e30, clip=None, warmup_share=0.0, images_seen=640)

    with pytest.raises(StageError, match=r"the loss became .* at step \d+ of 40 .*try half of lr 1e\+30"):
        run(options, pruned, colours(20))


def test_no_images_are_refused(run: Any, pruned: Path, colours: Any) -> None:
    with pytest.raises(InputError, match="distill has no images"):
        run(QUICK, pruned, colours(4).subset([]))


def test_labels_that_are_not_there_are_refused(run: Any, pruned: Path, colours: Any) -> None:
    with pytest.raises(InputError, match=r"labels_weight 0\.5 needs a label for every image"):
        run(QUICK.replace(labels_weight=0.5), pruned, colours(8, labelled=False))


def test_labels_beyond_the_head_are_refused(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    model = tiny_folder(tiny_spec(classes=2))

    with pytest.raises(InputError, match=r"label 3 of data\.train is beyond the 2 classes"):
        run(QUICK.replace(labels_weight=0.5), model, colours(8), source=model)


def test_a_loss_without_parts_is_refused(run: Any, pruned: Path, colours: Any) -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        run(QUICK.replace(feature_weight=0.0, logits_weight=0.0), pruned, colours(8))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"classes": 3}, "classes"),
        ({"register_tokens": 1}, "register_tokens"),
        ({"patch_size": (4, 4)}, "patch_size"),
        ({"preprocess": {"height": 32, "width": 32}}, "preprocess"),
    ],
)
def test_a_student_that_does_not_match_its_teacher_is_refused(
    changes: dict[str, Any], name: str, run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any
) -> None:
    with pytest.raises(InputError, match=f"student and teacher differ in {name}"):
        run(QUICK, tiny_folder(tiny_spec(**changes)), colours(8))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("images_seen", 0),
        ("lr", -1),
        ("temperature", 0),
        ("feature_weight", -0.1),
        ("warmup_share", 1.0),
        ("dilution_share", 0),
        ("dilution", "step"),
        ("held_out", "evaluate"),
        ("block_features", [-1]),
        ("teacher", {}),
        ("teacher", {"timm": "a", "folder": "b"}),
        ("teacher", {"checkpoint": "a", "folder": "b"}),
        ("epochs", 3),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValidationError, match=option):
        DistillOptions.model_validate({option: value})


def test_it_reads_training_images_alone() -> None:
    assert STAGE.roles(DistillOptions()) == (Role.TRAIN,)
    assert STAGE.roles(DistillOptions(held_out="select")) == (Role.TRAIN,)


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, (Role.SELECT,)),
        ({"labels_weight": 1.0}, ()),
        ({"stop_when_flat": False}, ()),
        ({"stop_when_flat": True}, ()),
    ],
    ids=str,
)
def test_select_says_when_it_is_enough_where_there_is_any_and_labels_are_not_learnt(
    options: dict[str, Any], roles: tuple[Role, ...]
) -> None:
    assert STAGE.also_reads(DistillOptions.model_validate(options)) == roles


@pytest.mark.parametrize(("seen", "judged", "often"), [(20_000, 300, 20), (4096, 300, 6), (4096, 512, 4), (64, 256, 4)])
def test_looking_takes_at_most_a_quarter_of_the_training(seen: int, judged: int, often: int) -> None:
    assert looks(seen, judged) == often
    if seen >= 8 * judged:
        assert 2 * judged * often <= 4 * seen / 4
    assert looks(seen, 0) == 20


def test_weight_decay_that_ends_somewhere_begins_somewhere() -> None:
    with pytest.raises(ValidationError, match="weight_decay_end goes with a weight_decay above 0"):
        DistillOptions(weight_decay_end=0.2)
    assert DistillOptions(weight_decay=0.04, weight_decay_end=0.2).weight_decay_end == 0.2


def test_a_student_that_training_only_harms_is_given_back_by_default(
    teacher: Path, colours: Any, train_context: Any
) -> None:
    there = train_context(teacher, colours(40), source=teacher)
    images = {**there.images, Role.SELECT: colours(60, seed=9)}
    facts = STAGE.run(QUICK.replace(lr=0.1), replace(there, images=images)).facts

    assert (facts["best_step"], facts["stopped_early"]) == (0, True)
    assert facts["held_out_images"] == 60
    assert facts["images"] == 40
    before, after = load_state(teacher), load_state(there.output)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_select_can_say_when_it_is_enough() -> None:
    assert STAGE.roles(DistillOptions(held_out="select", stop_when_flat=True)) == (Role.TRAIN, Role.SELECT)


def test_a_student_of_smaller_pictures_learns_from_the_source(
    run: Any, teacher: Path, pruned: Path, colours: Any, tmp_path: Path
) -> None:
    spec = load_spec(pruned)
    smaller, state = spec.replace(preprocess=spec.preprocess.replace(height=8, width=8)), load_state(pruned)
    state["pos_embed"] = state["pos_embed"][:, :2]
    save_model(tmp_path / "smaller", smaller, state)

    output, facts = run(QUICK.replace(images_seen=1600), tmp_path / "smaller", colours(100))

    assert load_spec(output) == smaller
    assert facts["compared"] == ["class_token", "logits"]  # patches of another grid are not comparable
    assert facts["loss_curve"][-1]["loss"] < 0.8 * facts["loss_curve"][0]["loss"]


def test_the_source_sees_pictures_in_its_own_size(teacher: Path, tiny_spec: Any) -> None:
    smaller = tiny_spec(preprocess=load_spec(teacher).preprocess.replace(height=8, width=8))
    model, picture = load_model(teacher), torch.randn(2, 3, 16, 16)

    there = resizing(model, load_spec(teacher), student=smaller)

    with torch.no_grad():
        assert torch.allclose(there.outputs(picture, ["logits"])["logits"], model(picture), atol=1e-6)


def test_crops_are_drawn_as_the_larger_of_student_and_source_reads_them(tiny_spec: Any) -> None:
    spec = tiny_spec()
    smaller, larger = (spec.replace(preprocess=spec.preprocess.replace(height=side, width=side)) for side in (8, 32))

    assert drawn_at(smaller, spec) == spec.preprocess
    assert drawn_at(larger, spec) == larger.preprocess
    assert drawn_at(smaller, None) == smaller.preprocess  # another teacher sees what the student does
