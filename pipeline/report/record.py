"""Report: the one record of a finished build for one target. HTML and Markdown are pure functions of it."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from pipeline.search.record import Decision
from targets.measure.measurement import Energy
from targets.record import Record

Status = Literal["within", "over", "undecided", "not_measured", "failed"]


class BudgetCheck(Record):
    """One line of the budget held against one measurement."""

    name: str
    """the budget's key: accuracy_drop_points, latency_p50_ms, ..."""
    unit: str
    limit: float
    value: float | None
    status: Status
    note: str = ""
    interval: tuple[float, float] | None = None
    """95 % interval of the value; the status is the interval's, not the value's"""


class Verdict(Record):
    """Budget against measurements."""

    status: Status
    sentence: str
    """the verdict in one sentence for people"""
    checks: tuple[BudgetCheck, ...] = ()


class TargetSummary(Record):
    """What was built for, and what the choice fell on."""

    name: str
    summary: str
    board: str
    runtime: str
    runtime_version: str
    precision: str
    batch: int
    chosen: str
    """how runtime and precision were chosen: by measurement, by recipe, by rule (the target is not at hand)"""
    baseline_runtime: str = ""
    """the runtime that runs the unpruned source in fp32"""


class Accuracy(Record):
    """Engine against baseline, image by image, on `evaluate`; shares are 0..1, drops are percentage points."""

    metric: str
    """top1, zero_shot_top1, knn_agreement, or the user's own name"""
    baseline: float
    engine: float
    baseline_top5: float | None = None
    engine_top5: float | None = None
    drop_points: float
    drop_ci95: tuple[float, float] | None
    agreement: float | None
    """share of images with the same answer from both"""
    images: int
    lost: int | None = None
    """right for the baseline, wrong for the engine"""
    gained: int | None = None
    mcnemar_p: float | None = None
    """exact two-sided McNemar"""
    images_to_decide: int | None = None
    """how many images would make the interval exclude the budget, where it straddles it"""
    feature_cosine: float | None = None
    """mean cosine of the features, for models without a head"""
    proxy: str = ""
    """what answered in the engine's place, where that cannot run here; then no budget of accuracy is judged"""
    images_digest: str = ""
    """of content and label of every image: equal where two reports judge the same images; empty where not known"""


class LatencyFigures(Record):
    """Milliseconds. p99 is null where too few queries back it."""

    p50: float
    p90: float | None
    p99: float | None
    ci95: tuple[float, float]
    """95 % interval of p50, over processes and blocks"""
    queries: int
    processes: int
    histogram: tuple[tuple[float, int], ...] = ()
    """(left edge in ms, count), for drawing"""
    stable: bool = True
    throttled: tuple[str, ...] = ()
    """why the machine slowed itself down, though the run was repeated; then no budget of time is judged"""
    throughput_ips: float | None = None
    """images per second in the closed loop"""
    energy: tuple[Energy, ...] = ()
    """mean power and joules per image, by what was measured; empty where nothing measures it"""
    energy_note: str = ""
    peak_gpu_memory_bytes: int | None = None


class Latency(Record):
    """Three engines, interleaved."""

    batch: int
    level: Literal["quick", "full"]
    baseline: LatencyFigures
    unpruned: LatencyFigures
    engine: LatencyFigures
    speedup: float
    """baseline / engine, paired"""
    speedup_ci95: tuple[float, float]
    ratio: float
    """engine / unpruned, paired: what latency_ratio judges"""
    ratio_ci95: tuple[float, float]


class ByRole(Record):
    """One number for each of the three engines."""

    baseline: float | None
    unpruned: float | None
    engine: float | None


class Change(Record):
    """Before and after."""

    before: int
    after: int


class Size(Record):
    """What became smaller. Bytes are of the engine's files, or of the graph's where none was built; before is the
    baseline's, or that of the source's graph where the target is not at hand.
    """

    params: Change
    macs: Change
    bytes: Change


class BlockRow(Record):
    """One block, before and after."""

    index: int
    heads: Change
    d_qk: Change
    d_v: Change
    mlp_width: Change


class StageRow(Record):
    """One step of the build."""

    name: str
    seconds: float
    cached: bool
    key: str = ""
    summary: str = ""
    """what it did, in one line"""
    params: int | None = None
    macs: int | None = None
    bytes: int | None = None
    agreement: float | None = None
    """share of `select` images answered as by the source model"""
    top1: float | None = None
    """on `select`, where it has labels"""
    facts: dict[str, Any] = {}


class CandidateRow(Record):
    """One runtime x precision that was built and measured, and why it won or lost."""

    runtime: str
    precision: str
    variant: str = ""
    """of several graphs in a precision: how much of the model is quantized"""
    p50_ms: float | None
    agreement: float | None
    bytes: int | None
    chosen: bool
    reason: str


class PairError(Record):
    """Errors of one's outputs against another's, on the same images."""

    one: str
    other: str
    max_abs_error: float
    mean_abs_error: float
    cosine: float
    """mean over the images"""
    finite: bool = True


class GroupError(Record):
    """Errors at the end of one part of the model, against torch."""

    name: str
    """`blocks.3`"""
    max_abs_error: float
    cosine: float
    """mean over the images"""
    snr_db: float
    """10 log10 of mean square over mean squared error"""


class Parity(Record):
    """The engine's outputs against torch's, or the source graph's, on the same images."""

    images: int
    max_abs_error: float
    mean_abs_error: float
    cosine: float
    tolerance: str
    passed: bool
    reference: str = "torch"
    """whose outputs the engine's are compared with"""
    proxy: str = ""
    """what answered in the engine's place, where that cannot run here"""
    pairs: tuple[PairError, ...] = ()
    """the engine against its graph, and that against the reference; empty where the graph itself answered"""
    groups: tuple[GroupError, ...] = ()
    """of the residual stream after every block, in order; empty where a graph's blocks are not known"""
    groups_by: str = ""
    """what ran for them"""


class LayerRow(Record):
    """One layer of the engine, as its runtime tells of a run that looked at every layer."""

    name: str
    operator: str
    kernel: str
    """the code that ran, in the runtime's words"""
    precision: str
    """of what goes in; `unknown` where the runtime does not tell"""
    provider: str
    """who ran it"""
    share: float
    """of the time"""
    macs: int | None
    """of one query; null for what multiplies no matrices"""


class Proof(Record):
    """What was shown of the engine, and what was not: one line of words each."""

    engine: Literal["measured", "built ahead of time", "not built"]
    away: str = ""
    """why this machine is not the target, where it is not"""
    proven: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    """what the board itself has to do before it can answer"""
    layers: tuple[LayerRow, ...] = ()
    """slowest first; empty where nothing ran"""
    time_by_precision: dict[str, float] = {}
    """shares of the time of all layers"""
    macs_by_precision: dict[str, float] = {}
    """shares of the multiply-accumulates that the runtime tells of"""
    snr_db: dict[str, float] = {}
    """of the graph's rounding: signal to noise against the fp32 graph at the end of each part, in order"""
    fused_attention: bool | None = None
    """whether scores, softmax and weighted sum run as one kernel; null where it has no attention, nothing ran, or the
    runtime does not tell"""
    broken: tuple[str, ...] = ()
    """what the target's profile demands and did not happen; then the build fails"""
    floor_ms: float | None = None
    """no query on this board can be faster (roofline of dense peak and bandwidth); null: the profile tells neither"""
    floor_note: str = ""
    """what bounds it, and what is not known"""


class OperatorTime(Record):
    """Share of the engine's time in one kind of operator."""

    operator: str
    share: float
    calls: int


class Report(Record):
    """Everything needed to judge a build and to redraw its pages."""

    format: Literal["vitrim.report/2"] = "vitrim.report/2"
    name: str
    created_at: datetime
    model: str
    target: TargetSummary
    verdict: Verdict
    accuracy: Accuracy | None
    latency_ms: Latency | None
    other_batches: tuple[Latency, ...] = ()
    """the same comparison at other batch sizes: shown, not judged"""
    throughput_ips: ByRole | None
    memory_bytes: ByRole | None
    """peak resident memory of the process that ran the engine"""
    size: Size
    blocks: tuple[BlockRow, ...]
    stages: tuple[StageRow, ...]
    candidates: tuple[CandidateRow, ...] = ()
    search: Decision | None = None
    """how the shapes were chosen, where the recipe left that to a search"""
    parity: Parity | None = None
    proof: Proof | None = None
    """null in reports from before there was one"""
    operators: dict[str, tuple[OperatorTime, ...]] = {}
    """time by kind of operator, for baseline and engine"""
    parameters_by_part: dict[str, Change] = Field(default={}, description="embedding, attention, mlp, head, other")
    conditions: dict[str, Any]
    versions: dict[str, str]
    reused: tuple[str, ...] = ()
    """checks taken over from an earlier build of the same engine in the same conditions"""
    reproduce: dict[str, str] = {}
    """command, recipe (YAML text), recipe_digest, engine_sha256, latency (commands of the runtime's own tool)"""


def migrated(data: dict[str, Any], version: int) -> dict[str, Any]:
    """A record of an older version as this one reads it; what it did not say yet has its default.

    1: reports did not say which images were judged (accuracy.images_digest).
    """
    if version == 1:
        return {**data, "format": Report.model_fields["format"].default}
    raise ValueError(f"no version {version} was ever written")
