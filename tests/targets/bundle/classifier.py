"""A tiny real classifier: its three logits are the mean red, green and blue, times ten."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from targets.preprocess import Preprocess
from targets.runtimes.engine import write_engine

PREPROCESS = Preprocess(height=8, width=8, crop_share=0.9)
SPEC = {"architecture": "tiny", "classes": 3}


def write_onnx(path: Path, *, batch: int | str = "N", output: str = "logits", external: bool = False) -> Path:
    """Write the classifier's graph, for a fixed or a dynamic batch."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
            helper.make_node("Gemm", ["means", "weight"], [output]),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 3])],
        [
            numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"),
            numpy_helper.from_array(10 * np.eye(3, dtype=np.float32), "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    else:
        onnx.save_model(model, str(path))
    return path


def expected_logits(pixels: np.ndarray) -> np.ndarray:
    """What the classifier answers, computed by numpy: [N, 3, 8, 8] to [N, 3]."""
    return 10 * pixels.mean(axis=(2, 3), dtype=np.float64)


def write_engine_folder(
    folder: Path,
    *,
    runtime: str = "onnxruntime",
    batch: int = 1,
    output: str = "logits",
    bound_to: dict[str, str] | None = None,
    dynamic: bool = False,
) -> Path:
    """Build the classifier's engine by hand: an ONNX file, or OpenVINO's IR made in a process of its own."""
    folder.mkdir(parents=True)
    size: int | str = "N" if dynamic else batch
    if runtime == "openvino":
        source = write_onnx(folder.parent / f"{folder.name}.onnx", batch=size, output=output)
        code = "import sys, openvino; openvino.save_model(openvino.convert_model(sys.argv[1]), sys.argv[2], False)"
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, source, folder / "model.xml"], check=True)
        files = ["model.xml", "model.bin"]
    else:
        write_onnx(folder / "model.onnx", batch=size, output=output)
        files = ["model.onnx"]
    shown = None if dynamic else batch
    write_engine(
        folder,
        files=files,
        runtime=runtime,
        version="1.0",
        precision="fp32",
        batch=batch,
        inputs=[{"name": "pixels", "shape": [shown, 3, 8, 8], "dtype": "float32"}],
        outputs=[{"name": output, "shape": [shown, 3], "dtype": "float32"}],
        options={"threads": 1},
        bound_to=bound_to or {},
    )
    return folder


def reseal(bundle: Path) -> None:
    """Make the manifest fit a bundle that a test has changed on purpose."""
    from targets.atomic import sha256_of

    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in manifest["files"]:
        path = bundle / name
        manifest["files"][name] = {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
    reseal_manifest(bundle, manifest)


def reseal_manifest(bundle: Path, manifest: dict[str, object]) -> None:
    """Write a manifest with the digests that go with it."""
    from targets.bundle.run import SUMS, sums_text

    text = json.dumps(manifest)
    (bundle / "manifest.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (bundle / SUMS).write_text(sums_text(manifest["files"], digest))  # type: ignore[arg-type]  # plain JSON
