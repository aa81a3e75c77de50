"""The package openvino: importing it without its telemetry, reading graphs, saying its errors in one line."""

import sys
from pathlib import Path
from typing import Any

from targets.errors import WorkerError
from targets.runtimes.intel.devices import Listed, device_obstacle
from targets.runtimes.intel.options import CPU, DEVICES
from targets.runtimes.runtime import TensorFacts, query_shape


def load_library() -> Any:
    """Import openvino; raises ImportError."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: openvino takes its own stub
    import openvino

    return openvino


def obstacle(runtime: str) -> str | None:
    """None where openvino can be imported and lists the runtime's device, else why not and what to do."""
    try:
        names = load_library().Core().available_devices
    except ImportError as error:
        return f"{error}; install the package openvino"
    if runtime == CPU:
        return None if DEVICES[CPU] in names else f"openvino sees no CPU, only {names}"
    return device_obstacle(runtime, listed=lambda: Listed(dict.fromkeys(names, "")))


def version() -> str:
    """Version of the library that runs, without its build number."""
    return str(load_library().__version__).split("-")[0]


def full_name(runtime: str) -> str:
    """What OpenVINO calls the hardware of a runtime: `Intel(R) Arc(TM) Graphics (iGPU)`."""
    return str(load_library().Core().get_property(DEVICES[runtime], "FULL_DEVICE_NAME"))


def read_graph(path: Path) -> Any:
    """Read IR or ONNX; raises WorkerError."""
    try:
        return load_library().Core().read_model(str(path))
    except RuntimeError as error:
        raise WorkerError(f"openvino cannot read {path.name!r}: {reason(error)}") from error


def reason(error: RuntimeError) -> str:
    """One line of its several, without the places in its source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from ", "Check "))]
    return " ".join(told or lines[-1:])


def fix_batch(graph: Any, batch: int) -> None:
    """Give every input the batch; raises InputError where more than that is dynamic."""
    shapes = {}
    for port in graph.inputs:
        one = tensor(port)
        shapes[port] = query_shape(one.shape, batch=batch, name=one.name)
    graph.reshape(shapes)


def tensor(port: Any) -> TensorFacts:
    """Name, shape and type of an input or output."""
    shape = tuple(int(size.get_length()) if size.is_static else None for size in port.partial_shape)
    return TensorFacts(name=port.any_name, shape=shape, dtype=str(port.element_type.to_dtype()))
