"""Remove attentions or blocks from a model: choose them on images of select, make up for them on images of fit."""

import logging
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stages.drop_attention.options import (
    DropAttentionOptions,
    candidates,
    count_asked,
    refuse_impossible,
    without,
)
from stages.drop_attention.repair import (
    put_constant,
    remove,
    settle_constants,
)
from stages.drop_attention.repaired import grow_repaired
from stages.drop_attention.search import Step, divergence, features_without, grow, transfer_entropy
from stages.vit.counts import count_macs, count_params
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.last_layer import give_biases
from stages.vit.model import Block, ViT
from stages.vit.refit import TOKENS_PER_NEURON, refit_mlp
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, sweep, weigh_tokens
from stages.vit.writers import writer_before
from targets.preprocess import Preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

log = logging.getLogger("vitrim.drop_attention")

BATCH = 32
BY = {"entropy": "entropy", "divergence": "divergence", "repaired": "divergence after repair"}

Tell = Callable[[str, float | None], None]
Batches = Iterable["Tensor | NDArray[np.float32]"]


def drop_folder(
    options: DropAttentionOptions,
    *,
    model_folder: Path,
    output: Path,
    scratch: Path,
    select: "ImageSet | None",
    fit: "ImageSet | None",
    tell: Tell,
) -> dict[str, Any]:
    """Write a model folder without what the options remove from another one, and return the facts.

    select: None where the options name the blocks. fit: None where nothing is repaired.
    """
    started = perf_counter()
    spec = load_spec(model_folder)
    refuse_impossible(options, spec)
    model = load_model(model_folder).to("cuda" if torch.cuda.is_available() else "cpu")

    def batches(images: "ImageSet | None") -> Batches | None:
        return None if images is None else _Batches(images.first_by_content(options.images), spec.preprocess)

    found, dropped_spec, facts = drop(
        model, spec, options, select=batches(select), fit=batches(fit), scratch=scratch, tell=tell
    )
    save_model(output, dropped_spec, found.state_dict(), labels=load_labels(model_folder))
    return {**facts, "seconds": round(perf_counter() - started, 3)}


@dataclass(frozen=True)
class _Batches:
    """Images that can be read more than once."""

    images: "ImageSet"
    preprocess: Preprocess

    def __iter__(self) -> "Iterator[NDArray[np.float32]]":
        return iter(self.images.batches(self.preprocess, BATCH))


def drop(
    model: ViT,
    spec: ViTSpec,
    options: DropAttentionOptions,
    *,
    select: Batches | None,
    fit: Batches | None,
    scratch: Path | None = None,
    tell: Tell = lambda message, share: None,
) -> tuple[ViT, ViTSpec, dict[str, Any]]:
    """Return a copy of a model without what the options remove, its spec and facts.

    Batches: [B, 3, H, W]; those of fit are read twice where repaired models are judged.
    """
    refuse_impossible(options, spec)
    steps: list[Step] = []
    images = 0
    if options.blocks is None:
        if select is None:
            raise ValueError("images of select are needed to choose")
        steps, images = choose(model, spec, options, select, fit=fit, tell=tell)
    dropped = tuple(sorted(options.blocks or (step.block for step in steps)))
    found, dropped_spec, repair = remove_from(model, spec, dropped, options, fit, scratch=scratch, tell=tell)
    return found, dropped_spec, _facts(options, spec, dropped_spec, dropped, steps, images, repair)


def choose(
    model: ViT,
    spec: ViTSpec,
    options: DropAttentionOptions,
    batches: Batches,
    *,
    fit: Batches | None = None,
    tell: Tell,
) -> tuple[list[Step], int]:
    """Return the steps of the search and the number of images; images [B, 3, H, W] are read once.

    fit: images for `by: repaired`.
    """
    device = next(model.parameters()).device

    def embed(images: Batches) -> list[Tensor]:
        with torch.no_grad():
            return [model.embed(torch.as_tensor(batch).to(device)).cpu() for batch in images]

    embedded = embed(batches)
    doubled = options.removal == "dilute"
    whole = features_without(model, embedded, chosen=(), candidates=(), unit=options.unit, doubled=doubled)[None]
    score = transfer_entropy(whole) if options.judged_by == "entropy" else divergence(model, whole)
    among, count = candidates(options, spec), count_asked(options, spec)
    if options.judged_by == "repaired":
        if fit is None:
            raise ValueError("images of fit are needed to choose by what a repair leaves")
        steps = grow_repaired(
            model,
            spec,
            options,
            select=embedded,
            fit=embed(fit),
            score=score,
            candidates=among,
            count=count,
            tell=tell,
        )
    else:
        steps = grow(
            model, embedded, score, candidates=among, count=count, unit=options.unit, doubled=doubled, tell=tell
        )
    return steps, len(whole)


def remove_from(
    model: ViT,
    spec: ViTSpec,
    dropped: tuple[int, ...],
    options: DropAttentionOptions,
    batches: Batches | None,
    *,
    scratch: Path | None = None,
    tell: Tell = lambda message, share: None,
) -> tuple[ViT, ViTSpec, dict[str, Any]]:
    """Return a copy of a model without these, its spec and facts of the repair. batches: None where nothing repairs."""
    dropped_spec = without(spec, dropped, options)
    changed = deepcopy(model)
    facts: dict[str, Any] = {}
    if options.removal == "dilute":
        # Dilution is a matter of the spec alone: the weights stay, and the block that is built of them fades them out.
        for index in dropped:
            cast(Block, changed.blocks[index]).attention = "diluting"
        changed.spec = dropped_spec.model_dump(mode="json")
        return changed, dropped_spec, facts
    give_biases(changed, dropped_spec)
    parts = (Part.ATTENTION,) if options.unit == "attention" else tuple(Part)
    if options.repairs:
        if batches is None:
            raise ValueError("images of fit are needed to repair")
        rows: list[dict[str, Any]] = []

        def edit(visit: Visit) -> None:
            if visit.index in dropped and visit.part in parts:
                remove(visit, by_mean=writer_before(dropped_spec, visit.index) is not None)
            elif visit.part is Part.MLP and visit.index >= min(dropped) and options.repair == "mlp":
                rows.append({"block": visit.index, **(refit_mlp(visit, take_back=options.take_back) or {})})

        facts["images"] = sweep(
            model,
            changed,
            batches,
            dict.fromkeys(Part, edit),
            weigh=weigh_tokens(spec),
            scratch=scratch,
            tell=tell,
        )
        facts["blocks"] = rows
        settle_constants(changed, dropped_spec)
    for index in dropped:
        for part in parts:
            put_constant(cast(Block, changed.blocks[index]), part, None)
    changed.spec = dropped_spec.model_dump(mode="json")
    return changed, dropped_spec, facts


def _facts(
    options: DropAttentionOptions,
    spec: ViTSpec,
    after: ViTSpec,
    dropped: tuple[int, ...],
    steps: list[Step],
    images: int,
    repair: dict[str, Any],
) -> dict[str, Any]:
    """Facts for people and reports."""
    what = "attention of blocks" if options.unit == "attention" else "blocks"
    how = f"chosen by {BY[options.judged_by]}" if options.chooses else "as the recipe says"
    if options.removal == "dilute":
        done = "to be faded out by distill"
    else:
        made_up = {"mlp": ", MLPs behind fitted again", "mean": ", means put into biases", "none": ""}
        done = "removed" + made_up[options.repair]
    facts: dict[str, Any] = {
        "summary": f"{what} {', '.join(map(str, dropped))} of {len(spec.blocks)} {done}, {how}",
        "unit": options.unit,
        "dropped": list(dropped),
        "params": [count_params(spec), count_params(after)],
        "macs": [count_macs(spec), count_macs(after)],
    }
    if steps:
        facts["images"] = images
        facts["steps"] = [
            {
                "block": step.block,
                "score": step.score,
                "scores": {str(block): score for block, score in step.scores.items()},
            }
            for step in steps
        ]
    if repair:
        facts["repair"] = repair
    short = [row for row in repair.get("blocks", ()) if row["tokens"] < TOKENS_PER_NEURON * row["neurons"]]
    if short:
        facts["warning"] = (
            f"{short[0]['tokens']} tokens of calibration images for {short[0]['neurons']} neurons are few: "
            f"give {TOKENS_PER_NEURON} times as many tokens as neurons, or repair: mean"
        )
        log.warning(facts["warning"])
    return facts
