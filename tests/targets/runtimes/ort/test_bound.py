"""IO binding, on the real ONNX Runtime: the same code binds to a GPU, here to the CPU."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save
from tiny_graphs import CLASSES, SIZE, answer, images, save_fp32

from targets.errors import InputError, WorkerError
from targets.runtimes.onnxruntime_cpu import EmulatedSession
from targets.runtimes.ort.bound import BoundSession
from targets.runtimes.ort.library import CPU, Graph, new_settings
from targets.runtimes.ort.session import OnnxRuntimeSession

SHAPE = f"{3}, {SIZE}, {SIZE}"
PROVIDERS = ((CPU, {}),)


def settings() -> Any:
    return new_settings({"threads": 1})


def bound(path: Path, **more: Any) -> BoundSession:
    graph = Graph("onnxruntime_cuda", path, settings, PROVIDERS)
    return BoundSession(graph, graph.open(), **{"device_type": "cpu", "device": 0, "facts": {"tf32": False}, **more})


def test_answers_are_those_of_numpy_query_after_query(tmp_path: Path) -> None:
    session = bound(save_fp32(tmp_path / "graph.onnx", batch=4))

    for seed in range(3):
        pixels = images(4, seed)
        np.testing.assert_allclose(session.run({"image": pixels})["probabilities"], answer(pixels), atol=1e-6)


def test_a_dynamic_batch_may_change_between_queries(tmp_path: Path) -> None:
    session = bound(save_fp32(tmp_path / "graph.onnx"))

    for batch in (1, 5, 5, 2):
        pixels = images(batch)
        found = session.run({"image": pixels})["probabilities"]
        assert found.shape == (batch, CLASSES)
        np.testing.assert_allclose(found, answer(pixels), atol=1e-6)


def test_memory_is_allocated_once_for_a_shape(tmp_path: Path) -> None:
    session = bound(save_fp32(tmp_path / "graph.onnx"))
    session.run({"image": images(2)})
    place = session._values["image"].data_ptr()

    session.run({"image": images(2, seed=1)})
    assert session._values["image"].data_ptr() == place, "a recorded CUDA graph reads from there"


def test_pixels_that_are_no_block_of_memory_are_read_right(tmp_path: Path) -> None:
    session = bound(save_fp32(tmp_path / "graph.onnx", batch=4))
    pixels = np.asfortranarray(images(4))

    np.testing.assert_allclose(session.run({"image": pixels})["probabilities"], answer(pixels), atol=1e-6)


def test_an_fp16_graph_without_casts_takes_fp32_images(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["out"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", 3]) for name in ("image", "out")]
    graph = helper.make_graph(nodes, "halves", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "graph.onnx")
    session = bound(tmp_path / "graph.onnx")

    assert session.run({"image": np.float32([[1, -1, 0.5]])})["out"].tolist() == [[1, 0, 0.5]]


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "input 'image' is missing; the query has none"),
        ({"image": np.zeros((4, 3, SIZE), np.float32)}, f"the engine takes float32 .4, {SHAPE}"),
        ({"image": np.zeros((3, 3, SIZE, SIZE), np.float32)}, f"'image' is float32 .3, {SHAPE}.; the engine takes"),
        ({"image": np.zeros((4, 3, SIZE, SIZE))}, "'image' is float64"),
    ],
)
def test_a_query_of_another_shape_or_type_is_refused(tmp_path: Path, feeds: Any, words: str) -> None:
    session = bound(save_fp32(tmp_path / "graph.onnx", batch=4))

    with pytest.raises(InputError, match=words):
        session.run(feeds)


def test_facts_say_where_inputs_and_outputs_lie(tmp_path: Path) -> None:
    facts = bound(save_fp32(tmp_path / "graph.onnx")).facts()

    assert (facts["io_binding"], facts["tf32"], facts["providers"]) == ("cpu", False, [CPU])


def test_products_of_a_provider_that_hides_its_layers_are_unknown(tmp_path: Path) -> None:
    model = save_fp32(tmp_path / "graph.onnx", batch=4)

    assert bound(model).matrix_products({"image": images(4)}) == {"fp32": 2}
    hiding = bound(model, products=2)
    assert hiding.matrix_products({"image": images(4)}) == {"unknown": 2}
    rows = hiding.layers({"image": images(4)}, 2)
    assert rows
    assert {(row["precision"], row["macs"]) for row in rows} == {("unknown", None)}


def test_closing_gives_back_once(tmp_path: Path) -> None:
    closed = []
    session = bound(save_fp32(tmp_path / "graph.onnx", batch=4), on_close=lambda: closed.append(True))
    session.run({"image": images(4)})

    session.close()
    session.close()

    assert closed == [True]
    with pytest.raises(WorkerError, match="the session is closed: load the engine again"):
        session.run({"image": images(4)})


def test_what_the_library_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    session = OnnxRuntimeSession(Graph("onnxruntime", save_fp32(tmp_path / "graph.onnx", batch=4), settings, PROVIDERS))

    with pytest.raises(WorkerError, match=r"^onnxruntime cannot run: .*Expected: 4") as caught:
        session.run({"image": images(3)})
    assert "\n" not in str(caught.value)
    session.close()
    session.close()


def test_memory_that_a_device_does_not_have_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        @staticmethod
        def ortvalue_from_shape_and_type(*given: Any) -> None:
            raise RuntimeError("Available memory of 0 is smaller\nthan requested bytes of 3072")

    session = bound(save_fp32(tmp_path / "graph.onnx", batch=4))
    monkeypatch.setattr("targets.runtimes.ort.bound.load_library", lambda: SimpleNamespace(OrtValue=Full))

    with pytest.raises(WorkerError, match=r"^onnxruntime_cuda cannot run: Available memory of 0 is smaller than req"):
        session.run({"image": images(4)})


def test_an_emulation_that_cannot_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # which remembers the folder of before
    (tmp_path / "graph.onnx").write_bytes(b"no graph")

    with pytest.raises(Exception):  # noqa: B017, PT011  # onnx's own, of several kinds
        EmulatedSession(tmp_path / "graph.onnx", {"threads": 1, "precision": "bf16"})
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]
