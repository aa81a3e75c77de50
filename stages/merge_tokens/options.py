"""Options of the stage and what they ask of each block. Light."""

import math
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.record import Record

Schedule = tuple[Annotated[int, Field(ge=0)], ...]


class MergeTokensOptions(Record):
    """How many patch tokens merge in which block, by what, and whether attention counts a token by its size."""

    keep: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the patch tokens left after the last block, the others merge evenly over the blocks; "
        "0.6 where nothing else is given",
    )
    r: int | None = Field(default=None, ge=0, description="instead of keep: tokens merged in every block, as in papers")
    inflect: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="with r, which stays the mean: -1 falls from 2r to 0 over the blocks, 1 rises from 0 to 2r",
    )
    counts: Schedule | None = Field(default=None, description="instead of keep: tokens merged in each block")
    metric: Literal["keys", "tokens"] = Field(
        default="keys",
        description="what likeness is judged by: keys, averaged over the heads, or tokens as attention reads them",
    )
    proportional: bool = Field(
        default=True, description="attention counts a token as often as the patches that it stands for"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_schedule(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(name) is None for name in ("keep", "r", "counts")):
            return {**given, "keep": 0.6}
        return given

    @model_validator(mode="after")
    def _says_the_schedule_once(self) -> "MergeTokensOptions":
        given = [name for name in ("keep", "r", "counts") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say how many merge; give one of keep, r and counts")
        if self.inflect and self.r is None:
            raise ValueError(f"inflect {self.inflect:g} bends r over the blocks, but r is not given; give r")
        return self


def schedule(options: MergeTokensOptions, spec: ViTSpec) -> tuple[int, ...]:
    """Return how many patch tokens merge in each block; raises InputError where a block has too few."""
    blocks, patches = len(spec.blocks), spec.patch_tokens
    if options.counts is not None:
        if len(options.counts) != blocks:
            raise InputError(f"counts has {len(options.counts)} entries, the model has {blocks} blocks")
        counts, asked, possible = options.counts, "counts", ""
    elif options.r is not None:
        counts, asked = _bent(options.r, options.inflect, blocks), f"r {options.r}"
        best = next(r for r in range(options.r, -1, -1) if _fits(_bent(r, options.inflect, blocks), patches))
        possible = f"; r can be up to {best} here"
    else:
        total = patches - max(1, round((options.keep or 1) * patches))
        counts, asked = _even(total, blocks), f"keep {options.keep:g}"
        best = next(merged for merged in range(total, -1, -1) if _fits(_even(merged, blocks), patches))
        possible = f"; keep can be down to {math.ceil(1000 * (1 - best / patches)) / 1000:g} here"
    left = patches
    for index, count in enumerate(counts):
        if count > left // 2:
            raise InputError(
                f"{asked}: block {index} cannot merge {count} of its {left} patch tokens; allowed: up to {left // 2}, "
                f"half of them{possible}"
            )
        left -= count
    return counts


def reshaped(options: MergeTokensOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage, without weights or images; raises InputError where it cannot be done."""
    if any(spec.merge):
        raise InputError("this model merges tokens already; merge_tokens can be there once, with the whole schedule")
    return spec.replace(
        merge=schedule(options, spec), merge_metric=options.metric, merge_proportional=options.proportional
    )


def schedules(keep: float, spec: ViTSpec) -> tuple[tuple[int, ...], ...]:
    """Return schedules that leave this share of the patch tokens: even over the blocks, and at once from some block on.

    Merging costs some forty small operators wherever it happens, and tokens that go early save time in every block
    behind: which is best depends on the device.
    """
    depth, patches = len(spec.blocks), spec.patch_tokens
    total = patches - max(1, round(keep * patches))
    firsts = sorted({0, depth // 6, depth // 3, depth // 2})
    found = [_even(total, depth), *(_at_once(total, first, depth, patches) for first in firsts)]
    return tuple(dict.fromkeys(one for one in found if sum(one) == total and _fits(one, patches)))


def _at_once(total: int, first: int, blocks: int, patches: int) -> tuple[int, ...]:
    """As many as may go in one block, from a block on, until all have gone."""
    counts, left = [0] * blocks, total
    for index in range(first, blocks):
        counts[index] = min(left, patches // 2)
        left, patches = left - counts[index], patches - counts[index]
    return tuple(counts)


def _bent(r: int, inflect: float, blocks: int) -> tuple[int, ...]:
    """r in every block on average, linear from r * (1 - inflect) to r * (1 + inflect); rounded so that the sum stays.

    ToMe's decreasing schedule is inflect -1 (arXiv 2210.09461, section 4.1).
    """
    slope = 2 * r * inflect / max(1, blocks - 1)
    start = r * (1 - inflect) if blocks > 1 else r
    sums = [math.floor(start * n + slope * n * (n - 1) / 2 + 0.5) for n in range(blocks + 1)]
    return tuple(after - before for before, after in pairwise(sums))


def _even(total: int, blocks: int) -> tuple[int, ...]:
    """Whole numbers that sum to total and differ by one at most, the larger ones late."""
    return tuple(total * (index + 1) // blocks - total * index // blocks for index in range(blocks))


def _fits(counts: tuple[int, ...], patches: int) -> bool:
    """Whether no block merges more than half of its patch tokens."""
    return all(
        count <= (patches - before) // 2 for count, before in zip(counts, accumulate((0, *counts)), strict=False)
    )
