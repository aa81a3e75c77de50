"""Prune the MLPs of a model: statistics, choice and repair of every block in one sweep."""

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stages.prune_mlp.neurons import apply, mlp_of, offers
from stages.prune_mlp.options import PruneMlpOptions, neurons_described, refuse_impossible, reshaped, widths_asked
from stages.prune_mlp.refine import refine
from stages.prune_mlp.similarity import ALIKE, count_alike, merge, similarity
from stages.prune_mlp.streaming import stream_folder
from stages.vit.enough import are_few, refuse_few, refuse_few_tokens, warning
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.last_layer import give_bias, last_layer, put_last_layer
from stages.vit.model import Block, ViT
from stages.vit.moments import Moments
from stages.vit.repair import Fit, best_ridge, fit, lean, relative_error
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, sweep, weigh_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

log = logging.getLogger("vitrim.prune_mlp")

BATCH = 32

Tell = Callable[[str, float | None], None]


def prune_folder(
    options: PruneMlpOptions,
    *,
    model_folder: Path,
    output: Path,
    scratch: Path,
    images: "ImageSet | None",
    seed: int,
    tell: Tell,
) -> dict[str, Any]:
    """Prune a model folder into another one and return the facts. images: None where the options need none.

    Without images the model is read and written tensor by tensor, whatever its size.
    """
    started = perf_counter()
    spec = load_spec(model_folder)
    refuse_impossible(options, spec)
    if images is None:
        widths, rows = widths_asked(options, spec), []

        def cut(index: int, block: Block) -> None:
            rows.append(_row(index, block, widths[index], options, None, seed=seed * len(widths) + index))

        stream_folder(options, cut, model_folder=model_folder, output=output, tell=tell)
        rows.sort(key=lambda row: int(row["block"]))
        facts = {**_facts(rows, options), "images": 0, "tokens": 0}
        return {**facts, "seconds": round(perf_counter() - started, 3)}
    chosen = images.first_by_content(options.images)
    refuse_few(len(chosen), spec, neurons_described(options, spec, widths_asked(options, spec)), "neurons")
    model = load_model(model_folder).to("cuda" if torch.cuda.is_available() else "cpu")
    batches = chosen.batches(spec.preprocess, BATCH)
    pruned, pruned_spec, facts = prune(model, spec, options, batches, scratch=scratch, seed=seed, tell=tell)
    save_model(output, pruned_spec, pruned.state_dict(), labels=load_labels(model_folder))
    return {**facts, "seconds": round(perf_counter() - started, 3)}


def prune(
    model: ViT,
    spec: ViTSpec,
    options: PruneMlpOptions,
    batches: "Iterable[Tensor | NDArray[np.float32]] | None",
    *,
    scratch: Path | None = None,
    seed: int = 0,
    tell: Tell = lambda message, share: None,
) -> tuple[ViT, ViTSpec, dict[str, Any]]:
    """Return a pruned copy of a model, its spec and facts. batches: [B, 3, H, W], None where the options need none."""
    refuse_impossible(options, spec)
    widths = widths_asked(options, spec)
    pruned = deepcopy(model)
    blocks = cast("list[Block]", list(pruned.blocks))
    if options.sets_bias and not spec.fc2_bias:
        for block in blocks:
            give_bias(block, Part.MLP)
    rows: list[dict[str, Any]] = []

    def edit_block(index: int, block: Block, visit: Visit | None) -> None:
        width = widths[index] if options.threshold is None else None
        if width is None or width < mlp_of(block).fc2.in_features:
            rows.append(_row(index, block, width, options, visit, seed=seed * len(blocks) + index))

    if batches is None:
        for index, block in enumerate(blocks):
            if block.mlp is not None:
                edit_block(index, block, None)
            tell(f"block {index + 1} of {len(blocks)}", (index + 1) / len(blocks))
        images = 0
    else:
        images = sweep(
            model,
            pruned,
            batches,
            {Part.MLP: lambda visit: edit_block(visit.index, visit.block, visit)},
            sequential=options.repair == "sequential",
            weigh=weigh_tokens(spec),
            scratch=scratch,
            tell=tell,
        )
    spec = reshaped(options, spec)
    found = [0 if block.mlp is None else block.mlp.fc2.in_features for block in blocks]
    spec = spec.replace(
        blocks=tuple(block.replace(mlp_width=width) for block, width in zip(spec.blocks, found, strict=True))
    )
    return pruned, spec, {**_facts(rows, options), "images": images, "tokens": images * spec.tokens}


def _row(
    index: int, block: Block, width: int | None, options: PruneMlpOptions, visit: Visit | None, *, seed: int
) -> dict[str, Any]:
    return {"block": index, **prune_block(block, width, options, visit, seed=seed)}


def prune_block(
    block: Block, width: int | None, options: PruneMlpOptions, visit: Visit | None, *, seed: int = 0
) -> dict[str, Any]:
    """Cut a block to so many neurons, fit its fc2 again if asked to, and return facts.

    width: None where a threshold decides. visit: None without images. seed: of the method random.
    """
    mlp = mlp_of(block)
    facts: dict[str, Any] = {"width_before": mlp.fc2.in_features, "width_after": width}
    hold_out = options.repair != "none" and options.ridge == "auto"
    if visit is None:
        apply(block, offers(block, None, options, count=width, seed=seed).picks)
        return facts

    fitted, held_out = visit.moments(hold_out=hold_out)
    moments = _joined(fitted, held_out)
    refuse_few_tokens(moments.tokens, mlp.fc2.in_features, "neurons")
    aim = partial(_aim, as_it_was=last_layer(block, Part.MLP), options=options)
    order = offers(block, aim(moments), options, count=width, seed=seed)
    kept, width = order.picks, len(order.picks)
    facts |= {"width_after": width, "alike": count_alike(similarity(moments))}
    merged = None if order.groups is None else merge(last_layer(block, Part.MLP), moments, kept, order.groups)
    apply(block, kept)
    if options.repair == "none":
        if merged is not None:
            put_last_layer(block, Part.MLP, merged)
        return {
            **facts,
            "tokens": moments.tokens,
            "relative_error": relative_error(moments, kept, last_layer(block, Part.MLP)),
        }

    if not isinstance(mlp.norm, nn.Identity):  # fewer neurons changed its statistics, so look again at what leaves it
        fitted, held_out = visit.moments(hold_out=hold_out)
        moments, kept = _joined(fitted, held_out), torch.arange(width, device=kept.device)
        aim = partial(_aim, as_it_was=None, options=options)
    ridge = options.ridge
    if ridge == "auto":
        ridge = best_ridge(aim(fitted), aim(held_out or fitted), kept)
    layer = fit(aim(moments), kept, ridge=ridge)
    facts |= {"tokens": moments.tokens, "relative_error": relative_error(moments, kept, layer), "ridge": ridge}
    put_last_layer(block, Part.MLP, layer)
    passes = options.passes_to_refine(
        post_norm=block.post_norm, enough=not are_few(moments.tokens, facts["width_before"])
    )
    if passes:
        told = refine(visit, passes=passes, lr=options.refine_lr, take_back=options.take_back)
        facts["refined"] = {"passes": passes, **told}
    return facts


def _aim(moments: Moments, *, as_it_was: Fit | None, options: PruneMlpOptions) -> Moments:
    """Return the moments for the targets to fit: those seen, leaning to what the whole MLP gives on the same inputs.

    as_it_was: the layer before neurons were cut; None where the moments no longer hold what entered it.
    """
    if as_it_was is None or options.repair != "sequential":
        return moments
    return lean(moments, as_it_was, share=options.take_back)


def _joined(fitted: Moments, held_out: Moments | None) -> Moments:
    return fitted if held_out is None else deepcopy(fitted).absorb(held_out)


def _facts(rows: list[dict[str, Any]], options: PruneMlpOptions) -> dict[str, Any]:
    """Facts for people and reports; says so where the calibration images were few."""
    passes = {"sequential": 2, "parallel": 1, "none": 1}[options.repair] if options.reads_images else 0
    before, after = (sum(row[name] for row in rows) for name in ("width_before", "width_after"))
    repair = "" if options.repair == "none" else f", fc2 repaired ({options.repair})"
    refined = max((row["refined"]["passes"] for row in rows if "refined" in row), default=0)
    repair += f", refined in {refined} pass{'es' if refined > 1 else ''}" if refined else ""
    facts: dict[str, Any] = {
        "summary": f"{before - after} of {before} neurons in {len(rows)} blocks removed by {options.method}{repair}",
        "blocks": rows,
        **redundancy(rows),
        "forward_passes": passes,
    }
    few = few_tokens(rows)
    if few:
        facts["warning"] = few
        log.warning(few)
    return facts


def redundancy(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the fact that says what `alike` counts in these rows of MLPs; nothing where no row has it."""
    return {"alike_above": ALIKE} if any("alike" in row for row in rows) else {}


def few_tokens(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the warning of the first MLP, of rows of `prune_block`, for which the calibration images were few."""
    short = [row for row in rows if "tokens" in row and are_few(row["tokens"], row["width_before"])]
    return warning(short[0]["tokens"], short[0]["width_before"], "neurons") if short else None
