"""Teachers other than the source, and what else a student is compared in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from stages.distill.losses import normal
from stages.distill.stage import STAGE, DistillOptions, TeacherOptions
from stages.distill.teacher import StrongerTeacher, load_teacher
from stages.stage import Role
from stages.vit.files import load_model, load_spec, load_state, save_model
from stages.vit.model import ViT
from targets.errors import InputError, UnknownNameError
from targets.preprocess import Preprocess, normalise

QUICK = DistillOptions(images_seen=640, batch_size=16, lr=2e-3, precision="fp32")


def test_a_teacher_sees_pictures_as_it_was_trained_to(teacher: Path, tiny_spec: Any) -> None:
    spec = load_spec(teacher)
    own = spec.preprocess.replace(mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3))
    other = StrongerTeacher(
        load_model(teacher), spec, classes=4, prepared=(16, 16, own.mean, own.std), student=tiny_spec()
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    mine, theirs = (torch.from_numpy(normalise(pixels, one)) for one in (spec.preprocess, own))

    with torch.no_grad():
        expected = load_model(teacher)(theirs)
        assert torch.allclose(other.outputs(mine, ["logits"])["logits"], expected, atol=1e-4)
        assert not torch.allclose(load_model(teacher)(mine), expected, atol=1e-2)


def test_a_larger_teacher_sees_the_same_crop_enlarged(tiny_spec: Any, tiny_folder: Any) -> None:
    larger = tiny_spec(preprocess=Preprocess(height=32, width=32, interpolation="bilinear"), patch_size=(16, 16))
    there = load_teacher(TeacherOptions(folder=tiny_folder(larger)), tiny_spec(), labels=None)
    flat = torch.full((2, 3, 16, 16), 0.3)

    assert "patch_tokens" in there.output_names  # as many patches
    with torch.no_grad():
        expected = there.model(torch.full((2, 3, 32, 32), 0.3))
        assert torch.allclose(there.outputs(flat, ["logits"])["logits"], expected, atol=1e-5)


def test_a_wider_teacher_teaches_its_features_through_a_map(
    run: Any, tiny_spec: Any, tiny_folder: Any, pruned: Path, colours: Any
) -> None:
    stronger = tiny_folder(tiny_spec(width=48, depth=3), seed=5, name="stronger")
    options = QUICK.replace(teacher=TeacherOptions(folder=stronger), images_seen=1600)
    output, facts = run(options, pruned, colours(100))

    assert facts["compared"] == ["class_token", "patch_tokens", "logits"]
    assert facts["loss_curve"][-1]["loss"] < 0.8 * facts["loss_curve"][0]["loss"]
    assert load_state(output).keys() == load_state(pruned).keys()


def test_the_teacher_is_not_the_source(run: Any, tiny_spec: Any, tiny_folder: Any, pruned: Path, colours: Any) -> None:
    """It learns from the one that is named: with another teacher the result is another."""
    stronger = tiny_folder(tiny_spec(), seed=5, name="stronger")
    images = colours(20)
    one, other = (
        run(options, pruned, images, name=name)[0]
        for name, options in (("a", QUICK), ("b", QUICK.replace(teacher=TeacherOptions(folder=stronger))))
    )

    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.fixture
def thousand(tiny_spec: Any, tiny_folder: Any) -> Path:
    """A student of ImageNet's classes."""
    return tiny_folder(tiny_spec(classes=1000), name="thousand")


def checkpoint_of(name: str, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model(name).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_a_timm_vit_teaches(run: Any, thousand: Path, tmp_path: Path, colours: Any) -> None:
    teacher = TeacherOptions(timm="test_vit", checkpoint=checkpoint_of("test_vit", tmp_path))
    _, facts = run(QUICK.replace(teacher=teacher, images_seen=32), thousand, colours(20))

    assert facts["compared"] == ["class_token", "logits"]  # 100 patches against 4


def test_any_timm_classifier_teaches_its_answers(run: Any, thousand: Path, tmp_path: Path, colours: Any) -> None:
    checkpoint = checkpoint_of("test_resnet", tmp_path)
    teacher = TeacherOptions(timm="test_resnet", checkpoint=checkpoint)
    _, facts = run(QUICK.replace(teacher=teacher, images_seen=32), thousand, colours(20))

    assert facts["compared"] == ["logits"]
    assert STAGE.reads(QUICK.replace(teacher=teacher)) == {"teacher": checkpoint}
    assert STAGE.reads(QUICK) == {}


@pytest.mark.parametrize(
    ("classes", "options", "reason"),
    [
        (3, {}, "the teacher does not answer for the 4 classes of the model"),
        (4, {"block_features": (1,)}, "block_features needs a teacher with as many blocks"),
        (4, {"block_features": (2,)}, r"the model has no block 2; its last is 1"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    classes: int, options: dict[str, Any], reason: str, run: Any, tiny_spec: Any, tiny_folder: Any, pruned: Path,
    colours: Any,
) -> None:  # fmt: skip
    other = tiny_folder(tiny_spec(classes=classes, width=16), name="other")

    with pytest.raises(InputError, match=reason):
        run(QUICK.replace(teacher=TeacherOptions(folder=other), **options), pruned, colours(8))


def test_a_teacher_of_other_classes_can_teach_features(
    run: Any, tiny_spec: Any, tiny_folder: Any, pruned: Path, colours: Any
) -> None:
    teacher = TeacherOptions(folder=tiny_folder(tiny_spec(classes=3), name="other"))
    _, facts = run(QUICK.replace(teacher=teacher, logits_weight=0.0, images_seen=32), pruned, colours(8))

    assert facts["compared"] == ["class_token", "patch_tokens"]


def test_classes_in_another_order_are_refused(
    run: Any, teacher: Path, tmp_path: Path, pruned: Path, colours: Any
) -> None:
    save_model(tmp_path / "named", load_spec(teacher), load_state(teacher), labels=["a", "c", "b", "d"])

    with pytest.raises(InputError, match="class 1 is 'c', of the student 'b'"):
        run(QUICK.replace(teacher=TeacherOptions(folder=tmp_path / "named")), pruned, colours(8))


def test_an_unknown_teacher_is_refused(run: Any, pruned: Path, tmp_path: Path, colours: Any) -> None:
    with pytest.raises(UnknownNameError, match="unknown timm model 'vit_tinny'"):
        run(QUICK.replace(teacher=TeacherOptions(timm="vit_tinny")), pruned, colours(8))
    with pytest.raises(InputError, match="is not there"):
        STAGE.reads(QUICK.replace(teacher=TeacherOptions(folder=tmp_path / "nowhere")))
    wrong = checkpoint_of("test_vit", tmp_path)
    with pytest.raises(InputError, match=r"the teacher's checkpoint .*do not fit the model"):
        run(QUICK.replace(teacher=TeacherOptions(timm="test_vit2", checkpoint=wrong)), pruned, colours(8))


def test_streams_behind_blocks_are_compared(run: Any, pruned: Path, colours: Any) -> None:
    options = QUICK.replace(block_features=(0, 1), feature_weight=0.0, logits_weight=0.0)
    _, facts = run(options, pruned, colours(100))

    curve = facts["loss_curve"]
    assert set(curve[0]) == {"step", "loss", "blocks"}
    assert curve[-1]["blocks"] < 0.5 * curve[0]["blocks"]
    assert facts["compared"] == ["block_0", "block_1"]


def test_the_scale_of_the_stream_does_not_matter() -> None:
    """As dilution doubles it, and the source does not."""
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))

    assert torch.allclose(normal(2 * tokens), normal(tokens), atol=1e-4)


def test_computing_blocks_again_changes_no_bit(run: Any, pruned: Path, colours: Any) -> None:
    options = QUICK.replace(images_seen=96, block_features=(0,))
    plain, spared = (
        (run(options.replace(recompute=recompute), pruned, colours(20), name=f"r{recompute}")[0] / "model.safetensors")
        for recompute in (False, True)
    )

    assert plain.read_bytes() == spared.read_bytes()


def test_computing_blocks_again_keeps_less_for_the_gradient(tiny_spec: Any) -> None:
    from stages.training.memory import recompute_blocks

    kept = []
    for recompute in (False, True):
        model = ViT(tiny_spec(depth=4).model_dump(mode="json"))
        if recompute:
            recompute_blocks(model)
        bytes_kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal bytes_kept
            bytes_kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(8, 3, 16, 16))
        kept.append(bytes_kept)

    assert kept[1] < 0.5 * kept[0]


def test_select_says_when_answers_no_longer_come_closer(
    run: Any, pruned: Path, teacher: Path, colours: Any, train_context: Any
) -> None:
    options = QUICK.replace(stop_when_flat=True, held_out="select", feature_weight=0.0)
    there = train_context(pruned, colours(40), source=teacher)
    select = colours(60, seed=9)
    facts = STAGE.run(options, replace(there, images={**there.images, Role.SELECT: select})).facts

    assert facts["images"] == 40  # none of them held out
    assert facts["held_out_images"] == 60
    preprocess = load_spec(teacher).preprocess
    images = torch.from_numpy(normalise(select.uint8(preprocess), preprocess))
    with torch.no_grad():
        wanted, given = (load_model(folder)(images).log_softmax(-1) for folder in (teacher, pruned))
    expected = float((wanted.exp() * (wanted - given)).sum(-1).mean())
    assert facts["held_out_curve"][0] == {"step": 0, "loss": pytest.approx(expected, rel=1e-4)}
    assert facts["held_out_curve"][-1]["loss"] < expected


def test_labels_alone_fine_tune_a_model_of_any_shape(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    """Supervised fine-tuning after pruning: unequal blocks, attention off, d_qk apart from d_v."""
    spec = tiny_spec()
    first, second = spec.blocks
    shapes = spec.replace(
        blocks=(first.replace(d_qk=8, d_v=24, heads=1, mlp_width=24), second.replace(attention="off", mlp_width=40))
    )
    options = QUICK.replace(labels_weight=1.0, feature_weight=0.0, logits_weight=0.0, images_seen=1600)
    output, facts = run(options, tiny_folder(shapes, name="shapes"), colours(100))

    assert load_spec(output) == shapes
    assert facts["loss_curve"][-1]["labels"] < 0.5 * facts["loss_curve"][0]["labels"]
