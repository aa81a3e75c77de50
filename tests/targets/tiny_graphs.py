"""Tiny ONNX graphs with the parts of a transformer, and the same computed by numpy."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
SIZE, WIDTH, CLASSES = 8, 64, 10
PIXELS = 3 * SIZE * SIZE


def images(count: int, seed: int = 0) -> Floats:
    """float32 [N, 3, 8, 8]."""
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def _weights() -> dict[str, Floats]:
    random = np.random.default_rng(1)
    shapes = {"embed": (PIXELS, WIDTH), "bias": (WIDTH,), "gain": (WIDTH,), "head": (WIDTH, CLASSES)}
    return {name: (random.normal(size=shape) / shape[0] ** 0.5).astype(np.float32) for name, shape in shapes.items()}


def answer(pixels: Floats) -> Floats:
    """What the fp32 graph answers: [N, 3, 8, 8] to [N, 10]."""
    weights = _weights()
    hidden = pixels.reshape(len(pixels), PIXELS) @ weights["embed"] + weights["bias"]
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    hidden = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * weights["gain"]
    logits = hidden @ weights["head"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def save_fp32(path: Path, batch: int | str | None = "batch") -> Path:
    """Reshape, MatMul, Add, LayerNormalization, MatMul, Softmax. batch: a name (dynamic), a number, None (unnamed)."""
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "embed"], ["embedded"]),
        helper.make_node("Add", ["embedded", "bias"], ["shifted"]),
        *_tail(),
    ]
    return _save(path, nodes, [numpy_helper.from_array(array, name) for name, array in _weights().items()], batch)


def save_int8(path: Path, batch: int | str = "batch", *, symmetric: bool = False) -> Path:
    """Quantize the first MatMul: uint8 images around 128, or int8 ones around 0; int8 weights per output channel."""
    weights = _weights()
    scale = np.abs(weights["embed"]).max(axis=0) / 127
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items() if name != "embed"]
    tensors += [
        numpy_helper.from_array(np.round(weights["embed"] / scale).astype(np.int8), "embed_q"),
        numpy_helper.from_array(scale.astype(np.float32), "embed_scale"),
        numpy_helper.from_array(np.zeros(WIDTH, np.int8), "embed_zero"),
        numpy_helper.from_array(np.float32(8 / 255), "scale"),
        numpy_helper.from_array(np.int8(0) if symmetric else np.uint8(128), "zero"),
    ]
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["flat_q"]),
        helper.make_node("DequantizeLinear", ["flat_q", "scale", "zero"], ["flat_dq"]),
        helper.make_node("DequantizeLinear", ["embed_q", "embed_scale", "embed_zero"], ["embed"], axis=1),
        helper.make_node("MatMul", ["flat_dq", "embed"], ["embedded"]),
        helper.make_node("Add", ["embedded", "bias"], ["shifted"]),
        *_tail(),
    ]
    return _save(path, nodes, tensors, batch)


def _tail() -> list[onnx.NodeProto]:
    return [
        helper.make_node("LayerNormalization", ["shifted", "gain"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "head"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["probabilities"], axis=-1),
    ]


def _save(path: Path, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], batch: int | str | None) -> Path:
    tensors = [*tensors, numpy_helper.from_array(np.array([-1, PIXELS]), "shape")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, CLASSES])
    graph = helper.make_graph(nodes, "tiny", [image], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
