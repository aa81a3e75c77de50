"""The reference graph: the same small network for ever, timed before and after a job. A board that gets slower on it
has changed, whatever the engines did.
"""

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from targets.devices.job import Health, Job, JobEngine, JobResult

NAME = "reference/1"
SIDE, WIDTH, DEPTH, CLASSES, BATCH = 16, 512, 8, 10, 32
"""pixels of a side, width and number of the hidden layers; about 80 million multiply-accumulates"""
IMAGES = 32


def reference_job(folder: Path, runtime: str, push: Callable[[Path], str], *, nonce: str) -> tuple[Job, str]:
    """A job that times it, and its name with the runtime's. folder: to write into."""
    graph, images = folder / "graph", folder / "images"
    graph.mkdir()
    images.mkdir()
    (graph / "model.onnx").write_bytes(reference_graph())
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    np.save(images / "0000.npy", pixels, allow_pickle=False)
    (images / "preprocess.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}))
    engine = JobEngine(source=push(graph), runtime=runtime, precision="fp32")
    job = Job(engines={"reference": engine}, images=push(images), batch=BATCH, limit_seconds=900, nonce=nonce)
    return job, f"{NAME} {runtime}"


def health_of(result: JobResult, reference: str) -> Health:
    """What its measurement says."""
    assert result.comparison is not None
    measured = result.comparison.measurements["reference"]
    runs = tuple(median(run.samples) for run in measured.runs)
    return Health(
        value_ms=median(runs),
        reference=reference,
        runs_ms=runs,
        flags=measured.flags,
        environment=result.environment,
    )


@cache
def reference_graph() -> bytes:
    """ONNX file: [32, 3, 16, 16] to [32, 10], matrix products and ReLU, weights by a fixed formula."""
    from onnx import TensorProto, helper, numpy_helper

    sizes = [3 * SIDE * SIDE, *[WIDTH] * DEPTH, CLASSES]
    tensors, nodes, last = [numpy_helper.from_array(np.array([BATCH, -1]), "flat_shape")], [], "flat"
    nodes.append(helper.make_node("Reshape", ["image", "flat_shape"], ["flat"]))
    for index, (rows, columns) in enumerate(pairwise(sizes)):
        steps = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
        weight = ((steps * 2654435761 % 4096) / 2048 - 1).astype(np.float32) / np.float32(rows**0.5)
        tensors.append(numpy_helper.from_array(weight, f"weight{index}"))
        output = "logits" if columns == CLASSES else f"product{index}"
        nodes.append(helper.make_node("MatMul", [last, f"weight{index}"], [output]))
        last = output
        if columns != CLASSES:
            nodes.append(helper.make_node("Relu", [output], [f"hidden{index}"]))
            last = f"hidden{index}"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [BATCH, 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, CLASSES])
    graph = helper.make_graph(nodes, "reference", [image], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
