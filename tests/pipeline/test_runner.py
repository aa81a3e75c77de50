"""The runner: what is finished is not run again, what fails leaves nothing, and watchers hear about it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import Event
from pipeline.planner import PlannedStep
from pipeline.runner import Runner
from pipeline.store import Store
from stages.artifact import Format
from stages.catalog import get_stage
from stages.stage import Stage, StageContext, StageResult
from targets.errors import InputError, StageError
from targets.record import Record

ROOT = Path(__file__).resolve().parents[2]


class Options(Record):
    text: str = "made"
    trouble: str = ""


def work(options: Options, context: StageContext) -> StageResult:
    (context.output / "text.txt").write_text(options.text)
    for share in (0.0, 0.5, 1.0):
        context.tell("working", share)
    if options.trouble == "memory":
        raise MemoryError
    if options.trouble == "input":
        raise InputError("the picture is upside down")
    if options.trouble == "defect":
        raise ZeroDivisionError
    return StageResult(facts={"length": len(options.text)})


STAGES = {
    name: Stage(name=name, summary="", consumes=Format.VIT, produces=Format.VIT, options=Options, run=work)
    for name in ("source", "prune_mlp")
}


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner whose stages only write a text; everything around them is real."""
    monkeypatch.setattr("pipeline.runner.get_stage", lambda name: STAGES[name])
    with Store(tmp_path / "store") as store:
        events: list[Event] = []
        made = Runner(store=store, images={}, sources={}, seed=0, watch=events.append)
        made.events = events  # type: ignore[attr-defined]
        yield made


def step(letter: str, *, previous: PlannedStep | None = None, stage: str | None = None, **options: Any) -> PlannedStep:
    name = stage or ("prune_mlp" if previous else "source")
    return PlannedStep(
        stage=name, title=f"{name} {letter}", options=Options(**options), key=letter * 64, previous=previous
    )


def told(runner: Runner) -> list[tuple[str, str, bool]]:
    events: list[Event] = runner.events  # type: ignore[attr-defined]
    return [(event.kind, event.step, event.cached) for event in events if event.kind.startswith("step")]


def test_a_step_brings_what_it_builds_on(runner: Runner) -> None:
    artifact = runner.bring(step("b", previous=step("a")))

    assert (artifact.folder / "text.txt").read_text() == "made"
    assert artifact.manifest.inputs["previous"] == "a" * 64
    assert told(runner) == [
        ("step_started", "source a", False),
        ("step_finished", "source a", False),
        ("step_started", "prune_mlp b", False),
        ("step_finished", "prune_mlp b", False),
    ]


def test_a_finished_step_is_found_by_the_next_run(runner: Runner, tmp_path: Path) -> None:
    first = runner.bring(step("a", text="once"))
    again = Runner(store=Store(tmp_path / "store"), images={}, sources={}, seed=0)
    second = again.bring(step("a", text="the key decides, not this"))

    assert (second.folder / "text.txt").read_text() == "once"
    assert second.cached
    assert not first.cached


def test_fresh_runs_every_step_once(runner: Runner) -> None:
    runner.bring(step("a", text="old"))
    again = Runner(store=runner.store, images={}, sources={}, seed=0, fresh=True)
    new = again.bring(step("a", text="new"))
    once = again.bring(step("a", text="newer"))

    assert (new.folder / "text.txt").read_text() == "new"
    assert once is new


def test_what_was_measured_belongs_to_the_files_of_a_step_not_to_its_key(runner: Runner) -> None:
    first = runner.contents(step("a", text="kernels of one build"))
    again = Runner(store=runner.store, images={}, sources={}, seed=0, fresh=True)
    other = again.contents(step("a", text="kernels of another"))
    back = Runner(store=runner.store, images={}, sources={}, seed=0, fresh=True)

    assert runner.contents(step("a")) == first != other
    assert back.contents(step("a", text="kernels of one build")) == first


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("input", InputError, "upside down"),
        ("memory", StageError, "out of memory"),
        ("defect", ZeroDivisionError, None),
    ],
)
def test_a_step_that_fails_leaves_nothing(
    runner: Runner, trouble: str, error: type[Exception], message: str | None | None
) -> None:
    with pytest.raises(error, match=message):
        runner.bring(step("a", trouble=trouble))

    assert runner.store.find("a" * 64) is None
    assert not list((runner.store.root / "work").rglob("text.txt"))


def test_progress_is_told_with_the_place_of_the_step(runner: Runner) -> None:
    runner.total = 7
    runner.bring(step("a"))
    progress = [event for event in runner.events if event.kind == "progress"]  # type: ignore[attr-defined]

    assert progress
    assert (progress[0].index, progress[0].total, progress[0].step) == (1, 7, "source a")


def test_an_error_of_a_stage_in_its_own_process_keeps_its_kind(tmp_path: Path) -> None:
    from pipeline.isolated import run_isolated

    for name in ("input", "output", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "input" / "model.onnx").write_bytes(b"no graph at all")
    context = StageContext(
        input=tmp_path / "input",
        source=tmp_path / "input",
        output=tmp_path / "output",
        scratch=tmp_path / "scratch",
        images={},
    )

    with pytest.raises((InputError, StageError)) as caught:
        run_isolated("export", get_stage("export").options(), context, {}, tmp_path / "index")
    assert "\n" not in str(caught.value)
    assert "process ended" not in str(caught.value)


def test_a_stage_in_its_own_process_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """The child waits on stdin; the end of its parent is the end of stdin."""
    code = (
        "import pipeline.isolated as i, threading, time;"
        "threading.Thread(target=i._end_with_parent, daemon=True).start(); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-c', {code!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE,"
        " start_new_session=True); p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()

    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")
