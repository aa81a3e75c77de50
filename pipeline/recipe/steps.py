"""The steps of a recipe: each a stage with its options, in an order in which every one finds what it works on."""

from collections import Counter
from typing import Any

from pipeline.recipe.model import IMPLIED, Step, known_stages
from pipeline.recipe.overrides import stage_of
from stages.artifact import Format
from stages.catalog import get_stage
from stages.stage import Stage
from targets.errors import suggest
from targets.problems import check
from targets.record import Record
from targets.strict_yaml import Document, Place, show, spell

Written = tuple[Place, Stage[Any], Record | None]
"""where a step stands, its stage, and its options or None where they are wrong"""


_INSTEAD = {
    "source": "is part of every build, and `model` says what it reads",
    "source_onnx": "is part of a build whose model is an ONNX file, as `model.onnx` says",
    "compile": "is part of every build, and the targets say what is compiled",
    "offers": "runs by itself where prune has blocks: auto",
    "random_weights": "runs by itself where prune has blocks: auto",
}


def read_steps(document: Document) -> tuple[Step, ...]:
    """Return the steps with `export` where it is needed; tells what is wrong with them."""
    written = _written(document)
    ordered = _in_order(written, document)
    _check_images(written, document)
    steps: list[Step] = []
    times: Counter[str] = Counter()
    for _, stage, options in ordered:
        times[stage.name] += 1
        title = stage.name if times[stage.name] == 1 else f"{stage.name}#{times[stage.name]}"
        if options is not None:
            steps.append(Step(stage=stage.name, options=options, title=title))
    return tuple(steps)


def _written(document: Document) -> list[Written]:
    """Every step whose stage is known."""
    given = document.data.get("steps")
    if given is None:
        return []
    if not isinstance(given, list):
        document.tell(("steps",), f"must be a list of stages, each after a dash, got {show(given)}")
        return []
    found: list[Written] = []
    for index, one in enumerate(given):
        place: Place = ("steps", index)
        name = stage_of(one)
        if name is None:
            document.tell(place, _not_a_step(one))
        elif name in IMPLIED:
            document.tell(place, f"stage {name!r} {_INSTEAD[name]}; remove this step")
        elif name not in known_stages():
            document.tell(place, f"unknown stage {show(name)}; {_suggest_stage(name)}")
        else:
            stage = get_stage(name)
            options = one[name] if isinstance(one, dict) else None
            checked = check(stage.options, {} if options is None else options, document, place=(*place, name))
            found.append((place, stage, checked))
    return found


def _suggest_stage(name: str) -> str:
    near = suggest(name, known_stages())
    return near if near.startswith("known") else f"{near} known: {', '.join(known_stages())}"


def _not_a_step(given: Any) -> str:
    """Say what to write; keys beside a stage are mostly its options, indented too little."""
    if isinstance(given, dict) and (stage := next((key for key in given if key in known_stages()), None)):
        options = show({key: value for key, value in given.items() if key != stage})
        return f"a step is one stage; if these are options of {stage}, write {stage}: {options}"
    return f"must be a stage, or a stage with its options, like prune_mlp: {{keep: 0.75}}, got {show(given)}"


def _in_order(written: list[Written], document: Document) -> list[Written]:
    """Steps that find what they work on, with `export` put in; tells of the others."""
    ordered: list[Written] = []
    holds, maker = Format.VIT, ""
    given = document.data.get("model")
    starts_as_graph = isinstance(given, dict) and "onnx" in given
    if starts_as_graph:
        holds, maker = Format.ONNX, "model.onnx"
    before: set[str] = set()
    export = next((spell(place) for place, stage, _ in written if stage.name == "export"), None)
    for place, stage, options in written:
        name, problem = stage.name, None
        if stage.produces == Format.ONNX and name in before:
            problem = f"{name} stands before already; a graph is made and quantized once; remove this step"
        elif getattr(options, "blocks", None) == "auto" and "prune" in before:
            problem = "prune stands before already, and only one may have blocks: auto, as the first; give blocks here"
        elif name == "finetune" and before - {"finetune"}:
            problem = "finetune makes the model that all else is compared with; put it before the other steps"
        elif stage.consumes == Format.VIT and starts_as_graph:
            problem = (
                f"{name} works on a model that torch runs, and model.onnx is a graph; only quantize may stand here"
            )
        elif name in ("export", "quantize") and "quantize_aware" in before:
            problem = f"{name} does what {maker} has done already: it leaves an int8 graph; remove this step"
        elif name == "quantize_aware" and holds == Format.ONNX:
            problem = f"{name} trains a model and writes its int8 graph itself; put it in the place of {maker}"
        elif stage.consumes == Format.VIT and holds == Format.ONNX:
            problem = f"{name} works on a model, but {maker} has made an ONNX graph of it; put {name} before that"
        elif stage.consumes == Format.ONNX and holds == Format.VIT and export:
            problem = f"{name} works on an ONNX graph, but export comes later, as {export}; put {name} behind it"
        if problem:
            document.tell(place, problem)
            continue
        if stage.consumes != holds:
            ordered.append(_export())
            before.add("export")
        if stage.produces != holds:
            maker = f"{spell(place)}.{name}"
        ordered.append((place, stage, options))
        before.add(name)
        holds = stage.produces
    return ordered if holds == Format.ONNX else [*ordered, _export()]


def _export() -> Written:
    """The step that is put in where nobody wrote it."""
    stage = get_stage("export")
    return (), stage, stage.options()


def _check_images(written: list[Written], document: Document) -> None:
    """Tell which roles have no images although a step reads them."""
    data = document.data.get("data") or {}
    if not isinstance(data, dict):
        return  # told already
    readers: dict[str, list[str]] = {}
    for place, stage, options in written:
        for role in stage.roles(options) if options is not None else ():
            readers.setdefault(role.value, []).append(f"{spell(place)}.{stage.name}")
    for name, steps in readers.items():
        if data.get(name) is None:
            document.tell(("data", name), f"is missing; {', '.join(steps)} cannot work without these images")
    if not readers and all(data.get(role) is None for role in ("select", "fit", "train")):
        document.tell(("data", "select"), "is missing; engines are compared on these images")
