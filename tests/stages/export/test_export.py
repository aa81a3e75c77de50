import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from stages.export.graph import check_operators, fold_layer_scale, save_graph, tidy, trace
from stages.export.parity import (
    check_parity,
    choice_margins,
    clear_images,
    judge,
    make_images,
    reference_outputs,
)
from stages.stage import StageResult
from stages.vit.files import load_model
from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import InputError, StageError, UnknownNameError
from targets.preprocess import Preprocess

NORMS = {"norm1_eps": 1e-6, "norm2_eps": 1e-5}
PLAIN = BlockSpec(heads=2, d_qk=16, d_v=16, scale=0.25, mlp_width=64, **NORMS)
PRUNED = (
    BlockSpec(heads=2, d_qk=5, d_v=12, scale=0.25, mlp_width=48, **NORMS),
    BlockSpec(heads=0, d_qk=0, d_v=0, scale=1, attention="off", mlp_width=17, **NORMS),
    BlockSpec(heads=3, d_qk=16, d_v=7, scale=0.1, mlp=False, mlp_width=0, **NORMS),
)


@dataclass(frozen=True)
class Case:
    """A kind of model."""

    id: str
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    output: str = "logits"


CASES = [
    Case("pruned shapes, attention off, MLP off, LayerScale", {"blocks": PRUNED, "layer_scale": True}),
    Case(
        "registers, average pooling, not square",
        {
            "preprocess": Preprocess(height=32, width=48),
            "register_tokens": 3,
            "position_covers_prefix": False,
            "pooling": "avg",
            "final_norm_eps": None,
            "head_norm_eps": 1e-6,
            "qkv_bias": False,
        },
    ),
    Case(
        "SwiGLU with norms everywhere, no head",
        {
            "mlp_kind": "swiglu",
            "activation": "silu",
            "mlp_norm_eps": 1e-6,
            "qk_norm_eps": 1e-6,
            "attention_norm_eps": 1e-6,
            "pre_norm_eps": 1e-6,
            "classes": 0,
            "blocks": (PLAIN, PRUNED[0]),
        },
        {"opset": 17},
        output="features",
    ),
    Case(
        "merging, pruned shapes, attention off, registers",
        {"blocks": (*PRUNED[:2], PLAIN), "merge": (5, 3, 4), "register_tokens": 2, "pooling": "avg"},
    ),
    Case(
        "merging by tokens, post-norm, not proportional, fixed batch",
        {
            "merge": (8, 2),
            "merge_metric": "tokens",
            "merge_proportional": False,
            "norm_placement": "post",
            "pool_includes_prefix": True,
            "pooling": "avgmax",
        },
        {"batch": 3},
    ),
    Case(
        "gated MLP, RMSNorm, post-norm, max pooling, fixed batch",
        {
            "mlp_kind": "glu",
            "norm": "rmsnorm",
            "norm_placement": "post",
            "layer_scale": True,
            "pooling": "max",
            "class_token": False,
            "position": "none",
            "activation": "gelu_tanh",
        },
        {"opset": 23, "batch": 3},
    ),
]


def make_spec(**changes: Any) -> ViTSpec:
    fields = {
        "architecture": "small",
        "preprocess": Preprocess(height=32, width=32),
        "patch_size": (8, 8),
        "width": 32,
        "classes": 5,
        "blocks": (PLAIN, PLAIN),
    }
    return ViTSpec.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path], run_export: Callable[..., StageResult]
) -> tuple[Path, Path, StageResult]:
    """An ordinary small ViT: model folder, graph folder, result."""
    folder = tmp_path_factory.mktemp("plain")
    model = write_model(folder / "model", make_spec())
    return model, folder / "graph", run_export(model, folder / "graph")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_kind_of_model_computes_the_same_in_torch_and_in_the_runtime(
    case: Case, tmp_path: Path, write_model: Callable[..., Path], run_export: Callable[..., StageResult]
) -> None:
    model = write_model(tmp_path / "model", make_spec(**case.changes))

    facts = run_export(model, tmp_path / "graph", **case.options).facts

    graph = onnx.load(tmp_path / "graph" / "model.onnx")
    assert facts["parity"]["max_relative_error"] < 1e-4
    assert facts["parity"]["batches"] == ([case.options["batch"]] if "batch" in case.options else [1, 2, 3])
    assert [one.name for one in graph.graph.output] == [case.output]
    assert graph.opset_import[0].version == case.options.get("opset", 20) == facts["opset"]


def test_the_graph_holds_the_operators_that_runtimes_fuse(plain: tuple[Path, Path, StageResult]) -> None:
    _, folder, result = plain

    graph = onnx.load(folder / "model.onnx").graph

    operators = Counter(node.op_type for node in graph.node)
    assert result.facts["operators"] == dict(operators)
    assert (operators["LayerNormalization"], operators["Softmax"], operators["Gelu"]) == (5, 2, 2)
    assert operators["MatMul"] + operators["Gemm"] == 2 * 6 + 1
    assert operators["Mul"] == 2  # the explicit scale of each attention
    assert not operators.keys() & {"Pow", "Sqrt", "Erf", "Scatter", "ScatterND", "If", "Loop", "Cast", "Identity"}
    assert {node.domain for node in graph.node} == {""}


def test_input_outputs_nodes_and_weights_have_the_names_of_the_model(plain: tuple[Path, Path, StageResult]) -> None:
    graph = onnx.load(plain[1] / "model.onnx").graph

    names = [node.name for node in graph.node]
    weights = {tensor.name for tensor in graph.initializer}
    assert [one.name for one in graph.input] == ["images"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert len(set(names)) == len(names)
    for layer in ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"):
        assert f"{layer}/MatMul" in names
        assert {f"{layer}.weight", f"{layer}.bias"} <= weights
    assert {"patch_embed.proj/Conv", "blocks.1/Softmax", "norm/LayerNormalization", "head/Gemm"} <= set(names)


def test_layer_scale_leaves_no_operator(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    model = load_model(write_model(tmp_path / "model", make_spec(layer_scale=True)))
    images = torch.from_numpy(make_images(make_spec(), seed=1))
    with torch.no_grad():
        expected = model(images)

        fold_layer_scale(model)

        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    assert not [name for name, _ in model.named_parameters() if "gamma" in name]


def test_spec_and_labels_go_with_the_graph(plain: tuple[Path, Path, StageResult]) -> None:
    model, graph, result = plain

    assert (graph / "vit.json").read_bytes() == (model / "vit.json").read_bytes()
    assert json.loads((graph / "labels.json").read_text()) == [f"class {i}" for i in range(5)]
    assert {file.name for file in graph.iterdir()} == {"model.onnx", "vit.json", "labels.json"}
    assert result.facts["bytes"] == (graph / "model.onnx").stat().st_size


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_another_process(
    plain: tuple[Path, Path, StageResult], root: Path, tmp_path: Path
) -> None:
    model, graph, _ = plain
    code = (
        "import sys; from pathlib import Path\n"
        "from stages.export.stage import *\n"
        "model, output = map(Path, sys.argv[1:])\n"
        "export(ExportOptions(), StageContext(input=model, source=model, output=output, scratch=output, images={}))\n"
    )

    subprocess.run(
        [sys.executable, "-c", code, model, tmp_path], cwd=root, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True
    )

    assert (tmp_path / "model.onnx").read_bytes() == (graph / "model.onnx").read_bytes()


def test_the_file_says_nothing_about_this_machine(plain: tuple[Path, Path, StageResult], root: Path) -> None:
    _, folder, _ = plain

    content = (folder / "model.onnx").read_bytes()

    graph = onnx.load(folder / "model.onnx")
    for leak in (str(root), str(folder), str(Path.home()), "site-packages", "pkg.torch", 'File "', ".py"):
        assert leak.encode() not in content
    assert not graph.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)


def test_the_exporter_is_silent(
    tmp_path: Path,
    write_model: Callable[..., Path],
    run_export: Callable[..., StageResult],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = write_model(tmp_path / "model", make_spec(blocks=(PLAIN,)))

    run_export(model, tmp_path / "graph", opset=17)  # the converter to 17 has the most to say

    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_named_outputs_keep_their_order(
    tmp_path: Path, write_model: Callable[..., Path], run_export: Callable[..., StageResult]
) -> None:
    names = ("block_0", "patch_tokens", "logits", "features")

    result = run_export(write_model(tmp_path / "model", make_spec()), tmp_path / "graph", outputs=names)

    outputs = onnx.load(tmp_path / "graph" / "model.onnx").graph.output
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim[1:]] for one in outputs}
    assert list(shapes) == list(names) == result.facts["outputs"]
    assert shapes == {"block_0": [17, 32], "patch_tokens": [16, 32], "logits": [5], "features": [32]}


def test_a_graph_that_merges_tokens_moves_them_by_products_alone(
    tmp_path: Path, write_model: Callable[..., Path], run_export: Callable[..., StageResult]
) -> None:
    model = write_model(tmp_path / "model", make_spec(merge=(4, 3)))

    facts = run_export(model, tmp_path / "graph", outputs=("logits", "patch_tokens", "patch_sources")).facts

    graph = onnx.load(tmp_path / "graph" / "model.onnx").graph
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim[1:]] for one in graph.output}
    merging = {node.op_type for node in graph.node if node.name.startswith("blocks.0.merge/")}
    assert shapes == {"logits": [5], "patch_tokens": [9, 32], "patch_sources": [9, 16]}
    assert not {node.op_type for node in graph.node} & {
        "TopK",
        "GatherElements",
        "GatherND",
        "ScatterElements",
        "Where",
    }
    assert {"MatMul", "Equal", "ArgMax"} <= merging
    assert {node.op_type for node in graph.node if node.name.startswith("blocks.0.mlp")} == {"MatMul", "Add"}
    assert facts["parity"]["merge_margin"] > 1e-5
    assert not [one.name for one in graph.initializer if one.name.endswith("merge.weight")]


def test_no_constant_is_cast_when_the_graph_runs_however_many_tokens_merge(
    tmp_path: Path, write_model: Callable[..., Path], run_export: Callable[..., StageResult]
) -> None:
    # Torch leaves casts of more than 1,024 numbers, and NNCF 3.4 fails on them.
    many = make_spec(preprocess=Preprocess(height=96, width=96), merge=(20, 10))
    run_export(write_model(tmp_path / "model", many), tmp_path / "graph")

    graph = onnx.load(tmp_path / "graph" / "model.onnx").graph
    constants = {one.name for one in graph.initializer}
    read = {name for node in graph.node for name in node.input}

    assert not [node.name for node in graph.node if node.op_type == "Cast" and node.input[0] in constants]
    assert constants <= read


def test_parity_of_merging_is_judged_on_inputs_whose_choices_are_clear(
    tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    spec = make_spec(merge=(5, 3))
    model = load_model(write_model(tmp_path / "model", spec))
    images, margin = clear_images(model, spec, seed=0)
    usual = make_images(spec, seed=0)

    margins = choice_margins(model, images)
    assert images.shape == usual.shape
    assert margin == margins.min() > choice_margins(model, usual).min()
    assert np.array_equal(clear_images(model, spec, seed=0)[0], images)
    noisy = images + 1e-7 * np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    outputs = [reference_outputs(model, one, ["patch_sources"])["patch_sources"] for one in (images, noisy)]
    assert np.array_equal(*outputs)  # what rounding can do changes no choice
    assert clear_images(load_model(write_model(tmp_path / "plain", make_spec())), make_spec(), seed=0)[1] is None


def test_weights_that_do_not_fit_one_file_lie_beside_the_graph(
    plain: tuple[Path, Path, StageResult], tmp_path: Path
) -> None:
    model = load_model(plain[0])
    images = make_images(make_spec(), seed=0)
    expected = reference_outputs(model, images, ["logits"])
    graph = trace(model, outputs=["logits"], batch="dynamic", opset=20)
    tidy(graph)

    files = save_graph(graph, tmp_path, inline_limit=10_000)

    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    assert files[0].stat().st_size < 20_000 < files[1].stat().st_size
    onnx.checker.check_model(str(files[0]), full_check=True)
    assert check_parity(files[0], images, expected, batch="dynamic", precision="fp32")["passed"]


@pytest.mark.parametrize("weight", ["blocks.1.attn.qkv.weight", "pos_embed", "head.bias"])
def test_one_wrong_weight_in_the_graph_is_detected(
    plain: tuple[Path, Path, StageResult], tmp_path: Path, weight: str
) -> None:
    model, folder, _ = plain
    graph = onnx.load(folder / "model.onnx")
    tensor = next(one for one in graph.graph.initializer if one.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    onnx.save(graph, tmp_path / "model.onnx")
    images = make_images(make_spec(), seed=0)
    expected = reference_outputs(load_model(model), images, ["logits"])

    with pytest.raises(StageError, match=r"logits at batch 1: [0-9.e-]+; logits at batch 2"):
        check_parity(tmp_path / "model.onnx", images, expected, batch="dynamic", precision="fp32")


def test_an_output_that_is_not_a_number_is_an_error() -> None:
    expected = {"logits": np.ones((2, 3), np.float32)}

    with pytest.raises(StageError, match="logits at batch 1: nan"):
        judge({1: {"logits": np.full((2, 3), np.nan, np.float32)}}, expected, tolerance=1e-3)


def test_control_flow_is_refused(plain: tuple[Path, Path, StageResult]) -> None:
    graph = trace(load_model(plain[0]), outputs=["logits"], batch=1, opset=20)
    next(node for node in graph.graph if node.op_type == "Concat").op_type = "ScatterND"

    with pytest.raises(StageError, match="ScatterND"):
        check_operators(graph)


def test_an_unknown_output_is_refused_with_the_nearest(
    plain: tuple[Path, Path, StageResult], tmp_path: Path, run_export: Callable[..., StageResult]
) -> None:
    with pytest.raises(UnknownNameError, match="unknown output 'logit'; did you mean 'logits'"):
        run_export(plain[0], tmp_path, outputs=("logit",))


def test_an_attention_that_is_still_diluting_is_refused(
    tmp_path: Path, write_model: Callable[..., Path], run_export: Callable[..., StageResult]
) -> None:
    blocks = (PLAIN, PLAIN.replace(attention="diluting"))

    with pytest.raises(InputError, match="attention of block 1 is still 'diluting'"):
        run_export(write_model(tmp_path / "model", make_spec(blocks=blocks)), tmp_path / "graph")
