"""Options of the stage. Light."""

from typing import Annotated

from pydantic import Field

from targets.record import Record

Share = Annotated[float, Field(gt=0, lt=1)]


class OffersOptions(Record):
    """Which shapes are offered, and on how many images they are judged."""

    mlp_multiple: int = Field(default=16, gt=0, description="widths of MLPs are multiples of this")
    head_widths: tuple[int, ...] | None = Field(default=None, description="widths of heads; null: multiples of 8")
    head_multiple: int = Field(default=8, gt=0, description="widths of heads are multiples of this")
    head_least: int = Field(default=0, ge=0, description="no head is narrower, unless it is already")
    equal_head_widths: bool = Field(default=False, description="d_qk and d_v are the same")
    mlp: bool = Field(default=True, description="offer narrower MLPs")
    attention: bool = Field(default=True, description="offer narrower and fewer heads")
    off: bool = Field(default=True, description="offer to leave out whole MLPs and attentions")
    refit: bool = Field(
        default=True, description="judge missing heads and attentions with the block's MLP fitted again, as prune does"
    )
    take_back: float = Field(default=0.7, ge=0, le=1, description="share of the error that such a fit takes back")
    measured_shares: tuple[Share, ...] = Field(
        default=(0.125, 0.25, 0.5, 0.75), min_length=1, description="shares of an MLP's width whose loss is measured"
    )
    measured_head_shares: tuple[Share, ...] = Field(
        default=(0.25, 0.5), min_length=1, description="shares of a head's widths whose loss is measured"
    )
    tokens: tuple[Share, ...] = Field(
        default=(), description="shares of the patch tokens left at the end, whose loss is measured"
    )
    fit_images: int = Field(default=256, gt=0, description="at most so many of fit, for the repair of what is tried")
    select_images: int = Field(default=128, gt=0, description="at most so many of select, on which it is judged")
