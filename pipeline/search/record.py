"""What a search decided and why: kept in the store, shown in the report."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pipeline.search.latency import LatencyTable
from stages.prune.options import BlockShape
from targets.record import Record

Limit = Literal["latency", "parameters", "macs"]


class Round(Record):
    """One whole model that was built with random weights and timed."""

    aim: float
    """what the measurement should come to, as a share of the unpruned engine's time"""
    table: float
    """what the table's parts sum to"""
    predicted: float
    """after correction by the rounds before"""
    measured: float
    interval: tuple[float, float]
    """95 %"""
    loss: float


class SublayerDecision(Record):
    """What became of one sublayer."""

    block: int
    part: Literal["attention", "mlp"]
    before: tuple[int, ...]
    """(width,) of an MLP, (heads, d_qk, d_v) of an attention"""
    after: tuple[int, ...]
    """zeros: left out"""
    loss: float
    """that this choice adds, by the offers"""
    time_before: float
    """share of the unpruned engine's time, by the table"""
    time_after: float
    next_loss: float | None = None
    """what the next cheaper shape on the way down would add, per share of time saved; None: there is none"""


class ParetoPoint(Record):
    """The least loss at one latency."""

    ratio: float
    """engine over unpruned, predicted"""
    loss: float
    macs: float
    """share of the unpruned model's"""


class Ground(Record):
    """One input size, width of the stream and schedule of merging: what scales all sublayers, tried one by one."""

    size: tuple[int, int] | None = None
    """of the input, height and width in pixels; None: the source's"""
    width: int
    tokens: float | None
    """share of the patch tokens left at the end; None: nothing merges"""
    merge: tuple[int, ...] = ()
    """tokens merged in each block"""
    ratio: float | None
    """time with all sublayers whole, over the unpruned engine's; None: not timed"""
    loss: float
    """of the answers with all sublayers whole"""
    best: float | None
    """predicted loss within the limits, after its rounds if it had any; None: no shapes keep them, or nobody asked"""
    chosen: bool
    note: Literal["estimated", "fits whole", "loses more by itself"] | None = None
    """estimated: `best` by the prices of the model as it comes; fits whole: within the limits with nothing pruned, so
    not priced; loses more by itself than the best altogether"""


class Decision(Record):
    """Shapes for one target, how they were found, and what else could have been had."""

    format: str = "vitrim.decision/1"
    runtime: str
    precision: str
    unit: Literal["kl_nats", "feature_error"]
    """of the loss, see stages/offers/record.py"""
    limits: dict[str, float]
    """what had to hold: latency as a share of the unpruned engine's, parameters, macs"""
    shapes: tuple[BlockShape, ...]
    size: tuple[int, int] | None = None
    """of the input, where it is another one than the source's"""
    width: int | None = None
    """of the residual stream, where it is narrowed"""
    width_method: Literal["rotate", "energy", "snp"] = "rotate"
    """of prune_width, where the stream is narrowed"""
    merge: tuple[int, ...] = ()
    """tokens merged in each block, where some are"""
    loss: float
    """sum over the sublayers, with what width and merging lose"""
    grounds: tuple[Ground, ...] = ()
    """sizes, widths and schedules of merging that were compared, where there were several"""
    sublayers: tuple[SublayerDecision, ...]
    rounds: tuple[Round, ...] = ()
    kept: bool = True
    """whether a whole model of the shapes was measured within the limit of latency, or there is none"""
    pareto: tuple[ParetoPoint, ...] = ()
    """of the ground chosen; of the model as it comes where that needed no prices, because it fits whole"""
    uniform: tuple[ParetoPoint, ...] = ()
    """the same share of every sublayer, by the same prices: what allocation is worth"""
    table: LatencyTable
    exact: bool = False
    """whether no other choice loses less by these prices; with several limits that bind it is only a good one"""
    solve_ms: float = Field(ge=0)
    """time of one solution"""
    seconds: float | None = Field(default=None, ge=0)
    """that the whole search took when it was made; None: by a version that did not tell"""


def spelled(merge: Sequence[int]) -> str:
    """A schedule in words: `merged in block 4`, `merged in blocks 0 to 11`."""
    blocks = [index for index, count in enumerate(merge) if count]
    if len(blocks) == 1:
        return f"merged in block {blocks[0]}"
    return f"merged in blocks {blocks[0]} to {blocks[-1]}"
