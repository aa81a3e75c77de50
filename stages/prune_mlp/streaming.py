"""Pruning on weights alone, one tensor at a time: a model of billions of parameters never lies in memory.

The same blocks, the same selection and the same bytes as when the whole model is loaded. At any time there is one MLP
with what selecting its neurons needs, and otherwise the one tensor that is copied.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.prune_mlp.neurons import mlp_of
from stages.prune_mlp.options import PruneMlpOptions, reshaped
from stages.vit.files import build_empty, check_fits, load_labels, load_spec, save_description
from stages.vit.model import Block
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from stages.vit.stream import TensorFile, in_file_order, with_shapes, write_tensors

Cut = Callable[[int, Block], None]
"""Cuts the MLP of the block with this number, in place; its attention has no weights."""


def stream_folder(
    options: PruneMlpOptions, cut: Cut, *, model_folder: Path, output: Path, tell: Callable[[str, float | None], None]
) -> ViTSpec:
    """Prune a model folder into another one, return the new spec. The options need no images, nor does `cut`."""
    spec = load_spec(model_folder)
    pruned_spec = reshaped(options, spec)
    weights = TensorFile(model_folder / WEIGHTS_FILE)
    check_fits(weights.shapes(), build_empty(spec))
    entries = with_shapes(weights.entries, build_empty(pruned_spec).state_dict())
    save_description(output, pruned_spec, labels=load_labels(model_folder))
    tensors = _pruned_tensors(spec, pruned_spec, weights, in_file_order(entries), cut, tell)
    write_tensors(output / WEIGHTS_FILE, entries, tensors)
    return pruned_spec


def _pruned_tensors(
    spec: ViTSpec,
    pruned_spec: ViTSpec,
    weights: TensorFile,
    names: list[str],
    cut: Cut,
    tell: Callable[[str, float | None], None],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the pruned model, in this order."""
    depth = len(spec.blocks)
    changed = {
        index
        for index, (old, new) in enumerate(zip(spec.blocks, pruned_spec.blocks, strict=True))
        if old.mlp_width != new.mlp_width
    }
    ready: dict[str, Tensor] = {}
    done = 0
    for name in names:
        found = re.match(r"blocks\.(\d+)\.mlp\.", name)
        if found is None or int(found[1]) not in changed:
            yield name, weights.read(name)
            continue
        if name not in ready:
            index, prefix = int(found[1]), found[0]
            block = _mlp_alone(spec, index, weights, prefix)
            cut(index, block)
            ready |= {prefix + key: tensor.cpu() for key, tensor in mlp_of(block).state_dict().items()}
            done += 1
            tell(f"block {index} of {depth}", done / len(changed))
        yield name, ready.pop(name)


def _mlp_alone(spec: ViTSpec, index: int, weights: TensorFile, prefix: str) -> Block:
    """Return a block whose MLP has its weights, on the GPU where there is one, and nothing else has."""
    facts: dict[str, Any] = spec.model_dump(mode="json")
    with torch.device("meta"):
        block = Block(facts, facts["blocks"][index])
    mlp = mlp_of(block)
    mlp.load_state_dict({key: weights.read(prefix + key) for key in mlp.state_dict()}, assign=True)
    mlp.to("cuda" if torch.cuda.is_available() else "cpu")
    return block
