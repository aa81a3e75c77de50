"""What the engine inspector tells, in both dialects, as NVIDIA's migration page writes them."""

import json
from typing import Any

import pytest

from targets.errors import WorkerError
from targets.runtimes.nvidia.layers import count_products, read_layers, share_macs


def layer(*types: str, nodes: str, new: bool) -> dict[str, Any]:
    kinds = [{"Format": "Row major", "DataType": one} for one in types] if new else []
    kinds = kinds or [{"Format/Datatype": f"Row major linear {one} format (kLINEAR)"} for one in types]
    return {"Name": "fused", "LayerType": "gemm", "Inputs": kinds, "Metadata": nodes}


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
    ("types", "precision"),
    [
        (["Int8", "Int8"], "int8"),
        (["FP8", "FP32"], "fp8"),
        (["BFloat16"], "bf16"),
        (["Half"], "fp16"),
        (["FP16", "FP32"], "fp16"),
        (["Float"], "fp32"),
        (["Int64"], "unknown"),
    ],
)
def test_a_product_ran_in_the_lowest_type_that_went_into_its_layer(new: bool, types: list[str], precision: str) -> None:
    layers = read_layers(json.dumps({"Layers": [layer(*types, nodes="[ONNX Layer: a]", new=new)]}))

    assert count_products(layers, ["a"]) == {precision: 1}


def test_every_product_of_a_fused_layer_counts_and_one_that_is_in_none_is_unknown() -> None:
    nodes = "[ONNX Layer: q]\u001e[ONNX Layer: softmax]\u001e[ONNX Layer: v]"
    layers = [layer("Half", nodes=nodes, new=True), {"Name": "plain", "Inputs": [{"DataType": "Float"}]}]

    assert count_products(layers, ["q", "v", "plain", "lost"]) == {"fp16": 2, "fp32": 1, "unknown": 1}


def test_what_only_converts_numbers_does_not_say_in_what_a_product_ran() -> None:
    product, converts = layer("Half", "Half", nodes="[ONNX Layer: fc1]", new=True), "[ONNX Layer: fc1]"
    reformat = {**layer("Int8", nodes=converts, new=True), "Name": "r", "LayerType": "Reformat"}

    assert count_products([reformat, product], ["fc1"]) == {"fp16": 1}
    assert count_products([reformat], ["fc1"]) == {"int8": 1}  # nothing else is told


def test_an_engine_that_tells_only_names_is_refused() -> None:
    with pytest.raises(WorkerError, match="built without details"):
        read_layers(json.dumps({"Layers": ["a", "b"], "Bindings": []}))


def test_macs_of_a_product_are_shared_among_the_layers_that_it_became_and_not_with_copies() -> None:
    layers = [
        {"Name": "mha", "LayerType": "kgen", "Metadata": "[ONNX Layer: scores]\u001e[ONNX Layer: softmax]"},
        {"Name": "gemm", "LayerType": "gemm", "Metadata": "[ONNX Layer: scores]\u001e[ONNX Layer: fc1]"},
        {"Name": "move", "LayerType": "Reformat", "Metadata": "[ONNX Layer: fc1]"},
        {"Name": "only", "LayerType": "Shuffle", "Metadata": "[ONNX Layer: odd]"},
    ]

    found = share_macs(layers, {"scores": 100, "fc1": 40, "odd": 7, "lost": 9})

    assert found == {"mha": 50.0, "gemm": 90.0, "only": 7.0}
