"""From what was built and measured to the one Report: a pure function, apart from the clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from pipeline.floors import floor_on
from pipeline.plan import AwayPlan
from pipeline.report.proof import (
    broken,
    never_ran,
    proof_away,
    proof_here,
    proof_of_layers,
    told_layers,
    told_noise,
    undecided,
)
from pipeline.report.record import (
    Accuracy,
    BlockRow,
    ByRole,
    CandidateRow,
    Change,
    Latency,
    LatencyFigures,
    Proof,
    Report,
    Size,
    StageRow,
    TargetSummary,
)
from stages.graph.described import (
    Described,
    blocks_of,
    is_described,
    macs_of,
    params_of,
    parts_of,
    read_described,
)
from stages.stage import Role
from targets.bundle.reproduce import timing_commands
from targets.errors import StageError

if TYPE_CHECKING:
    from pipeline.choose import Choice
    from pipeline.plan import Candidate, Plan, Prepared, TargetPlan
    from pipeline.search.record import Decision
    from pipeline.validation import Validation
    from stages.artifact import Artifact
    from targets.measure.measurement import Comparison, Measurement

HISTOGRAM_BINS = 40


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build of one target brought together."""

    plan: "Plan"
    target: "TargetPlan | AwayPlan"
    winner: "Candidate | Prepared"
    choice: "Choice"
    validation: "Validation"
    before: Described
    after: Described
    bytes_before: int
    bytes_after: int
    steps: Sequence[tuple[str, "Artifact"]]
    """title and artifact of every step that leads to the engine"""
    agreements: Mapping[str, tuple[float, float | None]]
    """by key of a step: agreement with the source and top-1, on `select`"""
    engine_facts: Mapping[str, Any]
    """the winner's engine.json; empty where there is no engine"""
    reused: tuple[str, ...]
    versions: Mapping[str, str]
    command: str
    recipe_text: str
    decision: "Decision | None" = None
    """what a search decided; None where the recipe says the shapes"""


def compose(built: Built) -> Report:
    """Put the report together and judge it."""
    from pipeline.plausible import implausible
    from pipeline.verdict import judge

    validation, target, winner = built.validation, built.target, built.winner
    accuracy = _accuracy(built)
    measure = built.plan.recipe.measure
    latencies = {int(batch): latency(one, batch=int(batch)) for batch, one in validation.latencies.items()}
    judged = latencies.pop(winner.batch, None)
    comparison = validation.latencies.get(str(winner.batch))
    size = Size(
        params=Change(before=params_of(built.before), after=params_of(built.after)),
        macs=Change(before=macs_of(built.before), after=macs_of(built.after)),
        bytes=Change(before=built.bytes_before, after=built.bytes_after),
    )
    summary = _summary(built)
    memory = _memory(comparison) if comparison else None
    proof = _proof(built, judged)
    latency_commands = timing_commands(built.engine_facts)
    return Report(
        name=built.plan.recipe.name,
        created_at=datetime.now(UTC),
        model=built.before.architecture,
        target=summary,
        verdict=judge(
            target.budget,
            accuracy=validation.accuracy,
            latency=judged,
            memory_bytes=memory.engine if memory else None,
            engine_bytes=size.bytes.after if built.engine_facts else None,
            parameters=size.params.after,
            macs=size.macs.after,
            parity=validation.parity,
            baseline_runtime=summary.baseline_runtime,
            never_ran=never_ran(proof),
            broken=(*proof.broken, *filter(None, [implausible(validation.accuracy, measure.known_accuracy)])),
        ),
        accuracy=accuracy,
        latency_ms=judged,
        other_batches=tuple(latencies[batch] for batch in sorted(latencies)),
        throughput_ips=_throughputs(judged) if judged else None,
        memory_bytes=memory,
        size=size,
        blocks=_blocks(built.before, built.after),
        stages=tuple(_stage(title, artifact, built) for title, artifact in built.steps),
        search=built.decision,
        candidates=tuple(built.choice.rows) + tuple(_passed_over(target)),
        parity=validation.parity,
        proof=proof,
        operators=dict(validation.operators),
        parameters_by_part=_parts(built.before, built.after),
        conditions={**(_conditions(comparison) if comparison else {}), "device": dict(target.facts)},
        versions=dict(built.versions),
        reused=built.reused,
        reproduce={
            "command": built.command,
            "recipe": built.recipe_text,
            "recipe_digest": built.plan.recipe.digest(),
            **({"engine_sha256": comparison.measurements["engine"].engine_sha256} if comparison else {}),
            **({"latency": latency_commands} if latency_commands else {}),
        },
    )


def _accuracy(built: Built) -> Accuracy | None:
    """With the images it was read on, which a validation knows by its key alone."""
    found, images = built.validation.accuracy, built.plan.images.get(Role.EVALUATE)
    return found.replace(images_digest=images.fingerprint) if found and images else found


def _summary(built: Built) -> TargetSummary:
    """What was built for, and by what it was chosen."""
    target, winner = built.target, built.winner
    profile, choice = target.profile, built.winner.runtime
    if isinstance(target, AwayPlan):
        board, chosen, baseline = profile.board.description, "by rule", "onnxruntime"
    else:
        board = str(target.facts.get("cpu_model", profile.board.description))
        failed = sum(" " in name for name, _ in target.passed_over)  # candidates; runtimes alone have no precision
        chosen = "by measurement" if len(built.choice.rows) + failed > 1 else "by recipe"
        baseline = str(getattr(target.baselines[winner.batch].options, "runtime", ""))
    needed = next((one.versions for one in profile.runtimes if one.name == choice), "")
    return TargetSummary(
        name=profile.name,
        summary=profile.summary,
        board=board,
        runtime=winner.runtime,
        runtime_version=str(built.engine_facts.get("version", needed)),
        precision=winner.precision,
        baseline_runtime=baseline,
        batch=winner.batch,
        chosen=chosen,
    )


def _proof(built: Built, judged: Latency | None) -> Proof:
    """What was shown of the engine, and what was not."""
    winner = built.winner
    floor = floor_on(
        built.target.profile,
        built.after,
        precision=winner.precision,
        batch=winner.batch,
        runtime=winner.runtime,
        facts=None if isinstance(built.target, AwayPlan) else built.target.facts,
    )
    shown = _shown(built, judged)
    attention = any(block.attention != "off" for block in blocks_of(built.after))
    shown = shown.replace(
        floor_ms=floor.ms,
        floor_note=floor.note,
        snr_db=next((one.manifest.facts["snr_db"] for _, one in built.steps if "snr_db" in one.manifest.facts), {}),
        **proof_of_layers(built.validation.layers, attention=attention),
    )
    demands = built.target.profile.demands
    return shown.replace(
        proven=(*shown.proven, *told_noise(shown.snr_db), *told_layers(shown)),
        unproven=(*shown.unproven, *_unknown(built), *undecided(demands, shown, winner.precision, attention=attention)),
        broken=broken(demands, shown, winner.precision),
    )


def _unknown(built: Built) -> list[str]:
    """What baseline and engine would share, where nothing tells that they do not."""
    from pipeline.plausible import told_of_source, unlike_timm

    found = [one for one in (unlike_timm(built.before),) if one]
    accuracy = built.validation.accuracy
    if told_of_source(built.plan.recipe, labelled=accuracy is not None and accuracy.metric == "top1"):
        found.append(
            "that images are read as in the source's training: baseline and engine read them alike, and the recipe has "
            "no measure.known_accuracy"
        )
    return found


def _shown(built: Built, judged: Latency | None) -> Proof:
    validation = built.validation
    _, last = built.steps[-1]
    if isinstance(built.target, AwayPlan):
        compiled = last.manifest.facts if built.engine_facts else {}
        return proof_away(
            built.target,
            cast("Prepared", built.winner),
            parity=validation.parity,
            accuracy=validation.accuracy,
            compiled=compiled,
        )
    if judged is None:
        raise RuntimeError("an engine for a target at hand was not timed")
    return proof_here(
        parity=validation.parity,
        accuracy=validation.accuracy,
        latency=judged,
        compiled=last.manifest.facts,
        conditions=str(built.target.facts.get("cpu_model", built.target.profile.board.description)),
    )


def _throughputs(judged: Latency) -> ByRole:
    return ByRole(
        baseline=_throughput(judged.baseline, judged.batch),
        unpruned=_throughput(judged.unpruned, judged.batch),
        engine=_throughput(judged.engine, judged.batch),
    )


def _conditions(comparison: "Comparison") -> dict[str, Any]:
    return {
        "before": comparison.conditions_before,
        "after": comparison.conditions_after,
        **({"during": comparison.watched.model_dump(mode="json")} if comparison.watched is not None else {}),
    }


def latency(comparison: "Comparison", *, batch: int) -> Latency:
    """Figures of one interleaved comparison."""
    from targets.measure.percentiles import paired_ratio

    measured = comparison.measurements
    ratio, ratio_ci95 = paired_ratio(measured["engine"], measured["unpruned"])
    speedup, speedup_ci95 = paired_ratio(measured["baseline"], measured["engine"])
    return Latency(
        batch=batch,
        level=measured["engine"].level,
        baseline=figures(measured["baseline"]),
        unpruned=figures(measured["unpruned"]),
        engine=figures(measured["engine"]),
        speedup=speedup,
        speedup_ci95=speedup_ci95,
        ratio=ratio,
        ratio_ci95=ratio_ci95,
    )


def figures(measurement: "Measurement") -> LatencyFigures:
    """Percentiles of one measurement; a tail that too few queries back is None."""
    from targets.measure.percentiles import p50_ci95, p50_of, tail_percentile, throughput_ips

    samples = sorted(sample for run in measurement.runs for sample in run.samples)
    return LatencyFigures(
        p50=p50_of(measurement),
        p90=tail_percentile(samples, 0.90),
        p99=tail_percentile(samples, 0.99) if measurement.level == "full" else None,
        ci95=p50_ci95(measurement),
        queries=len(samples),
        processes=len(measurement.runs),
        histogram=_histogram(samples),
        stable=all(run.stable for run in measurement.runs),
        throttled=throttling(measurement),
        throughput_ips=throughput_ips(measurement),
        energy=measurement.energy,
        energy_note=measurement.energy_note,
        peak_gpu_memory_bytes=max((run.peak_gpu_memory_bytes or 0 for run in measurement.runs), default=0) or None,
    )


def throttling(measurement: "Measurement") -> tuple[str, ...]:
    """Why the machine slowed itself down; records from before it was known in which run have only the flag."""
    words = sorted({word for run in measurement.runs for word in run.throttled})
    return tuple(words) or (("processor throttled",) if "throttled" in measurement.flags else ())


def _histogram(samples: Sequence[float]) -> tuple[tuple[float, int], ...]:
    """Equal bins from the fastest query to where hardly any are left; slower ones count in the last bin.

    That end is the 99th percentile, or nearer where a few stragglers would squeeze all others into one bin.
    """
    low, middle, p90, p99 = (samples[int(share * (len(samples) - 1))] for share in (0.0, 0.5, 0.9, 0.99))
    high = max(p90, min(p99, p90 + 2 * (p90 - middle)))
    width = (high - low) / HISTOGRAM_BINS or 1e-9
    counts = [0] * HISTOGRAM_BINS
    for sample in samples:
        counts[min(HISTOGRAM_BINS - 1, int((sample - low) / width))] += 1
    return tuple((low + index * width, count) for index, count in enumerate(counts))


def _throughput(one: LatencyFigures, batch: int) -> float:
    return batch * 1000 / one.p50


def _memory(comparison: "Comparison") -> ByRole:
    peaks = {
        role: max((run.peak_memory_bytes or 0 for run in measured.runs), default=0) or None
        for role, measured in comparison.measurements.items()
    }
    return ByRole(baseline=peaks["baseline"], unpruned=peaks["unpruned"], engine=peaks["engine"])


def _blocks(before: Described, after: Described) -> tuple[BlockRow, ...]:
    olds, news = blocks_of(before), blocks_of(after)
    if len(olds) != len(news):
        raise StageError(f"the model had {len(olds)} blocks and has {len(news)}")
    return tuple(
        BlockRow(
            index=index,
            heads=Change(before=old.heads, after=new.heads if new.attention != "off" else 0),
            d_qk=Change(before=old.d_qk, after=new.d_qk if new.attention != "off" else 0),
            d_v=Change(before=old.d_v, after=new.d_v if new.attention != "off" else 0),
            mlp_width=Change(before=old.mlp_width, after=new.mlp_width if new.mlp else 0),
        )
        for index, (old, new) in enumerate(zip(olds, news, strict=True))
    )


def _parts(before: Described, after: Described) -> dict[str, Change]:
    old, new = parts_of(before), parts_of(after)
    return {part: Change(before=old[part], after=new.get(part, 0)) for part in old}


def _stage(title: str, artifact: "Artifact", built: Built) -> StageRow:
    manifest = artifact.manifest
    facts = dict(manifest.facts)
    agreement, top1 = built.agreements.get(manifest.key, (None, None))
    spec = read_described(artifact.folder) if is_described(artifact.folder) else None
    return StageRow(
        name=title,
        seconds=manifest.seconds,
        cached=artifact.cached,
        key=manifest.key,
        summary=str(facts.get("summary", "")),
        params=params_of(spec) if spec else None,
        macs=macs_of(spec) if spec else None,
        bytes=sum(file.size_bytes for file in manifest.files.values()),
        agreement=agreement,
        top1=top1,
        facts=facts,
    )


def _passed_over(target: "TargetPlan | AwayPlan") -> list[CandidateRow]:
    """Runtimes of the profile that did not come in question, and candidates (`openvino int8 linears`) that failed."""
    return [
        CandidateRow(
            runtime=name.partition(" ")[0],
            precision=name.partition(" ")[2].partition(" ")[0],
            variant=name.partition(" ")[2].partition(" ")[2],
            p50_ms=None,
            agreement=None,
            bytes=None,
            chosen=False,
            reason=reason,
        )
        for name, reason in target.passed_over
    ]
