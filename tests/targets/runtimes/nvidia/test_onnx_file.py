"""What is read of an ONNX file before TensorRT's parser, compared with what the package onnx writes."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from targets.errors import InputError, WorkerError
from targets.runtimes.nvidia.onnx_file import check_graph


def save_quantizer(
    path: Path, zero: Any, *, constant: bool = False, ints: bool = False, name: str = "a/quantize"
) -> Path:
    """One QuantizeLinear, its zero point an initializer or a Constant, its numbers raw or as int32."""
    values = np.asarray(zero)
    tensor = numpy_helper.from_array(values, "zero")
    if ints:
        tensor = helper.make_tensor("zero", tensor.data_type, values.shape, values.reshape(-1).tolist())
    scale = numpy_helper.from_array(np.full(values.shape, 0.1, np.float32), "scale")
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], name=name, axis=1)]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["zero"], value=tensor))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", tensor.data_type, ["batch", 3])
    graph = helper.make_graph(nodes, "g", [x], [y], [scale, *([] if constant else [tensor])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


@pytest.mark.parametrize("ints", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@given(value=st.integers(-128, 127))
@settings(max_examples=20)
def test_an_int8_zero_point_may_only_be_zero(
    tmp_path_factory: pytest.TempPathFactory, constant: bool, ints: bool, value: int
) -> None:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    save_quantizer(path, np.int8(value), constant=constant, ints=ints)

    if value == 0:
        check_graph("tensorrt", path)
        return
    with pytest.raises(InputError, match=r"node 'a/quantize' \(QuantizeLinear\) has a zero point other than 0 in int8"):
        check_graph("tensorrt", path)


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(128), np.uint16(0)])
@pytest.mark.parametrize("constant", [False, True])
def test_an_unsigned_zero_point_is_refused_though_it_be_zero(tmp_path: Path, zero: Any, constant: bool) -> None:
    path = save_quantizer(tmp_path / "graph.onnx", zero, constant=constant)

    with pytest.raises(InputError, match=f"has a zero point of type {zero.dtype}, and tensorrt .*`symmetric: true`$"):
        check_graph("tensorrt", path)


def test_one_channel_that_is_asymmetric_is_enough(tmp_path: Path) -> None:
    check_graph("tensorrt", save_quantizer(tmp_path / "good.onnx", np.zeros(3, np.int8)))

    with pytest.raises(InputError, match="other than 0"):
        check_graph("tensorrt", save_quantizer(tmp_path / "bad.onnx", np.array([0, 0, 1], np.int8)))


def test_a_node_without_a_name_is_told_by_its_output(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="node with output 'y'"):
        check_graph("tensorrt", save_quantizer(tmp_path / "graph.onnx", np.int8(1), name=""))


@pytest.mark.parametrize("stored", [None, TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT8E4M3FN])
def test_without_a_zero_point_it_is_uint8_unless_the_node_says_otherwise(tmp_path: Path, stored: int | None) -> None:
    said = {} if stored is None else {"output_dtype": stored}
    node = helper.make_node("QuantizeLinear", ["x", "scale"], ["y"], name="q", **said)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", stored or TensorProto.UINT8, [3])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(np.float32(1), "scale")])
    onnx.save(helper.make_model(graph), tmp_path / "graph.onnx")

    if stored in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN):
        check_graph("tensorrt", tmp_path / "graph.onnx")
        return
    with pytest.raises(InputError, match=r"node 'q' \(QuantizeLinear\) has no zero point, which means uint8"):
        check_graph("tensorrt", tmp_path / "graph.onnx")


def test_fp8_zero_points_are_not_taken_for_integers(tmp_path: Path) -> None:
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\x00", raw=True)
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], name="q")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT8E4M3FN, [3])
    graph = helper.make_graph([node], "g", [x], [y], [zero, numpy_helper.from_array(np.float32(1), "scale")])
    onnx.save(helper.make_model(graph), tmp_path / "graph.onnx")

    check_graph("tensorrt", tmp_path / "graph.onnx")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret"])
def test_weights_outside_the_models_folder_are_refused(tmp_path: Path, location: str) -> None:
    path = save_external(tmp_path, location)

    with pytest.raises(InputError, match=f"keeps weights at '{location}'; they must be in a plain file beside it"):
        check_graph("tensorrt", path)


def test_weights_behind_a_link_or_missing_are_refused(tmp_path: Path) -> None:
    path = save_external(tmp_path, "graph.onnx.data")
    with pytest.raises(InputError, match=r"keeps weights in 'graph.onnx.data', which is not beside it"):
        check_graph("tensorrt", path)
    (tmp_path / "other").write_bytes(b"\0" * 4096)
    (tmp_path / "graph.onnx.data").symlink_to("other")
    with pytest.raises(InputError, match="must be in a plain file beside it"):
        check_graph("tensorrt", path)
    (tmp_path / "graph.onnx.data").unlink()
    (tmp_path / "graph.onnx.data").write_bytes(b"\0" * 4096)
    check_graph("tensorrt", path)


@given(cut=st.integers(0, 10_000), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_a_damaged_file_never_does_more_than_being_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    content = bytearray(save_quantizer(path, np.zeros(3, np.int8)).read_bytes())
    draw = np.random.default_rng(seed)
    content = content[: cut % len(content)]
    for _ in range(len(content) and 3):
        content[int(draw.integers(len(content)))] = int(draw.integers(256))
    path.write_bytes(content)

    with suppress(InputError, WorkerError):
        check_graph("tensorrt", path)


def save_external(folder: Path, location: str) -> Path:
    weight = numpy_helper.from_array(np.zeros((32, 32), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    (folder / "graph.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return folder / "graph.onnx"
