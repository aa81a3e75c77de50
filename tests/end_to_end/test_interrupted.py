"""A build that is killed at any moment goes on where it stopped, and ends with the same report."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow]

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
KILLS = 5
ONE_RUNTIME = ("--set", "runtimes=[onnxruntime]")
"""which of two is faster is measured, and may come out otherwise in another store"""


def test_a_build_killed_at_random_moments_ends_with_the_same_report(recipe: Path, vitrim: Run, tmp_path: Path) -> None:
    started = time.monotonic()
    whole = vitrim("build", recipe, "--output", tmp_path / "whole", *ONE_RUNTIME)
    seconds = time.monotonic() - started
    assert whole.returncode in (0, 1), whole.stderr
    store = str(tmp_path / "other-store")
    generator = random.Random(time.time_ns())
    moments = []
    for _ in range(KILLS):
        moments.append(generator.uniform(0.3, 0.45 * seconds))
        _kill_after(moments[-1], recipe, tmp_path / "killed", store)

    finished = vitrim("build", recipe, "--output", tmp_path / "killed", *ONE_RUNTIME, VITRIM_STORE=store)
    verified = vitrim("store", "verify", VITRIM_STORE=store)

    assert finished.returncode == whole.returncode, f"killed after {moments} s: {finished.stderr}"
    assert verified.returncode == 0, verified.stdout
    expected = _lasting(json.loads((tmp_path / "whole" / "cpu" / "report.json").read_text()))
    found = _lasting(json.loads((tmp_path / "killed" / "cpu" / "report.json").read_text()))
    assert found == expected, f"killed after {moments} s"


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    process = _start(recipe, tmp_path / "out", str(tmp_path / "store"))
    time.sleep(6)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors


def test_two_builds_in_one_store_share_the_work(recipe: Path, tmp_path: Path) -> None:
    both = [_start(recipe, tmp_path / name, str(tmp_path / "store")) for name in ("one", "two")]
    told = [process.communicate(timeout=500) for process in both]

    assert [process.returncode for process in both] == [0, 0], told
    reports = [json.loads((tmp_path / name / "cpu" / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    keys = [[row["key"] for row in report["stages"]] for report in reports]
    assert keys[0] == keys[1]


def _start(recipe: Path, output: Path, store: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "build", str(recipe), "--output", str(output), *ONE_RUNTIME],
        cwd=ROOT,
        env={**os.environ, "VITRIM_STORE": store, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _kill_after(seconds: float, recipe: Path, output: Path, store: str) -> None:
    process = _start(recipe, output, store)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _lasting(report: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on how fast the machine was or on when it ran."""
    timed = (
        "created_at",
        "latency_ms",
        "throughput_ips",
        "memory_bytes",
        "conditions",
        "operators",
        "other_batches",
        "reused",
        "verdict",
    )
    kept = {name: value for name, value in report.items() if name not in timed}
    kept["status"] = report["verdict"]["status"]
    kept["reproduce"] = {
        name: value for name, value in report["reproduce"].items() if name not in ("command", "engine_sha256")
    }
    kept["stages"] = [
        {name: row[name] for name in ("name", "key", "params", "macs", "bytes", "agreement", "top1")}
        for row in report["stages"]
    ]
    kept["candidates"] = [
        {name: row[name] for name in ("runtime", "precision", "agreement", "bytes", "chosen")}
        for row in report["candidates"]
    ]
    proof = report["proof"]
    kept["proof"] = {
        **{name: proof[name] for name in ("engine", "snr_db", "macs_by_precision", "fused_attention", "unproven")},
        "layers": sorted([row[name] for name in ("name", "kernel", "precision", "macs")] for row in proof["layers"]),
    }
    return kept
