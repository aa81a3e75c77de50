"""Moves quantizers to where products read them: a calibrator may put them before an operator that picks values.

Rounding and picking can change places, the answers stay. TensorRT and ONNX Runtime multiply codes only where the
dequantizer stands right before the product, and one token is rounded instead of all.
"""

import onnx

PICKING = ("Gather", "Slice")
"""operators that pick values of their first input"""


def sink_quantizers(model: onnx.ModelProto) -> None:
    """Put Q/DQ of activations behind the operators that pick from what they make, in place."""
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    scales = {one.name: list(one.dims) for one in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        before = made_by.get(node.input[0]) if node.op_type in PICKING else None
        maker = made_by.get(before.input[0]) if before is not None and before.op_type == "DequantizeLinear" else None
        if before is None or maker is None or maker.op_type != "QuantizeLinear" or scales.get(maker.input[1]) != []:
            nodes.append(node)
            continue
        picked = node.output[0]
        node.input[0], node.output[0] = maker.input[0], f"{picked}/exact"
        copies = []
        for one, source, result in ((maker, f"{picked}/exact", f"{picked}/codes"), (before, f"{picked}/codes", picked)):
            copy = onnx.NodeProto()
            copy.CopyFrom(one)
            copy.name, copy.input[0], copy.output[0] = f"{node.name}/{one.op_type}", source, result
            copies.append(copy)
        nodes += [node, *copies]
    read = {name for node in nodes for name in node.input} | {one.name for one in graph.output}
    for kind in ("DequantizeLinear", "QuantizeLinear"):  # a quantizer is idle once its dequantizer is
        nodes = [node for node in nodes if node.op_type != kind or read.intersection(node.output)]
        read = {name for node in nodes for name in node.input} | {one.name for one in graph.output}
    left = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(left)
    del graph.value_info[:]
