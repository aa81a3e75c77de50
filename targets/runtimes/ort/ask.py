"""Whether ONNX Runtime can use the GPU here, asked in a process of its own. Standard library only."""

from functools import cache

from targets.runtimes.ask import ask_in_child
from targets.runtimes.nvidia.options import PROVIDERS

_ASK = "import json; from targets.runtimes import {} as runtime; print(json.dumps(runtime.available()))"


@cache
def provider_obstacle(runtime: str) -> str | None:
    """Why a runtime cannot be used here, in one line; None where it can, and for runtimes that are not of this kind."""
    if runtime not in PROVIDERS:
        return None
    return ask_in_child(_ASK.format(runtime), what="onnxruntime")
