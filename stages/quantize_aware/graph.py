"""From a frozen model to its int8 graph: Q/DQ operators, weights as int8 constants."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from stages.export.graph import Batch, check_operators, save_graph, tidy, trace_named
from stages.export.run import check_file
from stages.quantize.sinking import sink_quantizers
from stages.quantize_aware.insert import QuantizedViT

HOOKS = "__nncf_hooks"
"""what the names of NNCF's own modules begin with"""


def write_graph(
    model: QuantizedViT, folder: Path, *, outputs: Sequence[str], batch: Batch, opset: int
) -> tuple[Path, ...]:
    """Write model.onnx of a frozen model, weights beside it where one file cannot hold both; returns the files."""
    model.root.outputs = tuple(outputs)  # type: ignore[assignment]  # a tuple, and no parameter
    graph = trace_named(model.root.eval(), model.spec, outputs=outputs, batch=batch, opset=opset)
    _transpose_codes(graph.graph)
    tidy(graph)
    _own_constants(graph.graph)
    check_operators(graph)
    folder.mkdir(parents=True, exist_ok=True)
    files = save_graph(graph, folder)
    _sink(files[0])
    check_file(files[0])
    return files


def _sink(path: Path) -> None:
    """Round the token that is picked, not all of them; weights that lie beside the graph stay there."""
    written = onnx.load(path, load_external_data=False)
    sink_quantizers(written)
    onnx.save(written, path)


def _transpose_codes(graph: ir.Graph) -> None:
    """Transpose the int8 codes of Linears instead of what comes out of DequantizeLinear, as runtimes expect it."""
    for node in list(graph):
        if node.op_type != "Transpose" or (made := node.inputs[0]) is None:
            continue
        dequantize = made.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(made.uses()) != 1:
            continue
        codes = dequantize.inputs[0]
        if codes is None or codes.const_value is None:
            continue
        values = np.ascontiguousarray(codes.const_value.numpy().T)  # [K, D] becomes [D, K]
        name = f"{codes.name}_transposed"
        turned = ir.Value(
            name=name,
            shape=ir.Shape(values.shape),
            type=ir.TensorType(codes.const_value.dtype),
            const_value=ir.tensor(values, name=name),
        )
        graph.register_initializer(turned)
        dequantize.replace_input_with(0, turned)
        dequantize.attributes["axis"] = ir.AttrInt64("axis", 1 - dequantize.attributes["axis"].as_int())
        made.shape = ir.Shape(values.shape)
        ir.convenience.replace_all_uses_with(node.outputs[0], made)
        graph.remove(node, safe=True)
        if not codes.uses():
            graph.initializers.pop(str(codes.name))


def _own_constants(graph: ir.Graph) -> None:
    """Give every rounding scale and zero point of its own, named after what reads them; SmoothQuant's factors too.

    The exporter lets equal constants share one. OpenVINO 2026.4 then computes products in fp32 whose weights and inputs
    share a zero point.
    """

    def own(node: ir.Node, index: int, kind: str) -> ir.Value:
        scope = str(node.name).rpartition("/")[0]
        name = f"{scope}.{kind}" if scope else kind
        old = node.inputs[index]
        assert old is not None
        assert old.const_value is not None
        free = (f"{name}_{number}" for number in count(2))
        while name in graph.initializers:
            name = next(free)
        value = ir.tensor(old.const_value.numpy(), dtype=old.const_value.dtype, name=name)
        made = ir.Value(name=name, shape=old.shape, type=old.type, const_value=value)
        graph.register_initializer(made)
        return made

    for node in list(graph):
        if node.op_type == "Mul" and (factor := node.inputs[1]) is not None and HOOKS in str(factor.name):
            node.replace_input_with(1, own(node, 1, "smooth"))
        if node.op_type == "QuantizeLinear":
            for index, kind in ((1, "input_scale"), (2, "input_zero_point")):
                node.replace_input_with(index, own(node, index, kind))
        if node.op_type == "DequantizeLinear" and (codes := node.inputs[0]) is not None:
            maker = codes.producer()
            for index, kind in ((0, "weight"), (1, "weight_scale"), (2, "weight_zero_point")):
                if maker is None:
                    node.replace_input_with(index, own(node, index, kind))
                elif index:
                    node.replace_input_with(index, maker.inputs[index])
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
