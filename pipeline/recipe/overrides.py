"""`--set key=value`: written into a recipe's data before it is checked, so that a wrong one is told like any other."""

from collections.abc import Sequence
from typing import Any

from pipeline.recipe.text import Place, read_value, spell
from targets.errors import suggest


class _WrongPlaceError(Exception):
    """An override names a place that the recipe does not have."""


def apply_overrides(data: dict[str, Any], pairs: Sequence[str]) -> tuple[set[Place], list[str]]:
    """Write `key=value` pairs into a recipe's data; returns the places that were set, and what is wrong.

    A key is spelled as in the recipe, with dots: `budget.accuracy_drop_points`, `data.fit.limit`. A step is named by
    its stage (`steps.prune_mlp.keep`), the second of a stage with its number (`steps.distill#2.lr`), any by its
    position from 0 (`steps.1.lr`). A value is YAML: `0.5`, `[0, 1]`, `null`, `some text`.
    """
    places: set[Place] = set()
    problems = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            problems.append(f"--set {pair!r} is not KEY=VALUE; write it like steps.prune_mlp.keep=0.5")
            continue
        try:
            value = read_value(text)
        except ValueError as error:
            problems.append(f"--set {pair!r}: {error}")
            continue
        try:
            places.add(_write(data, key.strip().split("."), value))
        except _WrongPlaceError as error:
            problems.append(f"--set {pair!r}: {error}")
    return places, problems


def _write(data: dict[str, Any], words: list[str], value: Any) -> Place:
    if words[0] == "steps" and len(words) > 1:
        place, options = _step(data, words[1], words[2:])
        words = [word for word in words[2:] if word != place[-1]] if words[2:3] == [place[-1]] else words[2:]
        if not words:
            raise _WrongPlaceError(f"name an option of {place[-1]} too, like steps.{place[-1]}.OPTION=VALUE")
    else:
        place, options = (), data
    for word in words[:-1]:
        if options.get(word) is None:
            options[word] = {}
        if not isinstance(options[word], dict):
            raise _WrongPlaceError(f"{spell((*place, word))} has no keys of its own, it is {options[word]!r}")
        options, place = options[word], (*place, word)
    options[words[-1]] = value
    return (*place, words[-1])


def _step(data: dict[str, Any], name: str, rest: list[str]) -> tuple[Place, dict[str, Any]]:
    """Find a step by its stage, `stage#2` or position; returns its place and its options, to write into."""
    steps = data.get("steps")
    steps = steps if isinstance(steps, list) else []
    stages = [stage_of(step) for step in steps]
    wanted, _, number = name.partition("#")
    found = [index for index, stage in enumerate(stages) if stage == wanted]
    try:
        index = int(name) if name.isdigit() else found[int(number or 1) - 1]
        stage = stages[index]
    except (IndexError, ValueError):
        known = [stage for stage in stages if stage]
        raise _WrongPlaceError(f"the recipe has no step {name!r}; {suggest(wanted, known)}") from None
    if stage is None:
        raise _WrongPlaceError(f"step {index} of the recipe is no stage with options")
    if isinstance(steps[index], str) or steps[index][stage] is None:
        steps[index] = {stage: {}}
    options = steps[index][stage]
    if not isinstance(options, dict):
        raise _WrongPlaceError(f"the options of step {name!r} must be keys and values, they are {options!r}")
    return ("steps", index, stage), options


def stage_of(step: Any) -> str | None:
    """The stage of one element of `steps`: `export`, or `{prune_mlp: {...}}`; None where it is neither."""
    if isinstance(step, str):
        return step
    if isinstance(step, dict) and len(step) == 1:
        return str(next(iter(step)))
    return None
