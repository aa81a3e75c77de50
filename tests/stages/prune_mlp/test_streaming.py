"""Pruning tensor by tensor gives the bytes of pruning in memory, and never holds the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages.prune_mlp import prune as prune_module
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune, prune_folder
from stages.vit.files import load_model, load_spec, save_model
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from stages.vit.stream import TensorFile
from targets.errors import InputError

MakeModel = Callable[..., tuple[ViT, ViTSpec]]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"mlp_kind": "glu", "activation": "silu"},
    "gated with a norm": {"mlp_kind": "swiglu", "activation": "silu", "mlp_norm_eps": 1e-6},
    "no biases": {"fc1_bias": False, "fc2_bias": False},
    "layer scale, rotary": {"layer_scale": True, "rope": True},
}


def stream(folder: Path, output: Path, options: PruneMlpOptions, *, seed: int = 0) -> dict[str, Any]:
    output.mkdir()
    return prune_folder(
        options,
        model_folder=folder,
        output=output,
        scratch=output,
        images=None,
        seed=seed,
        tell=lambda message, share: None,
    )


@pytest.mark.parametrize(
    "options", [{"method": "dgmr"}, {"method": "l2"}, {"method": "random"}, {"method": "dgmr", "widths": (24, 5, 13)}]
)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bytes_are_those_of_pruning_in_memory(
    kind: dict[str, Any], options: dict[str, Any], dtype: torch.dtype, make_model: MakeModel, tmp_path: Path
) -> None:
    model, spec = make_model(**kind)
    model.to(dtype)
    asked = PruneMlpOptions.model_validate({"repair": "none", **options})
    save_model(tmp_path / "source", spec, model.state_dict(), labels=list("abcde"))
    pruned, pruned_spec, facts = prune(model, spec, asked, None, seed=3)
    save_model(tmp_path / "expected", pruned_spec, pruned.state_dict(), labels=list("abcde"))

    told = stream(tmp_path / "source", tmp_path / "found", asked, seed=3)

    files = sorted(file.name for file in (tmp_path / "expected").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "found").iterdir())
    for name in files:
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    del told["seconds"]
    assert told == facts
    load_model(tmp_path / "found")


def test_no_whole_model_is_loaded(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec = make_model()
    save_model(tmp_path / "source", spec, model.state_dict())
    monkeypatch.setattr(prune_module, "load_model", None)
    held: list[int] = []
    real = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", lambda self, name: held.append(1) or real(self, name))

    stream(tmp_path / "source", tmp_path / "found", PruneMlpOptions(method="dgmr", repair="none"))

    assert len(held) == len(model.state_dict())  # each tensor once


def test_a_block_without_mlp_is_copied(make_model: MakeModel, tmp_path: Path) -> None:
    _, spec = make_model()
    blocks = (spec.blocks[0], spec.blocks[1].replace(mlp=False, mlp_width=0), spec.blocks[2])
    spec = spec.replace(blocks=blocks)
    save_model(tmp_path / "source", spec, ViT(spec.model_dump(mode="json")).state_dict())

    stream(tmp_path / "source", tmp_path / "found", PruneMlpOptions(method="l2", repair="none", keep=0.5))

    assert [block.mlp_width for block in load_spec(tmp_path / "found").blocks] == [16, 0, 16]


def damage_nan(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({**state, "norm.bias": torch.full((16,), torch.nan)}, path)


def damage_cut(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_shape(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({**state, "norm.bias": torch.zeros(17)}, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_nan, "NaN or infinity in norm.bias"),
        (damage_cut, "cannot be read, perhaps it is truncated"),
        (damage_shape, "of another shape"),
    ],
)
def test_damaged_weights_are_refused(
    damage: Callable[[Path, dict[str, torch.Tensor]], None], reason: str, make_model: MakeModel, tmp_path: Path
) -> None:
    model, spec = make_model()
    save_model(tmp_path / "source", spec, model.state_dict())
    damage(tmp_path / "source" / "model.safetensors", model.state_dict())

    with pytest.raises(InputError, match=reason):
        stream(tmp_path / "source", tmp_path / "found", PruneMlpOptions(method="dgmr", repair="none"))
