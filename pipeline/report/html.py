"""The report as one HTML page: a pure function of the Report, with nothing loaded from anywhere and no script."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import charts, figures, tables, trade
from pipeline.report.record import BudgetCheck, Change, OperatorTime, Report, StageRow, Status

TEMPLATES = Path(__file__).parent / "templates"
SYMBOLS: dict[Status, str] = {"within": "✓", "over": "✕", "undecided": "?", "not_measured": figures.DASH, "failed": "!"}
SECTIONS = (
    ("judged", "What was judged"),
    ("accuracy", "Accuracy"),
    ("latency", "Latency"),
    ("stages", "Stage by stage"),
    ("search", "How shapes were chosen"),
    ("architecture", "Block by block"),
    ("where", "Time and parameters"),
    ("candidates", "Candidates"),
    ("parity", "Parity"),
    ("proof", "Proof"),
    ("conditions", "Conditions"),
    ("reproduce", "How to reproduce"),
)
LONGEST_FACTS = 4000
"""characters of a stage's facts on the page; report.json has all"""
SHOWN_LAYERS = 40
"""on the page; report.json has all"""
RARE = 0.01
"""kinds of operators with a smaller share in every engine are put together"""


def to_html(report: Report) -> str:
    """Draw the page. The same report gives the same bytes."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    latency = report.latency_ms
    return _environment().get_template("report.html.jinja").render(
        report=report,
        style=Markup(style),
        policy=_policy(style),
        sections=[one for one in SECTIONS if one[0] not in ("search", "proof") or getattr(report, one[0])],
        headline=_headline(report),
        cards=tables.headlines(report),
        engines={role: figures.engine_name(report, role) for role in figures.ROLES},
        accuracy=tables.accuracy_rows(report),
        outcomes=tables.outcomes(report),
        latency_rows=tables.latency_rows(report, latency) if latency else [],
        speed=tables.speed(latency) if latency else "",
        axis=charts.latency_axis(latency) if latency else None,
        by_role=_by_role(report),
        stages=_Stages(report.stages, searched=report.search is not None),
        choices=trade.choice_rows(report.search) if report.search else [],
        panels=_panels(report),
        alike=list(_alike(report)),
        operators=_operators(report),
        parts=_parts(report),
        parity=tables.parity_rows(report),
        proof=tables.proof_lists(report),
        conditions=_conditions(report),
        reproduce=[(key, value) for key, value in report.reproduce.items() if key not in tables.BLOCKS],
    )  # fmt: skip


def page(template: str, **shown: Any) -> str:
    """Draw another page in the same style, under the same rules: nothing is loaded, nothing runs."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render(style=Markup(style), policy=_policy(style), **shown)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        name=_name, short=figures.name, visible=figures.visible, visible_lines=figures.visible_lines
    )
    environment.globals.update(
        f=figures,
        charts=charts,
        tables=tables,
        trade=trade,
        symbols=SYMBOLS,
        words=figures.STATUS_WORDS,
        dash=figures.DASH,
        not_measured=figures.NOT_MEASURED,
        no_accuracy=tables.NO_ACCURACY,
        no_latency=tables.NO_LATENCY,
        runtime_name=figures.runtime_name,
        check_label=_check_label,
        facts_text=_facts_text,
        shown_layers=SHOWN_LAYERS,
    )
    return environment


def _policy(style: str) -> str:
    """Allow this one style sheet and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _name(text: object) -> Markup:
    """Text from outside: escaped, not too long, control characters shown, its writing direction kept to itself."""
    return Markup("<bdi>{}</bdi>").format(figures.name(str(text)))


# What the template shows, made ready.


@dataclass(frozen=True)
class _Headline:
    title: str
    text: str


@dataclass(frozen=True)
class _Cell:
    role: str
    text: str
    note: str
    share: float


@dataclass(frozen=True)
class _Operators:
    caption: str
    roles: list[str]
    rows: list[tuple[str, list[_Cell | None]]]


@dataclass(frozen=True)
class _Conditions:
    around: list[tuple[str, str, str]]
    unread: list[str]
    other: list[tuple[str, str]]


def _headline(report: Report) -> _Headline:
    """The verdict's sentence, split at what it begins with."""
    head, colon, rest = report.verdict.sentence.partition(": ")
    known = head in (figures.STATUS_WORDS[report.verdict.status], figures.NO_BUDGET)
    title = head if known else figures.STATUS_WORDS[report.verdict.status]
    text = (rest if colon else "") if known else report.verdict.sentence
    return _Headline(figures.capital(title), figures.capital(text))


def _check_label(check: BudgetCheck) -> str:
    """What a check's picture says to who cannot see it."""
    name = figures.BUDGET_NAMES.get(check.name, check.name)
    value = figures.budget_value(check.name, check.value or 0, near=check.limit)
    limit = figures.budget_value(check.name, check.limit)
    return f"{name} {value} of at most {limit}: {figures.STATUS_WORDS[check.status]}"


def _by_role(report: Report) -> list[tuple[str, str, str]]:
    """Throughput and memory of each engine; empty where neither was measured."""
    rates, memory = report.throughput_ips, report.memory_bytes
    rows = []
    for role in figures.ROLES:
        rate = getattr(rates, role, None)
        used = getattr(memory, role, None)
        rows.append(
            (
                role,
                "" if rate is None else f"{figures.significant(rate)} images/s",
                "" if used is None else figures.size(used),
            )
        )
    return rows if any(rate or used for _, rate, used in rows) else []


class _Stages:
    """Scales of the table of stages."""

    def __init__(self, stages: Sequence[StageRow], *, searched: bool = False) -> None:
        agreements = [stage.agreement for stage in stages if stage.agreement is not None]
        # The axis begins at a round number below the worst, so that the loss of each stage shows.
        self.least = min(0.95, int(min(agreements) * 20 - 1e-9) / 20) if agreements else None
        self.axis = f"{round(100 * self.least)} to 100 %" if self.least is not None else ""
        self._most = {
            name: max((getattr(stage, name) or 0 for stage in stages), default=0) or 1
            for name in ("params", "macs", "bytes")
        }
        total = sum(stage.seconds for stage in stages if not stage.cached)
        cached = sum(stage.cached for stage in stages)
        self.lead = f"{len(stages)} stages; this build spent {figures.duration(total)} on them" + (
            f" and took {cached} from the store." if cached else "."
        )
        if searched:
            self.lead += " The search before them is not counted."

    def sizes(self, stage: StageRow) -> Iterator[tuple[str, int | None, int, str]]:
        """(title, value, largest of all stages, text) of parameters, MACs and bytes."""
        for title, name, write in (
            ("parameters", "params", figures.count),
            ("MACs", "macs", figures.count),
            ("bytes", "bytes", figures.size),
        ):
            value = getattr(stage, name)
            yield title, value, self._most[name], "" if value is None else write(value)


def _panels(report: Report) -> list[tuple[str, list[Change], str]]:
    """The pictures of the blocks: title, changes, what they come to in words."""
    titles = {"mlp_width": "MLP width", "heads": "heads", "d_qk": "query and key width", "d_v": "value width"}
    panels = []
    for name, title in titles.items():
        changes: list[Change] = [getattr(block, name) for block in report.blocks]
        before, after = [change.before for change in changes], [change.after for change in changes]
        change = f"→ {_range(after)}, {figures.relative_change(sum(before), sum(after))} in all"
        text = f"{_range(before)} {change if before != after else 'as before'}"
        panels.append((title, changes, text))
    return panels


def _alike(report: Report) -> Iterator[tuple[str, list[tuple[int, int, int]], str]]:
    """Pictures of how many neurons say the same, of stages that looked: title, (block, neurons, alike), words."""
    for stage in report.stages:
        rows = stage.facts.get("blocks")
        found = [
            (row["block"], row["width_before"], row["alike"])
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and all(type(row.get(key)) is int for key in ("block", "width_before", "alike"))
        ]
        if found:
            every, alike = sum(row[1] for row in found), sum(row[2] for row in found)
            text = f"{alike:,} of {every:,} neurons are more than {stage.facts.get('alike_above')} alike to another one"
            yield f"{stage.name}: redundancy", found, text


def _range(values: Sequence[int]) -> str:
    """`768`, `352 to 544`."""
    if not values:
        return figures.DASH
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _operators(report: Report) -> _Operators:
    """Time by operator: in ms where the latency is known, so that the engines share one scale."""
    latency = report.latency_ms
    roles = [role for role, rows in report.operators.items() if rows]
    timed = latency is not None and all(role in figures.ROLES for role in roles)
    weights = {role: figures.figures_of(latency, role).p50 if latency and timed else 1.0 for role in roles}
    kinds = _common_kinds({role: report.operators[role] for role in roles})
    found = {role: {row.operator: (row.share * weights[role], row) for row in kinds[role]} for role in roles}
    largest = max((weight for rows in found.values() for weight, _ in rows.values()), default=1) or 1
    decimals = max(2, figures.decimals_of(largest, 3))
    reported = {row.operator for rows in report.operators.values() for row in rows}
    names = sorted(
        {name for rows in found.values() for name in rows},
        key=lambda name: (name not in reported, -max(rows[name][0] for rows in found.values() if name in rows), name),
    )

    def cell(role: str, name: str) -> _Cell | None:
        if name not in found[role]:
            return None
        weight, row = found[role][name]
        calls = f"{row.calls:,}x"
        text = f"{figures.number(weight, decimals)} ms" if timed else figures.percent(row.share)
        note = f"{figures.percent(row.share)}, {calls}" if timed else calls
        return _Cell(role if role in figures.ROLES else "engine", text, note, weight / largest)

    return _Operators(
        caption="Share of a profiled run, as part of the p50; number of calls"
        if timed
        else "Share of a profiled run, and calls",
        roles=roles,
        rows=[(name, [cell(role, name) for role in roles]) for name in names],
    )


def _common_kinds(operators: Mapping[str, Sequence[OperatorTime]]) -> dict[str, list[OperatorTime]]:
    """The kinds that matter in some engine; the others of each engine as one row."""
    names = {row.operator for rows in operators.values() for row in rows}
    common = {row.operator for rows in operators.values() for row in rows if row.share >= RARE}
    if len(names - common) < 2:
        return {role: list(rows) for role, rows in operators.items()}
    found = {role: [row for row in rows if row.operator in common] for role, rows in operators.items()}
    for role, rows in operators.items():
        rare = [row for row in rows if row.operator not in common]
        if rare:
            together = f"{len(names - common)} kinds under {figures.number(100 * RARE, 0)} %"
            calls, share = sum(row.calls for row in rare), sum(row.share for row in rare)
            found[role].append(OperatorTime(operator=together, share=share, calls=calls))
    return found


def _parts(report: Report) -> list[tuple[str, Change, int]]:
    """Parameters by part with the largest of all, for the scale."""
    changes = report.parameters_by_part
    most = max((max(change.before, change.after) for change in changes.values()), default=1) or 1
    return [(name, change, most) for name, change in changes.items()]


def _conditions(report: Report) -> _Conditions:
    """Conditions as rows: before against after, and everything else."""
    before, after = (report.conditions.get(when) for when in ("before", "after"))
    paired = isinstance(before, Mapping) and isinstance(after, Mapping)
    old, new = (dict(_flat(one)) if paired else {} for one in (before, after))
    around = [(key, old.get(key, figures.DASH), new.get(key, figures.DASH)) for key in dict.fromkeys([*old, *new])]
    unread = [key for key, *values in around if set(values) == {figures.DASH}]
    around = [row for row in around if row[0] not in unread]
    rest = {key: value for key, value in report.conditions.items() if not (paired and key in ("before", "after"))}
    device, during = rest.pop("device", None), rest.pop("during", None)
    sampled: list[tuple[str, str]] = []
    if isinstance(during, Mapping):
        sampled = list(_during(during))
        unread += [f"source {name}" for name, obstacle in during.get("sources", {}).items() if obstacle]
    other = [*_flat(device), *_flat(rest)] if isinstance(device, Mapping) else list(_flat(rest))
    return _Conditions(around, unread, [*other, *sampled])


def _during(during: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of what was sampled while timing, without what the machine did not tell."""
    for name, spread in during.get("figures", {}).items():
        if spread is not None:
            low, middle, high = (_scalar(spread[key]) for key in ("min", "median", "max"))
            yield f"during.{name}", low if low == high else f"{low} to {high}, median {middle}"
    for name in ("facts", "reasons", "idle_power_w", "void_runs"):
        if during.get(name):
            yield from _flat(during[name], f"during.{name}")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Rows (dotted key, text) of nested plain data."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif value is not None and value != {}:
        scalars = isinstance(value, list | tuple) and not any(isinstance(one, Mapping | list) for one in value)
        if path.endswith("_bytes") and isinstance(value, int):
            text = figures.size(value)
        else:
            text = (", ".join(map(_scalar, value)) or "none") if scalars else _scalar(value)
        yield path, text
    elif path:
        yield path, figures.DASH


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _facts_text(facts: Mapping[str, Any]) -> str:
    """A stage's facts as JSON, cut where they are long."""
    text = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items())
    text = figures.visible_lines(text)
    return f"{text[:LONGEST_FACTS]}\n… the rest is in report.json" if len(text) > LONGEST_FACTS else text
