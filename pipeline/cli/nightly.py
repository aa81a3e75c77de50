"""`vitrim nightly`: run a matrix every night, and see what has changed since."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from pipeline.nightly.history import HistoryStore, Run
    from pipeline.nightly.matrix import Matrix
    from pipeline.nightly.report.record import NightReport, SeriesReport

app = typer.Typer(
    help="Run recipes on boards every night, and see what has changed since.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MatrixArgument = Annotated[Path, typer.Argument(help="The matrix, a YAML file.", show_default=False, metavar="MATRIX")]
RunOption = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="Which run, or how its id begins.", show_default="the last")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the pages.", show_default="the history's reports/RUN")
]
GithubOption = Annotated[bool, typer.Option("--github", help="Also print annotations for GitHub, and its job summary.")]
NoteOption = Annotated[str, typer.Option(help="Why, for those who come later.")]
CellOption = Annotated[
    str | None, typer.Option("--cell", metavar="RECIPE@DEVICE", help="Only this cell.", show_default="all")
]
MetricOption = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", help="Only this metric, e.g. latency_p50_ms.")
]


@app.command()
def run(
    matrix: MatrixArgument,
    store: StoreOption = None,
    output: OutputOption = None,
    fresh: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with a run that was cut short, or begin a new one.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the cells.")] = False,
    github: GithubOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build and measure every cell of the matrix, and judge it.

    Exit 1 where somebody has to look: a regression, a board put aside, a cell without values.
    """
    from pipeline.nightly.boards import open_boards
    from pipeline.nightly.builder import ProcessBuilder
    from pipeline.nightly.cells import plan_cells
    from pipeline.nightly.history import open_history
    from pipeline.nightly.run import NightRun

    asked, folder = _load(matrix)
    boards = open_boards(asked, folder)
    if dry_run:
        cells = plan_cells(asked, boards, folder=folder)
        if as_json:
            typer.echo(json.dumps([{"cell": one.cell.name, "command": one.command} for one in cells], indent=2))
        for one in () if as_json else cells:
            typer.echo(f"{one.cell.name}\n  {one.command}")
        return
    _end_on_sigterm()
    with open_history(asked) as history:
        night = NightRun(
            matrix=asked,
            folder=folder,
            boards=boards,
            builder=ProcessBuilder(store=store),
            store=history,
            tell=lambda text: typer.echo(text, err=as_json),
            fresh=not fresh,
        )
        made = history.run(asked.name, night.go())
        _show(history, asked, made, output=output, github=github, as_json=as_json)


@app.command()
def report(
    matrix: MatrixArgument,
    run: RunOption = None,
    output: OutputOption = None,
    github: GithubOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the pages of a run: dashboard, Markdown, JUnit.

    Exit 1 where somebody has to look, as of `vitrim nightly run`.
    """
    from pipeline.nightly.history import open_history

    asked, _ = _load(matrix)
    with open_history(asked) as history:
        _show(history, asked, history.run(asked.name, run), output=output, github=github, as_json=as_json)


@app.command("list")
def list_runs(matrix: MatrixArgument, as_json: JsonOption = False) -> None:
    """List the runs of a matrix."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.nightly.history import open_history
    from pipeline.nightly.record import short

    asked, _ = _load(matrix)
    with open_history(asked) as history:
        rows = []
        pins = {one["run"] for one in history.marks("pin", asked.name)}
        for one in history.runs(asked.name):
            found = history.verdicts(run=one.id).values()
            rows.append(
                {
                    "run": one.id,
                    "started_at": one.started_at.isoformat(timespec="seconds"),
                    "ended": one.ended,
                    "commit": short(one.commit),
                    "alarms": sum(verdict.alarms for verdict in found),
                    "series": len(found),
                    "pinned": one.id in pins,
                }
            )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("run", "ended", "commit", "alarms", "", box=None, pad_edge=False)
    for row in rows:
        pinned = "release" if row["pinned"] else ""
        table.add_row(
            str(row["run"]),
            str(row["ended"] or "not over"),
            str(row["commit"]),
            f"{row['alarms']} of {row['series']}",
            pinned,
        )
    Console().print(table if rows else "no run yet: vitrim nightly run MATRIX", markup=False)


@app.command()
def rejudge(matrix: MatrixArgument, as_json: JsonOption = False) -> None:
    """Judge every run anew by the policy that the matrix has now.

    Nothing is measured. The verdicts of before stay in the history.
    """
    from pipeline.nightly.history import open_history
    from pipeline.nightly.judging import Judging
    from pipeline.nightly.judging import rejudge as again

    asked, folder = _load(matrix)
    with open_history(asked) as history:
        before = history.verdicts()
        judging = Judging(store=history, matrix=asked.name, policy=asked.policy, release=asked.release)
        after = again(judging, repository=folder)
        changed = [
            {
                "run": place[0],
                "series": place[1],
                "before": before[place].kind if place in before else None,
                "after": one.kind,
            }
            for place, one in after.items()
            if place not in before or before[place].kind != one.kind
        ]
        if as_json:
            typer.echo(json.dumps({"judged": len(after), "changed": changed}, indent=2))
            return
        names = {night.series.key: night.series for _, night in history.nights()}
        typer.echo(f"{len(after)} verdicts, {len(changed)} others than before")
        for one in changed:
            series = names[str(one["series"])]
            typer.echo(
                f"  {one['run']} {series.recipe}@{series.device} {series.metric}: {one['before']} → {one['after']}"
            )


@app.command()
def pin(matrix: MatrixArgument, run: RunOption = None, note: NoteOption = "") -> None:
    """Pin a run as the release: later nights are also held against it.

    What gets worse by little every night is seen only so.
    """
    from pipeline.nightly.history import open_history

    asked, _ = _load(matrix)
    with open_history(asked) as history:
        found = history.run(asked.name, run)
        _refuse_unfinished(found)
        history.mark("pin", matrix=asked.name, run=found.id, who=_who(), note=note)
    typer.echo(f"{found.id} is the release of {asked.name} from the next run on")


@app.command()
def accept(
    matrix: MatrixArgument,
    cell: CellOption = None,
    metric: MetricOption = None,
    run: RunOption = None,
    note: NoteOption = "",
) -> None:
    """Accept a regression, or a board that was put aside: what is there now is the new baseline.

    Without --cell and --metric, all of the run are accepted.
    """
    from pipeline.nightly.history import open_history
    from pipeline.nightly.judging import ACCEPTABLE
    from targets.errors import InputError

    asked, _ = _load(matrix)
    with open_history(asked) as history:
        found = history.run(asked.name, run)
        _refuse_unfinished(found)
        report = _compose(history, asked, found)
        chosen = [one for one in _chosen(report, cell, metric) if one.verdict.kind in ACCEPTABLE]
        if not chosen:
            raise InputError(f"run {found.id!r} has no regression{_where(cell, metric)} to accept")
        for one in chosen:
            history.mark("accept", matrix=asked.name, run=found.id, series=one.key, who=_who(), note=note)
            typer.echo(f"accepted: {one.series.recipe}@{one.series.device} {one.series.metric}: {one.verdict.sentence}")


@app.command()
def bisect(
    matrix: MatrixArgument,
    cell: CellOption = None,
    metric: MetricOption = None,
    good: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Last good commit.", show_default="of the regression")
    ] = None,
    bad: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="First bad commit.", show_default="of the regression")
    ] = None,
    run: RunOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the commit that made an engine worse.

    Builds the commits between the last good night and the first bad one, and measures each beside the good one.
    """
    from pipeline.nightly.bisecting import start_bisection

    asked, folder = _load(matrix)
    found = start_bisection(
        asked,
        folder,
        cell=cell,
        metric=metric,
        good=good,
        bad=bad,
        run=run,
        store=store,
        tell=lambda text: typer.echo(text, err=as_json),
    )
    typer.echo(found.model_dump_json(indent=2) if as_json else found.sentence)
    if not found.reproduced:
        raise typer.Exit(1)


def _load(path: Path) -> "tuple[Matrix, Path]":
    from pipeline.nightly.matrix import load_matrix

    return load_matrix(path), path.absolute().parent


def _compose(history: "HistoryStore", matrix: "Matrix", run: "Run") -> "NightReport":
    from pipeline.nightly.report.compose import compose

    return compose(history, matrix, run)


def _show(
    history: "HistoryStore", matrix: "Matrix", run: "Run", *, output: Path | None, github: bool, as_json: bool
) -> None:
    """Write the pages, tell what is in them, and leave with their exit code."""
    import shutil

    from pipeline.nightly.report.files import add_to_step_summary, write_night
    from pipeline.nightly.report.github import annotations
    from pipeline.nightly.report.terminal import summary

    found = _compose(history, matrix, run)
    folder = output or history.files / "reports" / run.id
    write_night(folder, found)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        typer.echo(summary(found, shutil.get_terminal_size().columns))
        typer.echo(f"\ndashboard  {folder / 'index.html'}")
    if github:
        for line in annotations(found):
            typer.echo(line, err=as_json)
        add_to_step_summary(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _chosen(report: "NightReport", cell: str | None, metric: str | None) -> "list[SeriesReport]":
    from targets.errors import UnknownNameError

    cells = {f"{one.series.recipe}@{one.series.device}" for one in report.series}
    if cell is not None and cell not in cells:
        raise UnknownNameError("cell", cell, cells)
    metrics = {one.series.metric for one in report.series}
    if metric is not None and metric not in metrics:
        raise UnknownNameError("metric", metric, metrics)
    return [
        one
        for one in report.series
        if cell in (None, f"{one.series.recipe}@{one.series.device}") and metric in (None, one.series.metric)
    ]


def _where(cell: str | None, metric: str | None) -> str:
    return (f" of {cell}" if cell else "") + (f" in {metric}" if metric else "")


def _refuse_unfinished(run: "Run") -> None:
    from targets.errors import InputError

    if run.ended is None:
        raise InputError(f"run {run.id!r} is not over; vitrim nightly run MATRIX goes on with it")


def _who() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


def _end_on_sigterm() -> None:
    """Service managers end with SIGTERM: as Ctrl-C does, it leaves a run that goes on the next time."""
    import signal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
