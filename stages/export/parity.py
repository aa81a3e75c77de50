"""Parity: the graph in ONNX Runtime against the module in torch, on the same images, after every export.

Shapes: N images, C channels, H and W of the model's input.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.export.graph import Batch
from stages.vit.merging import MergeTokens
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.errors import StageError
from targets.worker import Worker

TOLERANCE = {"fp32": 1e-3}
"""largest error of any output value, as a share of that output's largest value, by precision.

fp32 graphs of ViTs differ from torch by 1e-6 to 1e-5 (order of summation); a defect differs by more than 1e-2."""

DRAWN_PER_IMAGE = 4
"""inputs drawn for each that is taken, where tokens merge"""

Outputs = Mapping[str, NDArray[np.float32]]


def make_images(spec: ViTSpec, *, seed: int) -> NDArray[np.float32]:
    """Six inputs: four of noise, a ramp from corner to corner, a flat one: [6, C, H, W]."""
    channels, height, width = spec.input_shape
    noise = np.random.default_rng(seed).standard_normal((4, channels, height, width))
    ramp = np.add.outer(np.linspace(-1, 1, height), np.linspace(-1, 1, width))  # [H, W]
    flat = np.full((channels, height, width), 0.5)
    return np.concatenate([noise, np.broadcast_to(ramp, flat.shape)[None], flat[None]]).astype(np.float32)


def clear_images(model: ViT, spec: ViTSpec, *, seed: int) -> tuple[NDArray[np.float32], float | None]:
    """Return inputs as `make_images` does and, of a model that merges tokens, the smallest margin of its choices.

    Where two pairs of tokens are equally alike, another order of summation merges others, and an answer that is as
    right differs by far more than the tolerance. So the inputs are those whose choices are clearest, out of several.
    """
    images = make_images(spec, seed=seed)
    if not any(spec.merge):
        return images, None
    count = len(images)
    images = np.concatenate([images, *(make_images(spec, seed=seed + n)[:4] for n in range(1, 2 * DRAWN_PER_IMAGE))])
    images = images[: DRAWN_PER_IMAGE * count]
    margins = choice_margins(model, images)
    clearest = np.sort(np.argsort(-margins, kind="stable")[:count])
    return images[clearest], float(margins[clearest].min())


def choice_margins(model: ViT, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """By how much the likeness of tokens must change until others merge, at least, in each image: [N]."""
    found: list[torch.Tensor] = []

    def look(merge: MergeTokens, given: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        similarity = torch.nn.functional.pad(merge.similarity(given[1]), (0, 1), value=-2.0)  # a second best for all
        best, second = similarity.topk(2, dim=-1).values.unbind(dim=-1)  # [N, O] each
        best, order = best.sort(dim=-1, descending=True)
        lead = (best - second.gather(1, order))[:, : merge.count].amin(dim=-1)
        last = best[:, merge.count - 1] - best[:, merge.count] if merge.count < best.shape[1] else lead
        found.append(torch.minimum(lead, last))

    hooks = [one.register_forward_hook(look) for one in model.modules() if isinstance(one, MergeTokens)]
    with torch.no_grad():
        model(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    margins: NDArray[np.float64] = torch.stack(found).amin(dim=0).double().numpy()
    return margins


def reference_outputs(model: ViT, images: NDArray[np.float32], names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """What torch answers, by output: [N, ...]."""
    with torch.no_grad():
        found = model.outputs(torch.from_numpy(images), names)
    return {name: tensor.numpy() for name, tensor in found.items()}


def check_parity(
    graph: Path, images: NDArray[np.float32], expected: Outputs, *, batch: Batch, precision: str
) -> dict[str, Any]:
    """Run the graph and return the errors found; raises StageError that names them where one is above the tolerance.

    A graph with a dynamic batch runs with one, two and three images per query: a silently fixed batch fails here
    (https://github.com/pytorch/pytorch/issues/152018).
    """
    batches = (1, 2, 3) if batch == "dynamic" else (batch,)
    with Worker(threads=None) as worker:
        worker.load(graph, runtime="onnxruntime")
        found = {size: worker.infer(images, batch=size) for size in batches}
    return judge(found, expected, tolerance=TOLERANCE[precision])


def judge(found: Mapping[int, Outputs], expected: Outputs, *, tolerance: float) -> dict[str, Any]:
    """Compare the outputs at each batch size with those expected; raises StageError, else returns the figures."""
    errors = {}  # by output and batch: largest error as a share of the output's largest value
    absolute: list[NDArray[np.float64]] = []
    cosines = []
    for size, outputs in found.items():
        for name, right in expected.items():
            got = np.asarray(outputs[name], np.float64)
            error = np.abs(got - right)
            absolute.append(error.ravel())
            errors[name, size] = float(error.max() / max(float(np.abs(right).max()), 1e-6))
            cosines.append(_cosine(got, right))
    worst = max(errors.values())
    bad = [f"{name} at batch {size}: {error:.2g}" for (name, size), error in errors.items() if not error <= tolerance]
    if bad:
        raise StageError(
            f"export: the graph does not compute what torch computes; largest error as a share of the largest value, "
            f"tolerance {tolerance:g}: {'; '.join(bad)}"
        )
    return {
        "images": len(next(iter(expected.values()))),
        "batches": list(found),
        "max_abs_error": float(max(error.max() for error in absolute)),
        "mean_abs_error": float(np.concatenate(absolute).mean()),
        "max_relative_error": worst,
        "cosine": min(cosines),
        "tolerance": f"{tolerance:g} of the output's largest value",
        "passed": True,
    }


def _cosine(got: NDArray[np.float64], right: NDArray[np.float32]) -> float:
    one, other = got.ravel(), right.ravel().astype(np.float64)
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-30))
