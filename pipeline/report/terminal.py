"""A finished build in a terminal of 80 columns: the verdict, what changed, where the time went."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report import figures, tables, trade
from pipeline.report.record import Latency, Proof, Report, Status

STYLES: dict[Status, str] = {
    "within": "bold green",
    "over": "bold red",
    "undecided": "bold yellow",
    "not_measured": "bold",
    "failed": "bold red",
}
SYMBOLS: dict[Status, str] = {"within": "✓", "over": "✗", "undecided": "?", "not_measured": "-", "failed": "!"}


def summary(report: Report) -> RenderableType:
    """What a build came to, for printing with rich. Text from outside is never read as markup."""
    parts: list[RenderableType] = [_title(report), _verdict(report), Text(), _figures(report)]
    if report.latency_ms is not None:
        parts += [Text(), _latency(report, report.latency_ms)]
        parts += [_other_batch(latency) for latency in report.other_batches]
    if report.search is not None:
        parts += [Text(), Text(trade.sentence(report.search))]
    if report.stages:
        parts += [Text(), _stages(report)]
    if report.proof is not None and report.proof.away:
        parts += [Text(), *_unproven(report.proof)]
    return Group(*parts)


def _title(report: Report) -> Text:
    target = report.target
    engine = f"{figures.name(figures.engine_name(report, 'engine'))}, batch {target.batch}"
    return Text.assemble((figures.name(report.name), "bold"), f" on {figures.name(target.name)}: {engine}")


def _verdict(report: Report) -> Text:
    status = report.verdict.status
    head, colon, rest = figures.visible(report.verdict.sentence).partition(":")
    return Text.assemble((f"{SYMBOLS[status]} {head}{colon}", STYLES[status]), rest)


def _figures(report: Report) -> Table:
    table = _table("", "baseline", "engine", "change")
    for row in tables.headlines(report):
        table.add_row(
            Text(figures.name(row.label)),
            Text(row.before or figures.DASH),
            Text(row.after or figures.NOT_MEASURED, style="bold" if row.after else "italic"),
            Text(row.change or row.detail),
        )
    return table


def _latency(report: Report, latency: Latency) -> Table:
    table = _table(f"ms, batch {latency.batch}, {latency.level}", "p50", "95 % interval", "p90", "p99")
    for row in tables.latency_rows(report, latency):
        tail = [figures.DASH if value == figures.NOT_MEASURED else value for value in (row.p90, row.p99)]
        name = Text.assemble(row.role, (f" {figures.name(row.name)}", "dim"))
        table.add_row(name, Text(row.p50, style="bold"), Text(row.interval), *map(Text, tail))
    return table


def _other_batch(latency: Latency) -> Text:
    change = figures.milliseconds_change(latency.baseline.p50, latency.engine.p50)
    speedup = f"{latency.speedup:.2f}x {figures.bracket(latency.speedup_ci95, 2)}"
    return Text(f"batch {latency.batch}, not judged: p50 {change}, {speedup}")


def _unproven(proof: Proof) -> list[RenderableType]:
    """Of a target that is not at hand: what its board has to do, and what is not known before."""
    lines = [Text(f"not at hand: {figures.visible(proof.away)}")]
    lines += [Text(f"left to the board: {figures.visible(line)}") for line in proof.left[:1]]
    return [*lines, *(Text(f"not proven: {figures.visible(line)}") for line in proof.unproven)]


def _stages(report: Report) -> Table:
    table = _table("stage", "time", "agreement", "parameters", "bytes")
    for stage in report.stages:
        table.add_row(
            Text(figures.name(stage.name)),
            Text(tables.stage_time(stage)),
            Text(figures.DASH if stage.agreement is None else figures.percent(stage.agreement)),
            Text(figures.DASH if stage.params is None else figures.count(stage.params)),
            Text(figures.DASH if stage.bytes is None else figures.size(stage.bytes)),
        )
    return table


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for index, head in enumerate(heads):
        words = index == 0 or head == "change"
        table.add_column(Text(head), justify="left" if words else "right", overflow="fold")
    return table
