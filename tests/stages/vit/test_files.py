"""Model folders and checkpoints: written the same every time, read or refused with a reason."""

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.vit.files import (
    check_fits,
    load_labels,
    load_model,
    load_spec,
    load_state,
    read_checkpoint,
    save_model,
)
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import InputError

MakeSpec = Callable[..., ViTSpec]
MakeModel = Callable[..., ViT]


@pytest.fixture
def spec(make_spec: MakeSpec) -> ViTSpec:
    """A small spec with five classes."""
    return make_spec(block={"d_v": 6})


@pytest.fixture
def state(spec: ViTSpec, make_model: MakeModel) -> dict[str, Tensor]:
    """Its weights."""
    return make_model(spec).state_dict()


def test_what_is_saved_comes_back(spec: ViTSpec, state: dict[str, Tensor], tmp_path: Path) -> None:
    labels = ["a", "b", "ä", "d", "e"]
    save_model(tmp_path / "new" / "folder", spec, state, labels=labels)
    folder = tmp_path / "new" / "folder"

    assert sorted(path.name for path in folder.iterdir()) == [
        "labels.json",
        "model.py",
        "model.safetensors",
        "vit.json",
    ]
    assert load_spec(folder) == spec
    assert load_labels(folder) == labels
    assert load_state(folder).keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_state(folder).items())
    assert not load_model(folder).training


def test_the_same_model_gives_the_same_bytes(spec: ViTSpec, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_model(tmp_path / "one", spec, state)
    save_model(tmp_path / "other", spec, dict(reversed(list(state.items()))))

    for file in ("vit.json", "model.safetensors", "model.py"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    assert load_labels(tmp_path / "one") is None


def test_views_and_shared_tensors_are_saved(spec: ViTSpec, state: dict[str, Tensor], tmp_path: Path) -> None:
    shared = state["blocks.0.norm1.weight"]
    state = {**state, "blocks.0.norm2.weight": shared, "head.weight": torch.randn(16, 5).T}
    save_model(tmp_path, spec, state)

    assert torch.equal(load_state(tmp_path)["head.weight"], state["head.weight"])
    assert torch.equal(load_state(tmp_path)["blocks.0.norm2.weight"], shared)


def test_a_model_that_does_not_fit_is_not_saved(spec: ViTSpec, state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["head.bias"]
    with pytest.raises(InputError, match=r"1 missing \(head.bias\)"):
        save_model(tmp_path / "new", spec, state)
    assert not (tmp_path / "new").exists()


def test_labels_must_be_one_per_class(spec: ViTSpec, state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 labels for 5 classes"):
        save_model(tmp_path, spec, state, labels=["a", "b", "c", "d"])


def test_check_fits_names_the_first_tensors_and_how_many(spec: ViTSpec, state: dict[str, Tensor]) -> None:
    model = ViT(spec.model_dump(mode="json"))
    changed = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.")}
    changed |= {"extra": torch.ones(1), "head.weight": torch.ones(3, 16)}
    with pytest.raises(InputError) as caught:
        check_fits(changed, model)

    missing = [name for name in state if name.startswith("blocks.1.")]
    assert str(caught.value) == (
        f"the weights do not fit the model: tensors {len(missing)} missing ({', '.join(missing[:5])} and "
        f"{len(missing) - 5} more); 1 not expected (extra); 1 of another shape (head.weight [3, 16] instead of [5, 16])"
    )
    check_fits(state, model)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "model_ema", "module"])
def test_a_checkpoint_of_tensors_is_read(ending: str, wrap: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    content: dict[str, Any] = OrderedDict(state)
    if wrap == "module":
        content = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    elif wrap != "plain":
        content = {"epoch": 3, wrap: content}
    path = tmp_path / f"weights{ending}"
    torch.save(content, path)
    found = read_checkpoint(path)

    assert found.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(_Trap.mark),))

    mark = ""


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(writer: str, tmp_path: Path) -> None:
    _Trap.mark = str(tmp_path / "ran")
    path = tmp_path / "evil.pth"
    if writer == "torch":
        torch.save({"weight": torch.ones(2), "config": _Trap()}, path)
    else:
        path.write_bytes(pickle.dumps({"config": _Trap()}))
    with pytest.raises(InputError, match="could run code when opened"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], {"lr": 0.1}, {"state_dict": {"a": 1}}, {1: torch.ones(1)}, torch.ones(2), "text"]
)
def test_a_file_without_a_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match="does not hold a state dict"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_checkpoint_cut_anywhere_is_refused(ending: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    for cut in (0, 1, 7, 8, 9, 100, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"checkpoint .*(is empty|cannot be read|damaged)") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_weights_that_are_not_finite_are_named(value: float, ending: str, tmp_path: Path) -> None:
    state = {"good": torch.ones(3), "bad": torch.tensor([1.0, value]), "index": torch.tensor([1])}
    path = tmp_path / f"x{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    with pytest.raises(InputError, match=r"holds NaN or infinity in bad; it is damaged"):
        read_checkpoint(path)


def test_a_checkpoint_must_be_a_file_with_a_known_ending(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "noise.pth").write_bytes(b"hello, this is not a checkpoint")
    save_file({}, tmp_path / "nothing.safetensors")
    cases = {
        tmp_path / "absent.pth": "is not there",
        tmp_path: "is a folder",
        tmp_path / "text.txt": "unknown ending '.txt'; known: .safetensors, .pth",
        tmp_path / "noise.pth": "damaged|cannot be read",
        tmp_path / "nothing.safetensors": "holds no tensors",
    }
    for path, reason in cases.items():
        with pytest.raises(InputError, match=reason):
            read_checkpoint(path)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a vitrim model folder: cannot read vit\.json"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blocks": [{}]}, r"blocks.0.heads: Field required"),
        ({"classes": -1}, "classes: Input should be greater than or equal to 0"),
        ({"format": "vitrim.vit/9"}, "format: "),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_a_spec_with_mistakes_says_where(
    change: dict[str, Any], reason: str, spec: ViTSpec, state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_model(tmp_path, spec, state)
    (tmp_path / "vit.json").write_text(json.dumps({**spec.model_dump(mode="json"), **change}))
    with pytest.raises(InputError, match=reason):
        load_spec(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1, 2]"])
def test_labels_must_be_a_list_of_strings(content: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match=r"labels\.json"):
        load_labels(tmp_path)


@pytest.mark.parametrize(
    ("block", "reason"),
    [({"d_qk": 0}, "attention 'on' needs heads, d_qk and d_v above 0"), ({"mlp_width": 0}, "needs mlp_width above 0")],
)
def test_a_block_of_no_width_is_refused(block: dict[str, Any], reason: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ValueError, match=reason):
        make_spec(block=block)
