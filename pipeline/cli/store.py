"""`vitrim store`: list, clean and verify the finished artifacts."""

import json
from typing import Annotated

import typer

from pipeline.cli.options import JsonOption, StoreOption, open_store

app = typer.Typer(
    help="List, clean and verify the store of finished artifacts.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_entries(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List finished artifacts: key, stage, size, age."""
    from rich.console import Console
    from rich.table import Table

    entries = sorted(open_store(store).entries(), key=lambda entry: entry.manifest.finished_at)
    if as_json:
        typer.echo(json.dumps([entry.manifest.model_dump(mode="json") for entry in entries], indent=2))
        return
    table = Table("key", "stage", "MB", "seconds", "finished", box=None, pad_edge=False)
    for entry in entries:
        size = sum(file.size_bytes for file in entry.manifest.files.values()) / 1e6
        when = entry.manifest.finished_at.strftime("%Y-%m-%d %H:%M")
        table.add_row(
            entry.manifest.key[:12], entry.manifest.stage, f"{size:.1f}", f"{entry.manifest.seconds:.1f}", when
        )
    Console().print(table if entries else "the store is empty")


@app.command()
def gc(
    store: StoreOption = None,
    keep_days: Annotated[float, typer.Option(help="Keep what was used within this many days.")] = 30.0,
    max_gb: Annotated[float | None, typer.Option(help="Also remove the least recently used above this size.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove artifacts that were not used for a while, and leftovers of dead processes."""
    freed = open_store(store).gc(
        keep_days=keep_days, max_bytes=None if max_gb is None else int(max_gb * 1e9), dry_run=dry_run
    )
    typer.echo(f"{'would free' if dry_run else 'freed'} {freed.bytes / 1e6:.1f} MB in {freed.entries} entries")


@app.command()
def verify(store: StoreOption = None) -> None:
    """Check every file of the store against its SHA-256; exit 1 when something is broken."""
    problems = open_store(store).verify()
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo("every artifact is complete")
