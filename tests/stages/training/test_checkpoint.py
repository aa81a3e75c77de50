"""Checkpoints are whole or ignored."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from targets.errors import StoreError


def checkpoint(step: int) -> Checkpoint:
    draw = torch.Generator().manual_seed(step)
    tensors = {"weights/a": torch.randn(5, 3, generator=draw), "optimizer/0/step": torch.tensor(float(step))}
    return Checkpoint(step, tensors, {"step": step, "curve": [{"step": 1, "loss": 0.1 + step}], "note": "é"})


def save(folder: Path, *steps: int, run: str = "one") -> None:
    for step in steps:
        save_checkpoint(folder, checkpoint(step), run=run)


def step_found(folder: Path, run: str = "one") -> int | None:
    found = load_newest(folder, run=run)
    return None if found is None else found.step


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = load_newest(tmp_path, run="one")

    assert found is not None
    assert found.progress == checkpoint(7).progress
    assert found.tensors.keys() == checkpoint(7).tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in checkpoint(7).tensors.items())


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "missing", run="one") is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 10, 9_999, 100_000_000)

    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["step-00009999.json", "step-100000000.json"]
    assert len(list(tmp_path.iterdir())) == 4
    assert step_found(tmp_path) == 100_000_000


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_torn_checkpoint_is_ignored_and_the_one_before_is_used(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / str(data.draw(st.integers(0, 2**60)))
    save(folder, 1, 2)
    victim = folder / data.draw(st.sampled_from(["step-00000002.json", "step-00000002.safetensors"]))
    content = victim.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "zeros", "missing"]))
    if kind == "missing":
        victim.unlink()
    else:
        tail = b"" if kind == "cut" else b"\0" * (len(content) - length)
        if content[:length] + tail == content:
            return
        victim.write_bytes(content[:length] + tail)

    assert step_found(folder) == 1


def test_a_checkpoint_of_another_run_is_not_used_and_makes_room(tmp_path: Path) -> None:
    save(tmp_path, 50, run="other")

    assert step_found(tmp_path) is None
    save(tmp_path, 1, 2)
    assert step_found(tmp_path) == 2


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "step-00000002.safetensors").write_bytes(b"no JSON followed")

    assert step_found(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001.json", "step-00000001.safetensors"]


def test_a_full_disk_is_a_store_error_that_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        save(tmp_path, 2)
    monkeypatch.undo()

    assert step_found(tmp_path) == 1
