"""Matrix: which recipes run on which devices every night, how, and when a change counts. One YAML file."""

import math
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.nightly.rules import Policy
from pipeline.recipe.paths import make_absolute
from stages.data.source import DataSource
from targets.errors import InputError
from targets.measure.measurement import Level
from targets.problems import check
from targets.record import Record, digest_of
from targets.strict_yaml import read_document, read_file

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DURATION = r"^[0-9]+(\.[0-9]+)?(h|m|s)$"
CLOCK = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
SECONDS = {"h": 3600, "m": 60, "s": 1}
Name = Annotated[str, Field(pattern=NAME)]


class MatrixRecipe(Record):
    """One row of the matrix: a recipe, and where it runs."""

    recipe: Path = Field(description="a recipe's YAML file")
    name: str | None = Field(default=None, pattern=NAME, description="what the history calls it; default: the recipe's")
    devices: tuple[Name, ...] | None = Field(
        default=None, min_length=1, description="only these of the matrix' devices; null: all"
    )
    evaluate: DataSource | None = Field(
        default=None, description="images whose answers are compared from night to night; null: the recipe's own"
    )
    overrides: tuple[str, ...] = Field(default=(), description="as after --set: steps.prune_mlp.keep=0.5")


class History(Record):
    """Where the nights are kept."""

    url: str | None = Field(
        default=None,
        pattern=r"^(sqlite|postgresql)(\+[a-z0-9]+)?://",
        description="sqlite:///FILE or postgresql://USER@HOST/NAME; null: history.sqlite in `files`",
    )
    files: Path | None = Field(
        default=None, description="folder of raw samples, answers and engines; null: NAME.nights beside the matrix"
    )
    keep_engines: int = Field(default=30, ge=1, description="nights whose engines stay for re-runs; samples stay all")


class Matrix(Record):
    """What runs every night."""

    format: Literal["vitrim.matrix/1"]
    name: Name = Field(description="what reports call it")
    recipes: tuple[MatrixRecipe, ...] = Field(min_length=1)
    devices: tuple[Name, ...] = Field(min_length=1, description="names in the devices file")
    devices_file: Path | None = Field(
        default=None, description="null: VITRIM_DEVICES, else devices.yaml beside the matrix, else the user's own"
    )
    level: Level = Field(default="full", description="how much is measured: full, or quick (no p99, no energy)")
    rerun_level: Level = Field(default="full", description="the same for a re-run beside the last good engine")
    deadline: str = Field(
        default="8h", pattern=f"{DURATION}|{CLOCK}", description="of a run: 6h, 90m, or a local time like 06:30"
    )
    retries: int = Field(default=2, ge=0, le=10, description="more tries of a cell whose device was lost")
    retry_wait: str = Field(default="30s", pattern=DURATION, description="before the first of them; doubled each time")
    busy_wait: str = Field(default="30m", pattern=DURATION, description="for a board that somebody else holds")
    policy: Policy = Field(default=Policy(), description="when a change counts")
    release: str | None = Field(
        default=None, description="run that a creep is held against; null: the last one of `vitrim nightly pin`"
    )
    history: History = History()

    @model_validator(mode="after")
    def _is_consistent(self) -> "Matrix":
        twice = sorted({name for name in self.devices if self.devices.count(name) > 1})
        if twice:
            raise ValueError(f"devices names {twice[0]!r} twice")
        for row in self.recipes:
            unknown = [name for name in row.devices or () if name not in self.devices]
            if unknown:
                raise ValueError(
                    f"recipe {row.recipe.name!r} names the device {unknown[0]!r}, which is not among devices: "
                    f"{', '.join(self.devices)}"
                )
        return self

    def digest(self) -> str:
        """What a run is planned by: a matrix that asks for other cells is another one."""
        plain = self.model_dump(mode="json", include={"name", "recipes", "devices", "level"})
        return digest_of(plain)


def load_matrix(path: Path | str) -> Matrix:
    """Read a matrix. Raises RecipeError with every problem, InputError where it cannot be read at all."""
    path = Path(path)
    text = read_file(path, what="matrix", hint="; docs/nightly.md shows one to start from")
    document = read_document(text, origin=f"matrix {str(path)!r}")
    schema = matrix_schema()
    make_absolute(document, schema, path.absolute().parent)
    matrix = check(Matrix, document.data, document, schema=schema)
    document.refuse_problems()
    assert matrix is not None  # else a problem was told
    return with_places(matrix, path.absolute().parent)


def with_places(matrix: Matrix, folder: Path) -> Matrix:
    """The same with the places of its history filled in."""
    files = matrix.history.files or folder / f"{matrix.name}.nights"
    url = matrix.history.url or f"sqlite:///{files / 'history.sqlite'}"
    if url.startswith("sqlite") and "///" not in url:
        raise InputError(f"matrix {matrix.name!r}: history.url must be sqlite:///FILE with three slashes, got {url!r}")
    return matrix.model_copy(update={"history": matrix.history.replace(files=files, url=url)})


def matrix_schema() -> dict[str, Any]:
    """The JSON Schema of a matrix, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Matrix.model_json_schema(),
        "title": "vitrim nightly matrix",
    }


def seconds_of(duration: str) -> float:
    """`90m` in seconds."""
    if not re.fullmatch(DURATION, duration):
        raise ValueError(f"a duration is 6h, 90m or 30s, got {duration!r}")
    return float(duration[:-1]) * SECONDS[duration[-1]]


def deadline_after(deadline: str, start: datetime) -> datetime:
    """When a run that began at `start` (with its time zone) has to end; a time of day is the next one, local."""
    if re.fullmatch(CLOCK, deadline):
        hour, minute = map(int, deadline.split(":"))
        local = start.astimezone()
        end = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return end if end > local else end + timedelta(days=1)
    seconds = seconds_of(deadline)
    return start + timedelta(seconds=seconds) if math.isfinite(seconds) else datetime.max.replace(tzinfo=start.tzinfo)
