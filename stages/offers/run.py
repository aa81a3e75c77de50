"""The offers stage from folder to folder: one pass over the blocks, in which each sublayer's shapes are tried."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stages.merge_tokens.options import MergeTokensOptions, schedules
from stages.merge_tokens.options import reshaped as merging
from stages.offers.answers import Judge, behind
from stages.offers.attention import attention_offers
from stages.offers.mlp import mlp_offers
from stages.offers.options import OffersOptions
from stages.offers.record import OFFERS_FILE, MergeOffer, Offers, Sublayer
from stages.vit.enough import refuse_few
from stages.vit.files import build_empty, load_model, load_spec
from stages.vit.model import Block, ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, Weigh, look, weigh_tokens
from targets.errors import InputError
from targets.preprocess import Preprocess

if TYPE_CHECKING:
    from stages.data.images import ImageSet

BATCH = 32
Tell = Callable[[str, float | None], None]


def offers_of_folder(
    options: OffersOptions,
    *,
    model_folder: Path,
    source_folder: Path,
    output: Path,
    fit: "ImageSet",
    select: "ImageSet",
    tell: Tell,
) -> dict[str, Any]:
    """Write offers.json and return the facts."""
    started = perf_counter()
    spec, device = load_spec(model_folder), "cuda" if torch.cuda.is_available() else "cpu"
    _refuse_few(fit, spec, options)
    model = load_model(model_folder).to(device)
    judged = _embed(model, select, options.select_images)
    base = 0.0
    if source_folder != model_folder:
        source = load_model(source_folder).to(device)
        base = Judge(source, _embed(source, select, options.select_images)).loss_of(model, judged)
    offers = offers_of(model, spec, options, _embed(model, fit, options.fit_images), judged, tell)
    offers = offers.replace(base_loss=base)
    (output / OFFERS_FILE).write_text(offers.canonical_json() + "\n", encoding="utf-8")
    return {
        "summary": f"{sum(len(one.offers) for one in offers.sublayers):,} shapes of {len(offers.sublayers)} sublayers "
        f"priced, {sum(offer.measured for one in offers.sublayers for offer in one.offers)} of them measured",
        "unit": offers.unit,
        "images": offers.images,
        "seconds": round(perf_counter() - started, 3),
    }


def _refuse_few(fit: "ImageSet", spec: ViTSpec, options: OffersOptions) -> None:
    """Raise InputError, before any work, where the images have fewer tokens than a layer to be priced has inputs."""
    images = min(len(fit), options.fit_images)
    if options.mlp:
        refuse_few(images, spec, max((one.mlp_width for one in spec.blocks if one.mlp), default=0), "neurons")
    if options.attention:
        inputs = max((one.heads * one.d_v for one in spec.blocks if one.attention == "on"), default=0)
        refuse_few(images, spec, inputs, "inputs of proj")


@torch.no_grad()
def offers_of(
    model: ViT,
    spec: ViTSpec,
    options: OffersOptions,
    fit: list[Tensor],
    select: list[Tensor],
    tell: Tell = lambda message, share: None,
) -> Offers:
    """Price the shapes of every sublayer. fit, select: chunks [B, N, D] of what enters the first block."""
    if any(spec.merge):
        raise InputError("shapes are priced on the model that all tokens go through; put merge_tokens behind prune")
    if any(block.attention == "diluting" for block in spec.blocks):
        raise InputError("an attention of this model is diluting; distil it first")
    judge, weigh = Judge(model, select), weigh_tokens(spec)
    blocks = cast("list[Block]", list(model.blocks))
    merges = tuple(
        _merged(model, spec, keep, counts, judge, select) for keep in options.tokens for counts in schedules(keep, spec)
    )
    found: list[Sublayer] = []
    for index, block in enumerate(blocks):
        if block.attn is not None and options.attention:
            offers = attention_offers(_visits(index, Part.ATTENTION, block, fit, weigh), judge, spec, options)
            found.append(Sublayer(block=index, part="attention", offers=offers))
        fit = behind(block, Part.ATTENTION, fit)
        judge.advance(index, Part.ATTENTION)
        tell(f"attention of block {index + 1} of {len(blocks)}", (index + 0.5) / len(blocks))
        if block.mlp is not None and options.mlp:
            offers = mlp_offers(_visits(index, Part.MLP, block, fit, weigh), judge, spec, options)
            found.append(Sublayer(block=index, part="mlp", offers=offers))
        fit = behind(block, Part.MLP, fit)
        judge.advance(index, Part.MLP)
        tell(f"MLP of block {index + 1} of {len(blocks)}", (index + 1) / len(blocks))
    return Offers(unit=judge.unit, sublayers=tuple(found), merges=merges, images=judge.images)


def _merged(
    model: ViT, spec: ViTSpec, keep: float, counts: tuple[int, ...], judge: Judge, select: list[Tensor]
) -> MergeOffer:
    """Price one schedule of token merging."""
    merged_spec = merging(MergeTokensOptions(counts=counts), spec)
    merged = build_empty(merged_spec)
    merged.load_state_dict(model.state_dict(), assign=True)
    return MergeOffer(keep=keep, merge=merged_spec.merge, loss=judge.loss_of(merged.eval(), select))


def _visits(index: int, part: Part, block: Block, stream: list[Tensor], weigh: Weigh) -> Iterator[Visit]:
    while True:
        yield look(index, part, block, deepcopy(block), stream, weigh)


@torch.no_grad()
def _embed(model: ViT, images: "ImageSet", limit: int) -> list[Tensor]:
    spec = model.spec
    device = next(model.parameters()).device

    preprocess = Preprocess.model_validate(spec["preprocess"])
    chosen = images.first_by_content(limit)
    return [model.embed(torch.as_tensor(batch).to(device)) for batch in chosen.batches(preprocess, BATCH)]
