"""Commands for what is shipped: package, verify."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import JsonOption

if TYPE_CHECKING:
    from targets.bundle.verify import BundleCheck


def package(
    bundle: Annotated[
        Path,
        typer.Argument(
            help="A bundle, or the folder of a target that `vitrim build` wrote.", show_default=False, metavar="BUNDLE"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The zip to write.", show_default="beside the bundle")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", metavar="TEXT", help="Of the weights: an SPDX expression.")
    ] = None,
    licence_file: Annotated[
        Path | None, typer.Option("--licence-file", "--license-file", help="Its text: goes in as LICENSE.")
    ] = None,
    without_engine: Annotated[
        bool, typer.Option("--without-engine", help="Only the graph that runs anywhere.")
    ] = False,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Also write in-toto/SLSA provenance (unsigned).")
    ] = False,
    bom: Annotated[bool, typer.Option("--bom", help="Also write a CycloneDX bill of materials.")] = False,
    triton: Annotated[
        Path | None,
        typer.Option("--triton", metavar="FOLDER", help="Write a model repository of Triton; no zip without --output."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", metavar="N", help="Images that Triton may put together.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack a bundle into one zip.

    The same bundle and options give the same bytes. Its files are checked first.
    """
    from pipeline.packaging import package as pack
    from pipeline.packaging import package_triton
    from targets.bundle.package import Options
    from targets.errors import InputError

    if triton is None and max_batch is not None:
        raise InputError(f"--max-batch {max_batch} goes with --triton; add it, or leave it out")
    zipped_only = {"--licence": licence, "--licence-file": licence_file, "--provenance": provenance, "--bom": bom}
    unused = [name for name, value in zipped_only.items() if value]
    if triton is not None and output is None and unused:
        raise InputError(f"{unused[0]} goes with a zip; give its name with --output, or leave the option out")
    told: dict[str, Any] = {}
    lines = []
    if triton is None or output is not None:
        options = Options(licence=licence, licence_file=licence_file, engine=not without_engine)
        made, papers = pack(bundle, output, options, provenance=provenance, bom=bom)
        told |= made.model_dump(mode="json", exclude={"manifest"}) | {"papers": [str(one) for one in papers]}
        lines += [("package", made.path), ("sha256", made.sha256), ("size", f"{made.size_bytes:,} bytes")]
        lines += [("licence", made.manifest.licence), *(("paper", str(one)) for one in papers)]
    if triton is not None:
        exported = package_triton(bundle, triton, engine=not without_engine, max_batch=max_batch)
        told["triton"] = exported.model_dump(mode="json")
        batch = f"up to {exported.max_batch_size}" if exported.max_batch_size else "fixed"
        lines += [("triton", exported.path), ("model", f"{exported.model} ({exported.backend}, batch {batch})")]
        lines += [("from images", exported.ensemble), *(("note", note) for note in exported.notes)]
        lines += [("note", "Not yet run in Triton.")]
    _print(told, lines, as_json=as_json)


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder or a zip.", show_default=False, metavar="BUNDLE")],
    as_json: JsonOption = False,
) -> None:
    """Compare every file of a bundle with its manifest.

    Exit 0: complete and unchanged, 1: damaged, 2: not a bundle.
    """
    from targets.bundle.fit import engine_fit
    from targets.bundle.verify import check_bundle, told

    check = check_bundle(bundle)
    fits, reason = engine_fit(bundle, check)
    _print(
        {**told(check), "engine": {"fits_here": fits, "told": reason}},
        _lines_of(check, fits=fits, reason=reason),
        as_json=as_json,
    )
    if check.problems:
        raise typer.Exit(1)


def _lines_of(check: "BundleCheck", *, fits: bool | None, reason: str) -> list[tuple[str, str]]:
    if check.problems:
        return [("damaged", check.bundle), *(("", problem) for problem in check.problems)]
    manifest = check.manifest
    assert manifest is not None  # nothing is wrong with it
    count = len(manifest.files) + 1 + bool(manifest.sums)
    lines = [
        ("complete", f"{check.bundle}: {count} files, {check.size_bytes:,} bytes"),
        ("what", manifest.summary),
        ("licence", manifest.licence),
    ]
    if check.sha256 is not None:
        lines.append(("sha256", check.sha256))
        lines.append(("zip", "as `vitrim package` wrote it" if check.as_packed else "packed by another program"))
    lines.append(("engine", f"{ {True: 'fits this machine', False: 'not for this machine', None: 'not told'}[fits] }"))
    return [*lines, *([("", reason)] if reason else [])]


def _print(told: dict[str, Any], lines: list[tuple[str, str]], *, as_json: bool) -> None:
    """Words in two columns, folded at the terminal's width; or JSON."""
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(Text(name), Text(value))
    Console().print(table)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(package)
    app.command()(verify)
