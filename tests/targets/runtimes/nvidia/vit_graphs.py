"""ONNX graphs of tiny Vision Transformers with random weights, in the precisions that TensorRT runs.

The graphs come from vitrim's own export, and so do the bf16 ones. What makes them fp16, int8 or fp8 here only has to be
legal, not accurate: scales are guesses. Products: MatMul and Gemm with a constant weight, [K, N].
"""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 32
NORMS = {"norm1_eps": 1e-6, "norm2_eps": 1e-6}
WHOLE: dict[str, Any] = {"heads": 4, "d_qk": 16, "d_v": 16, "scale": 0.25, "mlp_width": 128, **NORMS}
PRUNED: tuple[dict[str, Any], ...] = (
    {**WHOLE, "d_qk": 8, "d_v": 24, "mlp_width": 96},
    {**WHOLE, "heads": 1, "d_qk": 5, "d_v": 12, "mlp_width": 17},
    {**WHOLE, "heads": 0, "d_qk": 0, "d_v": 0, "attention": "off", "mlp_width": 48},
    {**WHOLE, "mlp": False, "mlp_width": 0},
)
_QUANTIZED = {
    "int8": (TensorProto.INT8, np.dtype(np.int8), 127.0),
    "fp8": (TensorProto.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
}


def export_vit(folder: Path, blocks: Sequence[dict[str, Any]] = (WHOLE, WHOLE), *, opset: int = 20) -> Path:
    """Export a ViT of width 64 on 32 x 32 pixels with random weights; the batch is dynamic."""
    import torch

    from stages.export.stage import ExportOptions, export
    from stages.stage import StageContext
    from stages.vit.files import save_model
    from stages.vit.model import ViT
    from stages.vit.spec import ViTSpec

    spec = ViTSpec.model_validate(
        {
            "architecture": "tiny",
            "preprocess": {"height": SIDE, "width": SIDE},
            "patch_size": (8, 8),
            "width": 64,
            "classes": 10,
            "blocks": tuple(blocks),
        }
    )
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as model:
        torch.manual_seed(0)
        save_model(Path(model), spec, ViT(spec.model_dump(mode="json")).state_dict())
        context = StageContext(input=Path(model), source=Path(model), output=folder, scratch=folder, images={})
        export(ExportOptions(opset=opset), context)
    return folder / "model.onnx"


def save_as(
    source: Path, path: Path, precision: str, *, asymmetric: bool = False, fp32: Sequence[str] = (), node: str = ""
) -> Path:
    """Save a graph in another precision; int8 and fp8 keep fp16 between the products.

    fp32: operators that stay in it. node: one that does.
    """
    model = onnx.load(source)
    if precision == "bf16":
        from stages.quantize.half import HALVES, convert

        convert(model, set(), HALVES["bf16"])
    elif precision != "fp32":
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of every weight that is nearly nothing
            model = convert_float_to_float16(
                model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *fp32], node_block_list=[node]
            )
        OnnxModel(model).topological_sort()  # the casts were put at the end
        del model.graph.value_info[:]  # types of before
    if precision in _QUANTIZED:
        _quantize(model, precision, asymmetric=asymmetric)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _quantize(model: onnx.ModelProto, precision: str, *, asymmetric: bool) -> None:
    """Put Q/DQ before both inputs of every product with a constant weight; weights per output channel."""
    kind, dtype, most = _QUANTIZED[precision]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: list[onnx.TensorProto] = []
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights:
            name, weight = node.name, numpy_helper.to_array(weights[node.input[1]])
            transposed = any(one.name == "transB" and one.i for one in node.attribute)
            axis = 0 if transposed else 1
            scale = np.maximum(np.abs(weight.astype(np.float32)).max(axis=1 - axis), 1e-3) / most
            stored = (weight.astype(np.float32) / np.expand_dims(scale, 1 - axis)).clip(-most, most)
            stored = (np.round(stored) if precision == "int8" else stored).astype(dtype)
            zero = 7 if asymmetric else 0
            made += [
                _tensor(f"{name}/x_scale", np.asarray(8 / most, weight.dtype)),
                _raw(f"{name}/x_zero", kind, np.asarray(zero, dtype)),
                _tensor(f"{name}/w_scale", scale.astype(weight.dtype)),
                _raw(f"{name}/w_zero", kind, np.zeros(len(scale), dtype)),
                _raw(f"{name}/w_q", kind, stored),
            ]
            x = [f"{name}/x_scale", f"{name}/x_zero"]
            w = [f"{name}/w_q", f"{name}/w_scale", f"{name}/w_zero"]
            nodes += [
                helper.make_node("QuantizeLinear", [node.input[0], *x], [f"{name}/x_q"], name=f"{name}/quantize"),
                helper.make_node("DequantizeLinear", [f"{name}/x_q", *x], [f"{name}/x"], name=f"{name}/dequantize"),
                helper.make_node("DequantizeLinear", w, [f"{name}/w"], name=f"{name}/weight", axis=axis),
            ]
            node.input[0], node.input[1] = f"{name}/x", f"{name}/w"
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(made)


def _tensor(name: str, values: np.ndarray[Any, Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def _raw(name: str, kind: int, values: np.ndarray[Any, Any]) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True)
