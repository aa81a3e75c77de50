"""From a ViT module to an ONNX graph: torch's dynamo exporter, then readable names and no trace of this machine.

Shapes: B images of one query, C channels, H and W of the model's input.
"""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor, nn

from stages.vit.model import Block, LayerScale, ViT
from targets.errors import StageError

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
INPUT = "images"
BATCH = "batch"
INLINE_LIMIT = 1_900_000_000
"""bytes of weights that stay inside the graph's file: protobuf ends at 2^31 - 1"""

Batch = Literal["dynamic"] | int

FORBIDDEN = {"If", "Loop", "Scan", "NonZero", "ScatterElements", "ScatterND", "Scatter", "SequenceAt", "Where"}
"""operators that a ViT does not need and that runtimes for boards run slowly or not at all"""
CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
SCOPES = "pkg.torch.onnx.name_scopes"
PREFIX = "model."  # the attribute of NamedOutputs


class NamedOutputs(nn.Module):
    """A model that returns the outputs asked for as a tuple: what the exporter traces."""

    def __init__(self, model: ViT, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: [B, C, H, W]."""
        return tuple(self.model.outputs(images, self.outputs).values())


def fold_layer_scale(model: ViT) -> None:
    """Multiply each LayerScale into the layer before it, in place: exact, and two operators less per block."""
    for block in model.blocks:
        assert isinstance(block, Block)
        if block.attn is not None:
            block.ls1 = _fold(block.ls1, block.attn.proj)
        if block.mlp is not None:
            block.ls2 = _fold(block.ls2, block.mlp.fc2)


def trace(model: ViT, *, outputs: Sequence[str], batch: Batch, opset: int) -> ir.Model:
    """Export with torch's dynamo exporter, which also folds constants.

    Raises StageError where it cannot, and where the model needs a newer opset: torch writes that one without a word.
    """
    return trace_named(NamedOutputs(model, outputs).eval(), model.spec, outputs=outputs, batch=batch, opset=opset)


def trace_named(
    module: nn.Module, spec: Mapping[str, Any], *, outputs: Sequence[str], batch: Batch, opset: int
) -> ir.Model:
    """Export a module that returns these outputs of a model as a tuple; raises as `trace` does."""
    # Two images, because torch takes a dynamic dimension of size 1 for a constant.
    size = 2 if batch == "dynamic" else batch
    height, width = (spec["preprocess"][side] for side in ("height", "width"))
    example = torch.zeros(size, spec["in_channels"], height, width, dtype=next(module.parameters()).dtype)
    shapes = {INPUT: {0: torch.export.Dim(BATCH)}} if batch == "dynamic" else None
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise StageError(f"export: torch could not trace the model: {str(error).splitlines()[0]}") from error
    assert program is not None  # it is None only for the old exporter
    graph: ir.Model = program.model
    written = graph.opset_imports[""]
    if written != opset:
        raise StageError(f"export: this model cannot be written in opset {opset}, only in {written}; set opset to that")
    return graph


def tidy(model: ir.Model) -> None:
    """Name nodes and weights after their modules; drop stack traces, paths and other notes of the exporter."""
    graph = model.graph
    _fold_casts(graph)
    scopes: dict[ir.Node, str] = {}
    taken: Counter[str] = Counter()
    for node in graph:
        scopes[node] = scope = _scope(node, scopes)
        label = f"{scope}/{node.op_type}" if scope else node.op_type
        node.name = f"{label}_{taken[label]}" if taken[label] else label
        taken[label] += 1
        _name_transposed_weight(node, scope, graph)
    for name, value in list(graph.initializers.items()):
        value.name = name.removeprefix(PREFIX)

    for holder in (model, graph, *graph, *_values(graph)):
        holder.metadata_props.clear()
        holder.doc_string = None
    graph.name = "vit"


def check_operators(model: ir.Model) -> None:
    """Raise StageError where the graph needs more than plain ONNX operators without control flow."""
    bad = {node.op_type for node in model.graph if node.op_type in FORBIDDEN or node.domain}
    if bad or model.functions:
        names = sorted(bad) or sorted(str(name) for name in model.functions)
        raise StageError(f"export: the graph holds {', '.join(names)}, which targets may not run")


def save_graph(model: ir.Model, folder: Path, *, inline_limit: int = INLINE_LIMIT) -> tuple[Path, ...]:
    """Write the graph, its weights beside it where one file cannot hold both; returns the files, the graph first."""
    path = folder / GRAPH_FILE
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights <= inline_limit:
        ir.save(model, path)
        return (path,)
    ir.save(model, path, external_data=DATA_FILE)
    return (path, folder / DATA_FILE)


@torch.no_grad()
def _fold(scale: LayerScale | nn.Identity, linear: nn.Linear) -> nn.Identity:
    """Multiply a LayerScale into a layer; returns what takes its place."""
    if not isinstance(scale, LayerScale):
        return scale
    linear.weight = nn.Parameter(linear.weight * scale.gamma[:, None])
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias * scale.gamma)
    return nn.Identity()


def _fold_casts(graph: ir.Graph) -> None:
    """Make constants of the Casts of constants: torch leaves the large ones, on which NNCF 3.4 fails."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is None or source.const_value is None or node.outputs[0].is_graph_output():
            continue
        target = ir.DataType(node.attributes["to"].as_int())
        old = node.outputs[0]
        name = f"{source.name}_{target.name.lower()}"
        value = graph.initializers.get(name)
        if value is None:
            constant = ir.tensor(source.const_value.numpy().astype(target.numpy()), dtype=target, name=name)
            shape = ir.Shape(source.const_value.numpy().shape)
            value = ir.Value(name=name, shape=shape, type=ir.TensorType(target), const_value=constant)
            graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(old, value)
        graph.remove(node, safe=True)
        if source.name is not None and source.name in graph.initializers and not source.uses():
            graph.initializers.pop(source.name)


def _scope(node: ir.Node, known: dict[ir.Node, str]) -> str:
    """Name of the module a node belongs to (`blocks.0.attn.qkv`); that of its input where the exporter lost it."""
    noted = node.metadata_props.get(SCOPES)
    if noted is None:
        producer = next((value.producer() for value in node.inputs if value is not None and value.producer()), None)
        return known.get(producer, "") if producer else ""
    modules = [name for name in ast.literal_eval(noted)[:-1] if name.startswith(PREFIX)]
    return str(modules[-1]).removeprefix(PREFIX) if modules else ""


def _name_transposed_weight(node: ir.Node, scope: str, graph: ir.Graph) -> None:
    """Give a Linear's weight its name back: the exporter transposes it into a new constant."""
    if node.op_type != "MatMul" or scope.endswith(".merge"):  # merging multiplies constants that are no weights
        return
    weight = node.inputs[1]
    name = f"{scope}.weight"
    if weight is not None and weight.is_initializer() and name not in graph.initializers:
        weight.name = name


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines away from the user: they are about torch's own code."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
