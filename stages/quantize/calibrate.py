"""One piece of work that needs ONNX Runtime, in a process of its own, because it must not meet a computing torch.

    python -m stages.quantize.calibrate JOB.json

It leaves the quantized graph, or what it measured, where the job says, complete or not at all, and its progress beside
it. It ends when its standard input closes, that is, with whoever started it.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.quantize.sinking import sink_quantizers
from stages.quantize.stage import Alpha
from targets.preprocess import Preprocess, normalise
from targets.record import Record

if TYPE_CHECKING:
    from stages.quantize.attention import Pair

INPUT = "images"


class Job(Record):
    """What to quantize or measure, how, and where to."""

    work: Literal["nncf", "dynamic", "linears", "half", "scan", "noise"] = "nncf"
    title: str = ""
    """for messages; else the alpha"""
    model: Path
    output: Path
    progress: Path
    pixels: Path
    """.npy, uint8 [N, H, W, 3]"""
    preprocess: Preprocess
    alpha: Alpha = "off"
    symmetric: bool = False
    half_range: bool = False
    transformer: bool = True
    keep_float: tuple[str, ...] = ()
    """names of nodes"""
    bias_correction: bool = False
    settings: dict[str, Any] = {}
    """what only this kind of work reads"""
    threads: int = 1

    @property
    def name(self) -> str:
        """`alpha 0.5`, or what the title says."""
        return self.title or f"alpha {self.alpha!r}"


def quantize_by_nncf(job: Job) -> None:
    """Quantize one graph: all MatMuls and convolutions whose inputs NNCF's transformer scheme allows."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else NNCF reports every run to its makers
    import nncf
    import onnx
    from nncf.onnx.quantization.backend_parameters import BackendParameters
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    _limit_threads(job.threads)
    pixels = np.load(job.pixels, mmap_mode="r")
    passes = 2 if job.alpha != "off" else 1  # SmoothQuant looks at all images before the ranges are set
    seen = 0
    progress = job.progress.open("wb", buffering=0)

    def feed(index: int) -> dict[str, NDArray[np.float32]]:
        nonlocal seen
        seen += 1
        progress.seek(0)
        progress.write(b"%.4f" % min(1.0, seen / (passes * len(pixels))))  # always as long, so never half written
        return {INPUT: normalise(pixels[index : index + 1], job.preprocess)}

    weights_beside = {BackendParameters.EXTERNAL_DATA_DIR: str(job.model.parent.absolute())}
    quantized = nncf.quantize(
        onnx.load(job.model, load_external_data=False),
        nncf.Dataset(range(len(pixels)), feed),
        preset=nncf.QuantizationPreset.PERFORMANCE if job.symmetric else nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if job.transformer else None,
        subset_size=len(pixels),
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(names=list(job.keep_float)) if job.keep_float else None,
        advanced_parameters=AdvancedQuantizationParameters(
            disable_bias_correction=not job.bias_correction,
            overflow_fix=OverflowFix.ENABLE if job.half_range else None,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(
                matmul=job.alpha if isinstance(job.alpha, float) else -1,
                convolution=-1,  # the patch embedding reads pixels, whose channels are alike
            ),
            # The widest range of all images, not their mean, as NNCF's own default for transformers: what is rare in
            # the calibration images and common in others is not cut off (docs/stages/quantize.md).
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            backend_params=weights_beside,
        ),
    )
    if job.symmetric:
        make_signed(quantized)
    sink_quantizers(quantized)
    if pairs := _pairs(job):
        from stages.quantize.attention import quantize_attention

        ranges = json.loads(Path(job.settings["ranges"]).read_bytes())
        quantize_attention(quantized, pairs, ranges, "int8", symmetric=job.symmetric)
    _strip(quantized)
    save(quantized, job.output)


def quantize_dynamic(job: Job) -> None:
    """Quantize by ONNX Runtime: weights per output channel, activations anew in every query."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as by_onnxruntime

    unfinished = job.output.with_suffix(".raw")
    by_onnxruntime(
        job.model,
        unfinished,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QUInt8,  # signed ones saturate in pairs on x86 without VNNI (docs/stages/quantize.md)
        # a Gemm becomes a MatMul of another name before names are looked at
        nodes_to_exclude=[*job.keep_float, *(f"{name}_MatMul" for name in job.keep_float)],
        extra_options={"MatMulConstBOnly": job.settings["linears_only"]},
    )
    made = onnx.load(unfinished)
    _strip(made)
    save(made, job.output)
    unfinished.unlink()


def quantize_linears(job: Job) -> None:
    """Hold weights in int8, or weights and inputs in fp8."""
    import onnx

    from stages.quantize.linears import quantize_fp8, quantize_weights

    model = onnx.load(job.model)
    if job.settings["precision"] == "fp8":
        ranges = json.loads(Path(job.settings["ranges"]).read_bytes())
        quantize_fp8(model, job.keep_float, ranges, attention=_pairs(job))
    else:
        quantize_weights(model, job.keep_float, block=job.settings["block"])
    _strip(model)
    save(model, job.output)


def make_half(job: Job) -> None:
    """Convert to fp16 or bf16, a quantized graph between its products; or emulate it in fp32."""
    import onnx

    from stages.quantize.half import HALVES, convert, emulate
    from stages.quantize.rest import narrow_rest
    from targets.runtimes.widen import widen

    model, half = onnx.load(job.model), HALVES[job.settings["precision"]]
    if job.settings.get("quantized"):
        model = narrow_rest(model, set(job.keep_float), half)
        if job.settings["emulate"]:
            widen(model, half.tensor)
    elif job.settings["emulate"]:
        emulate(model, set(job.keep_float), half)
    else:
        convert(model, set(job.keep_float), half, keep_io=job.settings["keep_io"])
    _strip(model)
    save(model, job.output)


def save(model: Any, path: Path) -> None:
    """Write a graph, complete or not at all; weights beside it where one file cannot hold them."""
    import onnx

    from targets.runtimes.widen import INLINE_LIMIT

    unfinished = path.with_suffix(".part")
    if sum(len(one.raw_data) for one in model.graph.initializer) > INLINE_LIMIT:
        weights = path.with_name(f"{path.name}.data")
        for old in (path, weights):  # onnx would write the weights behind those that an earlier graph left
            old.unlink(missing_ok=True)
        onnx.save(model, unfinished, save_as_external_data=True, location=weights.name, size_threshold=1024)
    else:
        onnx.save(model, unfinished)
    os.replace(unfinished, path)


def _pairs(job: Job) -> list["Pair"]:
    """The attentions whose products are quantized by us."""
    from stages.quantize.attention import Pair

    return [Pair(*names) for names in job.settings.get("attention", ())]


def _limit_threads(threads: int) -> None:
    """Cap the threads of NNCF's sessions: several calibrations run at once, and NNCF 3.4 has no option for it."""
    import onnxruntime

    class Settings(onnxruntime.SessionOptions):  # type: ignore[misc] # follow_imports = skip
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = threads

    onnxruntime.SessionOptions = Settings


def make_signed(model: Any) -> None:
    """Turn unsigned zero points, which NNCF 3.4 takes for what is never negative, into signed ones: TensorRT's only."""
    from onnx import TensorProto, numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        _, scale, zero = node.input
        if tensors[zero].data_type == TensorProto.UINT8:  # 0 to 255 becomes 0 to 127
            wider = numpy_helper.to_array(tensors[scale]) * np.float32(255 / 127)
            tensors[scale].CopyFrom(numpy_helper.from_array(wider, scale))
            tensors[zero].CopyFrom(numpy_helper.from_array(np.zeros(tensors[zero].dims, np.int8), zero))
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            value.type.tensor_type.elem_type = TensorProto.INT8


def _strip(model: Any) -> None:
    """Remove notes of tools: nothing of this machine goes into the file."""
    del model.metadata_props[:]
    for holder in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""


def _end_with_parent() -> None:
    """End this process when its standard input closes."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock would abort the interpreter at its end
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def do(job: Job) -> None:
    """Do one job."""
    from stages.quantize.observe import measure_noise, scan_ranges

    work = {
        "nncf": quantize_by_nncf,
        "dynamic": quantize_dynamic,
        "linears": quantize_linears,
        "half": make_half,
        "scan": scan_ranges,
        "noise": measure_noise,
    }
    work[job.work](job)


if __name__ == "__main__":
    _end_with_parent()
    do(Job.model_validate_json(Path(sys.argv[1]).read_bytes()))
