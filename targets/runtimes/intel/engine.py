"""Build and load for all three OpenVINO runtimes: an engine is the graph in OpenVINO's own format (IR) for one batch.

IR is compiled for the device when it is loaded; so what decides how it runs is kept in engine.json for every load.
"""

from pathlib import Path
from typing import Any

from targets.runtimes.intel import library
from targets.runtimes.intel.library import fix_batch, full_name, load_library, read_graph, version
from targets.runtimes.intel.options import CPU, read_options
from targets.runtimes.intel.session import OpenVinoSession
from targets.runtimes.runtime import Functions, cpu_binding

MODEL = "model.xml"
WEIGHTS = "model.bin"


def functions(runtime: str) -> Functions:
    """What the module of a runtime consists of."""
    return Functions(
        available=lambda: library.obstacle(runtime),
        version=library.version,
        binding=lambda facts: binding(runtime, facts),
        build=lambda model, output, options: build(runtime, model, output, options),
        load=lambda path, options: load(runtime, path, options),
    )


def binding(runtime: str, facts: dict[str, Any]) -> dict[str, str]:
    """What decides whether an engine runs here: the processor's instruction sets, or the name of the device."""
    if runtime == CPU:
        return cpu_binding(runtime, version(), facts)
    return {"architecture": facts["architecture"], "device": full_name(runtime), runtime: version()}


def build(runtime: str, model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Convert a graph to IR with a fixed batch and full-precision weights; returns its files and how to load them."""
    options = read_options(runtime, options)
    graph = read_graph(model)
    fix_batch(graph, options["batch"])
    load_library().save_model(graph, str(output / MODEL), compress_to_fp16=False)
    return {"files": [MODEL, WEIGHTS], "at_load": {"hint": options["hint"], "streams": options["streams"]}}


def load(runtime: str, path: Path, options: dict[str, Any]) -> OpenVinoSession:
    """Compile IR or a plain .onnx file for the runtime's device."""
    return OpenVinoSession(runtime, path, read_options(runtime, options))
