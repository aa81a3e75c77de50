"""Example reports: a rich one with realistic figures, and one for everything that a page must bear."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.report.record import Change, LayerRow, Proof, Report
from pipeline.search.record import Decision, Ground, ParetoPoint, Round, SublayerDecision
from pipeline.verdict import judge
from targets.profile import Budget

sys.path.insert(0, str(Path(__file__).parent))  # for browser.py

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "report"
HOSTILE = (
    "<script>alert(1)</script>|`*_[x](javascript:x)\n\u202egnp.exe\u202c \x1b[31m'\"& "
    "\N{FOX FACE} \u0645\u0631\u062d\u0628\u0627 {{7*7}} [red]"
)


def example_report() -> Report:
    """ViT-Tiny on a CPU, int8 OpenVINO, every optional part filled in."""
    return Report.model_validate_json((GOLDEN / "report.json").read_text())


def bare_report() -> Report:
    """A report with nothing optional in it."""
    full = example_report()
    return Report(
        name="bare",
        created_at=full.created_at,
        model="vit",
        target=full.target.replace(runtime_version="", baseline_runtime=""),
        verdict=judge(Budget(), accuracy=None, latency=None, memory_bytes=None, engine_bytes=None, parity=None),
        accuracy=None,
        latency_ms=None,
        throughput_ips=None,
        memory_bytes=None,
        size=full.size,
        blocks=(),
        stages=(),
        conditions={},
        versions={},
    )


def hostile_report() -> Report:
    """The example with every text of it hostile."""
    full, text = example_report(), HOSTILE
    names = ("name", "summary", "board", "runtime", "runtime_version", "precision", "chosen", "baseline_runtime")
    return full.replace(
        name=text,
        model=text,
        target=full.target.replace(**dict.fromkeys(names, text)),
        verdict=full.verdict.replace(
            sentence=f"within budget: {text}", checks=tuple(one.replace(note=text) for one in full.verdict.checks)
        ),
        accuracy=full.accuracy.replace(metric=text),
        stages=tuple(one.replace(name=text, key=text, summary=text, facts={text: [text]}) for one in full.stages),
        candidates=tuple(one.replace(runtime=text, precision=text, reason=text) for one in full.candidates),
        parity=full.parity.replace(tolerance=text, proxy=text),
        proof=full.proof.replace(
            away=text, proven=(text,), unproven=(text, text), left=(text,), floor_note=text
        ).replace(
            broken=(text,),
            layers=(LayerRow(name=text, operator=text, kernel=text, precision=text, provider=text, share=1, macs=1),),
        ),
        operators={role: tuple(one.replace(operator=text) for one in rows) for role, rows in full.operators.items()},
        parameters_by_part={text: Change(before=1, after=1)},
        conditions={text: text, "before": {text: text}, "after": {text: [text, {text: text}]}},
        versions={text: text},
        reused=(text,),
        reproduce={"command": text, "recipe": text, "recipe_digest": text, "engine_sha256": text, text: text},
    )


def judged_report(budget: Budget, **changes) -> Report:
    """The example with other measurements, judged anew."""
    report = example_report().replace(**changes)
    verdict = judge(
        budget,
        accuracy=report.accuracy,
        latency=report.latency_ms,
        memory_bytes=report.memory_bytes.engine if report.memory_bytes else None,
        engine_bytes=report.size.bytes.after,
        parity=report.parity,
        baseline_runtime="onnxruntime",
    )
    return report.replace(verdict=verdict)


def undecided_report() -> Report:
    """The interval of the drop straddles the budget."""
    accuracy = example_report().accuracy.replace(images_to_decide=9200)
    return judged_report(Budget(accuracy_drop_points=1.0), accuracy=accuracy)


def over_report() -> Report:
    """Too inaccurate, too large, and slower than before on an unsettled machine."""
    full = example_report()
    slow = full.latency_ms.engine.replace(stable=False)
    return judged_report(
        Budget(accuracy_drop_points=1.0, latency_p50_ms=4.0, latency_ratio=1.0, engine_bytes=4_000_000),
        accuracy=full.accuracy.replace(engine=0.74, drop_points=5.0, drop_ci95=(3.9, 6.1)),
        latency_ms=full.latency_ms.replace(engine=slow, ratio=1.2, ratio_ci95=(1.1, 1.3)),
    )


def failed_report() -> Report:
    """The engine does not compute the model."""
    parity = example_report().parity.replace(passed=False, cosine=-0.0123, max_abs_error=812.5)
    return judged_report(Budget(accuracy_drop_points=1.0), parity=parity)


def headless_report() -> Report:
    """A model without classes: cosine and nearest neighbours."""
    accuracy = example_report().accuracy.replace(
        metric="knn_agreement",
        baseline=1.0,
        engine=0.9312,
        drop_points=6.88,
        drop_ci95=(6.2, 7.6),
        agreement=0.9312,
        feature_cosine=0.98712,
        **dict.fromkeys(("baseline_top5", "engine_top5", "lost", "gained", "mcnemar_p")),
    )
    return judged_report(Budget(accuracy_drop_points=10), accuracy=accuracy)


def quick_report() -> Report:
    """Little measured: level quick, no p99, no histogram, no memory, one candidate, one number as accuracy."""
    full = example_report()
    roles = ("baseline", "unpruned", "engine")
    few = {
        role: getattr(full.latency_ms, role).replace(p99=None, queries=128, processes=2, histogram=()) for role in roles
    }
    one_number = dict.fromkeys(
        ("baseline_top5", "engine_top5", "drop_ci95", "agreement", "lost", "gained", "mcnemar_p"), None
    )
    return judged_report(
        Budget(accuracy_drop_points=1.0, latency_p99_ms=6.0, memory_bytes=10**8),
        accuracy=full.accuracy.replace(metric="my metric", **one_number),
        latency_ms=full.latency_ms.replace(level="quick", **few),
        other_batches=(),
        memory_bytes=None,
        throughput_ips=full.throughput_ips.replace(unpruned=None),
        candidates=tuple(one for one in full.candidates if one.chosen),
        blocks=full.blocks[:1],
        operators={"engine": full.operators["engine"]},
    )


def searched_report() -> Report:
    """The example, had its shapes been searched for: every second MLP halved, one attention left out, two rounds."""
    full = example_report()
    sublayers = []
    for block in full.blocks:
        heads, width = block.heads.before, block.mlp_width.before
        attention, mlp = (heads, block.d_qk.before, block.d_v.before), (width,)
        gone, half = block.index == 7, block.index % 2 == 0
        sublayers.append(
            SublayerDecision(
                block=block.index,
                part="attention",
                before=attention,
                after=(0, 0, 0) if gone else (heads, 32, 48) if half else attention,
                loss=0.31 if gone else 0.00002 if half else 0.0,
                time_before=0.042,
                time_after=0.0 if gone else 0.033 if half else 0.042,
                next_loss=None if gone else 4.2,
            )
        )
        sublayers.append(
            SublayerDecision(
                block=block.index,
                part="mlp",
                before=mlp,
                after=(width // 2,) if half else mlp,
                loss=0.041 if half else 0.0,
                time_before=0.036,
                time_after=0.019 if half else 0.036,
                next_loss=1.7,
            )
        )
    shapes = [
        {"heads": attention.after[0], "d_qk": attention.after[1], "d_v": attention.after[2], "mlp_width": mlp.after[0]}
        for attention, mlp in zip(sublayers[::2], sublayers[1::2], strict=True)
    ]
    ratios = [0.2 + 0.04 * step for step in range(21)]
    decision = Decision(
        runtime="openvino",
        precision="int8",
        unit="kl_nats",
        limits={"latency": 0.8, "parameters": 5_000_000},
        exact=False,
        seconds=3_120.0,
        shapes=shapes,
        grounds=[
            Ground(width=192, tokens=None, ratio=1.0, loss=0.0, best=0.56, chosen=True),
            Ground(width=192, tokens=0.7, merge=(0, 59, 0), ratio=0.81, loss=0.3, best=0.61, chosen=False),
            Ground(width=96, tokens=None, ratio=0.9, loss=2.3, best=None, chosen=False),
            Ground(
                size=(160, 160), width=192, tokens=None, ratio=0.5, loss=0.31, best=0.7, chosen=False, note="estimated"
            ),
            Ground(
                size=(192, 192),
                width=192,
                tokens=0.5,
                merge=(0, 72, 0),
                ratio=None,
                loss=0.9,
                best=None,
                chosen=False,
                note="loses more by itself",
            ),
        ],
        loss=sum(one.loss for one in sublayers),
        sublayers=sublayers,
        rounds=[
            Round(aim=0.776, table=0.75, predicted=0.776, measured=0.812, interval=(0.80, 0.83), loss=0.42),
            Round(
                aim=0.776,
                table=0.71,
                predicted=0.775,
                measured=0.771,
                interval=(0.76, 0.79),
                loss=sum(one.loss for one in sublayers),
            ),
        ],
        pareto=[ParetoPoint(ratio=ratio, loss=1.9 * (1 - ratio) ** 2 / ratio, macs=ratio) for ratio in ratios],
        uniform=[ParetoPoint(ratio=ratio, loss=4 * (1 - ratio) ** 2 / ratio, macs=ratio) for ratio in ratios[8::2]],
        table={"unpruned_p50_ms": 5.0, "rest": 0.06},
        solve_ms=14.2,
    )
    return full.replace(search=decision)


def long_report() -> Report:
    """Names without a place to break them, sizes beyond all others, many blocks."""
    full = example_report()
    long, block = "x" * 3000, full.blocks[0]
    return full.replace(
        name=long,
        model=long,
        target=full.target.replace(name=long, board=long, precision=long),
        stages=tuple(one.replace(name=long, summary=long, facts={long: long}) for one in full.stages),
        candidates=tuple(one.replace(reason=long) for one in full.candidates),
        operators={role: tuple(one.replace(operator=long) for one in rows) for role, rows in full.operators.items()},
        blocks=tuple(block.replace(index=index, heads=Change(before=12, after=0)) for index in range(64)),
        size=full.size.replace(params=Change(before=10**12, after=10**12), bytes=Change(before=0, after=1)),
        versions={long: long},
        conditions={long: long},
        reproduce={"command": long, "recipe": long, long: long},
    )


def away_report() -> Report:
    """The example, had its target been elsewhere: an engine built ahead of time, accuracy by a proxy, no times."""
    full = example_report()
    proxy = "the same graph in onnxruntime 1.32.0, on this machine's processor"
    proof = Proof(
        engine="built ahead of time",
        away="the target has NVIDIA GeForce RTX 4090 (8.9), this machine has no NVIDIA GPU",
        proven=("TensorRT-RTX 1.7.1 builds the engine for compute capability 8.9, in 3.1 s, without a GPU",),
        unproven=("accuracy of the engine itself", "latency, memory, power: nothing was measured on the target"),
        left=("load the engine, which was built ahead of time", "tensorrt int8: build the engine"),
        floor_ms=0.0038,
        floor_note="bound by computing; not known: size of the cache",
    )
    accuracy, budget = full.accuracy.replace(proxy=proxy), Budget(accuracy_drop_points=1.0, latency_p50_ms=1.0)
    return full.replace(
        target=full.target.replace(name="rtx-4090", runtime="tensorrt_rtx", chosen="by rule"),
        verdict=judge(
            budget,
            accuracy=accuracy,
            latency=None,
            memory_bytes=None,
            engine_bytes=None,
            parity=None,
            never_ran="the engine was built ahead of time and never ran",
        ),
        accuracy=accuracy,
        latency_ms=None,
        other_batches=(),
        throughput_ips=None,
        memory_bytes=None,
        operators={},
        parity=full.parity.replace(proxy=proxy),
        proof=proof,
    )


REPORTS = {
    "example": example_report,
    "bare": bare_report,
    "hostile": hostile_report,
    "undecided": undecided_report,
    "over": over_report,
    "failed": failed_report,
    "headless": headless_report,
    "quick": quick_report,
    "long": long_report,
    "searched": searched_report,
    "away": away_report,
}


@pytest.fixture(params=REPORTS)
def any_report(request):
    """Each of the reports in turn."""
    return REPORTS[request.param]()


@pytest.fixture(scope="session")
def reports():
    """All of them by name."""
    return {name: make() for name, make in REPORTS.items()}


@pytest.fixture
def example():
    return example_report()


@pytest.fixture
def bare():
    return bare_report()


@pytest.fixture
def hostile():
    return hostile_report()


@pytest.fixture
def golden():
    """golden(name, text): compare with a file of tests/golden/report; UPDATE_GOLDEN=1 writes it instead."""

    def compare(name, text):
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), (
            f"{name} changed; if that is meant, run with UPDATE_GOLDEN=1 and review the diff"
        )

    return compare
