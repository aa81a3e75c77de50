"""Several processes train as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.training.launched import launched
from stages.training.ranks import ALONE, Ranks, check_batch, mirrored, ranks
from stages.vit.files import load_state, save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import InputError
from targets.preprocess import Preprocess

SCRIPT = Path(__file__).with_name("together.py")


@given(count=st.integers(0, 70), parts=st.integers(1, 9))
def test_parts_hold_every_place_once_and_its_mirror_image(count: int, parts: int) -> None:
    cut = mirrored(count, parts)

    assert sorted(place for part in cut for place in part) == list(range(count))
    for part in cut:
        assert [count - 1 - place for place in part] == part[::-1]
        assert abs(len(part) - count / parts) <= 2


@given(count=st.integers(1, 9), more=st.integers(0, 30))
def test_a_batch_that_is_accepted_gives_every_process_an_image(count: int, more: int) -> None:
    batch_size = 2 * count - 1 + more
    check_batch(batch_size, Ranks(0, count))

    assert all(Ranks(index, count).share(batch_size) for index in range(count))


def test_a_batch_that_is_too_small_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size 6 is too small for 4 processes; give at least 7"):
        check_batch(6, Ranks(0, 4))


@pytest.mark.parametrize(("value", "count"), [(None, 1), ("1", 1), ("4", 4), ("x", 1)])
def test_the_launchers_variable_says_how_many(value: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if value is not None:
        monkeypatch.setenv("WORLD_SIZE", value)
    assert launched() == count


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert ranks() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started together, which needs accelerate"):
        ranks()


# real processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A student and a teacher that differ."""
    return furnished(tmp_path)


def furnished(folder: Path) -> Path:
    block = BlockSpec(heads=2, d_qk=8, d_v=8, scale=0.35, mlp_width=32, norm1_eps=1e-6, norm2_eps=1e-6)
    spec = ViTSpec(
        architecture="tiny",
        preprocess=Preprocess(height=16, width=16, interpolation="bilinear"),
        patch_size=(8, 8),
        width=16,
        classes=4,
        blocks=(block, block),
    )
    for seed, name in enumerate(("model", "teacher")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            save_model(folder / name, spec, ViT(spec.model_dump(mode="json")).state_dict())
    return folder


Alone = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Alone:
    """alone("finetune"): what one process makes of the same student, and its facts; run once."""

    @cache
    def train(kind: str) -> tuple[Path, dict[str, Any]]:
        folder = furnished(tmp_path_factory.mktemp("alone"))
        return folder / "result", run(kind, folder, root, processes=1)

    return train


def copy_of(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    for part in ("model", "teacher"):
        (folder / name / part).symlink_to(folder / part)
    return folder / name


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(kind: str, folder: Path, root: Path, *, processes: int, pause: float = 0.0) -> list[subprocess.Popen[bytes]]:
    """Start as torchrun does."""
    port = str(free_port())
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if processes > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        environment |= {"LOCAL_WORLD_SIZE": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, kind, folder, str(pause)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else environment,
        )
        for rank in range(processes)
    ]


def run(kind: str, folder: Path, root: Path, *, processes: int) -> dict[str, Any]:
    started = start(kind, folder, root, processes=processes)
    try:
        assert [one.wait(timeout=240) for one in started] == [0] * processes
    finally:
        for one in started:
            one.kill()
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetune", "distill", "finetune-sharded", "distill-sharded"])
def test_two_processes_end_as_one_does(kind: str, folder: Path, root: Path, alone: Alone) -> None:
    result, expected = alone(kind)
    found = run(kind, folder, root, processes=2)
    before, one, two = (load_state(path) for path in (folder / "model", result, folder / "result"))

    assert max(float((one[name] - before[name]).abs().max()) for name in one) > 1e-3
    same_weights(two, one)
    assert found["gradient_norms"] == pytest.approx(expected["gradient_norms"], rel=1e-3)
    assert found.pop("processes") == 2
    assert found.keys() == expected.keys()
    assert (found["steps"], found["images_seen"]) == (expected["steps"], expected["images_seen"])
    for mine, other in zip(found["loss_curve"], expected["loss_curve"], strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetune", "finetune-sharded"])
def test_two_processes_killed_end_with_the_same_bytes(kind: str, folder: Path, root: Path) -> None:
    whole, killed = copy_of(folder, "whole"), copy_of(folder, "killed")
    run(kind, whole, root, processes=2)
    kill_half_way(kind, killed, root, processes=2)
    run(kind, killed, root, processes=2)

    assert (killed / "result/model.safetensors").read_bytes() == (whole / "result/model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("finetune", 1), ("finetune", 2)),
        (("finetune", 2), ("finetune-sharded", 2)),
        (("finetune-sharded", 2), ("finetune", 1)),
    ],
    ids=lambda one: f"{one[1]} {one[0]}",
)
def test_a_killed_training_goes_on_in_another_number_of_processes_sharded_or_not(
    first: tuple[str, int], then: tuple[str, int], folder: Path, root: Path, alone: Alone
) -> None:
    result, expected = alone("finetune")
    kill_half_way(first[0], folder, root, processes=first[1])
    began = _newest(folder)
    found = run(then[0], folder, root, processes=then[1])

    assert found["steps"] == expected["steps"]
    made: list[float] = found["gradient_norms"]
    assert 0 < len(made) == expected["steps"] - began  # it went on, and did not begin again
    same_weights(load_state(folder / "result"), load_state(result))


def kill_half_way(kind: str, folder: Path, root: Path, *, processes: int) -> None:
    """Start a training and kill all of it after some checkpoints."""
    started = start(kind, folder, root, processes=processes, pause=0.05)
    try:
        while not any((folder / "scratch").glob("step-*.json")) or _newest(folder) < 9:
            assert all(one.poll() is None for one in started), "they ended before they could be killed"
            time.sleep(0.01)
    finally:
        for one in started:
            one.send_signal(signal.SIGKILL)
            one.wait()
    assert not (folder / "result").exists()
    assert 9 <= _newest(folder) < 46


def same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        mine = found[name]
        if name.endswith("qkv.bias"):
            # Softmax does not see the keys' bias: its gradient is rounding alone, which Adam makes as large as any.
            tensor, mine = (torch.cat([x[:16], x[32:]]) for x in (tensor, mine))
        torch.testing.assert_close(mine, tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def _newest(folder: Path) -> int:
    return max(int(path.stem.partition("-")[2]) for path in (folder / "scratch").glob("step-*.json"))
