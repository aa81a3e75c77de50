"""Prune the attentions of a model: statistics, choice and repair of every block in one sweep."""

import logging
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stages.prune_attention.cut import AttentionCut
from stages.prune_attention.options import (
    AttentionShape,
    PruneAttentionOptions,
    inputs_described,
    refuse_impossible,
    reshaped,
    shapes_asked,
)
from stages.vit.enough import are_few, refuse_few, warning
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.last_layer import give_bias
from stages.vit.model import Block, ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, sweep, weigh_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

    Tell = Callable[[str, float | None], None]

log = logging.getLogger("vitrim.prune_attention")

BATCH = 32


def prune_folder(
    options: PruneAttentionOptions,
    *,
    model_folder: Path,
    output: Path,
    scratch: Path,
    images: "ImageSet | None",
    tell: "Tell",
) -> dict[str, Any]:
    """Prune a model folder into another one and return the facts. images: None where the options need none."""
    started = perf_counter()
    spec = load_spec(model_folder)
    shapes = shapes_asked(options, spec)  # refuses before weights are read
    refuse_impossible(options, spec)
    batches = None
    if images is not None:
        chosen = images.first_by_content(options.images)
        refuse_few(len(chosen), spec, inputs_described(options, spec, shapes), "inputs of proj")
        batches = chosen.batches(spec.preprocess, BATCH)
    model = load_model(model_folder).to("cuda" if torch.cuda.is_available() else "cpu")
    pruned, pruned_spec, facts = prune(model, spec, options, batches, scratch=scratch, tell=tell)
    save_model(output, pruned_spec, pruned.state_dict(), labels=load_labels(model_folder))
    return {**facts, "seconds": round(perf_counter() - started, 3)}


def prune(
    model: ViT,
    spec: ViTSpec,
    options: PruneAttentionOptions,
    batches: "Iterable[Tensor | NDArray[np.float32]] | None",
    *,
    scratch: Path | None = None,
    tell: "Tell" = lambda message, share: None,
) -> tuple[ViT, ViTSpec, dict[str, Any]]:
    """Return a pruned copy of a model, its spec and facts. batches: [B, 3, H, W], None where the options need none."""
    shapes, pruned_spec = shapes_asked(options, spec), reshaped(options, spec)
    pruned = deepcopy(model)
    blocks = cast("list[Block]", list(pruned.blocks))
    if pruned_spec.proj_bias and not spec.proj_bias:
        for block in blocks:
            give_bias(block, Part.ATTENTION)
    rows: list[dict[str, Any]] = []

    def edit(index: int, block: Block, visit: Visit | None) -> None:
        if shapes[index] != AttentionShape.of(spec.blocks[index]):
            rows.append({"block": index, **prune_block(block, shapes[index], options, visit, index=index)})

    if batches is None:
        images = 0
        with torch.no_grad():
            for index, block in enumerate(blocks):
                edit(index, block, None)
    else:
        images = sweep(
            model,
            pruned,
            batches,
            {Part.ATTENTION: lambda visit: edit(visit.index, visit.block, visit)},
            sequential=options.repair == "sequential",
            weigh=weigh_tokens(spec),
            scratch=scratch,
            tell=tell,
        )
    return pruned, pruned_spec, {**_facts(rows, options), "images": images, "tokens": images * spec.tokens}


def prune_block(
    block: Block, shape: AttentionShape, options: PruneAttentionOptions, visit: Visit | None, *, index: int = 0
) -> dict[str, Any]:
    """Cut a block's attention to a shape in place, fit its proj again if asked to, and return facts.

    shape: one that `options.check_shape` allows. visit: of this block's attention, in a sweep that is sequential if the
    repair is; None where the options need no images. A repair needs a proj with a bias (`last_layer.give_bias`). index:
    number of the block, which seeds `method: random`.
    """
    cut = AttentionCut(block, options, visit, index=index)
    before = cut.shape
    cut.to(shape)
    return {"before": before.model_dump(), "after": cut.shape.model_dump(), **cut.facts}


def _facts(rows: list[dict[str, Any]], options: PruneAttentionOptions) -> dict[str, Any]:
    """Facts for people and reports; says so where the calibration images were few."""
    repair = "" if options.repair == "none" else f", proj repaired ({options.repair})"
    repair += f", refined in {options.refine} passes" if options.refine else ""
    changes = []
    for name, words in (("heads", "heads"), ("d_qk", "d_qk"), ("d_v", "d_v")):
        before, after = (sum(row[when][name] for row in rows) for when in ("before", "after"))
        if after < before:
            changes.append(f"{words} {before / len(rows):g} to {after / len(rows):g}")
    what = ", ".join(changes) or "nothing"
    facts: dict[str, Any] = {
        "summary": f"{what} in {len(rows)} blocks, by {options.method}{repair}",
        "blocks": rows,
    }
    few = few_tokens(rows)
    if few:
        facts["warning"] = few
        log.warning(few)
    return facts


def few_tokens(rows: "Sequence[dict[str, Any]]") -> str | None:
    """Return the warning of the first attention, of rows of `prune_block`, whose calibration images were few."""
    short = [row for row in rows if "tokens" in row and are_few(row["tokens"], _inputs(row))]
    return warning(short[0]["tokens"], _inputs(short[0]), "inputs of proj") if short else None


def _inputs(row: dict[str, Any]) -> int:
    return int(row["before"]["heads"] * row["before"]["d_v"])
