"""Example reports: a rich one with realistic figures, one with nothing optional, one with hostile names."""

import os
from pathlib import Path

import pytest

from pipeline.report.record import Change, Report
from pipeline.verdict import judge
from targets.profile import Budget

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
        parity=full.parity.replace(tolerance=text),
        operators={role: tuple(one.replace(operator=text) for one in rows) for role, rows in full.operators.items()},
        parameters_by_part={text: Change(before=1, after=1)},
        conditions={text: text, "before": {text: text}, "after": {text: [text, {text: text}]}},
        versions={text: text},
        reused=(text,),
        reproduce={"command": text, "recipe": text, "recipe_digest": text, "engine_sha256": text, text: text},
    )


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
