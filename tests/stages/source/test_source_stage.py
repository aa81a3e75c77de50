"""The source stage: from what a user names to a model folder, or to a reason in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from stages.artifact import Format
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.source.stage import STAGE
from stages.stage import StageContext, StageResult
from stages.vit.counts import count_macs, count_params
from stages.vit.files import build_empty, load_labels, load_model, load_spec, load_state, save_model
from targets.errors import InputError, UnknownNameError

NAME = "test_vit"  # timm's smallest: depth 6, width 64, input 160
Run = Callable[..., StageResult]


def trained(**arguments: Any) -> torch.nn.Module:
    """A timm model whose weights stand for trained ones."""
    torch.manual_seed(3)
    return timm.create_model(NAME, **arguments).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of a model with the architecture's own head of 1000 classes."""
    save_file(trained().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the stage as the pipeline does; its files are in tmp_path / output."""

    def run_stage(*, output: str = "output", seed: int = 0, **options: Any) -> StageResult:
        folder = tmp_path / output
        folder.mkdir()
        empty = tmp_path / "nothing"
        context = StageContext(input=empty, source=empty, output=folder, scratch=empty, images={}, seed=seed)
        return STAGE.run(SourceOptions.model_validate(options), context)

    return run_stage


def outputs(folder: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = load_model(folder)(images)
        return result


def test_a_checkpoint_becomes_a_model_folder_with_its_facts(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = run(timm=NAME, checkpoint=checkpoint)
    images = torch.randn(2, 3, 160, 160)
    spec = load_spec(tmp_path / "output")

    with torch.no_grad():
        torch.testing.assert_close(outputs(tmp_path / "output", images), trained()(images), rtol=1e-5, atol=1e-5)
    assert dict(result.facts) == {
        "summary": f"{NAME}, weights: checkpoint",
        "architecture": NAME,
        "params": count_params(spec),
        "macs": count_macs(spec),
        "image_size": [160, 160],
        "classes": 1000,
        "tensors": len(trained().state_dict()),
        "weights": "checkpoint",
        "labels": True,
    }


def test_the_stage_says_what_it_is() -> None:
    assert (STAGE.name, STAGE.consumes, STAGE.produces) == ("source", Format.NOTHING, Format.VIT)
    assert not STAGE.target_bound
    assert STAGE.roles(SourceOptions(timm=NAME)) == ()


def test_the_stage_is_listed_without_torch() -> None:
    code = "import sys, stages.source.stage; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).resolve().parents[3])


def test_the_same_options_give_the_same_bytes(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for output in ("one", "two"):
        run(timm=NAME, checkpoint=checkpoint, classes=4, output=output)

    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_files_that_decide_the_result_are_declared(checkpoint: Path, tmp_path: Path) -> None:
    options = SourceOptions(timm=NAME, checkpoint=checkpoint)
    assert STAGE.reads(options) == {"checkpoint": checkpoint}
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "vit.json").write_text("{}")
    assert STAGE.reads(SourceOptions(folder=tmp_path / "saved")) == {"folder": tmp_path / "saved"}
    with pytest.raises(InputError, match=r"holds no model: it has none of vit.json .*config.json"):
        STAGE.reads(SourceOptions(folder=tmp_path))
    with pytest.raises(InputError, match="classes goes with other models only"):
        STAGE.reads(SourceOptions(folder=tmp_path / "saved", classes=3))
    with pytest.raises(InputError, match=r"checkpoint '.*absent.pth' is not there"):
        STAGE.reads(SourceOptions(timm=NAME, checkpoint=tmp_path / "absent.pth"))


@pytest.mark.parametrize("size", [96, (128, 96)])
def test_another_image_size_resamples_the_position_as_timm_does(size: int | tuple[int, int], checkpoint: Path) -> None:
    source = load_source(SourceOptions(timm=NAME, checkpoint=checkpoint, image_size=size), seed=0)
    reference = trained()
    reference.set_input_size(img_size=(96, 96) if isinstance(size, int) else size)

    assert source.spec.input_shape[1:] == ((96, 96) if isinstance(size, int) else size)
    torch.testing.assert_close(source.state["pos_embed"], reference.pos_embed.detach())


def test_the_head_of_the_checkpoint_decides_the_number_of_classes(tmp_path: Path) -> None:
    torch.save({"state_dict": trained(num_classes=11).state_dict()}, tmp_path / "mine.pth")
    source = load_source(SourceOptions(timm=NAME, checkpoint=tmp_path / "mine.pth"), seed=0)

    assert (source.spec.classes, source.weights, source.labels) == (11, "checkpoint", None)


def test_no_classes_takes_the_head_off(checkpoint: Path) -> None:
    source = load_source(SourceOptions(timm=NAME, checkpoint=checkpoint, classes=0), seed=0)

    assert source.spec.classes == 0
    assert "head.weight" not in source.state
    assert source.weights == "checkpoint"


def test_other_classes_make_a_new_head_from_the_seed_and_keep_the_rest(checkpoint: Path) -> None:
    options = SourceOptions(timm=NAME, checkpoint=checkpoint, classes=4)
    first, again, other = (load_source(options, seed=seed) for seed in (0, 0, 1))

    assert first.weights == "checkpoint, new head"
    assert first.labels is None
    assert torch.equal(first.state["head.weight"], again.state["head.weight"])
    assert not torch.equal(first.state["head.weight"], other.state["head.weight"])
    kept = trained().state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in first.state.items() if not name.startswith("head."))


def test_random_weights_follow_the_seed_and_leave_torchs_own_alone() -> None:
    options = SourceOptions(timm=NAME, pretrained=False, arguments={"depth": 1}, classes=10)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sources = [load_source(options, seed=seed) for seed in (0, 0, 1)]

    assert torch.equal(torch.rand(1), expected)
    assert sources[0].weights == "random"
    assert torch.equal(sources[0].state["pos_embed"], sources[1].state["pos_embed"])
    assert not torch.equal(sources[0].state["pos_embed"], sources[2].state["pos_embed"])


def test_arguments_reach_timm() -> None:
    arguments = {"depth": 2, "reg_tokens": 2, "global_pool": "avg", "init_values": 0.1}
    spec = load_source(SourceOptions(timm=NAME, pretrained=False, arguments=arguments), seed=0).spec

    assert (len(spec.blocks), spec.register_tokens, spec.pooling, spec.layer_scale) == (2, 2, "avg", True)


def test_an_argument_may_make_a_model_readable() -> None:
    options = {"timm": "vit_base_patch16_siglip_224", "pretrained": False, "image_size": 32}
    with pytest.raises(InputError, match="pools by attention"):
        load_source(SourceOptions.model_validate(options), seed=0)
    options["arguments"] = {"global_pool": "avg", "depth": 1}

    assert load_source(SourceOptions.model_validate(options), seed=0).spec.pooling == "avg"


def test_old_names_of_layer_scale_are_understood(tmp_path: Path) -> None:
    state = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for name, tensor in trained(init_values=0.1).state_dict().items()
    }
    save_file(state, tmp_path / "deit3.safetensors")
    options = SourceOptions(timm=NAME, checkpoint=tmp_path / "deit3.safetensors", arguments={"init_values": 0.1})

    assert "blocks.0.ls1.gamma" in load_source(options, seed=0).state


def test_a_distilled_checkpoint_keeps_both_heads(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    torch.manual_seed(0)
    reference = timm.create_model(name, depth=1, num_classes=9).eval()
    save_file(reference.state_dict(), tmp_path / "x.safetensors")
    options = SourceOptions(timm=name, checkpoint=tmp_path / "x.safetensors", arguments={"depth": 1})
    source = load_source(options, seed=0)
    model, images = build_empty(source.spec), torch.randn(1, 3, 224, 224)
    model.load_state_dict(source.state, assign=True)

    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-4, atol=1e-5)


# labels


def test_imagenet_names_come_with_an_imagenet_model_that_is_trained(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    run(timm=NAME, checkpoint=checkpoint)
    labels = load_labels(tmp_path / "output")

    assert labels is not None
    assert (len(labels), labels[1]) == (1000, "goldfish, Carassius auratus")
    assert load_source(SourceOptions(timm=NAME, pretrained=False), seed=0).labels is None


@pytest.mark.parametrize("form", ["text", "json"])
def test_labels_of_the_user_come_first(form: str, run: Run, tmp_path: Path) -> None:
    save_file(trained(num_classes=3).state_dict(), tmp_path / "w.safetensors")
    path = tmp_path / ("labels.json" if form == "json" else "labels.txt")
    path.write_text(json.dumps(["cat", "dog", "Löwe"]) if form == "json" else "cat\ndog\nLöwe\n", encoding="utf-8")
    run(timm=NAME, checkpoint=tmp_path / "w.safetensors", labels=path)

    assert load_labels(tmp_path / "output") == ["cat", "dog", "Löwe"]


def test_labels_that_do_not_fit_the_head_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="2 class names for 1000 classes"):
        load_source(SourceOptions(timm=NAME, checkpoint=checkpoint, labels=tmp_path / "labels.txt"), seed=0)


@pytest.mark.parametrize("content", ["{", '{"0": "cat"}', "[1]"])
def test_labels_that_are_no_list_are_refused(content: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match="JSON"):
        load_source(SourceOptions(timm=NAME, checkpoint=checkpoint, labels=tmp_path / "labels.json"), seed=0)


# a folder as source


def test_a_saved_folder_is_a_source(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    run(timm=NAME, checkpoint=checkpoint, output="first")
    result = run(folder=tmp_path / "first", output="second")

    assert result.facts["weights"] == "folder"
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


@pytest.mark.parametrize("side", [56, 84])
def test_a_checkpoint_of_an_eva_is_read_at_its_own_and_at_another_size(run: Run, tmp_path: Path, side: int) -> None:
    model = timm.create_model("eva02_tiny_patch14_224", depth=1, img_size=56, num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "eva.safetensors")
    run(
        timm="eva02_tiny_patch14_224",
        checkpoint=tmp_path / "eva.safetensors",
        arguments={"depth": 1},
        image_size=side,
        output="eva",
    )
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model.set_input_size((side, side))

    with torch.no_grad():
        torch.testing.assert_close(outputs(tmp_path / "eva", images), model(images), rtol=1e-4, atol=1e-5)


def test_a_folder_is_copied_byte_for_byte_and_never_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(timm=NAME, pretrained=False, image_size=32, classes=3, output="first")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    monkeypatch.setattr("stages.source.load.load_state", None)
    run(folder=tmp_path / "first", output="second", labels=tmp_path / "names.txt")

    for name in ("vit.json", "model.safetensors", "model.py"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert load_labels(tmp_path / "second") == ["a", "b", "c"]


def test_a_folder_whose_weights_do_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    run(timm=NAME, pretrained=False, image_size=32, classes=3, output="first")
    spec = tmp_path / "first" / "vit.json"
    spec.write_text(spec.read_text().replace('"classes": 3', '"classes": 4'))

    with pytest.raises(InputError, match=r"of another shape .head\.weight"):
        run(folder=tmp_path / "first", output="second")


def test_a_pruned_folder_is_a_source(run: Run, tmp_path: Path) -> None:
    spec = load_source(SourceOptions(timm=NAME, pretrained=False, classes=3), seed=0).spec
    block = spec.blocks[0].replace(d_qk=5, mlp_width=20, attention="on")
    spec = spec.replace(blocks=(block, block.replace(attention="off")))
    model = build_empty(spec).to_empty(device="cpu")
    save_model(tmp_path / "pruned", spec, {name: torch.zeros_like(x) for name, x in model.state_dict().items()})
    run(folder=tmp_path / "pruned")

    assert load_spec(tmp_path / "output") == spec
    assert load_state(tmp_path / "output").keys() == model.state_dict().keys()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        load_source(SourceOptions(folder=tmp_path), seed=0)


# bad input


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "give timm .a model's name., folder .* or hub"),
        ({"timm": NAME, "folder": "x"}, "one of them"),
        ({"hub": "user/model", "folder": "x"}, "one of them"),
        ({"hub": "https://x.y/user/model"}, "hub must be user/model or user/model@revision"),
        ({"hub": "user"}, "hub must be user/model"),
        ({"hub": "user/model", "arguments": {"depth": 1}}, "arguments goes with timm only"),
        ({"folder": "x", "checkpoint": "y"}, "checkpoint goes with timm only"),
        ({"timm": NAME, "arguments": {"num_classes": 3}}, "set the option classes in place of timm's num_classes"),
        ({"timm": NAME, "image_size": 0}, r"image_size\n.*a side must be above 0"),
        ({"timm": NAME, "image_size": [32, -1]}, r"image_size\n.*a side must be above 0"),
        ({"timm": NAME, "classes": -1}, "greater than or equal to 0"),
        ({"timm": NAME, "arguments": {"depth": [1]}}, "arguments"),
        ({"timm": NAME, "chekpoint": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SourceOptions.model_validate(options)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_242", "unknown timm model 'vit_tiny_patch16_242'; did you mean 'vit_tiny_patch16_224'"),
        (
            "vit_tiny_patch16_224.augreg_in1k",
            "unknown pretrained tag 'augreg_in1k'; did you mean 'augreg_in21k'.*; tags of",
        ),
        ("vit_tiny_patch16_224.x", "unknown pretrained tag 'x'; known: augreg_in21k, augreg_in21k_ft_in1k"),
        ("local-dir:/tmp", "unknown timm model 'local-dir:/tmp'"),
        ("", "unknown timm model ''"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, reason: str) -> None:
    with pytest.raises(UnknownNameError, match=reason) as caught:
        load_source(SourceOptions(timm=name, pretrained=False), seed=0)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize(
    "name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_pe_core_tiny_patch16_384", "vit_tiny_r_s16_p8_224"]
)
def test_a_model_that_cannot_be_read_is_refused_before_anything_is_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.source.load._fetch", lambda *args: pytest.fail("it was fetched"))
    with pytest.raises(InputError, match=f"cannot read the timm model '{name}'"):
        load_source(SourceOptions(timm=name), seed=0)


def test_no_network_says_to_give_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot load the hub's weights of 'test_vit': .*give a checkpoint") as caught:
        load_source(SourceOptions(timm=NAME, arguments={"cache_dir": str(tmp_path)}), seed=0)
    assert "\n" not in str(caught.value)


def test_a_model_without_weights_on_the_hub_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"timm has no weights for 'test_vit4'; give a checkpoint, or pretrained: false"
    ):
        load_source(SourceOptions(timm="test_vit4"), seed=0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"arguments": {"depht": 2}}, r"timm cannot build 'test_vit' with {'depht': 2}: TypeError: .*'depht'"),
        ({"arguments": {"num_heads": 7}}, "timm cannot build 'test_vit' .*divisible by num_heads"),
        ({"image_size": 100}, "input 100x100 is not a multiple of the patch 16x16"),
        ({"arguments": {"global_pool": "map"}}, "pools by attention"),
    ],
)
def test_arguments_that_do_not_work_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_source(SourceOptions.model_validate({"timm": NAME, "pretrained": False, **options}), seed=0)


def _other_width(path: Path) -> None:
    save_file(trained(embed_dim=48, num_heads=2).state_dict(), path)


def _fewer_blocks(path: Path) -> None:
    save_file(trained(depth=4).state_dict(), path)


def _no_head(path: Path) -> None:
    save_file(trained(num_classes=0).state_dict(), path)


def _not_a_number(path: Path) -> None:
    save_file({**trained().state_dict(), "norm.bias": torch.full((64,), float("nan"))}, path)


def _truncated(path: Path) -> None:
    save_file(trained().state_dict(), path)
    path.write_bytes(path.read_bytes()[:50_000])


def _something_else(path: Path) -> None:
    save_file({"embeddings": torch.ones(4, 4)}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            _other_width,
            r"the weights do not fit the model: .* of another shape \(cls_token \[1, 1, 48\] instead of \[1, 1, 64\]",
        ),
        (_fewer_blocks, r"tensors \d+ missing \(blocks.4.norm1.weight"),
        (_no_head, r"2 missing \(head.weight, head.bias\); set classes to 0 for a model without a head"),
        (_not_a_number, "holds NaN or infinity in norm.bias"),
        (_truncated, "cannot be read, perhaps it is truncated"),
        (_something_else, r"\d+ missing .*1 not expected \(embeddings\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_which_tensors(
    write: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    write(path)
    with pytest.raises(InputError, match=reason) as caught:
        load_source(SourceOptions(timm=NAME, checkpoint=path), seed=0)
    assert str(caught.value).startswith(f"checkpoint {str(path)!r}")
    assert "\n" not in str(caught.value)


# the real model


@pytest.mark.real
def test_the_real_vit_tiny_classifies_as_timm_does(assets: Path, run: Run, tmp_path: Path) -> None:
    import io
    import zipfile

    import numpy as np
    from PIL import Image
    from safetensors.torch import load_file

    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    weights = assets / "vit_tiny_patch16_224" / f"{name}.safetensors"
    result = run(timm=name, checkpoint=weights)
    spec = load_spec(tmp_path / "output")
    with zipfile.ZipFile(assets / "imagenet_val" / "images.zip") as archive:
        files = [file for file in archive.namelist() if file.lower().endswith((".jpeg", ".jpg"))][:8]
        pictures = [Image.open(io.BytesIO(archive.read(file))).convert("RGB").resize((224, 224)) for file in files]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    reference = timm.create_model(name).eval()
    reference.load_state_dict(load_file(weights))
    with torch.no_grad():
        expected = reference(images)
    found = outputs(tmp_path / "output", images)

    assert result.facts["params"] == 5_717_416
    assert result.facts["macs"] / 1e9 == pytest.approx(1.2537, abs=0.0001)
    assert (spec.preprocess.mean, spec.preprocess.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (spec.preprocess.crop_share, spec.preprocess.interpolation) == (0.9, "bicubic")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))
