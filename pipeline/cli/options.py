"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="VITRIM_STORE", help="Where finished artifacts are kept.", show_default="user cache"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. steps.prune_mlp.keep=0.5."),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", metavar="NAME", help="Build for this target instead of the recipe's; repeatable."),
]


CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Take the model's weights from this file instead of the hub (model.checkpoint)."),
]


def open_store(root: Path | None):  # type: ignore[no-untyped-def]  # keeps pydantic out of --help
    """Open the store that the option names, else the default one."""
    from pipeline.store import Store, default_store_root

    return Store(root or default_store_root())
