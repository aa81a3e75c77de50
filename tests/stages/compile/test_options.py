"""Options of a runtime's own in a profile or recipe: they reach the build, hold at every load, and make other keys."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.compile.stage import CompileOptions
from targets.errors import InputError
from targets.profile import RuntimeChoice
from targets.worker import Worker

Run = Callable[..., Any]
RTX = (RuntimeChoice(name="tensorrt_rtx", precisions=("fp32",)),)
AHEAD = {"runtime": "tensorrt_rtx", "precision": "fp32", "compute_capability": "8.6"}


@pytest.mark.slow  # the graph takes some seconds to make
def test_what_is_asked_for_is_what_the_engine_is_built_with(
    graphs: Any, make_target: Run, run_compile: Run, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'vitrim[rtx]'")
    own = {"optimization_level": 0, "tf32": True, "cuda_graph": False, "runtime_cache": "none"}

    result, _ = run_compile(graphs.fp32, tmp_path / "engine", target=make_target(runtimes=RTX), options=own, **AHEAD)

    engine = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert (engine["options"]["optimization_level"], engine["options"]["tf32"]) == (0, True)
    assert engine["at_load"] == {"cuda_graph": False, "runtime_cache": "none"}
    assert result.facts["options"] == own


def test_a_wrong_option_ends_before_anything_is_built(make_target: Run, run_compile: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'optimization_level' is a whole number from 0 to 5, got 7"):
        run_compile(
            tmp_path, tmp_path / "engine", target=make_target(runtimes=RTX), options={"optimization_level": 7}, **AHEAD
        )


def test_other_options_are_another_digest() -> None:
    plain = CompileOptions(runtime="tensorrt")

    assert plain.digest() != plain.replace(options={"workspace_mib": 64}).digest()
    assert plain.digest() == plain.replace(options={}).digest()


def test_what_holds_at_every_load_is_what_a_load_gets(tmp_path: Path) -> None:
    """A runtime of the test's own tells what it was loaded with; the file `engine` is all there is of an engine."""
    runtime = tmp_path / "telling.py"
    runtime.write_text(_TELLING)
    model, output = tmp_path / "model.onnx", tmp_path / "engine"
    model.write_bytes(b"a graph")
    output.mkdir()
    with Worker(runtimes={"telling": runtime}) as worker:
        asked = {"runtime": "telling", "precision": "fp32", "batch": 1}
        worker.build(model, output, **asked, more={"level": 5}, at_load={"recorded": False})
        kept, changed = worker.load(output), worker.load(output, more={"recorded": True})

    assert json.loads((output / "engine.json").read_text())["at_load"] == {"recorded": False}
    assert (kept.facts["recorded"], changed.facts["recorded"]) == (False, True)


_TELLING = """
from targets.runtimes.runtime import TensorFacts

name = "telling"
binding = lambda facts: {}
available = lambda: None
version = lambda: "1"


def build(model, output, options):
    (output / "engine").write_bytes(b"built")
    return {"files": ["engine"], "built": {"level": options["level"]}}


class Session:
    inputs = (TensorFacts("image", (1, 3, 8, 8), "float32"),)
    outputs = (TensorFacts("logits", (1, 2), "float32"),)

    def __init__(self, options):
        self.options = options

    def facts(self):
        return {"recorded": self.options["recorded"]}

    def close(self):
        pass


def load(path, options):
    return Session(options)
"""
