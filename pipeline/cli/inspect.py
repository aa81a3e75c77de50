"""Commands that look and change nothing: stages, doctor, report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import JsonOption, StoreOption


def stages(
    name: Annotated[str | None, typer.Argument(help="Show the options of this stage.", metavar="[STAGE]")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the stages, or the options of one."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from stages.catalog import CATALOG, get_stage

    known = [get_stage(one) for one in ([name] if name else CATALOG)]
    if as_json:
        told = {one.name: {"summary": one.summary, "options": one.options.model_json_schema()} for one in known}
        typer.echo(json.dumps(told, indent=2))
        return
    console = Console()
    if name is None:
        table = Table("stage", "from", "to", "what it does", box=None, pad_edge=False)
        for stage in known:
            table.add_row(stage.name, stage.consumes, stage.produces, stage.summary)
        console.print(table)
        console.print("\n`vitrim stages STAGE` shows its options", markup=False, highlight=False)
        return
    (stage,) = known
    console.print(f"{stage.name}: {stage.summary}\n", markup=False, highlight=False)
    table = Table("option", "default", "what it is", box=None, pad_edge=False)
    for option, field in stage.options.model_fields.items():
        default = "required" if field.is_required() else _spelled(field.get_default(call_default_factory=True))
        table.add_row(option, escape(default), escape(field.description or ""))
    console.print(table)


def _spelled(value: object) -> str:
    """A default as a recipe would say it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def doctor(
    target: Annotated[str | None, typer.Option("--target", "-t", help="Look at what this target needs.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine lacks, with the remedy.

    Exit 1 when something needs fixing before the target can be built or measured.
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pipeline.doctor import examine
    from pipeline.store import default_store_root

    findings = examine(target, store_root=store or default_store_root())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("", "what", "found", "remedy", box=None, pad_edge=False)
        marks = {"ok": "[green]ok[/green]", "warning": "[yellow]warn[/yellow]", "fix": "[red]fix[/red]"}
        for finding in findings:
            table.add_row(marks[finding.state], escape(finding.what), escape(finding.found), escape(finding.remedy))
        Console().print(table)
    if any(finding.state == "fix" for finding in findings):
        raise typer.Exit(1)


def report(
    folder: Annotated[
        Path, typer.Argument(help="A folder that `vitrim build` wrote, or a report.json.", metavar="DIR")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show a finished report again.

    Given the folder of a build, also writes its HTML and Markdown pages anew.
    """
    from rich.console import Console

    from pipeline.report.files import read_report, write_report
    from pipeline.report.terminal import summary

    for path in _report_files(folder):
        one = read_report(path)
        if as_json:
            typer.echo(one.model_dump_json(indent=2))
            continue
        Console().print(summary(one))
        if path.name == "report.json":
            write_report(path.parent, one)
            typer.echo(f"pages: {path.parent / 'report.html'}")


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(help="Reports, folders with them, or what `validate --json` printed.", metavar="A B..."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write a page: .html or .md.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare finished results with the first of them.

    A difference counts only where the 95 % intervals lie apart; other images or machines are named, not ranked.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.compare import pages
    from pipeline.compare.entry import read_entries
    from pipeline.compare.judge import compare as judge

    entries = read_entries(results)
    comparisons = judge(entries)
    if output is not None:
        pages.write_page(output, entries, comparisons)
    if as_json:
        typer.echo(json.dumps(pages.as_json(entries, comparisons), indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in pages.HEADS:
        table.add_column(head, overflow="fold")
    for row in pages.rows(entries):
        table.add_row(*(Text(f"{value}\n{note}".rstrip()) for value, note in row))
    told = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    told.add_column(no_wrap=True)
    told.add_column(overflow="fold")
    for name, words in pages.sentences(comparisons):
        told.add_row(Text(name), Text(words))
    console = Console()
    console.print(table)
    console.print(told)
    console.print(Text(pages.NOTE), style="dim")


def _report_files(folder: Path) -> list[Path]:
    from targets.errors import InputError

    if folder.is_file():
        return [folder]
    found = [folder / "report.json"] if (folder / "report.json").is_file() else sorted(folder.glob("*/report.json"))
    if not found:
        raise InputError(
            f"no report.json in {str(folder)!r} or one folder below; give the folder that `vitrim build --output` wrote"
        )
    return found


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(stages)
    app.command()(doctor)
    app.command()(report)
    app.command()(compare)
