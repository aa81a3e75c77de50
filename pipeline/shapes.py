"""Shapes of the model before anything runs: parameters and MACs of the source, and after each step that changes them.

Counted on specs, so that a model of billions of parameters needs no memory. Papers count a tower without its classifier
(ViT-B/16: 85.8 M), but CLIP's image towers with their projection, which timm calls the head (EVA-CLIP-E: 4351 M): both
numbers are told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.plan import Plan
from pipeline.planner import PlannedStep
from pipeline.store import Store
from stages.artifact import Format
from stages.catalog import get_stage
from stages.graph.described import Described, macs_of, params_of, parts_of, read_described
from stages.vit.spec import ViTSpec

if TYPE_CHECKING:
    from stages.source_onnx.options import OnnxSourceOptions

RECORD = "spec"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The model behind one step."""

    key: str
    title: str
    spec: Described | None
    """None where only the hub knows it"""
    at_most: bool = False
    """images decide: the real one is not larger"""

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return params_of(self.spec) if self.spec else 0

    @property
    def tower_params(self) -> int:
        """Parameters without the head."""
        parts = parts_of(self.spec) if self.spec else {}
        return sum(number for part, number in parts.items() if part != "head") if parts else self.params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image through the whole model."""
        return macs_of(self.spec) if self.spec else 0

    def told(self) -> dict[str, Any]:
        """Return what a plan in JSON says."""
        if self.spec is None:
            return {"params": None, "params_without_head": None, "macs": None}
        return {
            "params": self.params,
            "params_without_head": self.tower_params,
            "macs": self.macs,
            "at_most": self.at_most,
        }


def shapes_of(plan: Plan, store: Store) -> Iterator[Shape]:
    """Yield the shape of the source and of the model after each step that changes it.

    Raises InputError where a step cannot do what it is asked. The source's spec is kept in the store, because to build
    it timm must be loaded; a finished step's spec is read from its folder, which also says what images decided.
    """
    line = plan.source.line()
    spec = _source_spec(line[0], store)
    yield Shape(key=line[0].key, title=line[0].title, spec=spec)
    at_most = False
    for step in [*line[1:], *plan.compressed]:
        stage = get_stage(step.stage)
        if stage.produces != Format.VIT or stage.reshape is None:
            continue
        finished = _finished_spec(step, store)
        if finished is not None:
            spec, at_most = finished, False
        elif isinstance(spec, ViTSpec):
            at_most = at_most or stage.reshapes_at_most(step.options)
            spec = stage.reshape(step.options, spec)
        yield Shape(key=step.key, title=step.title, spec=spec, at_most=at_most)


def _source_spec(step: PlannedStep, store: Store) -> Described | None:
    from stages.source.options import SourceOptions
    from stages.source_onnx.options import OnnxSourceOptions

    if isinstance(step.options, OnnxSourceOptions):
        return _finished_spec(step, store) or _card_of(step.options)
    known = store.get_record(RECORD, step.key)
    if known is not None:
        return ViTSpec.model_validate(known)
    finished = _finished_spec(step, store)
    if finished is not None:
        return finished
    from stages.source.load import expected_spec  # loads torch and timm

    assert isinstance(step.options, SourceOptions)  # the first step of every line
    spec = expected_spec(step.options)
    if spec is not None:
        store.put_record(RECORD, step.key, spec.model_dump(mode="json"))
    return spec


def _card_of(options: "OnnxSourceOptions") -> Described:
    """Card of a graph that is not in the store yet."""
    from stages.source_onnx.read import save_graph

    with TemporaryDirectory(prefix="vitrim-graph-") as folder:
        return save_graph(options, Path(folder))[0]


def _finished_spec(step: PlannedStep, store: Store) -> Described | None:
    artifact = store.find(step.key) if store.has(step.key) else None
    return None if artifact is None else read_described(artifact.folder)
