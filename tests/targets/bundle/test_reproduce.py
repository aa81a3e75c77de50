"""reproduce.sh: the runtime's own tool is asked for what vitrim timed, each version with the flags that it knows."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from targets.bundle.reproduce import timing_commands

Make = Callable[..., Path]
TEN = ("--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--exposeDMA")
ELEVEN = ("--noCudaGraph", "--noSpinWait", "--includeDataTransfers", "--exposeDMA")


def asked(bundle: Path, tmp_path: Path, *, knows: tuple[str, ...] = (), arguments: tuple[str, ...] = ()) -> list[str]:
    """What the script of a bundle asks of its tool, which knows these flags."""
    tool = tmp_path / "a tool"
    tool.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --help ] && {{ echo "{" ".join(knows)}"; exit 0; }}\n'
        'for word; do printf "%s\\n" "$word"; done\n'
    )
    tool.chmod(0o755)
    done = subprocess.run(
        ["sh", bundle / "reproduce.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TOOL": str(tool)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("knows", "flags"),
    [
        (TEN, ["--useCudaGraph", "--useSpinWait", "--exposeDMA"]),
        (ELEVEN, ["--includeDataTransfers", "--exposeDMA"]),
        ((), []),
    ],
    ids=["TensorRT 10", "TensorRT 11", "unknown"],
)
def test_each_version_of_trtexec_is_asked_for_the_same(make_bundle: Make, tmp_path: Path, knows, flags) -> None:
    bundle = make_bundle(at="a b/bundle", runtime="tensorrt", batch=4)

    words = asked(bundle, tmp_path, knows=knows)

    assert words[0] == f"--loadEngine={bundle / 'engine' / 'model.onnx'}"
    assert words[1 : 1 + len(flags)] == flags
    assert words[1 + len(flags) :] == [
        "--warmUp=2000",
        "--duration=10",
        "--iterations=662",
        "--avgRuns=1",
        "--percentile=50,90,99",
    ]


def test_an_open_batch_is_filled_in(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(runtime="tensorrt", batch=4, dynamic=True)

    assert "--shapes=pixels:4x3x8x8" in asked(bundle, tmp_path, knows=TEN)


def test_an_engine_that_the_board_built_can_be_named(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(without_engine=True, planned={"runtime": "tensorrt", "version": ">=10.3", "batch": 1})
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "model.plan").write_bytes(b"plan")
    lacking = subprocess.run(
        ["sh", bundle / "reproduce.sh"], capture_output=True, text=True, check=False, env={**os.environ, "TOOL": "true"}
    )

    assert asked(bundle, tmp_path, arguments=(str(tmp_path / "built"),))[0] == (
        f"--loadEngine={tmp_path / 'built' / 'model.plan'}"
    )
    assert lacking.returncode == 1
    assert "build it first: sh build.sh ENGINE_FOLDER" in lacking.stderr


def test_onnx_runtime_s_tool_runs_the_engine_as_it_is(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(at="a b/bundle")
    words = asked(bundle, tmp_path)

    assert words[-1] == str(bundle / "engine" / "model.onnx")
    for flag, value in (("-e", "cpu"), ("-m", "times"), ("-r", "662"), ("-x", "1"), ("-o", "0")):
        assert words[words.index(flag) + 1] == value
    assert "-f" not in words


def test_without_an_engine_the_graph_is_optimised_and_its_batch_named(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(without_engine=True, planned={"runtime": "onnxruntime", "batch": 2})
    words = asked(bundle, tmp_path)

    assert words[-1] == str(bundle / "model.onnx")
    assert words[words.index("-o") + 1] == "99"
    assert words[words.index("-f") + 1] == "N:2"


def test_openvino_s_tool_really_times_the_engine(make_bundle: Make, tmp_path: Path) -> None:
    import sys

    tool = Path(sys.executable).with_name("benchmark_app")
    if not tool.exists():
        pytest.skip("openvino's benchmark_app is not beside this Python")
    bundle = make_bundle(runtime="openvino")
    script = (bundle / "reproduce.sh").read_text().replace("-t 10", "-t 1")
    (bundle / "reproduce.sh").write_text(script)
    done = subprocess.run(
        ["sh", bundle / "reproduce.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TOOL": str(tool)},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Median:" in done.stdout
    assert "not yet run" not in script.lower()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"])
def test_a_machine_without_the_tool_is_told_where_it_comes_from(make_bundle: Make, tmp_path: Path, runtime) -> None:
    engine = {"runtime": runtime} if runtime != "openvino" else {"runtime": "openvino"}
    bundle = make_bundle(**engine)
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "sh", "cat"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [str(shutil.which("sh")), bundle / "reproduce.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path / "bin")},
    )

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "is not here: it comes with" in done.stderr


def test_too_many_arguments_are_exit_2(make_bundle: Make) -> None:
    done = subprocess.run(["sh", make_bundle() / "reproduce.sh", "a", "b"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "usage: sh reproduce.sh [ENGINE_FOLDER]\n")


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_scripts_for_hardware_that_was_not_at_hand_say_so(make_bundle: Make, runtime) -> None:
    assert "Not yet run on hardware." in (make_bundle(runtime=runtime) / "reproduce.sh").read_text()


def test_the_report_tells_both_versions_of_trtexec() -> None:
    engine = {
        "runtime": "tensorrt",
        "precision": "fp16",
        "batch": 1,
        "load": "model.plan",
        "inputs": [{"name": "images", "shape": [1, 3, 224, 224], "dtype": "float32"}],
    }
    ten, first, eleven, second = timing_commands(engine).splitlines()

    assert (ten, eleven) == ("# TensorRT 10", "# TensorRT 11")
    assert first.startswith("trtexec --loadEngine=engine/model.plan ")
    assert "--useCudaGraph --useSpinWait" in first
    assert "--includeDataTransfers" not in first
    assert "--includeDataTransfers" in second
    assert "--useCudaGraph" not in second


def test_an_engine_without_a_cuda_graph_is_timed_without_one() -> None:
    engine = {
        "runtime": "tensorrt",
        "precision": "fp16",
        "batch": 1,
        "load": "model.plan",
        "inputs": [{"name": "images", "shape": [1, 3, 8, 8], "dtype": "float32"}],
        "at_load": {"cuda_graph": False},
    }

    assert "--useCudaGraph" not in timing_commands(engine)
    assert timing_commands(engine).count("--noCudaGraph") == 1


@pytest.mark.parametrize(
    "engine", [{}, {"runtime": "sleep"}, {"runtime": "tensorrt", "options": {"strip_weights": True}}]
)
def test_where_no_tool_fits_there_is_no_command(engine) -> None:
    assert timing_commands(engine) == ""


def test_every_runtime_has_a_script_or_none_is_shipped(make_bundle: Make) -> None:
    from targets.runtimes.catalog import CATALOG

    for runtime in CATALOG:
        bundle = make_bundle(at=f"{runtime}/bundle", runtime=runtime)
        assert "reproduce.sh" in json.loads((bundle / "manifest.json").read_text())["files"], runtime
