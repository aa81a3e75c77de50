"""The cells of a matrix: every recipe on every device it is meant for, grouped by what is built once."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.nightly.bench import Bench
from pipeline.nightly.builder import Unit
from pipeline.nightly.matrix import Matrix
from pipeline.nightly.night import Cell
from pipeline.recipe import Recipe, load_recipe
from stages.data.source import DataSource
from stages.stage import Role
from targets.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A cell with what it takes."""

    cell: Cell
    unit: Unit
    evaluate: DataSource | None
    """images whose answers are compared; None: only times are"""
    command: str
    """shows it again, typed in the matrix' folder"""


def plan_cells(
    matrix: Matrix, boards: Mapping[str, Bench], *, folder: Path, commit: str = "", vitrim: str = ""
) -> list[Planned]:
    """Plan every cell. folder: of the matrix. Raises RecipeError, InputError for what cannot be planned."""
    found: list[Planned] = []
    names: dict[str, Path] = {}
    for row in matrix.recipes:
        recipe = load_recipe(row.recipe, overrides=row.overrides)
        name = row.name or recipe.name
        if name in names:
            raise InputError(
                f"matrix {matrix.name!r}: two recipes are called {name!r} ({names[name]} and {row.recipe}); "
                "give one of them another `name`"
            )
        names[name] = row.recipe
        for device in row.devices or matrix.devices:
            found.append(
                _planned(matrix, boards[device], name, recipe, row.recipe, row.overrides, row.evaluate, folder)
            )
    return [
        Planned(
            cell=Cell(**{**vars(one.cell), "commit": commit, "vitrim": vitrim}),
            unit=one.unit,
            evaluate=one.evaluate,
            command=one.command,
        )
        for one in found
    ]


def by_unit(cells: Sequence[Planned]) -> dict[Unit, list[Planned]]:
    """Cells by what is built for them, in the matrix' order."""
    found: dict[Unit, list[Planned]] = {}
    for one in cells:
        found.setdefault(one.unit, []).append(one)
    return found


def _planned(
    matrix: Matrix,
    board: Bench,
    name: str,
    recipe: Recipe,
    path: Path,
    overrides: tuple[str, ...],
    evaluate: DataSource | None,
    folder: Path,
) -> Planned:
    unit = Unit(name=name, recipe=path, target=board.target, overrides=overrides)
    shown = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    output = f"out/{name}"
    measure = shlex.join(["vitrim", "validate", f"{output}/{Path(board.target).stem}/bundle", "--device", board.name])
    return Planned(
        cell=Cell(
            name=f"{name}@{board.name}", recipe=name, device=board.name, target=board.target, commit="", vitrim=""
        ),
        unit=unit,
        evaluate=evaluate or recipe.images().get(Role.EVALUATE),
        command=f"{unit.command(output, recipe=shown)} && {measure} --level {matrix.level}",
    )
