"""Commands of targets: list, show, new, probe."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import JsonOption

if TYPE_CHECKING:
    from targets.board import Board
    from targets.profile import TargetProfile

app = typer.Typer(
    help="List targets, show what is in force, write your own, probe this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_targets(as_json: JsonOption = False) -> None:
    """List the targets that ship with vitrim."""
    from rich.console import Console
    from rich.table import Table

    from targets.profile import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    if as_json:
        typer.echo(json.dumps([profile.model_dump(mode="json") for profile in profiles], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("target", "kind", "runtimes", "verified", "what it is"):
        table.add_column(heading, no_wrap=heading in ("target", "kind", "verified"))
    for profile in profiles:
        runtimes = "none" if profile.status == "unsupported" else ", ".join(one.name for one in profile.runtimes)
        verified = profile.status if profile.status == "unsupported" else profile.verified
        table.add_row(profile.name, profile.board.kind, runtimes, verified, profile.summary)
    console = Console()
    console.print(table)
    console.print("\n`vitrim targets show TARGET` prints all of one", markup=False, highlight=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A target's name or the path of your own YAML file.", metavar="TARGET")],
    as_json: JsonOption = False,
) -> None:
    """Print what is in force for a target, with sources.

    What it extends is merged in, defaults are written out. The YAML is a profile of its own.
    """
    import yaml

    from targets.profile import base_of, load_profile

    profile = load_profile(name)
    facts = profile.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps({**facts, "extends": base_of(name)}, indent=2, ensure_ascii=False))
        return
    for line in _notes(profile, base_of(name)):
        typer.echo(f"# {line}")
    typer.echo(yaml.safe_dump(_short(facts), sort_keys=False, allow_unicode=True, width=64).rstrip())


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What the target is called, e.g. lab-server.", metavar="NAME")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="NAME.yaml")
    ] = None,
) -> None:
    """Write a profile of this machine, to start from.

    It holds what `vitrim targets probe` finds, and is loaded and checked. Nothing is overwritten.
    """
    from pipeline.newtarget import write_target
    from targets.facts import probe as look
    from targets.jetson import read_jetson
    from targets.profile import load_profile

    path = output or Path(f"{name}.yaml")
    write_target(name, path, facts=look(), jetson=read_jetson())
    profile = load_profile(path)
    typer.echo(f"{path}: {profile.summary}; {', '.join(one.name for one in profile.runtimes)}")
    typer.echo(f"next: vitrim doctor --target {path}")


@app.command()
def probe() -> None:
    """Print what this machine is (JSON): processor, instruction sets, memory, runtimes."""
    from targets.facts import probe as look

    typer.echo(json.dumps(look(), indent=2, sort_keys=True))


def _notes(profile: "TargetProfile", base: str | None) -> list[str]:
    """What the values do not say by themselves."""
    notes = [f"extends {base}, whose values are written out here"] if base else []
    if profile.status == "unsupported":
        notes.append("unsupported: nothing can be built for it, see `reason`")
    if profile.verified == "not yet":
        notes.append("not yet run on hardware")
    notes += [one for one in (_hardware(profile.board),) if one]
    sure = {found["confidence"] for found in _sourced(profile.board.model_dump(mode="json"))}
    if "recalled" in sure:
        notes.append("figures that are `recalled` were not read again: check before you rely on them")
    return notes


def _hardware(board: "Board") -> str:
    """Memory, clock and power in one line; empty where nothing is known of them."""
    gpu = board.gpu
    parts = []
    if board.memory_gb is not None:
        parts.append(f"{board.memory_gb.value:g} GB")
    if board.memory_bandwidth_gb_s is not None:
        parts.append(f"{board.memory_bandwidth_gb_s.value:g} GB/s")
    if gpu is not None and gpu.multiprocessors is not None:
        clock = f" at up to {gpu.clock_mhz.value:g} MHz" if gpu.clock_mhz is not None else ""
        parts.append(f"{gpu.multiprocessors.value:g} multiprocessors{clock}")
    watts = [f"{one.value:g}" for one in (board.power_min_w, board.power_max_w) if one is not None]
    if watts:
        parts.append(f"{' to '.join(watts)} W")
    return ", ".join(parts)


def _sourced(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    if "confidence" in value:
        return [value]
    return [found for inner in value.values() for found in _sourced(inner)]


def _short(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what is absent of the hardware: it would be a page of nulls."""
    absent: dict[str, Any] = {"extends": None, "reason": None}
    shown = {key: value for key, value in facts.items() if key not in absent or value is not None}
    for key in ("board", "software", "power"):
        shown[key] = {name: value for name, value in shown[key].items() if value not in (None, [], {})}
    if "gpu" in shown["board"]:
        shown["board"]["gpu"] = {name: value for name, value in shown["board"]["gpu"].items() if value is not None}
    return {key: value for key, value in shown.items() if value != {}}
