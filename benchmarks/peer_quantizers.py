"""How a user of each peer quantizes a plain export, by the peer's own defaults: each runs in a process of its own.

    python benchmarks/peer_quantizers.py NAME plain.onnx calibration.npy OUTPUT

calibration.npy: normalised images [N, 3, H, W], float32. OUTPUT: a folder; model.onnx or model.xml is written there.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from_plain: dict[str, tuple[str, Callable[[Path, Path, Path], None]]] = {}
"""name -> (runtime that runs what it makes, function of graph, images and folder)"""

OLIVE = {
    "olive, static": {"type": "OnnxStaticQuantization", "data_config": "calibration"},
    "olive, dynamic": {"type": "OnnxDynamicQuantization"},
}


def peer(name: str, runtime: str) -> Callable[[Callable[[Path, Path, Path], None]], Any]:
    """List a function as a peer."""

    def add(function: Callable[[Path, Path, Path], None]) -> Any:
        from_plain[name] = (runtime, function)
        return function

    return add


@peer("ONNX Runtime, static", "onnxruntime")
def ort_static(graph: Path, images: Path, output: Path) -> None:
    """quantize_static after the preparation that its guide asks for."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{_input(graph): one[None]} for one in np.load(images)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    prepared = output / "prepared.onnx"
    quant_pre_process(str(graph), str(prepared))
    quantize_static(str(prepared), str(output / "model.onnx"), Reader())
    prepared.unlink()


@peer("ONNX Runtime, dynamic", "onnxruntime")
def ort_dynamic(graph: Path, images: Path, output: Path) -> None:
    """quantize_dynamic."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(graph), str(output / "model.onnx"))


@peer("NNCF defaults, ONNX Runtime", "onnxruntime")
def nncf_onnx(graph: Path, images: Path, output: Path) -> None:
    """nncf.quantize on the ONNX graph."""
    import nncf
    import onnx

    found = nncf.quantize(onnx.load(graph), _dataset(graph, images))
    onnx.save(found, output / "model.onnx")


@peer("NNCF transformer, ONNX Runtime", "onnxruntime")
def nncf_onnx_transformer(graph: Path, images: Path, output: Path) -> None:
    """The same, told that it is a transformer, as NNCF's guide has it: SmoothQuant and its own order of layers."""
    import nncf
    import onnx

    found = nncf.quantize(onnx.load(graph), _dataset(graph, images), model_type=nncf.ModelType.TRANSFORMER)
    onnx.save(found, output / "model.onnx")


@peer("NNCF defaults, OpenVINO", "openvino")
def nncf_openvino(graph: Path, images: Path, output: Path) -> None:
    """nncf.quantize on OpenVINO's own graph."""
    _openvino(graph, images, output)


@peer("NNCF transformer, OpenVINO", "openvino")
def nncf_openvino_transformer(graph: Path, images: Path, output: Path) -> None:
    """The same, told that it is a transformer."""
    import nncf

    _openvino(graph, images, output, model_type=nncf.ModelType.TRANSFORMER)


def _openvino(graph: Path, images: Path, output: Path, **options: Any) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(graph)
    found = nncf.quantize(model, _dataset(graph, images), **options)
    openvino.save_model(found, output / "model.xml", compress_to_fp16=False)


def _dataset(graph: Path, images: Path) -> Any:
    import nncf

    name = _input(graph)
    return nncf.Dataset(list(np.load(images)), lambda one: {name: one[None]})


def _input(graph: Path) -> str:
    import onnx

    return str(onnx.load(graph, load_external_data=False).graph.input[0].name)


def with_olive(name: str, graph: Path, images: Path, output: Path) -> None:
    """Run one pass of Olive by its own defaults; its interpreter runs this file, nothing else of vitrim."""
    from olive.data.registry import Registry
    from olive.workflows import run

    @Registry.register_dataset()  # type: ignore[untyped-decorator]
    def calibration_images(**_: Any) -> Any:
        return [({_input(graph): one}, 0) for one in np.load(images)]

    settings = OLIVE[name]
    data = {
        "name": "calibration",
        "type": "DataContainer",
        "load_dataset_config": {"type": "calibration_images"},
        "dataloader_config": {"batch_size": 1},
    }
    config = {
        "input_model": {"type": "OnnxModel", "model_path": str(graph)},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [data],
        "passes": {"quantize": settings},
        "host": "here",
        "target": "here",
        "output_dir": str(output / "olive"),
        "cache_dir": str(output / "cache"),
    }
    run(config)
    (found,) = (output / "olive").rglob("*.onnx")
    found.rename(output / "model.onnx")


def main() -> None:
    """Quantize with one peer."""
    name, *paths = sys.argv[1:]
    graph, images, output = map(Path, paths)
    if name in OLIVE:
        with_olive(name, graph, images, output)
    else:
        from_plain[name][1](graph, images, output)
    print(json.dumps({"made": name}))


if __name__ == "__main__":
    main()
