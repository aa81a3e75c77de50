"""The report in GitHub-flavoured Markdown, short enough for a pull request: a pure function of the Report."""

import re
from collections.abc import Callable, Iterable, Sequence

from pipeline.report import figures, tables, trade
from pipeline.report.record import Latency, Report, Status

SYMBOLS: dict[Status, str] = {
    "within": "✅",
    "over": "❌",
    "undecided": "❓",
    "not_measured": "\N{HEAVY MINUS SIGN}",
    "failed": "❗",
}


def to_markdown(report: Report) -> str:
    """Write the page. The same report gives the same text."""
    parts = [
        f"# {_text(report.name)} on {_text(report.target.name)}",
        f"{SYMBOLS[report.verdict.status]} **{_escaped(figures.visible(report.verdict.sentence))}**",
        _what(report),
        _figures(report),
        *_budget(report),
        *_latency(report),
        *_accuracy(report),
        *_search(report),
        *_stages(report),
        *_candidates(report),
        *_parity(report),
        *_proof(report),
        *_reproduce(report),
    ]
    return "\n\n".join(parts) + "\n"


def _what(report: Report) -> str:
    target = report.target
    engine = f"{figures.engine_name(report, 'engine')} {target.runtime_version}".strip()
    return (
        f"Model {_text(report.model)}, engine {_text(engine)} at batch {target.batch} (chosen {_text(target.chosen)}), "
        f"board {_text(target.board)}, {report.created_at:%Y-%m-%d %H:%M %Z}."
    )


def _figures(report: Report) -> str:
    missing = f"*{figures.NOT_MEASURED}*"
    rows = [
        (row.label, row.before or missing, f"**{row.after}**" if row.after else missing, _with(row.change, row.detail))
        for row in tables.headlines(report)
    ]
    names = (f"baseline: {figures.engine_name(report, 'baseline')}", f"engine: {figures.engine_name(report, 'engine')}")
    return _table(("", *names, "change"), [(_text(row[0]), *row[1:]) for row in rows], numbers=(1, 2))


def _budget(report: Report) -> list[str]:
    if not report.verdict.checks:
        return []
    rows = []
    for check in report.verdict.checks:
        limit = check.limit
        measured = (
            figures.NOT_MEASURED if check.value is None else figures.budget_value(check.name, check.value, near=limit)
        )
        interval = figures.budget_interval(check.name, check.interval, near=limit) if check.interval else ""
        status = f"{SYMBOLS[check.status]} {figures.STATUS_WORDS[check.status]}"
        name = figures.BUDGET_NAMES.get(check.name, check.name)
        allowed = figures.budget_value(check.name, limit)
        rows.append((_text(name), measured, interval, allowed, _with(status, check.note)))
    heads = ("budget", "measured", "95 % interval", "at most", "verdict")
    return ["## What was judged", _table(heads, rows, numbers=(1, 2, 3))]


def _latency(report: Report) -> list[str]:
    if report.latency_ms is None:
        return []
    parts = ["## Latency"]
    for latency in (report.latency_ms, *report.other_batches):
        judged = "" if latency is report.latency_ms else ", shown and not judged"
        parts.append(f"Batch {latency.batch}, {latency.level} level{judged}, in ms: {tables.speed(latency)}.")
        parts.append(_latency_table(report, latency))
    return parts


def _latency_table(report: Report, latency: Latency) -> str:
    rows = [
        (f"{row.role}: {_text(row.name)}", row.p50, row.interval, row.p90, row.p99, _with(row.queries, row.note))
        for row in tables.latency_rows(report, latency)
    ]
    return _table(("engine", "p50", "95 % interval", "p90", "p99", "queries"), rows, numbers=(1, 2, 3, 4))


def _accuracy(report: Report) -> list[str]:
    rows = tables.accuracy_rows(report)
    if not rows:
        return []
    right = ", ".join(f"{words} {number:,}" for _, words, number in tables.outcomes(report))
    return ["## Accuracy", _facts([*rows, ("right answers", right)] if right else rows)]


def _stages(report: Report) -> list[str]:
    if not report.stages:
        return []
    rows = [
        (
            _text(stage.name),
            tables.stage_time(stage),
            _or_dash(stage.agreement, figures.percent),
            _or_dash(stage.params, figures.count),
            _or_dash(stage.macs, figures.count),
            _or_dash(stage.bytes, figures.size),
            _text(stage.summary),
        )
        for stage in report.stages
    ]
    heads = ("stage", "time", "agreement on select", "parameters", "MACs", "bytes", "what it did")
    return ["## Stage by stage", _table(heads, rows, numbers=(1, 2, 3, 4, 5))]


def _search(report: Report) -> list[str]:
    decision = report.search
    if decision is None:
        return []
    rows = [
        (str(row.block), row.part, row.before, f"**{row.after}**" if row.changed else "as before", row.loss, row.time)
        for row in trade.choice_rows(decision)
    ]
    heads = ("block", "sublayer", "before", "after", "loss added", "time, of the unpruned engine's")
    table = _table(heads, [[cell.replace("|", "\\|") for cell in row] for row in rows], numbers=(0, 2, 3, 4))
    folded = f"<details><summary>Every sublayer</summary>\n\n{table}\n\n</details>"
    tried = [
        (f"**{what}**" if chosen else what, ratio, alone, within)
        for what, ratio, alone, within, chosen in trade.ground_rows(decision)
    ]
    tables_ = [_table(("tried", "latency alone", "loss alone", "loss within the budget"), tried, numbers=(1, 2, 3))]
    return ["## How shapes were chosen", _text_whole(trade.sentence(decision)), *(tables_ if tried else []), folded]


def _candidates(report: Report) -> list[str]:
    if not report.candidates:
        return []
    rows = [
        (
            _text(f"{figures.runtime_name(one.runtime)} {one.precision} {one.variant}".strip()),
            _or_dash(one.p50_ms, figures.milliseconds),
            _or_dash(one.agreement, figures.percent),
            _or_dash(one.bytes, figures.size),
            f"**chosen:** {_text(one.reason)}" if one.chosen else _text(one.reason),
        )
        for one in report.candidates
    ]
    heads = ("candidate", "p50", "agreement", "bytes", "why")
    return ["## Candidates", _table(heads, rows, numbers=(1, 2, 3))]


def _parity(report: Report) -> list[str]:
    if report.parity is None:
        return []
    head = "passed" if report.parity.passed else "**failed**"
    return [
        f"## Parity with {_text_whole(report.parity.reference)}",
        _facts([("outcome", head), *tables.parity_rows(report)], escaped=1),
    ]


def _proof(report: Report) -> list[str]:
    proof = report.proof
    if proof is None:
        return []
    away = f"; the target is not at hand: {_text_whole(proof.away)}" if proof.away else ""
    parts = [f"Engine: {proof.engine}{away}."]
    for title, lines in tables.proof_lists(report):
        parts.append(f"{title}:\n\n" + "\n".join(f"- {_text_whole(line)}" for line in lines))
    return ["## What was proven, and what was not", *parts]


def _reproduce(report: Report) -> list[str]:
    parts = []
    if report.versions:
        versions = ", ".join(_text(f"{name} {version}") for name, version in report.versions.items())
        parts.append(f"Versions: {versions}.")
    if report.reused:
        parts.append(f"Taken over from an earlier build of the same engine: {_text(', '.join(report.reused))}.")
    digests = [(key, value) for key, value in report.reproduce.items() if key not in tables.BLOCKS]
    if digests:
        parts.append(_facts(digests))
    if report.reproduce.get("command"):
        parts.append(_block(report.reproduce["command"]))
    if report.reproduce.get("latency"):
        parts += [
            "Latency, with the runtime's own tool, from the bundle's folder:",
            _block(report.reproduce["latency"]),
        ]
    if report.reproduce.get("recipe"):
        parts.append(f"<details><summary>The recipe</summary>\n\n{_block(report.reproduce['recipe'])}\n\n</details>")
    return ["## How to reproduce", *parts] if parts else []


# Markdown.


def _text(text: str) -> str:
    """Text from outside as Markdown that shows it as it is, not too long."""
    return _escaped(figures.name(text))


def _text_whole(text: str) -> str:
    """A sentence of ours, however long."""
    return _escaped(figures.visible(text))


def _escaped(text: str) -> str:
    """One line of text: no markup, no new block, no new cell."""
    text = re.sub(r"([\\`*|~#])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # inside a word it is no markup
    text = re.sub(r"(?<=\])([(:\[])", r"\\\1", text)  # links and where they lead
    text = re.sub(r"^(\s*)([>+=\[-])", r"\1\\\2", text)  # blocks begin a line
    text = re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", text)  # `1. ` begins a list, `0.99` does not
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Cells are Markdown already; heads are text."""
    rule = ["---:" if column in numbers else "---" for column in range(len(heads))]
    lines = [[_text(head) for head in heads], rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _facts(rows: Iterable[tuple[str, str]], *, escaped: int = 0) -> str:
    """A list of facts; the first `escaped` values are Markdown already."""
    return "\n".join(
        f"- {_text(name)}: {value if index < escaped else _text(value)}" for index, (name, value) in enumerate(rows)
    )


def _block(text: str) -> str:
    """Text as a fenced block, with a fence that the text does not contain."""
    text = figures.visible_lines(text).strip("\n")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _with(text: str, detail: str) -> str:
    return f"{text} ({_text(detail)})" if text and detail else text or _text(detail)


def _or_dash(value: float | None, write: Callable[[float], str]) -> str:
    return figures.DASH if value is None else write(value)
