"""A recipe's text → Recipe, with every problem told at once."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.keys import ROOT
from pipeline.recipe.model import Recipe
from pipeline.recipe.overrides import apply_overrides
from pipeline.recipe.paths import make_absolute
from pipeline.recipe.schema import recipe_schema
from pipeline.recipe.steps import read_steps
from targets.errors import InputError, RecipeError, suggest
from targets.problems import check
from targets.profile import load_profile, refuse_unsupported
from targets.strict_yaml import Document, Place, read_document, read_file, spell


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe. Raises RecipeError with every problem, InputError where it cannot be read at all.

    overrides: `key=value` pairs, as after --set.
    """
    path = Path(path)
    text = read_file(path, what="recipe", hint="; `vitrim init` writes one to start from")
    return parse_recipe(text, origin=f"recipe {str(path)!r}", folder=path.absolute().parent, overrides=overrides)


def parse_recipe(text: str, *, origin: str, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Make a recipe of its text. folder: what its relative paths start from; those of overrides start here."""
    document = read_document(text, origin=origin)
    apply_overrides(document, overrides)
    schema = recipe_schema()
    make_absolute(document, schema, folder)
    for key in document.data:
        if key not in schema["properties"]:
            document.tell((key,), f"unknown key; {suggest(key, schema['properties'])}")
    steps = read_steps(document)
    rest = {key: value for key, value in document.data.items() if key in schema["properties"] and key != "steps"}
    recipe = check(Recipe, rest, document, schema=schema)
    _check_targets(document)
    document.refuse_problems()
    assert recipe is not None  # else a problem was told
    return recipe.model_copy(update={"steps": steps, "text": text})


def demo_recipe_path() -> Path:
    """The embedded demo: handwritten digits and a small model."""
    installed = Path(__file__).with_name("digits.yaml")  # the wheel packs it here
    return installed if installed.is_file() else ROOT / "recipes" / "digits.yaml"


def _check_targets(document: Document) -> None:
    """Tell which targets are not there, are wrong, or would write over each other's results."""
    given = document.data.get("targets")
    first: dict[str, Place] = {}
    for index, target in enumerate(given if isinstance(given, list) else ()):
        place: Place = ("targets", index)
        if not isinstance(target, str):
            continue  # told already
        try:
            profile = load_profile(target)
            refuse_unsupported(profile)
            name = profile.name
        except RecipeError as error:
            for problem in error.problems:
                document.tell(place, f"{error.origin}: {problem}")
        except InputError as error:
            document.tell(place, str(error))
        else:
            if name in first:
                document.tell(place, f"is called {name!r}, as is {spell(first[name])}; name each target once")
            first.setdefault(name, place)
