"""Nights on three boards: a slow-down of 5 % on one of them is told with its commit, and the others stay quiet."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "nightly"))  # for fake_boards.py

from fake_boards import FakeBoard, FakeBuilder

from pipeline.nightly.history import open_history
from pipeline.nightly.matrix import load_matrix
from pipeline.nightly.report.compose import compose
from pipeline.nightly.report.record import NightReport
from pipeline.nightly.run import NightRun
from pipeline.nightly.simulation import FIRST
from targets.devices.open import open_device
from targets.devices.spec import load_devices

Run = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = """\
vitrim: 1
name: tiny
model:
  timm: vit_tiny_patch16_224
  pretrained: false
  image_size: 16
  classes: 10
  arguments: {patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}
data:
  fit: {dataset: digits, share: [0, 0.1]}
  select: {dataset: digits, share: [0.1, 0.3]}
  evaluate: {dataset: digits, share: [0.8, 1]}
steps: [export]
runtimes: [onnxruntime]
targets: [cpu]
measure: {level: quick}
"""
MATRIX = """\
format: vitrim.matrix/1
name: lab
recipes: [{recipe: recipe.yaml}]
devices: [red, green, blue]
level: quick
"""


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    """A matrix of three boards on this machine: the real agent, with engines that sleep for a millisecond."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "script.yaml").write_text("milliseconds: 1\nside: 16\nclasses: 10\n")
    boards = "".join(
        f"  {name}: {{kind: fake, target: cpu, script: script.yaml, folder: {tmp_path}/{name}}}\n"
        for name in ("red", "green", "blue")
    )
    (tmp_path / "devices.yaml").write_text(f"format: vitrim.devices/1\ndevices:\n{boards}")
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    return path


def _command(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "VITRIM_STORE": str(tmp_path / "store"), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    environment.pop("VITRIM_DEVICES", None)
    return [sys.executable, "-m", "pipeline", "nightly"], environment


@pytest.mark.slow
@pytest.mark.serial
def test_a_killed_night_on_three_boards_goes_on_and_the_next_night_compares_with_it(
    matrix: Path, vitrim: Run, tmp_path: Path
) -> None:
    words, environment = _command(tmp_path)
    held = open_device("blue", load_devices(tmp_path / "devices.yaml")["blue"])
    with held.session(who="the test"):  # so that blue waits, and the night can be killed between its cells
        night = subprocess.Popen(
            [*words, "run", str(matrix)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            start_new_session=True,
        )
        assert night.stdout is not None
        done: set[str] = set()
        said = []
        for line in night.stdout:
            said.append(line)
            done |= {name for name in ("red", "green") if line.startswith(f"tiny@{name}: measured")}
            if len(done) == 2:
                break
        night.send_signal(signal.SIGKILL)
        night.wait()
        night.stdout.close()
        assert len(done) == 2, said

    first = vitrim("nightly", "run", matrix, VITRIM_DEVICES="")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "goes on: 2 of 3 cells are done" in first.stdout
    second = vitrim("nightly", "run", matrix, VITRIM_DEVICES="")
    assert second.returncode == 0, second.stdout + second.stderr

    report = NightReport.model_validate_json(
        next((tmp_path / "lab.nights" / "reports").glob("*.2/report.json")).read_text()
    )
    assert report.runs == 2
    assert {cell.device: cell.status for cell in report.cells} == dict.fromkeys(("red", "green", "blue"), "measured")
    latency = {one.series.device: one for one in report.series if one.series.metric == "latency_p50_ms"}
    assert all(len(one.points) == 2 and one.points[1].value > 1 for one in latency.values())
    answered = [one for one in report.series if one.series.metric == "top1"]
    assert {one.verdict.sentence.partition(": ")[2] for one in answered} == {"the same engine, the same answers"}
    assert max(map(len, second.stdout.splitlines())) <= max(80, len(str(tmp_path)) + 80)  # but for the path at the end
    left = json.loads(vitrim("nightly", "list", matrix, "--json").stdout)
    assert [row["ended"] for row in left] == ["finished", "finished"]


def test_a_slow_down_of_five_percent_on_one_board_is_told_with_its_commit_and_the_others_stay_quiet(
    tmp_path: Path,
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    matrix = load_matrix(path)
    boards = {name: FakeBoard(name, noise=0.008, seed=index) for index, name in enumerate(matrix.devices)}
    builder = FakeBuilder()
    with open_history(matrix) as store:
        reports = []
        for night in range(24):
            if night == 16:  # the code of this night makes the engine slower, on red alone
                boards["red"].engines = 1.05
            at = FIRST.replace(day=1 + night)
            run = NightRun(
                matrix=matrix,
                folder=tmp_path,
                boards=boards,
                builder=builder,
                store=store,
                now=lambda at=at: at,
                commit=f"{night:040x}",
            )
            reports.append(compose(store, matrix, store.run("lab", run.go())))

    told = {
        (night, one.series.device, one.series.metric): one
        for night, report in enumerate(reports)
        for one in report.alarms
    }
    assert {device for _, device, _ in told} == {"red"}
    first = told[min(key for key in told if key[2] == "latency_p50_ms")]
    assert min(night for night, _, _ in told) in (16, 17, 18)
    assert first.verdict.kind == "regression"
    assert first.verdict.change == pytest.approx(0.05, abs=0.01)
    assert first.verdict.culprit is not None
    assert first.verdict.culprit.first_bad.commit == f"{16:040x}"
    assert first.verdict.culprit.last_good.commit == f"{15:040x}"
    assert [report.exit_code for report in reports[:16]] == [0] * 16
    assert reports[-1].exit_code == 1
