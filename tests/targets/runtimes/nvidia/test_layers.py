"""What the engine inspector tells, in both dialects, as NVIDIA's migration page writes them."""

import json
from typing import Any

import pytest

from targets.errors import WorkerError
from targets.runtimes.nvidia.layers import count_products, read_layers


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


def test_an_engine_that_tells_only_names_is_refused() -> None:
    with pytest.raises(WorkerError, match="built without details"):
        read_layers(json.dumps({"Layers": ["a", "b"], "Bindings": []}))
