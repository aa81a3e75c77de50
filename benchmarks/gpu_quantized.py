"""Part `quantized`: fp32, fp16 and int8 on one GPU, by runtime: accuracy of the real ViT-Tiny, latency at three shapes.

ONNX Runtime's CUDA and TensorRT providers, torch.compile in fp16, and one attempt of TensorRT-RTX, whatever comes of
it. The int8 graph of ViT-Tiny is made beforehand by the stage `quantize` (`--prepare`, which needs nncf); ViT-B and
ViT-L have random weights and guessed ranges, which decide nothing about their time.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_ort import OrtProcess
from benchmarks.gpu_timing import Budget, Effort, SkipError, Timer, gpu_state, interleave, need_packages, summarise

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = "graphs"
INT8_FILE = "vit_tiny.int8.onnx"
TINY = "ViT-Tiny, real"
REFERENCE = "cuda fp32"
PRECISIONS = ("fp32", "fp16", "int8")
EXPORT_S = {TINY: 15.0, "ViT-B": 40.0, "ViT-L": 120.0}
"""guesses of what making the graphs of a model takes"""
RANGE = 4.0
"""of activations behind a norm, in standard deviations: the guessed scale of random weights"""
ATTEMPT_S = 180
SELECT_IMAGES, FIT_IMAGES = 256, 128


def prepare_int8(model: Path, images: Any, folder: Path) -> Path:
    """Write the int8 graph of a model folder (fp32), symmetric, for TensorRT too; needs nncf.

    images: to calibrate on.
    """
    from tempfile import TemporaryDirectory

    from stages.export.stage import ExportOptions, export
    from stages.quantize.stage import QuantizeOptions, quantize
    from stages.stage import Role, StageContext

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="vitrim-prepare-") as name:
        place = Path(name)
        for one in ("fp32", "int8", "scratch"):
            (place / one).mkdir()
        export(
            ExportOptions(),
            StageContext(input=model, source=model, output=place / "fp32", scratch=place / "scratch", images={}),
        )
        options = QuantizeOptions(
            precision="int8", symmetric=True, alphas=(0.95,), images=FIT_IMAGES, select_images=SELECT_IMAGES
        )
        context = StageContext(
            input=place / "fp32",
            source=model,
            output=place / "int8",
            scratch=place / "scratch",
            images={Role.FIT: images, Role.SELECT: images},
        )
        quantize(options, context)
        (folder / INT8_FILE).write_bytes((place / "int8" / "model.onnx").read_bytes())
    return folder / INT8_FILE


def quantized(
    *,
    place: Path | None,
    device: str,
    small: bool,
    batches: Sequence[int],
    mode: str,
    effort: Effort,
    budget: Budget,
    scratch: Path,
) -> Iterator[dict[str, Any]]:
    """Rows of accuracy and latency; one with `skipped` says why there are no others of its group."""
    need_packages("onnxruntime", "onnx", "onnxscript", "onnx_ir")
    for model in (TINY, "ViT-B", "ViT-L"):
        try:
            budget.need(0 if small else EXPORT_S[model])
            made = _Model.make(model, place=place, small=small, folder=scratch / model)
        except SkipError as why:
            yield {"model": model, "skipped": str(why)}
            continue
        if made.images is not None:
            yield from _accuracies(made, device, mode, budget)
        for batch in batches:
            yield from _latencies(made, batch, device=device, mode=mode, effort=effort, budget=budget)
    yield attempt(scratch, device)


class _Model:
    """One model: its spec, its weights, a graph in each precision, and images where its accuracy means something."""

    def __init__(self, name: str, spec: Any, state: Any, graphs: dict[str, Path], images: Any) -> None:
        self.name, self.spec, self.state, self.graphs, self.images = name, spec, state, graphs, images

    @classmethod
    def make(cls, name: str, *, place: Path | None, small: bool, folder: Path) -> "_Model":
        """Export and convert what is not there yet."""
        import torch

        from benchmarks.gpu_shapes import build, shrunk
        from stages.vit.files import load_spec, load_state

        images = None
        if name == TINY:
            if place is None or not (place / "model").is_dir():
                raise SkipError("no model: give --images a folder that --prepare wrote")
            spec = load_spec(place / "model")
            state = {key: tensor.float() for key, tensor in load_state(place / "model").items()}
            images = _evaluation(place, small)
        else:
            spec = shrunk(_shape(name)) if small else _shape(name)
            state = build(spec, device="cpu", dtype=torch.float32).state_dict()
        graphs = _graphs(spec, state, folder)
        prepared = place / GRAPHS / INT8_FILE if place is not None else None
        if name != TINY:
            graphs["int8"] = with_guessed_ranges(graphs["fp32"], folder / "int8.onnx")
        elif prepared is not None and prepared.is_file():
            graphs["int8"] = prepared
        return cls(name, spec, state, graphs, images)


def _shape(name: str) -> Any:
    """ViT-B or ViT-L at 224 x 224."""
    from benchmarks.published_shapes import PUBLISHED

    base = PUBLISHED["snp_deit_base"].source_spec
    if name == "ViT-B":
        return base
    block = base.blocks[0].replace(heads=16, mlp_width=4096)
    return base.replace(width=1024, blocks=(block,) * 24, merge=(0,) * 24)


def _evaluation(place: Path, small: bool) -> Any:
    """Labelled images to evaluate on; None where there are none."""
    from stages.data.images import open_images
    from stages.data.source import DataSource
    from stages.stage import Role

    if not (place / "evaluate.zip").is_file():
        return None
    source = DataSource(images=place / "evaluate.zip", labels=place / "labels.csv")
    images = open_images(source, Role.EVALUATE, index_cache=None)
    return images.first_by_content(32) if small else images


def _graphs(spec: Any, state: Any, folder: Path) -> dict[str, Path]:
    """fp32 and fp16 graphs of a model, with a dynamic batch and inputs of their own type."""
    import torch

    from stages.export.graph import save_graph, tidy, trace
    from stages.vit.model import ViT

    found = {}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        model = ViT(spec.model_dump(mode="json")).eval()
        model.load_state_dict(state)
        graph = trace(model.to(dtype), outputs=("logits",), batch="dynamic", opset=20)
        tidy(graph)
        (folder / precision).mkdir(parents=True)
        found[precision] = save_graph(graph, folder / precision)[0]
    return found


def with_guessed_ranges(graph: Path, output: Path) -> Path:
    """Put symmetric int8 Q/DQ before every product with weights: per channel there, one guessed scale for activations.

    Legal for TensorRT and ONNX Runtime, and as fast as with measured ranges; its answers mean nothing.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(graph)
    weights = {one.name: one for one in model.graph.initializer}
    nodes, constants, done = [], [], {}
    scale, zero = "guessed_scale", "guessed_zero"
    constants += [
        numpy_helper.from_array(np.float32(RANGE / 127), scale),
        numpy_helper.from_array(np.int8(0), zero),
    ]
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights:
            data, weight = node.input[0], node.input[1]
            if data not in done:
                done[data] = f"{data}_dequantized"
                nodes += [
                    helper.make_node("QuantizeLinear", [data, scale, zero], [f"{data}_int8"]),
                    helper.make_node("DequantizeLinear", [f"{data}_int8", scale, zero], [done[data]]),
                ]
            values = numpy_helper.to_array(weights[weight])
            axis = 1 if node.op_type == "MatMul" or not _transposed(node) else 0
            step = np.maximum(np.abs(values).max(axis=1 - axis), 1e-8).astype(np.float32) / 127
            shaped = step[None, :] if axis == 1 else step[:, None]
            constants += [
                numpy_helper.from_array(np.round(values / shaped).astype(np.int8), f"{weight}_int8"),
                numpy_helper.from_array(step, f"{weight}_scale"),
                numpy_helper.from_array(np.zeros(len(step), np.int8), f"{weight}_zero"),
            ]
            given = [f"{weight}_int8", f"{weight}_scale", f"{weight}_zero"]
            nodes.append(helper.make_node("DequantizeLinear", given, [f"{weight}_float"], axis=axis))
            node.input[0], node.input[1] = done[data], f"{weight}_float"
            weights[weight].ClearField("raw_data")
        nodes.append(node)
    kept = [one for one in model.graph.initializer if one.HasField("raw_data") or one.data_type == TensorProto.STRING]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *constants])
    onnx.save(model, output)
    return output


def _transposed(node: Any) -> bool:
    return any(one.name == "transB" and one.i for one in node.attribute)


# What runs.


def sessions(made: _Model, device: str) -> Iterator[tuple[str, Path, str, dict[str, str]]]:
    """(name, graph, provider, its options) of every session of ONNX Runtime."""
    for precision in PRECISIONS:
        if precision not in made.graphs:
            continue
        yield f"{device} {precision}", made.graphs[precision], device, {}
        if device == "cuda":
            told = {"trt_fp16_enable": str(precision != "fp32"), "trt_int8_enable": str(precision == "int8")}
            yield f"tensorrt {precision}", made.graphs[precision], "tensorrt", told


def _torch_model(made: _Model, device: str, mode: str) -> Callable[..., Any]:
    import torch

    from benchmarks.gpu_shapes import compiled
    from stages.vit.model import ViT

    model = ViT(made.spec.model_dump(mode="json")).eval()
    model.load_state_dict(made.state)
    return compiled(model.to(device, torch.float16), mode)


def _accuracies(made: _Model, device: str, mode: str, budget: Budget) -> Iterator[dict[str, Any]]:
    """Top-1 of every runtime and precision against fp32 in torch, image by image."""
    import torch

    from pipeline.statistics import compare_answers
    from stages.vit.model import ViT

    images, labels = made.images, made.images.labels
    pixels = np.concatenate([np.asarray(one, np.float32) for one in images.batches(made.spec.preprocess, 64)])
    model = ViT(made.spec.model_dump(mode="json")).eval()
    model.load_state_dict(made.state)
    model.to(device)
    with torch.inference_mode():
        reference = _in_batches(pixels, lambda batch: model(torch.as_tensor(batch).to(device)).cpu().numpy())
    call = _torch_model(made, device, mode)

    def by_torch() -> NDArray[Any]:
        def answer(batch: NDArray[Any]) -> NDArray[Any]:
            found: NDArray[Any] = call(torch.as_tensor(batch).to(device).half()).float().cpu().numpy()
            return found

        with torch.inference_mode():
            return _in_batches(pixels, answer)

    def by_ort(graph: Path, provider: str, told: dict[str, str]) -> NDArray[Any]:
        with OrtProcess(graph, batch=64, device=provider, options=told) as process:
            return process.answers(pixels)

    jobs: list[tuple[str, Callable[[], NDArray[Any]]]] = [
        (name, lambda graph=graph, provider=provider, told=told: by_ort(graph, provider, told))  # type: ignore[misc]
        for name, graph, provider, told in sessions(made, device)
    ]
    for name, answers in [*jobs, ("compile fp16", by_torch)]:
        row = {"model": made.name, "variant": name}
        try:
            budget.need(20)
            compared = compare_answers(reference, answers(), labels)
        except SkipError as why:
            yield {**row, "skipped": str(why)}
        except Exception as error:  # one runtime must not take the others with it
            yield {**row, "skipped": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        else:
            yield {
                **row,
                "images_evaluated": len(images),
                "top1": round(compared.engine, 4),
                "drop_points": round(compared.drop_points, 2),
                "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
                "agreement": round(compared.agreement or 0.0, 4),
            }


def _in_batches(pixels: NDArray[Any], answer: Callable[[NDArray[Any]], NDArray[Any]], size: int = 64) -> NDArray[Any]:
    """Answers to images, 64 at once, the last batch filled up: a compiled model keeps one shape."""
    found = []
    for start in range(0, len(pixels), size):
        batch = pixels[start : start + size]
        filled = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
        found.append(np.array(answer(filled))[: len(batch)])
    return np.concatenate(found)


def _latencies(
    made: _Model, batch: int, *, device: str, mode: str, effort: Effort, budget: Budget
) -> Iterator[dict[str, Any]]:
    """Every runtime and precision of a model at one batch size, interleaved."""
    import torch

    from benchmarks.gpu_shapes import query_timer

    group = {"model": made.name, "batch": batch}
    timers: dict[str, Timer] = {}
    infos: dict[str, dict[str, Any]] = {}
    before = gpu_state()
    with ExitStack() as stack:
        for name, graph, provider, told in sessions(made, device):
            try:
                budget.need(10)
                process = stack.enter_context(OrtProcess(graph, batch=batch, device=provider, options=told))
            except (SkipError, RuntimeError) as why:
                yield {**group, "variant": name, "skipped": str(why)}
                continue
            timers[name], infos[name] = process.time, process.info
        try:
            budget.need(30 if device == "cuda" else 0)
            call = _torch_model(made, device, mode)
            images = torch.randn(batch, *made.spec.input_shape, device=device, dtype=torch.float16)
            with torch.inference_mode():
                finite = bool(call(images).isfinite().all())
            timers["compile fp16"], infos["compile fp16"] = query_timer(call, images), {"finite": finite, "mode": mode}
        except Exception as error:  # torch.compile needs a compiler of its own
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            yield {**group, "variant": "compile fp16", "skipped": why}
        reference = f"{device} fp32"
        if reference not in timers:
            yield {**group, "skipped": f"nothing to compare with: {reference} does not run"}
            return
        rows = summarise(interleave(timers, effort), reference=reference, batch=batch)
    state = {"gpu_before": before, "gpu_after": gpu_state()}
    for name, row in rows.items():
        yield {**group, "variant": name, **row, **infos[name], **(state if name == reference else {})}


# TensorRT-RTX, once.


def attempt(scratch: Path, device: str) -> dict[str, Any]:
    """Build for the GPU at hand and load, past vitrim's own refusal: what TensorRT-RTX says, word by word."""
    row = {"model": TINY, "variant": "tensorrt_rtx, one attempt"}
    if device != "cuda":
        return {**row, "skipped": "needs a GPU"}
    graph = next(iter(sorted(scratch.glob("*/fp16/model.onnx"))), None)
    if graph is None:
        return {**row, "skipped": "no fp16 graph was made"}
    done = subprocess.run(
        [sys.executable, "-c", _ATTEMPT, str(graph)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=ATTEMPT_S,
        check=False,
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = {"said": last[-1] if last else f"the process ended with exit code {done.returncode}"}
    return {**row, **told}


_ATTEMPT = """
import json, sys
try:
    import tensorrt_rtx as trt
except ImportError as error:
    print(json.dumps({"said": f"not installed: {error}"})); raise SystemExit
from targets.runtimes.nvidia.library import Listener
listener = Listener(trt)
builder = trt.Builder(listener.logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, listener.logger)
parser.parse_from_file(sys.argv[1])
tensor = network.get_input(0)
tensor.shape = (1, *tuple(tensor.shape)[1:])
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
plan = builder.build_serialized_network(network, config)
found = {"version": trt.__version__, "built": plan is not None}
if plan is not None:
    found["loaded"] = trt.Runtime(listener.logger).deserialize_cuda_engine(plan) is not None
print(json.dumps({**found, "said": listener.last_error()}))
"""
