"""Offers of an MLP: every legal width, by the orthogonal-least-squares order and its closed-form error."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from stages.offers.answers import Judge
from stages.offers.curves import between, spread
from stages.offers.options import OffersOptions
from stages.offers.record import Offer
from stages.prune_mlp.neurons import apply, mlp_of, offers
from stages.prune_mlp.options import PruneMlpOptions
from stages.vit.last_layer import give_bias, put_last_layer
from stages.vit.repair import fit
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit

RIDGE = 1e-3


def mlp_offers(visits: Iterator[Visit], judge: Judge, spec: ViTSpec, options: OffersOptions) -> tuple[Offer, ...]:
    """Price every legal width of one MLP. visits: fresh ones to the same sublayer, each with a block to change."""
    visit = next(visits)
    index, most = visit.index, mlp_of(visit.block).fc2.in_features
    legal = [*range(options.mlp_multiple, most, options.mlp_multiple), most]
    moments, _ = visit.moments()
    order = offers(visit.block, moments, PruneMlpOptions(method="ols"), count=most)
    assert order.errors is not None
    errors = (order.errors / order.errors[0].clamp(min=torch.finfo(torch.float64).tiny)).tolist()

    tried = spread(options.measured_shares, legal, most)
    losses = {0: judge.loss(index, Part.MLP, without(spec, moments.mean_out))}
    for width in tried:
        block = next(visits).block
        give_bias(block, Part.MLP)
        kept = order.picks[:width]
        apply(block, kept)
        if isinstance(mlp_of(block).norm, nn.Identity):
            put_last_layer(block, Part.MLP, fit(moments, kept, ridge=RIDGE))
        losses[width] = judge.loss(index, Part.MLP, block.after_mlp)

    priced = between([errors[width] for width in losses], list(losses.values()), [errors[width] for width in legal])
    found = [
        Offer(shape=(width,), loss=losses.get(width, float(price)), measured=width in losses)
        for width, price in zip(legal, priced, strict=True)
        if width < most
    ]
    if options.off:
        found.insert(0, Offer(shape=(0,), loss=losses[0], measured=True))
    return (*found, Offer(shape=(most,), loss=0.0, measured=True))


def without(spec: ViTSpec, mean: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what stands in the place of a sublayer that is off: the mean of its branch, [D], as a constant.

    Post-norm models get none: what the branch adds there is behind a norm.
    """
    constant = torch.zeros_like(mean) if spec.norm_placement == "post" else mean
    return lambda x: x + constant.to(x)
