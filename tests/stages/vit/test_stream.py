"""Files written tensor by tensor are byte for byte those of the safetensors library."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stages.vit.stream import NAMES, Entry, TensorFile, in_file_order, write_tensors
from targets.errors import InputError

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(max_examples=60)
@given(st.dictionaries(st.text(min_size=1, max_size=6), st.tuples(st.sampled_from(list(NAMES)), SHAPES), min_size=1))
def test_the_bytes_are_the_librarys(tmp_path_factory: pytest.TempPathFactory, content: dict) -> None:  # type: ignore[type-arg]
    content = {name: value for name, value in content.items() if name != "__metadata__" and name.isprintable()}
    folder = tmp_path_factory.mktemp("stream")
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randint(0, 2, shape, generator=draw).to(dtype) for name, (dtype, shape) in content.items()}
    if not state:
        return
    save_file(state, folder / "library.safetensors")
    entries = {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}

    write_tensors(folder / "ours.safetensors", entries, ((name, state[name]) for name in in_file_order(entries)))

    assert (folder / "ours.safetensors").read_bytes() == (folder / "library.safetensors").read_bytes()
    file = TensorFile(folder / "ours.safetensors")
    assert file.entries == entries
    assert all(
        torch.equal(file.read(name), tensor) for name, tensor in load_file(folder / "library.safetensors").items()
    )


def test_a_tensor_that_is_not_what_was_announced_is_a_fault(tmp_path: Path) -> None:
    entries = {"a": Entry(torch.float32, (2,))}

    with pytest.raises(ValueError, match="expected a"):
        write_tensors(tmp_path / "x.safetensors", entries, [("a", torch.zeros(3))])
    with pytest.raises(ValueError, match="shorter"):
        write_tensors(tmp_path / "x.safetensors", entries, [])


def test_what_is_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "x.safetensors")
    read = TensorFile(tmp_path / "x.safetensors").read("a")
    save_file({"a": torch.zeros(4)}, tmp_path / "x.safetensors")

    assert read.tolist() == [1, 1, 1, 1]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")

    with pytest.raises(InputError, match="cannot be read"):
        TensorFile(tmp_path / "x.safetensors")
