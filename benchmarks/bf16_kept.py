"""What a bf16 graph of the real ViT-Tiny loses, and what keeping some of its nodes in fp32 brings back.

    python benchmarks/bf16_kept.py [--images N]

Answers of the emulation (`stages/quantize/half.py`) against those of fp32, by ONNX Runtime on the CPU, on images of
imagenet_train1000 without labels. `rounded inside`: norms and softmax are taken apart and every step of them is rounded
too, which is worse than a kernel that sums in fp32, as ONNX asks of a norm.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.conditions import assets, write_result
from benchmarks.real_vit import MODEL, divergence, share_ci95, some
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.export.stage import ExportOptions, export
from stages.quantize.half import HALVES, emulate
from stages.source.load import load_source
from stages.source.options import SourceOptions
from stages.stage import Role, StageContext
from stages.vit.files import save_model

BATCH = 10


def main() -> None:
    """Export, emulate every variant, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    count = parser.parse_args().images
    weights = next((assets() / "vit_tiny_patch16_224").glob("*.safetensors"))
    source = load_source(SourceOptions(timm=MODEL, checkpoint=weights), seed=0)
    images = open_images(DataSource(images=assets() / "imagenet_train1000" / "images.zip"), Role.FIT, index_cache=None)
    pixels = np.concatenate(list(some(images, count).batches(source.spec.preprocess, BATCH)))
    graphs = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder, "model"), source.spec, source.state)
        for opset in (20, 22):
            output = Path(folder, str(opset))
            output.mkdir()
            context = StageContext(
                input=Path(folder, "model"), source=Path(folder, "model"), output=output, scratch=output, images={}
            )
            export(ExportOptions(opset=opset), context)
            graphs[opset] = onnx.load(output / "model.onnx")
    before = answers(graphs[20], pixels)
    rows = []
    for name, kind, model, keep in variants(graphs):
        emulate(model, keep, HALVES[kind])
        rows.append({"precision": kind, "variant": name, **compared(before, answers(model, pixels))})
        print(rows[-1], flush=True)
    sets = {"model": MODEL, "images": {"images": len(pixels), "set": "imagenet_train1000"}}
    print(f"wrote {write_result('bf16_kept', {**sets, 'rows': rows})}")


def variants(graphs: dict[int, onnx.ModelProto]) -> Iterator[tuple[str, str, onnx.ModelProto, set[str]]]:
    """Yield name, precision, a graph to change, and the nodes that it keeps in fp32."""
    nodes = list(graphs[20].graph.node)
    norms = {node.name for node in nodes if node.op_type == "LayerNormalization"}
    softmax = {node.name for node in nodes if node.op_type == "Softmax"}
    residual = {node.name for node in nodes if node.op_type == "Add" and node.name.split("/")[0].count(".") == 1}
    for name, opset, keep in (
        ("nothing kept", 20, set[str]()),
        ("nothing kept, convolution in bf16 (opset 22)", 22, set[str]()),
        ("softmax", 20, softmax),
        ("norms", 20, norms),
        ("residual additions", 20, residual),
        ("residual additions, norms, softmax", 20, residual | norms | softmax),
    ):
        yield name, "bf16", copy_of(graphs[opset]), keep
    yield "nothing kept, norms and softmax rounded inside", "bf16", taken_apart(graphs[20]), set()
    yield "nothing kept", "fp16", copy_of(graphs[20]), set()


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that may be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def taken_apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with LayerNormalization and Softmax as elementary operators, each of which is rounded."""
    model = copy_of(model)
    made: list[onnx.NodeProto] = []
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1e-6]), "eps"))

    def step(node: onnx.NodeProto, operator: str, inputs: list[str], name: str = "") -> str:
        name = name or f"{node.name}/{len(made)}"
        made.append(helper.make_node(operator, inputs, [name], name=name))
        return name

    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            centred = step(node, "Sub", [node.input[0], step(node, "ReduceMean", [node.input[0], "last"])])
            variance = step(node, "ReduceMean", [step(node, "Mul", [centred, centred]), "last"])
            deviation = step(node, "Sqrt", [step(node, "Add", [variance, "eps"])])
            scaled = step(node, "Mul", [step(node, "Div", [centred, deviation]), node.input[1]])
            step(node, "Add", [scaled, node.input[2]], node.output[0])
        elif node.op_type == "Softmax":
            top = step(node, "ReduceMax", [node.input[0], "last"])
            powers = step(node, "Exp", [step(node, "Sub", [node.input[0], top])])
            step(node, "Div", [powers, step(node, "ReduceSum", [powers, "last"])], node.output[0])
        else:
            made.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(made)
    return model


def answers(model: onnx.ModelProto, pixels: Any) -> Any:
    """Logits [N, C] of ONNX Runtime on the CPU."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    parts = range(0, len(pixels), BATCH)
    return np.concatenate([session.run(None, {"images": pixels[start : start + BATCH]})[0] for start in parts])


def compared(before: Any, after: Any) -> dict[str, Any]:
    """Agreement, divergence and signal-to-noise ratio of the logits."""
    same = float((before.argmax(axis=1) == after.argmax(axis=1)).mean())
    noise = float(np.square(after.astype(np.float64) - before).sum())
    return {
        "agreement": round(same, 4),
        "agreement_ci95": share_ci95(same, len(before)),
        "kl_nats": round(divergence(before, after), 6),
        "snr_db": round(10 * float(np.log10(np.square(before, dtype=np.float64).sum() / noise)), 1),
    }


if __name__ == "__main__":
    main()
