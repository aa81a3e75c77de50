"""Parity: engine, graph and torch one against the other, and where in the model they part."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.parity import block_ends, check_parity
from pipeline.pixels import Pixels
from pipeline.recipe.model import Measure
from pipeline.report.record import Parity
from pipeline.report.tables import _pair_rows
from pipeline.validation import Engines, Subject
from stages.export.stage import ExportOptions, export
from stages.stage import StageContext
from stages.vit.files import save_model
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess
from targets.profile import Budget
from targets.worker import Worker

pytestmark = pytest.mark.slow  # a graph is exported, and engines are built
READS = Preprocess(height=16, width=16, interpolation="bilinear")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks of width 32 on 16 x 16 pixels: folders `model` and `graph`, and eight pictures."""
    folder = tmp_path_factory.mktemp("parity")
    block = BlockSpec(heads=2, d_qk=16, d_v=16, scale=0.25, mlp_width=64, norm1_eps=1e-6, norm2_eps=1e-6)
    spec = ViTSpec(architecture="small", preprocess=READS, patch_size=(8, 8), width=32, classes=6, blocks=(block,) * 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(folder / "model", spec, ViT(spec.model_dump(mode="json")).state_dict())
    (folder / "graph").mkdir()
    context = StageContext(
        input=folder / "model", source=folder / "model", output=folder / "graph", scratch=folder, images={}
    )
    export(ExportOptions(), context)
    np.save(folder / "pixels.npy", np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    return folder


def parity(made: Path, engine: Path, *, graph: Path | None = None, runtime: str = "") -> Parity:
    spec = ViTSpec.model_validate_json((made / "model" / "vit.json").read_bytes())
    subject = Subject(
        engines=Engines(baseline={}, unpruned={}, engine={2: engine}),
        batch=2,
        precision="fp32",
        model=made / "model",
        source_graph=None,
        graph=graph,
        runtime=runtime,
        spec=spec,
        preprocess=READS,
        measure=Measure(),
        budget=Budget(),
        threads=1,
        floors={},
        command_bundle=lambda role, folder: None,
    )
    return check_parity(subject, Pixels(made / "pixels.npy", READS), tell=lambda message, share: None)


def spoiled(graph: Path, path: Path, weight: str, factor: float) -> Path:
    """The same graph with one weight multiplied."""
    model = onnx.load(graph)
    tensor = next(one for one in model.graph.initializer if one.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, weight))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_engine_graph_and_torch_are_compared_one_by_one_and_block_by_block(
    made: Path, tmp_path: Path, runtime: str
) -> None:
    graph = made / "graph" / "model.onnx"
    with Worker(threads=1) as worker:
        worker.build(graph, tmp_path, runtime=runtime, precision="fp32", batch=2)

    found = parity(made, tmp_path, graph=graph, runtime=runtime)

    assert found.passed
    assert [(one.one, one.other) for one in found.pairs] == [
        ("the engine", "its graph in ONNX Runtime"),
        ("its graph in ONNX Runtime", "torch"),
    ]
    assert all(one.cosine > 0.9999 for one in found.pairs)
    assert [one.name for one in found.groups] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(one.snr_db > 60 and one.cosine > 0.9999 for one in found.groups)
    assert found.groups_by == "the engine's runtime, on its graph"


def test_the_block_in_which_a_graph_parts_from_torch_is_named(made: Path, tmp_path: Path) -> None:
    graph = spoiled(made / "graph" / "model.onnx", tmp_path / "model.onnx", "blocks.1.mlp.fc2.weight", 3.0)

    found = parity(made, graph, graph=graph)

    first, second, third = found.groups
    assert first.snr_db > 60
    assert second.snr_db < 30
    assert third.snr_db < 30
    assert found.groups_by == "ONNX Runtime, on the engine's graph"
    rows = dict(_pair_rows(found))
    assert rows["least like torch"].startswith(("blocks.1:", "blocks.2:"))


def test_an_engine_that_is_not_its_graph_is_told_from_a_graph_that_is_not_the_model(made: Path, tmp_path: Path) -> None:
    graph = made / "graph" / "model.onnx"
    other = spoiled(graph, tmp_path / "model.onnx", "head.weight", -1.0)

    engine, exported = parity(made, other, graph=graph).pairs

    assert engine.cosine < 0.9
    assert exported.cosine > 0.9999


def test_a_graph_of_another_origin_is_compared_as_a_whole_only(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "graph" / "model.onnx")
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    onnx.save(model, tmp_path / "model.onnx")

    found = parity(made, tmp_path / "model.onnx")

    assert block_ends(tmp_path / "model.onnx") == {}
    assert (found.passed, found.groups, found.groups_by, found.pairs) == (True, (), "", ())


def test_a_report_from_before_still_loads(root: Path) -> None:
    old: dict[str, Any] = {"images": 1, "max_abs_error": 0, "mean_abs_error": 0, "cosine": 1, "tolerance": "x"}

    assert Parity.model_validate({**old, "passed": True}).groups == ()
