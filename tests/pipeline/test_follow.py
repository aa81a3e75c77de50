"""The other processes of a launcher run what the first one sends, on the same images, and keep nothing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import follow
from stages.catalog import get_stage
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.stage import Role, StageContext, StageResult
from targets.errors import InputError

SOURCE = DataSource(dataset="digits", limit=20)


class Others:
    """Stands for the other processes: notes what is sent, and gives what was sent before."""

    def __init__(self, *, is_first: bool, orders: tuple[Any, ...] = ()) -> None:
        self.is_first, self.sent, self.orders = is_first, [], list(orders)

    def agree(self, value: Any) -> Any:
        if self.is_first:
            self.sent.append(value)
            return value
        return self.orders.pop(0)


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Others]:
    """among(is_first=...) makes this one of two processes."""

    def join(**options: Any) -> Others:
        others = Others(**options)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr("stages.training.ranks.ranks", lambda: others)
        monkeypatch.setattr("stages.training.ranks.finish", lambda: None)
        return others

    return join


def context(tmp_path: Path) -> StageContext:
    images = {Role.TRAIN: open_images(SOURCE, Role.TRAIN, index_cache=None)}
    return StageContext(input=tmp_path, source=tmp_path, output=tmp_path, scratch=tmp_path, images=images, seed=7)


def order(tmp_path: Path, among: Callable[..., Others]) -> dict[str, Any]:
    others = among(is_first=True)
    follow.send(
        "distill", get_stage("distill").options(lr=0.5), context(tmp_path), {Role.TRAIN: SOURCE}, tmp_path / "index"
    )
    [sent] = others.sent
    return sent


def test_one_process_builds_and_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("stages.training.ranks.ranks", lambda: pytest.fail("it looked for others"))
    follow.send("distill", get_stage("distill").options(), context(tmp_path), {}, tmp_path)
    with follow.first_of_several() as is_first:
        assert is_first


def test_a_stage_that_does_not_train_is_not_sent(tmp_path: Path, among: Callable[..., Others]) -> None:
    others = among(is_first=True)
    follow.send("export", get_stage("export").options(), context(tmp_path), {}, tmp_path)
    assert others.sent == []


def test_the_first_process_says_when_it_is_done(among: Callable[..., Others]) -> None:
    others = among(is_first=True)
    with follow.first_of_several() as is_first:
        assert is_first
        assert others.sent == []
    assert others.sent == [None]


def test_a_first_process_that_fails_is_left_to_the_launcher(among: Callable[..., Others]) -> None:
    others = among(is_first=True)
    with pytest.raises(InputError), follow.first_of_several():
        raise InputError("x")
    assert others.sent == []


def test_the_others_run_what_is_sent_and_keep_nothing(
    tmp_path: Path, among: Callable[..., Others], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = order(tmp_path, among)
    ran: list[tuple[Any, StageContext]] = []

    def run(options: Any, given: StageContext) -> StageResult:
        assert given.output.is_dir()
        assert given.scratch.is_dir()
        ran.append((options, given))
        return StageResult()

    stage = get_stage("distill")
    monkeypatch.setattr(follow, "get_stage", lambda name: SimpleNamespace(options=stage.options, run=run))
    among(is_first=False, orders=(sent, sent, None))
    with follow.first_of_several() as is_first:
        assert not is_first
    options, given = ran[0]

    assert len(ran) == 2
    assert (options.lr, given.seed, given.input) == (0.5, 7, tmp_path)
    assert given.images[Role.TRAIN].fingerprint == context(tmp_path).images[Role.TRAIN].fingerprint
    assert not given.output.exists()
    assert given.output != tmp_path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprints": {"train": "x"}}, "images of train are not the same on all machines"),
        ({"input": "/absent"}, "'/absent' is not there on this machine"),
    ],
)
def test_a_machine_with_other_files_is_refused(
    change: dict[str, Any], reason: str, tmp_path: Path, among: Callable[..., Others]
) -> None:
    sent = order(tmp_path, among)
    among(is_first=False, orders=({**sent, **change},))
    with pytest.raises(InputError, match=reason), follow.first_of_several():
        pass
