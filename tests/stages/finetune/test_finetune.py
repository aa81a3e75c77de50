"""The finetune stage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.data.images import ImageSet
from stages.finetune.stage import STAGE, FinetuneOptions
from stages.finetune.supervised import WIDE_POSITION_STD, SupervisedLoss, load_for_training
from stages.stage import Role, StageContext
from stages.training.pictures import Batch
from stages.vit.files import load_labels, load_model, load_spec, load_state
from stages.vit.model import ViT
from targets.errors import InputError
from targets.preprocess import normalise

QUICK = FinetuneOptions(epochs=8, batch_size=16, lr=3e-3, from_scratch=True, crop_scale=(0.7, 1.0))


def accuracy(folder: Path, images: ImageSet) -> float:
    preprocess = load_spec(folder).preprocess
    pixels = torch.from_numpy(normalise(images.uint8(preprocess), preprocess))
    with torch.no_grad():
        answers = load_model(folder)(pixels).argmax(dim=1).numpy()
    return float((answers == images.labels).mean())


@pytest.fixture
def run(train_context: Callable[..., StageContext]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    def finetune(
        options: FinetuneOptions, model: Path, images: ImageSet, **context: Any
    ) -> tuple[Path, dict[str, Any]]:
        prepared = train_context(model, images, **context)
        return prepared.output, dict(STAGE.run(options, prepared).facts)

    return finetune


def test_a_random_model_learns_colours(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    model = tiny_folder(tiny_spec())
    output, facts = run(QUICK, model, colours(160))

    assert accuracy(model, colours(80, seed=1)) < 0.6
    assert accuracy(output, colours(80, seed=1)) > 0.95
    assert facts["loss_curve"][-1]["loss"] < 0.7 * facts["loss_curve"][0]["loss"]
    assert facts["images_seen"] == 8 * 160
    assert load_labels(output) == [f"colour {i}" for i in range(4)]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any
) -> None:
    model, options = tiny_folder(tiny_spec()), QUICK.replace(epochs=1, mixup=0.4)
    weights = [
        (run(options, model, colours(40), name=name, seed=seed)[0] / "model.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]

    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("classes", [0, 3, 10])
def test_a_model_with_other_classes_gets_a_new_head(
    classes: int, run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any
) -> None:
    output, facts = run(QUICK.replace(epochs=1), tiny_folder(tiny_spec(classes=classes)), colours(32))

    assert facts["new_head"]
    assert load_spec(output).classes == 4
    assert load_state(output)["head.weight"].shape == (4, 32)


def test_a_head_that_fits_is_kept(tiny_spec: Any, tiny_folder: Any) -> None:
    model = tiny_folder(tiny_spec())
    loaded = load_for_training(model, load_spec(model), seed=0, from_scratch=False)

    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in load_state(model).items())


def test_unnamed_labels_of_fewer_classes_keep_the_head(
    run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any
) -> None:
    output, facts = run(QUICK.replace(epochs=1), tiny_folder(tiny_spec(classes=10)), colours(32, named=False))

    assert not facts["new_head"]
    assert load_spec(output).classes == 10
    assert load_labels(output) is None


def test_from_scratch_only_widens_the_position_embedding(tiny_spec: Any, tiny_folder: Any) -> None:
    model = tiny_folder(tiny_spec(preprocess={"height": 64, "width": 64}))
    loaded = load_for_training(model, load_spec(model), seed=0, from_scratch=True).state_dict()

    changed = [name for name, tensor in load_state(model).items() if not torch.equal(loaded[name], tensor)]
    assert changed == ["pos_embed"]
    assert float(loaded["pos_embed"].std()) == pytest.approx(WIDE_POSITION_STD, rel=0.1)


def test_held_out_images_decide_when_it_is_enough(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    options = QUICK.replace(epochs=12, stop_when_flat=True, label_smoothing=0.0)
    _, facts = run(options, tiny_folder(tiny_spec()), colours(240))

    assert facts["held_out_images"] == 12
    assert facts["images"] == 228
    assert facts["held_out_curve"][-1]["loss"] < facts["held_out_curve"][0]["loss"]


def test_mixup_mixes_pictures_and_targets_by_one_share(tiny_spec: Any) -> None:
    seen: list[torch.Tensor] = []

    class Seeing(ViT):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return 5 * torch.eye(4)[[0, 1]]

    model = Seeing(tiny_spec().model_dump(mode="json"))
    batch = Batch(
        step=3, images=torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)]), labels=torch.tensor([0, 1])
    )
    loss = SupervisedLoss(model, label_smoothing=0.0, mixup=1.0, seed=0)
    mixed = float(loss(batch)["cross_entropy"])
    share = float(seen[0][1].mean())
    model.eval()
    plain = float(loss(batch)["cross_entropy"])

    assert 0.02 < share < 0.98
    assert torch.equal(seen[1], batch.images)
    assert mixed == pytest.approx(plain + 5 * (1 - share), rel=1e-4)


def test_no_images_are_refused(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    with pytest.raises(InputError, match="finetune has no images"):
        run(QUICK, tiny_folder(tiny_spec()), colours(4).subset([]))


def test_unlabelled_images_are_refused(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    with pytest.raises(InputError, match="needs a label for every image"):
        run(QUICK, tiny_folder(tiny_spec()), colours(8, labelled=False))


def test_a_single_class_is_refused(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    with pytest.raises(InputError, match="at least two classes"):
        run(QUICK, tiny_folder(tiny_spec()), colours(8, classes=1))


def test_a_label_beyond_the_classes_is_refused(run: Any, tiny_spec: Any, tiny_folder: Any, colours: Any) -> None:
    images = replace(colours(8), classes=("one", "two"))

    with pytest.raises(InputError, match=r"label 3 of data\.train is beyond its 2 classes"):
        run(QUICK, tiny_folder(tiny_spec()), images)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("lr", 0),
        ("lr", float("nan")),
        ("crop_scale", (0.5, 1.5)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_ratio", (0.0, 1.0)),
        ("layer_decay", 1.1),
        ("ema_decay", 1.0),
        ("label_smoothing", 1.0),
        ("precision", "fp16"),
        ("epoch", 3),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValidationError, match=option):
        FinetuneOptions.model_validate({option: value})


def test_it_reads_training_images_alone() -> None:
    assert STAGE.roles(FinetuneOptions()) == (Role.TRAIN,)
    assert np.isclose(FinetuneOptions().crop_ratio[1], 4 / 3)
