"""The whole way through the agent, as a user goes it: build, load, answer, look at what ran; on the fakes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_graphs import CLASSES, answer, images, save_fp32, save_int8

from targets.errors import InputError
from targets.worker import Worker

RUNTIMES = {"fake_tensorrt": Path(__file__).with_name("fake_runtime.py")}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1, runtimes=RUNTIMES) as worker:
        yield worker


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_engine_is_built_loaded_and_answers_as_other_runtimes_do(
    worker: Worker, tmp_path: Path, precision: str
) -> None:
    model, output = tmp_path / "graph.onnx", tmp_path / "engine"
    output.mkdir()
    save_int8(model, symmetric=True) if precision == "int8" else save_fp32(model)
    pixels = images(11)

    engine, _ = worker.build(model, output, runtime="fake_tensorrt", precision=precision, batch=4)
    loaded = worker.load(output, more={"cuda_graph": True})
    answers = worker.infer(pixels)["probabilities"]

    assert [list(loaded.inputs), list(loaded.outputs)] == [engine["inputs"], engine["outputs"]]
    assert (loaded.facts["gpu"], loaded.facts["threads"]) == ("Orin", 1)
    assert answers.shape == (11, CLASSES)
    np.testing.assert_allclose(answers, answer(pixels), atol=2e-2 if precision == "int8" else 1e-5)
    assert worker.matrix_products() == ({"int8": 1, "fp32": 1} if precision == "int8" else {"fp32": 2})
    assert sum(row["share"] for row in worker.profile(images(4), repeats=2)) == pytest.approx(1)
    worker.rotate(images(8))
    assert len(worker.measure(5)) == 5


def test_options_of_the_runtime_pass_through_and_are_checked(worker: Worker, tmp_path: Path) -> None:
    model, output = save_fp32(tmp_path / "graph.onnx"), tmp_path / "engine"
    output.mkdir()
    asked = {"runtime": "fake_tensorrt", "precision": "fp32", "batch": 4}

    with pytest.raises(InputError, match=r"has no option 'workspace' at build; did you mean 'workspace_mib'"):
        worker.build(model, output, more={"workspace": 64}, **asked)
    engine, _ = worker.build(model, output, more={"workspace_mib": 64, "batch_min": 1}, **asked)
    assert engine["inputs"][0]["shape"] == [None, 3, 8, 8]
    assert engine["options"]["workspace_mib"] == 64
    with pytest.raises(InputError, match="'workspace_mib' counts at build, not at load"):
        worker.load(output, more={"workspace_mib": 64})
    worker.load(output, more={"cuda_graph": False})
    np.testing.assert_allclose(worker.infer(images(6), batch=3)["probabilities"], answer(images(6)), atol=1e-5)


def test_an_asymmetric_graph_is_refused_by_its_node(worker: Worker, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    output.mkdir()

    with pytest.raises(InputError, match=r"node with output 'flat_q' .*uint8, and tensorrt takes symmetric int8 only"):
        worker.build(save_int8(tmp_path / "g.onnx"), output, runtime="fake_tensorrt", precision="int8", batch=4)
