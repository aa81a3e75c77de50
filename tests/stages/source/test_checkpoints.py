"""Checkpoints as DeiT and DINOv2 publish and save them, and models of the hub."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from stages.source.folders import Kind, download, kind_of
from stages.source.load import load_source
from stages.source.options import SourceOptions
from targets.errors import InputError


def trained(name: str, **arguments: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    return timm.create_model(name, **arguments).eval()


def test_a_deit_checkpoint_with_its_trainers_options_is_read(tmp_path: Path) -> None:
    model = trained("deit_tiny_patch16_224", depth=1, num_classes=7)
    saved = {"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": 9, "args": argparse.Namespace(lr=0.1)}
    torch.save(saved, tmp_path / "best_checkpoint.pth")
    options = SourceOptions(
        timm="deit_tiny_patch16_224", checkpoint=tmp_path / "best_checkpoint.pth", arguments={"depth": 1}
    )
    source = load_source(options, seed=0)

    assert (source.spec.classes, source.weights) == (7, "checkpoint")
    assert torch.equal(source.state["head.weight"], model.state_dict()["head.weight"])


def hub_state(model: torch.nn.Module, *, registers: bool) -> dict[str, Tensor]:
    """The state of a timm DINOv2 under the names of the authors' own checkpoints."""
    state = {**model.state_dict(), "mask_token": torch.ones(1, model.embed_dim)}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, model.embed_dim), 0.25), state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - 0.25
    return state


@pytest.mark.parametrize("form", ["published", "teacher", "chunks"])
@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_a_dinov2_checkpoint_is_read_as_timm_reads_it(name: str, form: str, tmp_path: Path) -> None:
    model = trained(name, depth=2, img_size=56)
    state: dict[str, Any] = hub_state(model, registers="reg4" in name)
    if form == "chunks":
        state = {key.replace("blocks.", "blocks.0."): tensor for key, tensor in state.items()}
    if form != "published":
        state = {f"backbone.{key}": tensor for key, tensor in state.items()}
        state = {"teacher": {**state, "dino_head.mlp.weight": torch.ones(3)}}
    torch.save(state, tmp_path / "dinov2.pth")
    options = SourceOptions(timm=name, checkpoint=tmp_path / "dinov2.pth", arguments={"depth": 2}, image_size=56)
    source = load_source(options, seed=0)

    assert source.state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(source.state[key], tensor, rtol=1e-6, atol=1e-6)


def test_a_pickle_with_code_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("it ran",))

    torch.save({"model": {"head.weight": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="holds more than tensors, which could run code"):
        load_source(SourceOptions(timm="deit_tiny_patch16_224", checkpoint=tmp_path / "evil.pth"), seed=0)
    assert "it ran" not in capfd.readouterr().out


def test_a_torchscript_archive_says_what_to_save(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch calls TorchScript old
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "clip.pt")
    with pytest.raises(InputError, match=r"is a TorchScript archive, which holds code; save its state_dict\(\) alone"):
        load_source(SourceOptions(timm="deit_tiny_patch16_224", checkpoint=tmp_path / "clip.pt"), seed=0)


# folders and the hub


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["vit.json"], Kind.VITRIM),
        (["config.json", "model.safetensors"], Kind.TRANSFORMERS),
        (["config.json", "pytorch_model.bin.index.json"], Kind.TRANSFORMERS),
        (["open_clip_config.json", "open_clip_pytorch_model.bin"], Kind.OPEN_CLIP),
        (["config.json", "open_clip_config.json", "open_clip_model.safetensors", "model.safetensors"], Kind.OPEN_CLIP),
        (["config.json", "open_clip_config.json", "model.safetensors"], Kind.TRANSFORMERS),
    ],
)
def test_a_folder_is_known_by_its_config_and_weights(files: list[str], kind: Kind, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    assert kind_of(tmp_path) == kind


class Hub:
    """A hub with one repository; it notes what is asked of it."""

    def __init__(self, files: list[str], folder: Path, *, online: bool = True) -> None:
        self.files, self.folder, self.online = files, folder, online
        self.asked: dict[str, Any] = {}

    def list_repo_files(self, repository: str, *, revision: str | None) -> list[str]:
        if not self.online:
            raise ConnectionError("no network")
        return self.files

    def snapshot_download(self, repository: str, **arguments: Any) -> str:
        self.asked = {"repository": repository, **arguments}
        return str(self.folder)


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"], {"model.safetensors"}),
        (["config.json", "pytorch_model.bin"], {"pytorch_model.bin"}),
        (
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
            {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
        ),
        (
            ["config.json", "open_clip_config.json", "open_clip_model.safetensors", "model.safetensors"],
            {"open_clip_model.safetensors"},
        ),
    ],
)
def test_one_format_of_weights_is_fetched(
    files: list[str], weights: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(files, tmp_path)
    for name in ("list_repo_files", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))

    assert download("hf:user/model@v1") == tmp_path
    assert (hub.asked["repository"], hub.asked["revision"]) == ("user/model", "v1")
    assert {name for name in hub.asked["allow_patterns"] if name in files and "config" not in name} == weights
    assert not any(name.endswith(".h5") for name in hub.asked["allow_patterns"])


def test_without_a_network_what_was_fetched_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub([], tmp_path, online=False)
    for name in ("list_repo_files", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))

    assert download("user/model") == tmp_path
    assert hub.asked == {"repository": "user/model", "revision": None, "local_files_only": True}


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot load 'user/model' from the hub: .*give folder") as caught:
        load_source(SourceOptions(hub="user/model"), seed=0)
    assert "\n" not in str(caught.value)
