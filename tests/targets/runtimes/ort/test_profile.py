"""What is read out of ONNX Runtime's profile: of the real CPU, and of a GPU's in the form that its documents show."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from tiny_graphs import SIZE, images, save_fp32

from targets.errors import InputError
from targets.runtimes.ort.library import CPU, CUDA, Graph, new_settings, record_places
from targets.runtimes.ort.places import check_places, refuse_fallen
from targets.runtimes.ort.profile import Fallen, count_products, describe_layers, find_fallen, node_events
from targets.runtimes.ort.session import profile


def on_the_cpu(path: Path) -> Graph:
    def settings() -> Any:
        made = new_settings({"threads": 1})
        record_places(made)
        return made

    return Graph("onnxruntime_cuda", path, settings, ((CPU, {}),))


def save_with_shapes(path: Path) -> Path:
    """A product whose answer is reshaped by what Shape, Gather and Concat compute: shape work that cannot be folded."""
    nodes = [
        helper.make_node("MatMul", ["image", "weight"], ["product"], name="product"),
        helper.make_node("Shape", ["image"], ["sizes"], name="ask"),
        helper.make_node("Gather", ["sizes", "zero"], ["first"], axis=0, name="take"),
        helper.make_node("Concat", ["first", "rest"], ["wanted"], axis=0, name="join"),
        helper.make_node("Reshape", ["product", "wanted"], ["flat"], name="reshape"),
    ]
    tensors = [
        numpy_helper.from_array(np.eye(SIZE, dtype=np.float32), "weight"),
        numpy_helper.from_array(np.array([0]), "zero"),
        numpy_helper.from_array(np.array([-1]), "rest"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    flat = helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["batch", None])
    graph = helper.make_graph(nodes, "shapes", [image], [flat], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def gpu_event(name: str, operator: str, provider: str = CUDA, **types: list[int]) -> dict[str, Any]:
    shapes = [{kind: shape} for kind, shape in types.items()] or [{"float": [1, 197, 192]}]
    told = {
        "op_name": operator,
        "provider": provider,
        "node_index": "1",
        "input_type_shape": shapes,
        "output_type_shape": shapes,
    }
    return {"cat": "Node", "ph": "X", "dur": 20, "ts": 100, "name": f"{name}_kernel_time", "args": told}


def test_nothing_of_a_real_run_on_the_cpu_passes_for_cuda(tmp_path: Path) -> None:
    events = profile(on_the_cpu(save_fp32(tmp_path / "graph.onnx")), {"image": images(4)}, 1)

    assert find_fallen(events, [CPU]) == []
    fallen = find_fallen(events, [CUDA])
    assert {one.provider for one in fallen} == {CPU}
    assert {"MatMul", "Softmax"} <= {one.operator.removeprefix("Fused") for one in fallen}
    assert len(fallen) == len({event["name"] for event in events})


def test_shape_work_on_the_cpu_is_no_fall(tmp_path: Path) -> None:
    events = profile(on_the_cpu(save_with_shapes(tmp_path / "graph.onnx")), {"image": images(4)}, 1)

    ran = {event["args"]["op_name"] for event in events}
    assert ran >= {"Shape", "Gather", "Concat"}, "else this shows nothing"
    assert {one.operator for one in find_fallen(events, [CUDA])} == ran - {"Shape", "Gather", "Concat"}


def test_many_whole_numbers_are_no_shape() -> None:
    few = gpu_event("few", "Gather", CPU, int64=[8, 8])
    many = gpu_event("many", "Gather", CPU, int64=[65])
    mixed = gpu_event("mixed", "Cast", CPU, int64=[1], float=[1])

    assert [one.name for one in find_fallen([few, many, mixed], [CUDA])] == ["many", "mixed"]


def test_a_node_that_left_the_gpu_is_found_among_those_that_did_not() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "ts": 90, "dur": 200, "args": {}},
        gpu_event("/blocks.0/attn/MatMul", "MatMul"),
        {**gpu_event("/blocks.0/attn/MatMul", "MatMul"), "name": "/blocks.0/attn/MatMul_fence_before"},
        gpu_event("Memcpy_token_0", "MemcpyToHost"),
        gpu_event("/head/TopK", "TopK", CPU),
        gpu_event("/shape/Shape", "Shape", CPU, int64=[4]),
    ]

    found = find_fallen(node_events(events), [CUDA])

    assert found == [Fallen("/head/TopK", "TopK", CPU)]
    assert count_products(node_events(events)) == {"fp32": 1}


def test_an_event_that_names_no_provider_proves_nothing() -> None:
    event = gpu_event("lonely", "MatMul")
    del event["args"]["provider"]

    assert find_fallen([event], [CUDA]) == [Fallen("lonely", "MatMul", "")]


def test_the_first_queries_are_left_out() -> None:
    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 50, "args": {}} for ts in (100, 200, 300)]
    nodes = [{**gpu_event("a", "MatMul"), "ts": ts} for ts in (110, 210, 310)]

    assert [one["ts"] for one in node_events([*runs, *nodes], skip_queries=1)] == [210, 310]
    row = describe_layers(node_events([*runs, *nodes], skip_queries=1), 2)[0]
    assert (row["calls"], row["provider"], row["seconds"]) == (1, CUDA, pytest.approx(20e-6))


def test_the_refusal_names_the_nodes() -> None:
    fallen = [Fallen(f"/block/{index}", "TopK", CPU) for index in range(5)]

    with pytest.raises(InputError, match=r"runs 5 nodes on CPUExecutionProvider instead of CUDAExec.*: '/block/0' \(T"):
        refuse_fallen("onnxruntime_cuda", fallen, [CUDA])
    with pytest.raises(InputError, match=r"'/block/2' .* and 2 more; .*take another runtime") as caught:
        refuse_fallen("onnxruntime_cuda", fallen, [CUDA])
    assert "\n" not in str(caught.value)
    refuse_fallen("onnxruntime_cuda", [], [CUDA])


def test_a_real_session_is_asked_where_its_nodes_went(tmp_path: Path) -> None:
    graph = on_the_cpu(save_fp32(tmp_path / "graph.onnx", batch=2))

    assert sum(check_places(graph, graph.open(), [CPU]).values()) >= 4
    with pytest.raises(InputError, match=r"onnxruntime_cuda runs . nodes on CPUExecutionProvider instead of CUDA"):
        check_places(graph, graph.open(), [CUDA])


def test_a_session_with_nothing_but_shapes_on_the_cpu_is_no_fall(tmp_path: Path) -> None:
    nodes = [helper.make_node("Shape", ["image"], ["sizes"], name="ask")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, [2])
    model = helper.make_model(
        helper.make_graph(nodes, "ask", [image], [sizes]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    save(model, tmp_path / "graph.onnx")
    graph = on_the_cpu(tmp_path / "graph.onnx")

    assert check_places(graph, graph.open(), [CUDA]) == {CPU: 1}


def test_profiles_are_read_as_the_library_writes_them(tmp_path: Path) -> None:
    """The real file has what the pure functions read; else the made-up events above would show nothing."""
    event = profile(on_the_cpu(save_fp32(tmp_path / "graph.onnx")), {"image": images(1)}, 1)[0]
    made_up = gpu_event("a", "MatMul")

    assert set(made_up) <= set(event)
    assert set(made_up["args"]) <= set(event["args"]), json.dumps(event)
