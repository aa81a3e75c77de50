"""Looks at every tensor of a graph while images run through ONNX Runtime: ranges, and noise against another graph.

Images run one by one, so that memory holds the tensors of one. Runs in a process of its own (`calibrate`).
Shapes: T tokens, D channels, K outputs; B = 1.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from targets.preprocess import normalise

if TYPE_CHECKING:
    from stages.quantize.calibrate import Job


class Observer:
    """A graph whose inner tensors are all answers."""

    def __init__(self, model: Path, *, names: list[str] | None = None, threads: int = 1) -> None:
        import onnx
        import onnxruntime

        self.model = onnx.load(model, load_external_data=False)
        graph = self.model.graph
        kept = {one.name for one in graph.output}
        made = [name for node in graph.node for name in node.output if name]
        self.names = [name for name in made if names is None or name in names]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.names if name not in kept)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = 3
        # The graph goes in from memory: its weights, where they are beside it, are found by this folder.
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(model.parent.absolute())
        )
        self.session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Every floating-point tensor of one image [1, C, H, W]."""
        found = zip(self.names, self.session.run(self.names, {self.input: image}), strict=True)
        return {name: value for name, value in found if value.dtype == np.float32}


def scan_ranges(job: "Job") -> None:
    """Write what each tensor, and what happens inside LayerNormalization and Softmax, reaches on the images.

    tensors: {name: {largest, percentile, mean_square}}; inside: {node: largest sum}; channels: {input of a layer with
    weights: {largest [D], mean_square [D]}}.
    """
    observer = Observer(job.model, threads=job.threads)
    graph = observer.model.graph
    weights = {one.name for one in graph.initializer}
    layers = {node.input[0] for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights}
    sums = [node for node in graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    tensors: dict[str, dict[str, float]] = {}
    inside: dict[str, float] = {}
    channels: dict[str, dict[str, NDArray[np.float64]]] = {}
    count = 0
    for image in _images(job):
        count += 1
        values = {observer.input: image, **observer.run(image)}
        for name, value in values.items():
            size = np.abs(value)
            one = tensors.setdefault(name, {"largest": 0.0, "percentile": 0.0, "mean_square": 0.0})
            one["largest"] = max(one["largest"], float(size.max()))
            share = job.settings.get("percentile", 100)
            cut = one["largest"] if share == 100 else float(np.percentile(size, share))
            one["percentile"] = max(one["percentile"], cut)
            one["mean_square"] += float(np.square(value, dtype=np.float64).mean())
            if name in layers:
                rows = size.reshape(-1, size.shape[-1]).astype(np.float64)  # [T, D]
                zeros = {"largest": np.zeros(rows.shape[1]), "mean_square": np.zeros(rows.shape[1])}
                channel = channels.setdefault(name, zeros)
                channel["largest"] = np.maximum(channel["largest"], rows.max(axis=0))
                channel["mean_square"] = channel["mean_square"] + (rows**2).mean(axis=0)
        for node in sums:
            if node.input[0] in values:
                inside[node.name] = max(inside.get(node.name, 0.0), _largest_sum(node, values[node.input[0]]))
    for one in tensors.values():
        one["mean_square"] /= count
    written = {
        "tensors": tensors,
        "inside": inside,
        "channels": {
            name: {"largest": one["largest"].tolist(), "mean_square": (one["mean_square"] / count).tolist()}
            for name, one in channels.items()
        },
    }
    _write(job.output, written)


def _largest_sum(node: Any, value: NDArray[np.float32]) -> float:
    """Squares that a LayerNormalization adds up, exponentials that a Softmax adds up: the largest sum."""
    axis = next((one.i for one in node.attribute if one.name == "axis"), -1)
    value = value.astype(np.float64)
    if node.op_type == "Softmax":
        return float(np.exp(value - value.max(axis=axis, keepdims=True)).sum(axis=axis).max())
    axes = tuple(range(axis % value.ndim, value.ndim))
    return float(np.square(value - value.mean(axis=axes, keepdims=True)).sum(axis=axes).max())


def measure_noise(job: "Job") -> None:
    """Write the signal-to-noise ratio of every tensor that two graphs share, in the order of the first graph.

    [{node, tensor, snr_db}]: 10 log10 of the mean square over the mean squared difference, over all images.
    """
    other = Path(job.settings["other"])
    exact = Observer(job.model, threads=job.threads)
    noisy = Observer(other, names=exact.names, threads=job.threads)
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for image in _images(job):
        right, got = exact.run(image), noisy.run(image)
        for name in right.keys() & got.keys():
            power = float(np.square(right[name], dtype=np.float64).sum())
            error = float(np.square(got[name].astype(np.float64) - right[name]).sum())
            signal[name] = signal.get(name, 0.0) + power
            noise[name] = noise.get(name, 0.0) + (error if np.isfinite(error) else 1e300)
    found = [
        {"node": node.name, "tensor": name, "snr_db": _decibel(signal[name], noise[name])}
        for node in exact.model.graph.node
        for name in node.output
        if signal.get(name)
    ]
    _write(job.output, found)


def _decibel(signal: float, noise: float) -> float:
    return float(10 * np.log10(signal / max(noise, signal * 1e-20)))


def _images(job: "Job") -> Iterator[NDArray[np.float32]]:
    pixels = np.load(job.pixels, mmap_mode="r")
    count = min(len(pixels), job.settings.get("images", len(pixels)))
    with job.progress.open("wb", buffering=0) as progress:
        for index in range(count):
            progress.seek(0)
            progress.write(b"%.4f" % (index / count))
            yield normalise(pixels[index : index + 1], job.preprocess)


def _write(path: Path, value: Any) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(value))
    os.replace(unfinished, path)
