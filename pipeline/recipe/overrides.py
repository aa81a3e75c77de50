"""`--set key=value`: written into a recipe's data before it is checked, so that a wrong one is told like any other."""

from collections.abc import Sequence
from typing import Any

from targets.errors import suggest
from targets.strict_yaml import COMMAND_LINE, MAX_DEPTH, Document, Place, read_value, show, spell


def apply_overrides(document: Document, pairs: Sequence[str]) -> None:
    """Write `key=value` pairs into a recipe's data, one after the other; tells what is wrong with them.

    A key is spelled as in the recipe, with dots: `budget.accuracy_drop_points`, `data.fit.limit`. A step is named by
    its stage (`steps.prune_mlp.keep`), by stage and number where it stands more than once (`steps.distill#2.lr`), or
    as in messages, by its position from 0 (`steps[1].distill.lr`, `steps.1.distill.lr`). A value is YAML: `0.5`,
    `[0, 1]`, `null`, `some text`.
    """
    for pair in pairs:
        key, equals, text = pair.partition("=")
        words = key.strip().replace("[", ".").replace("]", "").split(".")
        try:
            if not equals or not all(words):
                raise ValueError("must be KEY=VALUE, like steps.prune_mlp.keep=0.5")
            if len(words) > MAX_DEPTH:
                raise ValueError(f"has {len(words)} keys, one in the other; a recipe has at most {MAX_DEPTH}")
            _write(document, words, read_value(text))
        except ValueError as error:
            document.problems.append((COMMAND_LINE, f"--set {show(pair)}: {error}"))


def stage_of(step: Any) -> str | None:
    """The stage of one element of `steps`: `export`, or `{prune_mlp: {...}}`; None where it is neither."""
    if isinstance(step, str):
        return step
    if isinstance(step, dict) and len(step) == 1:
        return str(next(iter(step)))
    return None


def _write(document: Document, words: list[str], value: Any) -> None:
    """Write one value, making the mappings around it where there are none; ValueError where something else stands."""
    around: Any = document.data
    place: Place = ()
    *outer, last = _with_step(document.data, words)
    for word in outer:
        key = _key(around, word, place)
        place = (*place, key)
        inner = around.get(key) if isinstance(around, dict) else around[key]
        if inner is None:
            around[key] = inner = {}
            document.lines[place] = COMMAND_LINE
        around = inner
    key = _key(around, last, place)
    place = (*place, key)
    around[key] = value
    document.lines = {known: line for known, line in document.lines.items() if known[: len(place)] != place}
    document.lines[place] = COMMAND_LINE


def _key(around: Any, word: str, place: Place) -> Any:
    """A word as the key or position that it is in what stands around it."""
    if isinstance(around, dict):
        return word
    if not isinstance(around, list):
        raise ValueError(f"{spell(place)} is {show(around)} and has no keys")
    if word not in map(str, range(len(around))):
        raise ValueError(f"{spell(place)} has {len(around)} elements, counted from 0; there is no {show(word)}")
    return int(word)


def _with_step(data: dict[str, Any], words: list[str]) -> list[str]:
    """Words that name a step as its position and stage; a stage without options is given none to write into."""
    steps = data.get("steps") or []
    if words[0] != "steps" or len(words) == 1 or not isinstance(steps, list):
        return words
    name, rest = words[1], words[2:]
    position = name if name.isdecimal() else _position(steps, name)
    _key(steps, position, ("steps",))
    stage = stage_of(steps[int(position)])
    if name.isdecimal():
        if not rest:
            return words  # the whole step
        if stage is None:
            raise ValueError(f"steps[{name}] is not a stage with its options, it is {show(steps[int(name)])}")
        if rest[0] != stage:
            raise ValueError(f"step {position} is {stage!r}, not {rest[0]!r}; write steps.{position}.{stage}.OPTION")
        rest = rest[1:]
    if isinstance(steps[int(position)], str):
        steps[int(position)] = {stage: None}
    return ["steps", position, str(stage), *rest]


def _position(steps: list[Any], name: str) -> str:
    """Position of the step with this name: its stage, or stage#2 for the second of one kind."""
    wanted, numbered, number = name.partition("#")
    found = [str(index) for index, step in enumerate(steps) if stage_of(step) == wanted]
    if len(found) > 1 and not numbered:
        names = " or ".join(f"steps.{wanted}#{count}" for count in range(1, len(found) + 1))
        raise ValueError(f"{wanted!r} stands {len(found)} times; write {names}")
    if not found or (numbered and number not in map(str, range(1, len(found) + 1))):
        known = [stage for step in steps if (stage := stage_of(step))]
        raise ValueError(f"the recipe has no step {show(name)}; {suggest(wanted, set(known))}")
    return found[int(number or 1) - 1]
