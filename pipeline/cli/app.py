"""The `vitrim` command: what it offers, and how errors leave it.

Exit codes: 0 done and within budget (also undecided or not measured, unless --strict), 1 over budget or failed,
2 bad input, 130 interrupted.
"""

import sys
from typing import Annotated

import typer

from pipeline.cli import build, devices, inspect, nightly, package, store, targets
from targets.errors import VitrimError

INTERRUPTED = 130

app = typer.Typer(
    name="vitrim",
    help="Prune, distil, quantize and compile a Vision Transformer for a hardware target, and prove the result on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"vitrim {version('vitrim')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


build.register(app)
inspect.register(app)
package.register(app)
app.add_typer(targets.app, name="targets")
app.add_typer(devices.app, name="devices")
app.add_typer(store.app, name="store")
app.add_typer(nightly.app, name="nightly")


def main() -> None:
    """Run the command line; known errors become one line on stderr, anything else is a defect with its traceback."""
    try:
        app()
    except VitrimError as error:
        typer.echo(f"vitrim: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer makes this of Ctrl-C
            typer.echo("\nvitrim: interrupted; nothing is lost: run the same command again to go on", err=True)
        raise
    except BrokenPipeError:
        sys.exit(1)
