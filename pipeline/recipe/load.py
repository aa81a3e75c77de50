"""A recipe's text → Recipe, with every problem told at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.keys import ROOT
from pipeline.recipe.model import IMPLIED, Recipe, Step, known_stages
from pipeline.recipe.overrides import apply_overrides, stage_of
from pipeline.recipe.paths import Bases, fill_in
from pipeline.recipe.text import Place, read_document
from pipeline.recipe.wording import Wording
from stages.artifact import Format
from stages.catalog import get_stage
from targets.errors import InputError, RecipeError, suggest
from targets.profile import load_profile
from targets.record import Record

MAX_BYTES = 2**20


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; overrides are `key=value` pairs. Raises RecipeError with every problem, InputError otherwise."""
    path = Path(path)
    origin = f"recipe {str(path)!r}"
    try:
        if path.is_dir():
            raise InputError(f"{origin} is a folder; give the YAML file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{origin} cannot be read: {error.strerror}; `vitrim init` writes one to start from"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{origin} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse_recipe(text, origin=origin, folder=path.absolute().parent, overrides=overrides)


def parse_recipe(text: str, *, origin: str, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Make a recipe of its text. folder: what relative paths in it start from; those of overrides start here."""
    document = read_document(text, origin=origin)
    problems = list(document.problems)
    data = document.data
    if not isinstance(data, dict):
        raise InputError(
            f"{origin} must hold keys and values, it holds {'nothing' if data is None else repr(data)[:60]}"
        )
    overridden, wrong = apply_overrides(data, overrides)
    problems += wrong
    data, unset = fill_in(data)
    wording = Wording(data, document.lines, overridden)
    problems += [wording.at(place, problem) for place, problem in unset.items()]
    reader = _Reader(data, wording, Bases(folder, overridden))
    recipe = reader.read(text)
    problems += reader.problems
    if problems or recipe is None:
        raise RecipeError(origin, problems)
    return recipe


def demo_recipe_path() -> Path:
    """The embedded demo: handwritten digits and a small model."""
    return ROOT / "recipes" / "digits.yaml"


class _Reader:
    """Makes the recipe's parts and collects what is wrong with them."""

    def __init__(self, data: dict[str, Any], wording: Wording, bases: Bases) -> None:
        self.problems: list[str] = []
        self._data, self._wording, self._bases = data, wording, bases

    def read(self, text: str) -> Recipe | None:
        """The recipe, or None where something is wrong that leaves none."""
        steps = self._steps()
        head = {name: value for name, value in self._data.items() if name not in ("steps", "text")}
        recipe = None
        try:
            recipe = Recipe.model_validate(head)
        except ValidationError as error:
            self.problems += self._wording.of(error, Recipe)
        if "text" in self._data:
            self._tell(("text",), f"unknown key; {suggest('text', set(Recipe.model_fields) - {'text'})}")
        self._targets()
        if recipe is None:
            self._order(steps, roles=None)
            return None
        recipe = recipe.model_copy(update={**self._bases.within(recipe, ()), "text": text})
        self._files(recipe)
        ordered = self._order(steps, roles={role.value for role in recipe.images()})
        targets = tuple(self._target(name, index) for index, name in enumerate(recipe.targets))
        return recipe.model_copy(update={"steps": ordered, "targets": targets})

    def _tell(self, place: Place, problem: str) -> None:
        self.problems.append(self._wording.at(place, problem))

    # Steps.

    def _steps(self) -> list[tuple[Place, str, Record]]:
        """Every step that can be read: where it stands, its stage, its options."""
        given = self._data.get("steps")
        if given is None:
            return []
        if not isinstance(given, list):
            self._tell(("steps",), f"must be a list of stages, one a line after a dash, got {given!r:.60}")
            return []
        found = []
        for index, one in enumerate(given):
            place: Place = ("steps", index)
            stage = stage_of(one)
            if stage is None:
                self._tell(
                    place, "must be a stage, or a stage with its options: `- export` or `- prune_mlp: {keep: 0.75}`"
                )
            elif stage in IMPLIED:
                told = "say under `model` what it reads" if stage == "source" else "it ends every build"
                self._tell(place, f"{stage!r} is never written here; {told}")
            elif stage not in known_stages():
                self._tell(place, f"unknown stage {stage!r}; {suggest(stage, known_stages())}")
            else:
                options = self._options((*place, stage), stage, one[stage] if isinstance(one, dict) else {})
                if options is not None:
                    found.append((place, stage, options))
        return found

    def _options(self, place: Place, stage: str, given: Any) -> Record | None:
        if given is not None and not isinstance(given, dict):
            self._tell(place, f"options must be keys and values, got {given!r:.60}")
            return None
        model = get_stage(stage).options
        try:
            options: Record = model.model_validate(given or {})
        except ValidationError as error:
            self.problems += self._wording.of(error, model, place)
            return None
        return options.model_copy(update=self._bases.within(options, place))

    def _order(self, steps: list[tuple[Place, str, Record]], *, roles: set[str] | None) -> tuple[Step, ...]:
        """Check what each step works on and reads, put `export` where it is needed, give every step its title."""
        ordered: list[Step] = []
        holds = Format.VIT

        def append(name: str, options: Record) -> None:
            number = 1 + sum(step.stage == name for step in ordered)
            ordered.append(Step(stage=name, options=options, title=name if number == 1 else f"{name}#{number}"))

        for place, name, options in steps:
            stage = get_stage(name)
            if stage.consumes == Format.ONNX and holds == Format.VIT:
                append("export", get_stage("export").options())
                holds = Format.ONNX
            if stage.consumes != holds:
                self._tell(
                    place,
                    f"{name} works on a model in format {stage.consumes}, but export made it {holds} before; "
                    f"put {name} before export",
                )
                continue
            if name == "finetune" and any(step.stage != "finetune" for step in ordered):
                self._tell(place, "finetune trains the source model that all else is compared with; put it first")
                continue
            for role in stage.roles(options):
                if roles is not None and role.value not in roles:
                    self._tell(
                        place,
                        f"{name} reads images for {role.value!r}, but the recipe has no data.{role.value}; add it",
                    )
            append(name, options)
            holds = stage.produces
        if holds == Format.VIT:
            append("export", get_stage("export").options())
        return tuple(ordered)

    # What is named must be there.

    def _targets(self) -> None:
        given = self._data.get("targets", ["cpu"])
        for index, name in enumerate(given if isinstance(given, list) else []):
            if isinstance(name, str):
                try:
                    load_profile(self._target(name, index))
                except InputError as error:
                    self._tell(("targets", index), str(error))

    def _target(self, name: str, index: int) -> str:
        """A target's name, or the absolute path of the user's own file."""
        is_path = name.endswith((".yaml", ".yml")) or len(Path(name).parts) > 1
        return str(self._bases.absolute(Path(name), ("targets", index))) if is_path else name

    def _files(self, recipe: Recipe) -> None:
        for option, path in recipe.model.files().items():
            if not path.exists():
                kind = "folder" if option == "folder" else "file"
                self._tell(("model", option), f"there is no {kind} {str(path)!r}")
        texts = recipe.measure.text_embeddings
        if texts is not None and not Path(texts).is_file():
            self._tell(("measure", "text_embeddings"), f"there is no file {texts!r}")
