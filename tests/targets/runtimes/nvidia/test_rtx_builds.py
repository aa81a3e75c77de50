"""Engines that TensorRT-RTX really builds, ahead of time and without a GPU, of graphs that vitrim exports.

What each compute capability takes is the table in targets/runtimes/nvidia/capability.py and in
docs/runtimes/tensorrt_rtx.md.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import unchecked_rtx
from vit_graphs import PRUNED, WHOLE, export_vit, save_as

from targets.errors import InputError, WorkerError
from targets.runtimes.engine import ENGINE_FILE, read_engine, verify_files
from targets.runtimes.nvidia.capability import LEGAL
from targets.runtimes.nvidia.cuda import Cuda
from targets.runtimes.nvidia.options import PRECISIONS, RTX
from targets.worker import Worker

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'vitrim[rtx]'")

Graphs = Callable[[str, str], Path]
PAIRS = [(capability, precision) for capability in LEGAL[RTX] for precision in PRECISIONS]
LEGAL_PAIRS = [pair for pair in PAIRS if pair[1] in LEGAL[RTX][pair[0]]]
ILLEGAL_PAIRS = [pair for pair in PAIRS if pair not in LEGAL_PAIRS]
BUILDS_ALL_THE_SAME = [("7.5", "int8"), *(("8.0", precision) for precision in ("fp32", "fp16", "bf16", "int8"))]
"""which NVIDIA's support matrix does not have"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1, runtimes={unchecked_rtx.name: Path(unchecked_rtx.__file__)}) as worker:
        yield worker


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """graphs("whole" or "pruned", precision): pruned has d_qk != d_v, one head, attention off, no MLP."""
    folder = tmp_path_factory.mktemp("graphs")
    exported: dict[str, Path] = {}

    def get(kind: str, precision: str) -> Path:
        if kind not in exported:
            (folder / kind).mkdir()
            exported[kind] = export_vit(folder / kind, PRUNED if kind == "pruned" else (WHOLE, WHOLE))
        if precision == "fp32":
            return exported[kind]
        path = folder / f"{kind}-{precision}.onnx"
        rung, _, scope = precision.partition(" ")
        return path if path.exists() else save_as(exported[kind], path, rung, **({"scope": scope} if scope else {}))

    return get


def build(worker: Worker, model: Path, folder: Path, precision: str, *, batch: int = 1, **more: Any) -> dict[str, Any]:
    output = folder / "engine"
    output.mkdir()
    return worker.build(model, output, runtime="tensorrt_rtx", precision=precision, batch=batch, more=more)[0]


@pytest.mark.parametrize(("capability", "precision"), LEGAL_PAIRS)
def test_every_legal_pair_builds_pruned_shapes(
    worker: Worker, graphs: Graphs, tmp_path: Path, capability: str, precision: str
) -> None:
    engine = build(worker, graphs("pruned", precision), tmp_path, precision, compute_capability=capability)

    assert engine["bound_to"]["compute_capability"] == capability
    assert engine["precision"] == precision
    assert engine["inputs"] == [{"name": "images", "shape": [1, 3, 32, 32], "dtype": "float32"}]
    assert engine["outputs"] == [{"name": "logits", "shape": [1, 10], "dtype": "float32"}]
    verify_files(tmp_path / "engine", engine)
    counts = Counter(engine["built"]["products"].values())
    linear = 3 * 2 + 3 * 2 + 1  # qkv and proj, fc1 and fc2, three times each, and the head
    attention, patches = 3 * 2, 1
    expected = {"fp32": {"fp32": linear + attention + patches}, "fp16": {"fp16": linear + attention + patches}}
    expected |= {one: {one: linear, "fp16": attention + patches} for one in ("int8", "fp8")}
    expected["bf16"] = {"bf16": linear + attention, "fp32": patches}
    assert counts == expected[precision]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_macs_of_every_product_are_counted(worker: Worker, graphs: Graphs, tmp_path: Path, precision: str) -> None:
    """16 patches of 3 x 8 x 8, 17 tokens of width 64, two blocks with 4 heads of 16 and an MLP of 128, 10 classes."""
    engine = build(worker, graphs("whole", precision), tmp_path, precision, batch=3, compute_capability="8.6")

    block = 17 * 64 * (3 * 64) + 2 * 4 * 17 * 17 * 16 + 17 * 64 * 64 + 2 * 17 * 64 * 128
    macs = engine["built"]["macs"]
    assert sum(macs.values()) == 3 * (16 * 64 * 3 * 64 + 2 * block + 64 * 10)
    assert set(macs) == set(engine["built"]["products"])


@pytest.mark.parametrize(("capability", "precision"), [one for one in LEGAL_PAIRS if one[1] in ("int8", "fp8")])
def test_every_legal_pair_builds_with_both_products_of_attention_quantized(
    worker: Worker, graphs: Graphs, tmp_path: Path, capability: str, precision: str
) -> None:
    graph = graphs("whole", f"{precision} attention")

    engine = build(worker, graph, tmp_path, precision, compute_capability=capability)

    linear, attention, patches = 2 * 4 + 1, 2 * 2, 1
    assert Counter(engine["built"]["products"].values()) == {precision: linear + attention, "fp16": patches}


def test_a_newer_operator_set_has_the_convolution_in_bf16_too(worker: Worker, tmp_path: Path) -> None:
    model = save_as(export_vit(tmp_path, opset=22), tmp_path / "bf16.onnx", "bf16")

    engine = build(worker, model, tmp_path, "bf16", compute_capability="8.6")

    assert set(engine["built"]["products"].values()) == {"bf16"}


def test_bf16_at_the_ends_of_a_graph_is_refused_with_what_to_do(worker: Worker, graphs: Graphs, tmp_path: Path) -> None:
    import onnx

    from stages.quantize.half import HALVES, convert

    model = onnx.load(graphs("whole", "fp32"))
    convert(model, set(), HALVES["bf16"], keep_io=True)
    onnx.save(model, tmp_path / "ends.onnx")

    with pytest.raises(InputError, match=r"'images' goes in or out as bf16, which numpy does not have.*`io: float32`"):
        build(worker, tmp_path / "ends.onnx", tmp_path, "bf16", compute_capability="8.6")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_engine_can_be_for_several_gpus(worker: Worker, graphs: Graphs, tmp_path: Path, precision: str) -> None:
    fit = [one for one, legal in LEGAL[RTX].items() if precision in legal]

    engine = build(worker, graphs("whole", precision), tmp_path, precision, compute_capability=fit)

    assert engine["bound_to"]["compute_capability"] == " or ".join(fit)


@pytest.mark.parametrize(("capability", "precision"), ILLEGAL_PAIRS)
def test_every_illegal_pair_is_refused_before_the_builder_is_asked(
    worker: Worker, graphs: Graphs, tmp_path: Path, capability: str, precision: str
) -> None:
    with pytest.raises(
        InputError, match=f"TensorRT-RTX does not run '{precision}' on compute capability {capability} "
    ):
        build(worker, graphs("whole", precision), tmp_path, precision, compute_capability=capability)


@pytest.mark.parametrize(("capability", "precision"), ILLEGAL_PAIRS)
def test_the_builder_itself_refuses_what_the_table_refuses(
    worker: Worker, graphs: Graphs, tmp_path: Path, capability: str, precision: str
) -> None:
    asked = {"runtime": "unchecked_rtx", "precision": precision, "batch": 1, "more": {"compute_capability": capability}}

    if (capability, precision) in BUILDS_ALL_THE_SAME:
        worker.build(graphs("whole", precision), tmp_path, **asked)
        return
    with pytest.raises(WorkerError, match=r"FP32 GEMM is not supported|model contains HW-specific datatypes"):
        worker.build(graphs("whole", precision), tmp_path, **asked)


@pytest.mark.parametrize(
    ("capability", "gpu", "instead"),
    [
        ("9.0", "Hopper", "tensorrt"),
        ("7.2", "Jetson Xavier", "onnxruntime"),
        ("8.7", "Jetson Orin", "tensorrt"),
        ("11.0", "Jetson Thor", "tensorrt"),
        ("10.0", "Blackwell B200", "tensorrt"),
        ("7.0", "Volta", "onnxruntime"),
    ],
)
def test_gpus_that_it_does_not_run_on_are_refused_with_what_to_use_instead(
    worker: Worker, graphs: Graphs, tmp_path: Path, capability: str, gpu: str, instead: str
) -> None:
    with pytest.raises(InputError, match=rf"{capability} \({gpu}\); use runtime '{instead}' there"):
        build(worker, graphs("whole", "fp16"), tmp_path, "fp16", compute_capability=["8.9", capability])


def test_a_graph_is_judged_by_what_it_holds_and_not_by_what_it_is_called(
    worker: Worker, graphs: Graphs, tmp_path: Path
) -> None:
    bf16 = "has no bf16, which node '.+' makes; use fp16"
    asked = {"runtime": "tensorrt_rtx", "batch": 1}

    with pytest.raises(InputError, match="asked tensorrt_rtx for fp16, but the graph's matrix products are 14 in fp32"):
        worker.build(graphs("whole", "fp32"), tmp_path, precision="fp16", more={"compute_capability": "7.5"}, **asked)
    with pytest.raises(InputError, match=r"for int8, but the graph's matrix products are 14 in fp16.*stage quantize"):
        worker.build(graphs("whole", "fp16"), tmp_path, precision="int8", more={"compute_capability": "8.6"}, **asked)
    with pytest.raises(InputError, match="for fp16, but the graph has matrix products 5 in fp16, 9 in int8"):
        worker.build(graphs("whole", "int8"), tmp_path, precision="fp16", more={"compute_capability": "8.6"}, **asked)
    mixed = half_in_bf16(graphs("whole", "fp16"), graphs("whole", "fp16").with_name("mixed.onnx"))
    with pytest.raises(InputError, match=bf16):
        worker.build(mixed, tmp_path, precision="fp16", more={"compute_capability": "7.5"}, **asked)


def test_on_turing_a_convolution_may_be_fp32_and_a_matrix_product_may_not(
    worker: Worker, graphs: Graphs, tmp_path: Path
) -> None:
    source = graphs("whole", "fp32")
    convolution = save_as(source, tmp_path / "convolution.onnx", "fp16", keep_float=("patch_embed.proj/Conv",))
    product = save_as(source, tmp_path / "product.onnx", "fp16", keep_float=("blocks.1/MatMul_1",))

    engine = build(worker, convolution, tmp_path, "fp16", compute_capability="7.5")
    assert engine["built"]["products"]["patch_embed.proj/Conv"] == "fp32"
    output = tmp_path / "other"
    output.mkdir()
    with pytest.raises(
        InputError, match=r"no fp32 matrix products, as node 'blocks.1/MatMul_1' is one; make the graph"
    ):
        worker.build(
            product, output, runtime="tensorrt_rtx", precision="fp16", batch=1, more={"compute_capability": "7.5"}
        )


def half_in_bf16(source: Path, path: Path) -> Path:
    """A detour through bf16 on the way to the head."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(source)
    head = next(index for index, node in enumerate(model.graph.node) if node.name == "head/Gemm")
    node = model.graph.node[head]
    there = helper.make_node("Cast", [node.input[0]], ["there"], name="there", to=TensorProto.BFLOAT16)
    back = helper.make_node("Cast", ["there"], ["back"], name="back", to=TensorProto.FLOAT16)
    node.input[0] = "back"
    model.graph.node.insert(head, back)
    model.graph.node.insert(head, there)
    onnx.save(model, path)
    return path


def test_an_asymmetric_graph_is_refused_by_node(worker: Worker, graphs: Graphs, tmp_path: Path) -> None:
    model = save_as(graphs("whole", "fp32"), tmp_path / "asymmetric.onnx", "int8", symmetric=False, scope="linears")

    with pytest.raises(InputError, match=r"node 'QuantizeLinear_layer_norm.*' .*other than 0.*`symmetric: true`"):
        build(worker, model, tmp_path, "int8", compute_capability="8.9")


def test_a_range_of_batches_stays_dynamic(worker: Worker, graphs: Graphs, tmp_path: Path) -> None:
    more = {"compute_capability": "8.9", "batch_min": 1, "batch_max": 8, "workspace_mib": 256, "optimization_level": 1}

    engine = build(worker, graphs("whole", "fp16"), tmp_path, "fp16", batch=4, **more)

    assert engine["inputs"][0]["shape"] == [None, 3, 32, 32]
    assert engine["built"]["batch"] == {"batch_min": 1, "batch": 4, "batch_max": 8}
    assert read_engine(tmp_path / "engine") == engine


@pytest.mark.parametrize("option", [{"strip_weights": True}, {"refit": "any"}, {"refit": "identical"}])
def test_refitting_needs_a_gpu_at_build(worker: Worker, graphs: Graphs, tmp_path: Path, option: dict[str, Any]) -> None:
    if has_gpu():
        pytest.skip("there is a GPU here")

    with pytest.raises(WorkerError, match="'refit' or 'strip_weights' is built on a machine with a GPU only"):
        build(worker, graphs("whole", "fp16"), tmp_path, "fp16", compute_capability="8.9", **option)


def test_without_a_gpu_one_must_be_named_and_an_engine_is_not_loaded(
    worker: Worker, graphs: Graphs, tmp_path: Path
) -> None:
    if has_gpu():
        pytest.skip("there is a GPU here")
    with pytest.raises(
        InputError, match=r"say for which GPU to build: option 'compute_capability', one or more of 7.5"
    ):
        worker.build(graphs("whole", "fp16"), tmp_path, runtime="tensorrt_rtx", precision="fp16", batch=1)
    engine = build(worker, graphs("whole", "fp16"), tmp_path, "fp16", compute_capability="8.9")
    assert engine["built"]["layers"].startswith("not looked at: ")

    with pytest.raises(InputError, match=r"built for compute_capability '8.9', here 'no GPU .*'"):
        worker.load(tmp_path / "engine")
    (tmp_path / "engine" / ENGINE_FILE).unlink()
    with pytest.raises(InputError, match="is not an engine"):
        worker.load(tmp_path / "engine")


def has_gpu() -> bool:
    try:
        Cuda()
    except WorkerError:
        return False
    return True
