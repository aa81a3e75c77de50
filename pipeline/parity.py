"""Parity: the engine equals its graph equals torch, as a whole and after every block.

Shapes: N images, T tokens, D residual width.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.answers import Tell, engine_answers, torch_answers
from pipeline.pixels import Pixels
from pipeline.report.record import GroupError, PairError, Parity
from stages.graph.described import read_described
from targets.errors import InputError, WorkerError
from targets.runtimes.nvidia.capability import LEGAL

if TYPE_CHECKING:
    from pipeline.statistics import Floats
    from pipeline.validation import Subject

PARITY_IMAGES = 16
GROUP_IMAGES = 4
"""that are followed through all blocks"""
PARITY_COSINE = {
    "fp32": 0.9999,
    "bf16": 0.99,
    "fp16": 0.99,
    "int8": 0.9,
    "int8_dynamic": 0.9,
    "int8_weights": 0.9,
    "fp8": 0.9,
}
"""least cosine between the engine's and torch's outputs; quantization moves logits, a broken graph destroys them"""


def check_parity(subject: "Subject", pixels: Pixels, *, tell: Tell) -> Parity:
    """Compare the engine's outputs with torch's on the same real images, or with those of the source's graph."""
    import numpy as np

    with TemporaryDirectory(prefix="vitrim-parity-") as folder:
        few = Pixels(Path(folder, "images.npy"), pixels.preprocess)
        np.save(few.file, np.load(pixels.file, mmap_mode="r")[:PARITY_IMAGES])
        if subject.model is not None:
            expected = torch_answers(subject.model, few, tell=tell)
        elif subject.source_graph is not None:
            expected = engine_answers(subject.source_graph, few, tell=tell)
        else:
            raise RuntimeError("nothing to compare the engine with")
        engine = subject.engines.engine[subject.batch]
        found = engine_answers(engine, few, tell=tell, precision=subject.precision)
        pairs: tuple[PairError, ...] = ()
        reference = "torch" if subject.model is not None else "the source's graph in ONNX Runtime"
        if subject.graph is not None:
            graph = engine_answers(subject.graph, few, tell=tell, precision=subject.held)
            pairs = (
                _pair("the engine", "its graph in ONNX Runtime", found, graph),
                _pair("its graph in ONNX Runtime", reference, graph, expected),
            )
        groups, by = _groups(subject, few, Path(folder), tell)
    whole = _pair("the engine", reference, found, expected)
    least = PARITY_COSINE[subject.precision]
    return Parity(
        images=len(expected),
        max_abs_error=whole.max_abs_error,
        mean_abs_error=whole.mean_abs_error,
        cosine=whole.cosine,
        tolerance=f"mean cosine at least {least} for {subject.precision}, every output finite",
        passed=whole.finite and whole.cosine >= least,
        reference=reference,
        pairs=pairs,
        groups=groups,
        groups_by=by,
    )


def _pair(one: str, other: str, found: "Floats", expected: "Floats") -> PairError:
    """Errors of one's outputs against another's, [N, ...]; outputs that are not finite are like nothing."""
    import numpy as np

    from pipeline.features import feature_cosine

    finite = bool(np.isfinite(found).all())
    difference = np.abs(np.where(np.isfinite(found), found, 0) - expected)
    return PairError(
        one=one,
        other=other,
        max_abs_error=float(difference.max()),
        mean_abs_error=float(difference.mean()),
        cosine=float(feature_cosine(expected, found).mean()) if finite else 0.0,
        finite=finite,
    )


# Block by block.


def _groups(subject: "Subject", pixels: Pixels, folder: Path, tell: Tell) -> tuple[tuple[GroupError, ...], str]:
    """Errors of the residual stream after every block, and what ran; nothing where blocks cannot be told apart.

    A copy of the graph whose outputs are the ends of its blocks runs in the engine's own runtime, or in ONNX Runtime
    where another build would take minutes or cannot run here. Where tokens merge, two that are equally alike may
    change places, and the streams have no common order.
    """
    import numpy as np

    graph = subject.graph or subject.engines.engine[subject.batch]
    if subject.model is None or not graph.is_file() or any(getattr(read_described(subject.model), "merge", ())):
        return (), ""
    ends = block_ends(graph)
    if not ends:
        return (), ""
    tell("parity, block by block", None)
    own = subject.graph is not None and subject.runtime not in ("", *LEGAL)
    runtime = subject.runtime if own else "onnxruntime"
    images = np.load(pixels.file)[:GROUP_IMAGES]
    try:
        found = _streams(
            write_probe(graph, ends, folder / "probe"),
            images,
            pixels,
            runtime=runtime,
            precision=subject.precision if own else subject.held,
            batch=subject.batch if own else None,
        )
    except (WorkerError, InputError):
        return (), ""  # the engine itself answers; that its blocks cannot be asked one by one is no fault of it
    expected = _torch_streams(subject.model, images, pixels, sorted(ends))
    rows = [
        _group(f"blocks.{index}", found[name], expected[index])
        for index, name in sorted(ends.items())
        if found[name].shape == expected[index].shape
    ]
    by = "the engine's runtime, on its graph" if own else "ONNX Runtime, on the engine's graph"
    return tuple(rows), by if rows else ""


def block_ends(graph: Path) -> dict[int, str]:
    """The tensor that each block of a graph adds up last: {block: tensor}; empty for a graph of another origin.

    vitrim's export calls nodes after their modules: `blocks.3/Add_1` is the last addition of the fourth block.
    """
    import re

    import onnx

    found: dict[int, str] = {}
    for node in onnx.load(graph, load_external_data=False).graph.node:
        named = re.fullmatch(r"blocks\.(\d+)/Add(_\d+)?", node.name)
        if named:
            found[int(named.group(1))] = node.output[0]
    return found


def write_probe(graph: Path, ends: Mapping[int, str], folder: Path) -> Path:
    """Copy a graph with the ends of its blocks as its outputs; returns the copy, its weights beside it."""
    import onnx

    folder.mkdir()
    model = onnx.load(graph, load_external_data=False)
    kept = {one.name for one in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ends.values() if name not in kept)
    data = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    for name in data:
        shutil.copyfile(graph.with_name(Path(name).name), folder / Path(name).name)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _streams(
    probe: Path, images: "Any", pixels: Pixels, *, runtime: str, precision: str, batch: int | None
) -> "dict[str, Floats]":
    """What a graph's outputs are for images: {tensor: [N, T, D]}."""
    from targets.worker import Worker

    with Worker() as worker:
        loaded = worker.load(probe, runtime=runtime, precision=precision, batch=batch)
        fixed = loaded.inputs[0]["shape"][0]
        return worker.infer(images, batch=fixed or len(images), preprocess=pixels.preprocess)


def _torch_streams(model: Path, images: "Any", pixels: Pixels, blocks: list[int]) -> "dict[int, Floats]":
    """The residual stream of a model after its blocks, in fp32 with torch: {block: [N, T, D]}."""
    import torch

    from stages.vit.files import load_model
    from targets.preprocess import normalise

    module = load_model(model)
    with torch.inference_mode():
        batch = torch.from_numpy(normalise(images, pixels.preprocess))
        found = module.outputs(batch, [f"block_{index}" for index in blocks])
    return {index: found[f"block_{index}"].numpy() for index in blocks}


def _group(name: str, found: "Floats", expected: "Floats") -> GroupError:
    import numpy as np

    pair = _pair(name, "", found.reshape(len(found), -1).astype(np.float32), expected.reshape(len(expected), -1))
    signal = float(np.square(expected, dtype=np.float64).sum())
    noise = float(np.square(found.astype(np.float64) - expected).sum()) if pair.finite else signal
    return GroupError(
        name=name,
        max_abs_error=pair.max_abs_error,
        cosine=pair.cosine,
        snr_db=round(float(10 * np.log10(signal / max(noise, signal * 1e-20))), 1) if signal else 0.0,
    )
