"""The GPU benchmark: its ratios are paired, its file is whole, and it goes on without what is missing."""

import json
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_timing import Budget, Effort, SkipError, interleave, need_packages, summarise


def run_gpu(root: Path, *arguments: str, timeout: float = 400) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    samples = {"unpruned": [[1.0], [4.0], [9.0]], "pruned": [[1.0], [1.0], [3.0]]}  # medians: 4 and 1; ratios: 1, 4, 3

    rows = summarise(samples, reference="unpruned", batch=8)

    assert rows["pruned"]["times_faster"] == 3.0
    assert rows["unpruned"]["times_faster"] == 1.0
    assert rows["unpruned"]["images_per_s"] == 2000.0


def test_every_model_runs_once_in_every_round_and_the_first_one_changes() -> None:
    calls: list[str] = []

    def timer(name: str) -> Any:
        def time_queries(queries: int) -> list[float]:
            calls.append(name)
            return [1.0] * queries

        return time_queries

    samples = interleave({name: timer(name) for name in "abc"}, Effort(rounds=4, block_s=0.01, warm_up=3))

    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: [len(block) for block in rounds] for name, rounds in samples.items()} == dict.fromkeys(
        "abc", [10] * 4
    )


def test_a_machine_that_slows_down_does_not_change_a_paired_ratio() -> None:
    slower = count(1)

    def timer(cost: float) -> Any:
        return lambda queries: [cost * (1 + 0.001 * next(slower)) for _ in range(queries)]

    samples = interleave({"unpruned": timer(2.0), "pruned": timer(1.0)}, Effort(rounds=40, block_s=0.004))
    rows = summarise(samples, reference="unpruned", batch=1)

    assert rows["pruned"]["times_faster"] == pytest.approx(2.0, rel=0.02)
    assert max(rows["pruned"]["rounds_ms"]) > 1.2 * min(rows["pruned"]["rounds_ms"])


def test_what_does_not_fit_into_the_budget_says_so() -> None:
    now = iter([0.0, 50.0, 50.0])
    budget = Budget(60, clock=lambda: next(now))

    with pytest.raises(SkipError, match="10 s of the budget are left, about 20 s are needed"):
        budget.need(20)


def test_packages_that_are_missing_are_named() -> None:
    with pytest.raises(SkipError, match=r"not installed: no_such_package$"):
        need_packages("json", "no_such_package")


def test_without_a_gpu_the_script_says_so_in_one_line(root: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run_gpu(root, "--output", str(tmp_path / "gpu.json"))

    assert done.returncode == 2
    assert done.stderr.startswith("no CUDA device")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
def test_the_file_of_a_small_run_is_whole_and_its_ratios_are_paired(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    done = run_gpu(
        root,
        *(
            "--device",
            "cpu",
            "--small",
            "--batches",
            "1",
            "--output",
            str(output),
            "--runtimes",
            "eager",
            "onnxruntime",
        ),
        *("--images", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr

    found = json.loads(output.read_text())
    assert set(found) == {"script", "conditions", "device", "arguments", "weights", "timing", "parts"}
    assert set(found["parts"]) == {"enormous", "selection", "distill", "quantized", "shapes"}
    assert "no model: give --images" in found["parts"]["quantized"]["skipped"][0]["skipped"]
    own = [row for row in found["parts"]["quantized"]["rows"] if "p50_ms" in row]
    assert {row["model"] for row in own} == {"ViT-B", "ViT-L"}
    assert {row["variant"] for row in own} >= {"cpu fp32", "cpu fp16", "cpu int8"}
    assert all(row["finite"] for row in own)
    assert found["parts"]["distill"]["rows"] == []
    assert "no images" in found["parts"]["distill"]["skipped"][0]["skipped"]
    rows = found["parts"]["shapes"]["rows"]
    assert found["parts"]["shapes"]["skipped"] == []
    assert {row["runtime"] for row in rows} == {"eager", "onnxruntime"}
    assert all(row["finite"] for row in rows)
    assert not any(row.get("torch_loaded") for row in rows)
    assert [row["picks_equal_to_the_first_row"] for row in found["parts"]["selection"]["rows"]] == [64, 32]
    for row in [*rows, *found["parts"]["enormous"]["rows"]]:
        group = ("family", "model", "runtime", "batch")
        (unpruned,) = [
            one
            for one in [*rows, *found["parts"]["enormous"]["rows"]]
            if one["variant"] == "unpruned" and all(one.get(name) == row.get(name) for name in group)
        ]
        ratios = np.divide(unpruned["rounds_ms"], row["rounds_ms"])
        assert row["times_faster"] == pytest.approx(float(np.median(ratios)), rel=1e-3)
        assert row["variant"] == "unpruned" or row["macs"] < unpruned["macs"]
