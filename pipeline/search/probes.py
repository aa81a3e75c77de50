"""Probes: engines of a few equal blocks that tell what one sublayer takes on the target, in the deployed precision.

They are planned as steps like all others (random_weights → export → quantize → compile), so that the store keeps them
for the next build on this device. Quantizing them needs two images: ranges decide accuracy, not time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.keys import code_digest
from pipeline.plan import Candidate
from pipeline.planner import PlannedStep, Planner
from pipeline.search.latency import (
    LatencyTable,
    MeasuredAttention,
    MeasuredMlp,
    Shape,
    attention_shape,
    bytes_line,
    mlp_width,
)
from stages.catalog import get_stage
from stages.quantize.stage import Alpha, QuantizeOptions
from stages.vit.counts import count_params
from stages.vit.spec import BlockSpec, ViTSpec
from targets.measure.latency import EngineUnderTest, Procedure, compare
from targets.measure.percentiles import p50_of, paired_ratio
from targets.profile import ShapeRules

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tell = Callable[[str, float | None], None]
BLOCKS = 4
"""of a probe: enough for one sublayer to stand out, few enough to build in seconds"""
ONE, SEVERAL = "one block", "several blocks"
MLP_SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
"""of the widest MLP"""
LEAST_REST, MOST_REST = 0.01, 0.5
"""bounds of what embedding and head are taken to take of a whole model, where they were measured out of them"""
TOGETHER = 6
"""probes that are measured in one go, interleaved with the unpruned engine"""
SEARCHING = Procedure(
    processes=2,
    queries=64,
    seconds=0,
    blocks=16,
    warmup_queries=10,
    warmup_seconds=0.3,
    warmup_limit_seconds=3,
)
DECIDING = replace(SEARCHING, processes=5)
"""for a whole model that is taken when its interval lies within the limit: two processes tell little of each other"""
CODE = ("pipeline/search/probes.py", "pipeline/search/latency.py", "targets/measure", "targets/agent")


@dataclass(frozen=True)
class Probe:
    """One model to build and time."""

    name: str
    spec: ViTSpec


@dataclass(frozen=True)
class Shares:
    """What engines take, as shares of the unpruned one's time."""

    ratios: Mapping[str, tuple[float, tuple[float, float]]]
    """by name: ratio of the medians and its 95 % interval"""
    unpruned_p50_ms: float


def probes_for(spec: ViTSpec, rules: ShapeRules, *, mlp: bool = True, attention: bool = True) -> tuple[Probe, ...]:
    """Return one whole block and several, MLPs of several widths, and attentions of several shapes, all legal.

    The first two tell what embedding and head take: a model without blocks has hardly a layer that can be quantized.
    """
    plain = spec.blocks[0]
    most = _largest(spec)
    on = "on" if most["heads"] else "off"
    whole = plain.replace(attention=on, mlp=most["mlp_width"] > 0, **most)
    found = [Probe(ONE, _of(spec, (whole,))), Probe(SEVERAL, _of(spec, (whole,) * BLOCKS))]
    count = BLOCKS
    found += [
        Probe(f"mlp {width}", _of(spec, (_mlp(plain, width),) * count))
        for width in (_widths(spec, rules) if mlp else ())
    ]
    found += [
        Probe(f"attention {'x'.join(map(str, shape))}", _of(spec, (_attention(plain, shape),) * count))
        for shape in (_shapes(spec, rules) if attention else ())
    ]
    return tuple(found)


def engine_of(
    planner: Planner,
    spec: ViTSpec,
    like: Candidate,
    *,
    title: str,
    alpha: Alpha | None = None,
    returned: Sequence[str] = (),
) -> PlannedStep:
    """Plan the engine of a model of these shapes with random weights, built as the candidate's engine is.

    alpha: the SmoothQuant strength that the candidate's unpruned counterpart chose. Smoothing puts a multiplication
    before most products, so that a probe without it would be faster than what it stands for. returned: layers that
    stay float, of those that the model has.
    """
    options = get_stage("random_weights").options(spec=spec)
    last = planner.step("random_weights", options, after=None, title=f"{title}: weights")
    for step in like.unpruned.line():
        if step.stage == "export":
            last = planner.step("export", step.options, after=last, title=f"{title}: export")
        elif step.stage == "quantize":
            assert isinstance(step.options, QuantizeOptions)
            last = planner.step(
                "quantize", step.options.quickly(alpha, returned), after=last, title=f"{title}: quantize"
            )
    return planner.again(like.unpruned, after=last, title=f"{title}: compile")


def table_from(
    source: ViTSpec,
    probes: Mapping[str, ViTSpec],
    shares: Mapping[str, float],
    sizes: Mapping[str, int],
    *,
    unpruned_p50_ms: float,
    whole: float = 1.0,
) -> LatencyTable:
    """Put the table together. source: spec of the model that is pruned; whole: its time over the unpruned engine's.

    By probe: shares, measured times over the unpruned engine's; sizes, engine bytes.
    """
    empty = max(shares[ONE] - (shares[SEVERAL] - shares[ONE]) / (BLOCKS - 1), 0.0)
    mlp, attention = [], []
    for name, spec in probes.items():
        if name in (ONE, SEVERAL):
            continue
        one, share = spec.blocks[0], (shares[name] - empty) / len(spec.blocks)
        if one.mlp:
            mlp.append(MeasuredMlp(width=one.mlp_width, share=share))
        else:
            attention.append(MeasuredAttention(heads=one.heads, d_qk=one.d_qk, d_v=one.d_v, share=share))
    fixed, per_param = bytes_line([(count_params(spec), sizes[name]) for name, spec in probes.items()])
    table = LatencyTable(
        unpruned_p50_ms=unpruned_p50_ms,
        rest=0.0,
        mlp=tuple(mlp),
        attention=tuple(attention),
        bytes_fixed=fixed,
        bytes_per_param=per_param,
    )
    # Engines fuse, so that parts may sum to more than the whole, which would leave less than nothing for the rest.
    least = min(max(empty, LEAST_REST * whole), MOST_REST * whole)
    parts = table.sublayers(source)
    if parts > whole - least:
        table = table.scaled((whole - least) / parts)
    return table.replace(rest=whole - table.sublayers(source))


def measure_shares(
    engines: Mapping[str, Path],
    inputs: "NDArray[Any]",
    *,
    unpruned: Path,
    unpruned_inputs: "NDArray[Any]",
    batch: int,
    threads: int | None,
    tell: Tell,
    procedure: Procedure = SEARCHING,
) -> "Shares":
    """Time engines interleaved with the unpruned one. inputs, unpruned_inputs: [N, 3, H, W]."""
    found, unpruned_ms = {}, []
    names = list(engines)
    groups = [names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)]
    for index, group in enumerate(groups):
        comparison = compare(
            {
                "unpruned": EngineUnderTest(folder=unpruned, batch=batch, threads=threads, inputs=unpruned_inputs),
                **{name: EngineUnderTest(folder=engines[name], batch=batch, threads=threads) for name in group},
            },
            inputs,
            level="quick",
            procedure=procedure,
            tell=lambda message, share, index=index: tell(  # type: ignore[misc]
                f"group {index + 1} of {len(groups)}: {message}" if len(groups) > 1 else message,
                (index + (share or 0)) / len(groups),
            ),
        )
        unpruned_ms.append(p50_of(comparison.measurements["unpruned"]))
        for name in group:
            found[name] = paired_ratio(comparison.measurements[name], comparison.measurements["unpruned"])
    return Shares(found, sorted(unpruned_ms)[len(unpruned_ms) // 2])


def measuring_code() -> str:
    """Digest of what decides the figures of a table."""
    return code_digest(CODE)


def _of(spec: ViTSpec, blocks: tuple[BlockSpec, ...]) -> ViTSpec:
    return spec.replace(blocks=blocks, architecture="probe")


def _largest(spec: ViTSpec) -> dict[str, int]:
    """Largest number of each kind in any block."""
    names = ("heads", "d_qk", "d_v", "mlp_width")
    shapes = [(*attention_shape(block), mlp_width(block)) for block in spec.blocks]
    return dict(zip(names, map(max, zip(*shapes, strict=True)), strict=True))


def _mlp(plain: BlockSpec, width: int) -> BlockSpec:
    return plain.replace(attention="off", heads=0, d_qk=0, d_v=0, mlp=True, mlp_width=width)


def _attention(plain: BlockSpec, shape: Shape) -> BlockSpec:
    heads, d_qk, d_v = shape
    return plain.replace(attention="on", heads=heads, d_qk=d_qk, d_v=d_v, mlp=False, mlp_width=0)


def _widths(spec: ViTSpec, rules: ShapeRules) -> list[int]:
    widest = max(mlp_width(block) for block in spec.blocks)
    legal = rules.mlp_widths(widest)
    return sorted({_nearest(share * widest, legal) for share in MLP_SHARES}) if legal else []


def _shapes(spec: ViTSpec, rules: ShapeRules) -> list[Shape]:
    heads, d_qk, d_v = (max(numbers) for numbers in zip(*map(attention_shape, spec.blocks), strict=True))
    if not heads:
        return []
    return sorted(set(_wanted(heads, d_qk, d_v, rules)))


def _wanted(heads: int, d_qk: int, d_v: int, rules: ShapeRules) -> Iterator[Shape]:
    """Full, then one number at a time made smaller, then all: what four coefficients need, and some to spare."""
    qk, v = rules.widths_of_heads(d_qk), rules.widths_of_heads(d_v)
    half = max(1, (heads + 1) // 2)
    for count, of_qk, of_v in (
        (heads, 1.0, 1.0),
        (heads, 0.5, 0.5),
        (heads, 0.25, 0.25),
        (heads, 0.5, 1.0),
        (heads, 1.0, 0.5),
        (half, 1.0, 1.0),
        (half, 0.5, 0.5),
        (1, 1.0, 1.0),
    ):
        shape = (count, _nearest(of_qk * d_qk, qk), _nearest(of_v * d_v, v))
        if shape[1] == shape[2] or not rules.equal_head_widths or d_qk != d_v:
            yield shape


def _nearest(wish: float, legal: Sequence[int]) -> int:
    return min(legal, key=lambda width: (abs(width - wish), -width))
