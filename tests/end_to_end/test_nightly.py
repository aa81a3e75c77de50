"""Nights on three boards: a slow-down of 5 % on one of them is told with its commit, and the others stay quiet."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "nightly"))  # for fake_boards.py
sys.path.insert(0, str(Path(__file__).parents[1] / "targets" / "devices"))  # for boards.py

from boards import SshBoard, free_port, make_keys
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


Shelf = Callable[..., Path]


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """shelf("red", "blue"): a devices file of boards behind OpenSSH servers of their own on loopback.

    The real agent measures there, and engines sleep as the file FOLDER/NAME/script.json says. They take turns.
    """
    boards: list[SshBoard] = []

    def start(*names: str, **script: Any) -> Path:
        (tmp_path / "keys").mkdir()
        keys = make_keys(tmp_path / "keys")
        for name in names:
            boards.append(SshBoard(name, keys, tmp_path / name, free_port()))
            boards[-1].plan(side=16, classes=10, **script)
            boards[-1].start()
        devices = {one.name: one.spec().model_dump(mode="json", exclude_none=True) for one in boards}
        path = tmp_path / "devices.yaml"
        path.write_text(json.dumps({"format": "vitrim.devices/1", "devices": devices}))  # JSON is YAML, too
        return path

    yield start
    for one in boards:
        one.stop()


def _command(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "VITRIM_STORE": str(tmp_path / "store"), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    environment.pop("VITRIM_DEVICES", None)
    return [sys.executable, "-m", "pipeline", "nightly"], environment


@pytest.mark.slow
def test_a_killed_night_on_three_boards_goes_on_and_the_next_night_compares_with_it(
    shelf: Shelf, vitrim: Run, tmp_path: Path
) -> None:
    devices = shelf("red", "green", "blue", milliseconds=1)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text(MATRIX)
    words, environment = _command(tmp_path)
    held = open_device("blue", load_devices(devices)["blue"])
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


def _git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _commit(folder: Path, recipe: str, subject: str) -> str:
    (folder / "recipe.yaml").write_text(recipe)
    _git(folder, "add", "recipe.yaml")
    _git(folder, "commit", "-q", "-m", subject)
    return _git(folder, "rev-parse", "HEAD")


@pytest.mark.slow
def test_a_slow_graph_is_told_by_a_re_run_on_its_board_and_its_commit_is_found_by_bisecting(
    shelf: Shelf, vitrim: Run, tmp_path: Path
) -> None:
    wider = RECIPE.replace("num_heads: 2}", "num_heads: 2, mlp_ratio: 6}")
    scout = tmp_path / "wider.yaml"
    scout.write_text(wider)
    built = vitrim("build", scout, "--output", tmp_path / "scout")
    assert built.returncode == 0, built.stdout + built.stderr
    graph = hashlib.sha256((tmp_path / "scout" / "cpu" / "bundle" / "model.onnx").read_bytes()).hexdigest()

    devices = shelf("red", milliseconds={graph[:12]: 6, "default": 4})
    lab = tmp_path / "lab"
    lab.mkdir()
    _git(lab, "init", "-q", "-b", "main")
    quick = "level: quick\nrerun_level: quick\npolicy: {least_nights: 3}\n"
    (lab / "matrix.yaml").write_text(MATRIX.replace("red, green, blue", "red").replace("level: quick\n", quick))
    first = _commit(lab, RECIPE, "the first")
    for _ in range(3):
        quiet = vitrim("nightly", "run", lab / "matrix.yaml", VITRIM_DEVICES=str(devices))
        assert quiet.returncode == 0, quiet.stdout + quiet.stderr
    _commit(lab, RECIPE + "# a word\n", "a word")
    guilty = _commit(lab, wider, "a wider MLP")
    last = _commit(lab, wider + "# another\n", "another word")

    loud = vitrim("nightly", "run", lab / "matrix.yaml", VITRIM_DEVICES=str(devices))

    assert loud.returncode == 1, loud.stdout + loud.stderr
    assert "measured again, beside the last good engine" in loud.stdout
    report = NightReport.model_validate_json(next((lab / "lab.nights" / "reports").glob("*.4/report.json")).read_text())
    (found,) = [one for one in report.alarms if one.series.metric == "latency_p50_ms"]
    assert (found.verdict.kind, found.verdict.rule) == ("regression", "fast")
    assert found.verdict.change is not None
    assert 0.2 < found.verdict.change < 0.7
    assert found.verdict.culprit is not None
    assert found.verdict.culprit.last_good.commit == first
    assert found.verdict.culprit.first_bad.commit == last

    bisected = vitrim("nightly", "bisect", lab / "matrix.yaml", VITRIM_DEVICES=str(devices))
    assert bisected.returncode == 0, bisected.stdout + bisected.stderr
    assert f"first bad commit {guilty[:12]} 'a wider MLP'" in bisected.stdout
