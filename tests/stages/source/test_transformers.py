"""Folders of Hugging Face transformers: the same answers as that library, or a reason in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.source.load import Source, load_source
from stages.source.options import SourceOptions
from stages.source.transformers_reader import FAMILIES, with_defaults
from stages.vit.files import build_empty
from targets.errors import InputError

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra dev)")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
PLAIN = {**SIZES, "intermediate_size": 48}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 100}
CLIP = {"vision_config": PLAIN, "text_config": TEXT, "projection_dim": 24}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "Löwe"}, "label2id": {"cat": 0, "dog": 1, "Löwe": 2}}
SQUASHED = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def make(kind: str, config: dict[str, Any]) -> nn.Module:
    """A model of transformers with random weights, none of which is a neutral 0 or 1."""
    torch.manual_seed(7)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save(model: nn.Module, folder: Path, processor: dict[str, Any] = SQUASHED) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def answer(source: Source, images: Tensor, *, tokens: bool = False) -> Tensor:
    model = build_empty(source.spec)
    model.load_state_dict(source.state, assign=True)
    with torch.no_grad():
        found: Tensor = (model.forward_tokens if tokens else model)(images)
    return found


def logits(output: Any) -> Tensor:
    return output.logits


def class_token(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def embedding(output: Any) -> Tensor:
    return output.image_embeds


CASES: list[tuple[str, dict[str, Any], Callable[[Any], Tensor]]] = [
    ("ViTForImageClassification", {**PLAIN, "num_labels": 5}, logits),
    ("ViTForImageClassification", {**PLAIN, "num_labels": 5, "qkv_bias": False, "hidden_act": "gelu_new"}, logits),
    ("ViTModel", PLAIN, class_token),
    ("DeiTForImageClassification", {**PLAIN, "num_labels": 5}, logits),
    ("DeiTForImageClassificationWithTeacher", {**PLAIN, "num_labels": 5}, logits),
    ("DeiTModel", PLAIN, class_token),
    ("Dinov2Model", SIZES, class_token),
    ("Dinov2ForImageClassification", {**SIZES, "num_labels": 5}, logits),
    ("Dinov2ForImageClassification", {**SIZES, "num_labels": 5, "use_swiglu_ffn": True}, logits),
    ("Dinov2WithRegistersModel", SIZES, class_token),
    ("Dinov2WithRegistersForImageClassification", {**SIZES, "num_labels": 5, "num_register_tokens": 3}, logits),
    ("CLIPVisionModel", PLAIN, lambda output: output.pooler_output),
    ("CLIPVisionModelWithProjection", {**PLAIN, "projection_dim": 24}, embedding),
    ("CLIPForImageClassification", {**CLIP, "num_labels": 5}, logits),
]


@pytest.mark.parametrize(("kind", "config", "wanted"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_it_answers_as_the_library_does(
    kind: str, config: dict[str, Any], wanted: Callable[[Any], Tensor], tmp_path: Path
) -> None:
    model = make(kind, config)
    source = load_source(SourceOptions(folder=save(model, tmp_path)), seed=0)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = wanted(model(pixel_values=images))

    torch.testing.assert_close(answer(source, images), expected, rtol=1e-4, atol=2e-5)
    assert source.weights == "transformers"
    assert source.spec.classes == (expected.shape[1] if wanted in (logits, embedding) else 0)


def test_the_vision_tower_is_taken_out_of_a_whole_clip(tmp_path: Path) -> None:
    model = make("CLIPModel", CLIP)
    source = load_source(SourceOptions(folder=save(model, tmp_path)), seed=0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.get_image_features(pixel_values=images)
    expected = features if isinstance(features, Tensor) else features.pooler_output

    assert source.spec.classes == 24
    torch.testing.assert_close(answer(source, images), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_dinov2_at_another_size_interpolates_its_position_as_the_library_does(kind: str, tmp_path: Path) -> None:
    model = make(kind, SIZES)
    processor = {**SQUASHED, "size": {"height": 48, "width": 48}}
    source = load_source(SourceOptions(folder=save(model, tmp_path, processor)), seed=0)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state

    assert source.spec.input_shape == (3, 48, 48)
    torch.testing.assert_close(answer(source, images, tokens=True), expected, rtol=1e-4, atol=2e-5)


def test_a_size_of_the_users_own_wins(tmp_path: Path) -> None:
    model = make("Dinov2Model", SIZES)
    source = load_source(SourceOptions(folder=save(model, tmp_path), image_size=(16, 40)), seed=0)
    images = torch.randn(1, 3, 16, 40)
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state

    torch.testing.assert_close(answer(source, images, tokens=True), expected, rtol=1e-4, atol=2e-5)


def test_class_names_come_from_the_config(tmp_path: Path) -> None:
    named = load_source(
        SourceOptions(folder=save(make("ViTForImageClassification", {**PLAIN, **LABELS}), tmp_path / "named")), seed=0
    )
    plain = load_source(
        SourceOptions(folder=save(make("ViTForImageClassification", {**PLAIN, "num_labels": 3}), tmp_path / "plain")),
        seed=0,
    )

    assert named.labels == ["cat", "dog", "Löwe"]
    assert plain.labels is None
    assert plain.spec.classes == 3


@pytest.mark.parametrize("classes", [0, 7])
def test_another_number_of_classes_changes_the_head_alone(classes: int, tmp_path: Path) -> None:
    folder = save(make("ViTForImageClassification", {**PLAIN, **LABELS}), tmp_path)
    own, other, again = (
        load_source(SourceOptions(folder=folder, classes=count), seed=0) for count in (3, classes, classes)
    )

    assert (other.spec.classes, other.labels) == (classes, None)
    assert other.weights == ("transformers, new head" if classes else "transformers")
    assert all(torch.equal(x, again.state[name]) for name, x in other.state.items())
    assert all(torch.equal(x, own.state[name]) for name, x in other.state.items() if not name.startswith("head."))


def test_shards_and_old_files_are_read(tmp_path: Path) -> None:
    model = make("ViTForImageClassification", {**PLAIN, "num_labels": 5})
    whole = load_source(SourceOptions(folder=save(model, tmp_path / "whole")), seed=0)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    for name in ("shards", "old"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(SQUASHED))
    (tmp_path / "old" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    torch.save(load_file(tmp_path / "whole" / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin")

    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("shards", "old"):
        other = load_source(SourceOptions(folder=tmp_path / name), seed=0)
        assert other.spec == whole.spec
        assert all(torch.equal(tensor, other.state[key]) for key, tensor in whole.state.items())


@pytest.mark.parametrize("kind", FAMILIES)
def test_fields_that_a_config_leaves_out_mean_what_the_library_means(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind).to_dict()
    found = with_defaults(kind, {})

    assert len(found) == 8
    assert {name: config[name] for name in found} == found


def test_a_clip_config_that_leaves_its_defaults_out_is_read(tmp_path: Path) -> None:
    model = make("CLIPModel", {**CLIP, "vision_config": {**PLAIN, "num_attention_heads": 12, "hidden_size": 48}})
    folder = save(model, tmp_path)
    whole = load_source(SourceOptions(folder=folder), seed=0)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"hidden_size": 48, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    (folder / "config.json").write_text(json.dumps(config))

    assert load_source(SourceOptions(folder=folder), seed=0).spec == whole.spec


# bad input


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _processor(folder: Path, **changes: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({**SQUASHED, **changes}))


def _without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _evil(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("it ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")


def _nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"][0] = float("nan")
    save_file(state, folder / "model.safetensors")


def _extra(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "vit.gate": torch.ones(2)}, folder / "model.safetensors")


def _text_weights(folder: Path) -> None:
    save_file({"text_model.embeddings.token_embedding.weight": torch.ones(2, 2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: _config(folder, model_type="swin"), "unknown architecture, model_type 'swin'; known: clip, "),
        (lambda folder: _config(folder, model_type="clip_text_model"), "is a text tower"),
        (lambda folder: _config(folder, model_type="clip"), "has no vision_config"),
        (lambda folder: _config(folder, model_type=None, architecture="vit_tiny"), "is timm's; give timm: vit_tiny"),
        (lambda folder: _config(folder, hidden_act="mish"), "hidden_act 'mish' is not known; known: gelu"),
        (lambda folder: _config(folder, num_channels=1), "reads 1 channels"),
        (lambda folder: _config(folder, num_attention_heads=5), "32 is not a multiple of num_attention_heads 5"),
        (lambda folder: _config(folder, num_hidden_layers=3), "lack 'blocks.2.mlp.fc2.weight'"),
        (lambda folder: _config(folder, image_size=64), "16 patches, which is not a grid of 8 x 8"),
        (lambda folder: _config(folder, patch_size="8"), "a size must be a number"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: _without(folder, "config.json"), "holds no model"),
        (lambda folder: _without(folder, "preprocessor_config.json"), "no preprocessor_config.json, which says how"),
        (
            lambda folder: _without(folder, "model.safetensors"),
            "has config.json but no weights: none of model.safetensors",
        ),
        (lambda folder: _processor(folder, do_rescale=False), "not rescaled"),
        (lambda folder: _processor(folder, rescale_factor=1 / 127.5), "not rescaled"),
        (lambda folder: _processor(folder, do_resize=False), "do_resize is false"),
        (lambda folder: _processor(folder, resample=5), "resample 5 is not known"),
        (lambda folder: _processor(folder, size={"shortest_edge": 32}), "needs a fixed size: set do_center_crop"),
        (lambda folder: _processor(folder, image_mean=[0.5]), "mean"),
        (_evil, "pickle that holds more than tensors"),
        (_nan, "holds NaN or infinity in classifier.bias"),
        (_extra, r"1 not expected \(gate\)"),
        (_text_weights, "holds no vision tower but a text tower"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    damage: Callable[[Path], Any], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save(make("ViTForImageClassification", {**PLAIN, "num_labels": 3}), tmp_path / "model")
    damage(folder)
    with pytest.raises(InputError, match=reason) as caught:
        load_source(SourceOptions(folder=folder), seed=0)

    assert "\n" not in str(caught.value)
    assert "it ran" not in capfd.readouterr().out
