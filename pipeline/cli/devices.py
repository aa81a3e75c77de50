"""`vitrim devices`: the boards that can be reached; look at them, enrol their host keys, write the agent's file."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import JsonOption

if TYPE_CHECKING:
    from targets.devices.spec import SshSpec

app = typer.Typer(help="Reach the boards that engines are measured on.", no_args_is_help=True, rich_markup_mode=None)
NameArgument = Annotated[str, typer.Argument(help="A device of the devices file.", metavar="NAME")]
DevicesOption = Annotated[
    Path | None,
    typer.Option(
        "--devices",
        envvar="VITRIM_DEVICES",
        metavar="FILE",
        help="The devices file.",
        show_default="devices.yaml, else ~/.config/vitrim/devices.yaml",
    ),
]


@app.command("list")
def list_devices(devices: DevicesOption = None, as_json: JsonOption = False) -> None:
    """List the devices of the devices file; nothing is connected."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from targets.devices.enrol import enrolled_key
    from targets.devices.spec import SshSpec, load_devices

    found = load_devices(devices)
    if as_json:
        typer.echo(json.dumps({name: one.model_dump(mode="json") for name, one in found.items()}, indent=2))
        return
    table = Table("device", "kind", "target", "where", "host key", box=None, pad_edge=False)
    for name, one in found.items():
        where, key = "this machine", ""
        if isinstance(one, SshSpec):
            where = f"{one.user}@{one.host}:{one.port}" if one.user else f"{one.host}:{one.port}"
            key = "enrolled" if enrolled_key(name, one) else "not enrolled"
        elif one.kind == "fake":
            where = f"pretended, {one.script.name}"
        table.add_row(name, one.kind, escape(one.target), escape(where), key)
    Console().print(table)


@app.command()
def probe(name: NameArgument, devices: DevicesOption = None, as_json: JsonOption = False) -> None:
    """Say what a board is, in what state, and whether it fits its target; exit 2 where it does not."""
    from rich.console import Console

    from targets.devices.board import board_obstacle
    from targets.devices.environment import environment
    from targets.devices.open import open_device
    from targets.devices.spec import get_device
    from targets.errors import DeviceRefusedError

    spec = get_device(name, devices)
    state = open_device(name, spec).probe()
    obstacle = board_obstacle(spec, state)
    if as_json:
        typer.echo(json.dumps({**state, "environment": environment(state), "obstacle": obstacle}, indent=2))
    else:
        console = Console()
        for key, value in _lines(state, environment(state)).items():
            console.print(f"{key:<22} {value}", highlight=False, markup=False)
    if obstacle is not None:
        raise DeviceRefusedError(f"device {name!r}: {obstacle}")
    if not as_json:
        typer.echo(f"\nit fits {spec.target}")


@app.command()
def enrol(
    name: NameArgument,
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="SHA256:...", help="Of its host key, as read on the board itself; then nothing is asked."),
    ] = None,
    devices: DevicesOption = None,
) -> None:
    """Write a board's host key into the project's known_hosts, once somebody compared its fingerprint.

    On the board: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub
    """
    from targets.devices.enrol import choose_key, shown_keys, write_key
    from targets.devices.spec import SshSpec, get_device
    from targets.errors import InputError

    spec = get_device(name, devices)
    if not isinstance(spec, SshSpec):
        raise InputError(f"device {name!r} is of kind {spec.kind!r} and has no host key; only kind 'ssh' is enrolled")
    key, already = choose_key(name, spec, shown_keys(spec), fingerprint=fingerprint)
    if already:
        typer.echo(f"{name} is enrolled already: {key.fingerprint} ({key.kind}) in {spec.known_hosts}")
        return
    if fingerprint is None and not _is_confirmed(name, spec, key.fingerprint, key.kind):
        raise InputError(f"device {name!r} was not enrolled")
    write_key(name, spec, key)
    typer.echo(f"{name}: {key.fingerprint} ({key.kind}) written to {spec.known_hosts}")
    typer.echo(f"next: vitrim devices probe {name}")


@app.command()
def agent(
    output: Annotated[Path, typer.Argument(help="File to write.", metavar="OUTPUT")] = Path("vitrim-agent.pyz"),
) -> None:
    """Write the agent as one file: what vitrim copies to a board by itself.

    It needs Python 3.10, numpy and the board's own runtime. The same sources give the same bytes.
    """
    from targets.atomic import write_atomic
    from targets.devices.archive import agent_bytes, agent_digest
    from targets.errors import InputError

    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(f"cannot write {str(output)!r}: give the path of a file in a folder that is there")
    write_atomic(output, agent_bytes())
    typer.echo(f"{output}: {len(agent_bytes()) / 1e3:.0f} kB, sha256 {agent_digest()}")


def _is_confirmed(name: str, spec: "SshSpec", fingerprint: str, kind: str) -> bool:
    """Ask whoever sits there."""
    from targets.errors import InputError

    if not sys.stdin.isatty():
        raise InputError(
            f"{spec.host}:{spec.port} shows {fingerprint} ({kind}); compare it on the board itself with "
            f"`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`, "
            f"then: vitrim devices enrol {name} --fingerprint {fingerprint}"
        )
    typer.echo(f"{spec.host}:{spec.port} shows this host key:\n\n  {fingerprint} ({kind})\n")
    typer.echo("Compare it on the board itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
    return str(typer.prompt("Is it the same? Type yes to enrol")) == "yes"


def _lines(state: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, object]:
    """What a person wants to know first."""
    conditions, disk = state["conditions"], state["disk"]
    heat = conditions["temperature_c"]
    return {
        "host": state["host"],
        **environment,
        "numpy": state["numpy"] or "not installed",
        "memory_available_mb": (conditions["memory_available_bytes"] or 0) // 10**6,
        "disk_free_mb": disk["free_bytes"] // 10**6,
        "load_average": conditions["load_average"][0],
        "temperature_c": "not told" if heat is None else heat,
        "throttle_count": "not told" if conditions["throttle_count"] is None else conditions["throttle_count"],
    }
