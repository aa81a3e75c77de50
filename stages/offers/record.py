"""Offers: for each sublayer its possible shapes, each with its loss, all in one unit. Light: the search reads this."""

from typing import Literal

from pydantic import Field

from targets.record import Record

OFFERS_FILE = "offers.json"


class Offer(Record):
    """One possible shape of a sublayer."""

    shape: tuple[int, ...]
    """an MLP's (width,), an attention's (heads, d_qk, d_v); zeros where the sublayer is off"""
    loss: float
    """what it adds to the error of the answers"""
    measured: bool = False
    """by running the model with it; else from the closed-form error between those that were"""


class Sublayer(Record):
    """One sublayer with all that it offers; the last offer is the shape it has, at no loss."""

    block: int = Field(ge=0)
    part: Literal["attention", "mlp"]
    offers: tuple[Offer, ...] = Field(min_length=1)


class MergeOffer(Record):
    """One schedule of token merging."""

    keep: float
    """share of the patch tokens left after the last block"""
    merge: tuple[int, ...]
    """tokens merged in each block"""
    loss: float
    """what it adds to the error of the answers, everything else as it is"""


class Offers(Record):
    """What every sublayer of a model offers."""

    format: str = "vitrim.offers/1"
    unit: Literal["kl_nats", "feature_error"]
    """kl_nats: Kullback-Leibler divergence of the answers from the source's, mean over images; feature_error: squared
    error of the features over their variance, for models without a head"""
    sublayers: tuple[Sublayer, ...]
    merges: tuple[MergeOffer, ...] = ()
    base_loss: float = 0.0
    """of the model as it came, before anything here is taken, from the source: of a narrower width"""
    images: int
    """that the loss was measured on"""
