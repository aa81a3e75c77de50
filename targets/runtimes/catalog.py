"""Every runtime, one line each. A runtime is imported only when it is used."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from targets.errors import UnknownNameError, WorkerError
from targets.runtimes.runtime import Runtime

CATALOG = {
    "onnxruntime": "targets.runtimes.onnxruntime_cpu",
    "openvino": "targets.runtimes.openvino_cpu",
    "openvino_gpu": "targets.runtimes.openvino_gpu",
    "openvino_npu": "targets.runtimes.openvino_npu",
    "tensorrt": "targets.runtimes.tensorrt_gpu",
    "tensorrt_rtx": "targets.runtimes.tensorrt_rtx_gpu",
    "onnxruntime_cuda": "targets.runtimes.onnxruntime_cuda",
    "onnxruntime_tensorrt": "targets.runtimes.onnxruntime_tensorrt",
}
"""name -> module"""


def get_runtime(name: str, extra: Mapping[str, Path] | None = None) -> Runtime:
    """Import a runtime; raises UnknownNameError, or WorkerError where its package is missing.

    extra: runtimes that whoever starts the agent brings along, as files; no recipe or engine can name one of these.
    """
    own = dict(extra or {})
    if name not in CATALOG and name not in own:
        raise UnknownNameError("runtime", name, [*CATALOG, *own])
    module = _from_file(name, own[name]) if name in own else importlib.import_module(CATALOG[name])
    runtime = cast(Runtime, module)
    reason = runtime.available()
    if reason is not None:
        raise WorkerError(f"runtime {name!r} cannot be used here: {reason}")
    return runtime


def _from_file(name: str, path: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"vitrim_runtime_{name}", path)
    if spec is None or spec.loader is None:
        raise UnknownNameError("runtime file", str(path), [])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
