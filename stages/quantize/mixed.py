"""Returns single layers of a quantized graph to what they are in the fp32 graph, by the names both share."""

from collections.abc import Collection

import onnx

from stages.quantize.graph import WEIGHTED

MOVING = ("Reshape", "Transpose", "Split", "Squeeze", "Unsqueeze", "Shape")


def layers(graph: onnx.GraphProto, keep: Collection[str]) -> dict[str, list[str]]:
    """Matrix products by module, in graph order: {'blocks.0.attn.qkv': names of nodes}, without those to keep."""
    found: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in WEIGHTED and node.name not in keep:
            found.setdefault(node.name.rpartition("/")[0] or node.name, []).append(node.name)
    return found


def return_to_float(quantized: onnx.ModelProto, source: onnx.ModelProto, nodes: Collection[str]) -> None:
    """Put nodes of the source graph in the place of what makes the same tensors, in place; their biases likewise.

    Quantizers may stand before operators that only move values, such as the split into q, k and v: they go back too, so
    that a product which shares one loses its quantized input.
    """
    graph = quantized.graph
    biases = _biases(source.graph, nodes)
    moves = _moves(source.graph, nodes)
    wanted = {
        name: node
        for node in source.graph.node
        if node.name in nodes or node.name in biases or node.name in moves
        for name in node.output
    }
    weights = {one.name: one for one in source.graph.initializer}
    needed = {name for node in wanted.values() for name in node.input if name in weights}
    kept = [one for one in graph.initializer if one.name not in needed]
    placed = []
    for node in graph.node:
        original = next((wanted[name] for name in node.output if name in wanted), None)
        placed.append(node if original is None else original)
    graph.ClearField("initializer")
    graph.initializer.extend([*kept, *(weights[name] for name in sorted(needed))])
    _keep_needed(graph, placed)
    _bypass_idle(graph)


def _bypass_idle(graph: onnx.GraphProto) -> None:
    """Take away, in place, quantizers of activations that no product reads any more, not even after moves."""
    made_by = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {one.name for one in graph.output}
    instead = {}
    for node in graph.node:
        before = made_by.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is None or before.op_type != "QuantizeLinear" or node.output[0] in ends:
            continue
        waiting, products = [node.output[0]], False
        while waiting and not products:
            for reader in readers.get(waiting.pop(), ()):
                products |= reader.op_type in WEIGHTED
                waiting += reader.output if reader.op_type in MOVING else []
        if not products:
            instead[node.output[0]] = before.input[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
    _keep_needed(graph, list(graph.node))


def _moves(graph: onnx.GraphProto, nodes: Collection[str]) -> set[str]:
    """Names of the operators that only move values on the way to these nodes."""
    made_by = {output: node for node in graph.node for output in node.output}
    waiting = [name for node in graph.node if node.name in nodes for name in node.input]
    found: set[str] = set()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.op_type in MOVING and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found


def _biases(graph: onnx.GraphProto, nodes: Collection[str]) -> set[str]:
    """Names of the Adds that put a constant on what these nodes make: bias correction changed them."""
    weights = {one.name for one in graph.initializer}
    made = {output for node in graph.node if node.name in nodes for output in node.output}
    return {
        node.name
        for node in graph.node
        if node.op_type == "Add" and set(node.input) & made and set(node.input) & weights
    }


def _keep_needed(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Set the nodes, without those whose outputs nobody reads; weights and notes on shapes likewise."""
    read = {one.name for one in graph.output}
    left = []
    for node in reversed(nodes):
        if read.intersection(node.output):
            left.append(node)
            read.update(node.input)
    copies = []
    for node in reversed(left):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    graph.ClearField("node")
    graph.node.extend(copies)
    weights = [one for one in graph.initializer if one.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend(weights)
    del graph.value_info[:]
