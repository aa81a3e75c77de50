"""Whether a TensorRT can really be used here: a tiny engine is built, and loaded where a GPU is to run it.

That a package can be imported says little: its libraries, the driver and CUDA have to fit each other.
"""

from functools import cache
from typing import Any

from targets.errors import InputError, WorkerError
from targets.runtimes.ask import ask_in_child
from targets.runtimes.nvidia.options import BOTH, RTX, TENSORRT

LIMIT_SECONDS = 180
"""the first use of TensorRT on a board reads some gigabytes of libraries"""
_ASK = "import json; from targets.runtimes.nvidia.trial import trial; print(json.dumps(trial({!r}, {!r})))"


@cache
def tensorrt_obstacle(runtime: str, capability: str | None = None) -> str | None:
    """Why a TensorRT cannot be used here, in one line, tried in a process of its own; None where it can.

    Also None for runtimes that are none. capability: of the GPU that TensorRT-RTX is to build for.
    """
    if runtime not in BOTH:
        return None
    return ask_in_child(_ASK.format(runtime, capability), what=runtime, limit_seconds=LIMIT_SECONDS)


def trial(runtime: str, capability: str | None = None) -> str | None:
    """Try it in this process: why not, in one line, or None."""
    from targets.runtimes.nvidia.capability import LEGAL
    from targets.runtimes.nvidia.cuda import Cuda
    from targets.runtimes.nvidia.library import Listener, load_library, obstacle

    reason = obstacle(runtime)
    if reason is not None:
        return reason
    library = load_library(runtime)
    listener = Listener(library)
    try:
        if runtime == TENSORRT:
            Cuda()
        plan = _build(library, listener, capability or next(iter(LEGAL[RTX])) if runtime == RTX else None)
        if plan is None:
            return f"{runtime} {library.__version__} builds nothing: {listener.last_error()}"
        if runtime == TENSORRT and library.Runtime(listener.logger).deserialize_cuda_engine(plan) is None:
            return f"{runtime} {library.__version__} loads nothing: {listener.last_error()}"
    except (WorkerError, InputError) as error:
        return str(error)
    except Exception as error:  # the library's exceptions share no base
        return f"{runtime} {library.__version__} cannot start: {' '.join(str(error).split())}; {listener.last_error()}"
    return None


def _build(library: Any, listener: Any, capability: str | None) -> Any:
    """A plan that copies eight numbers; None where the builder fails. capability: for TensorRT-RTX."""
    builder = library.Builder(listener.logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    layer = network.add_identity(network.add_input("x", library.DataType.FLOAT, (1, 8)))
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    if capability is not None:
        config.num_compute_capabilities = 1
        known = getattr(library.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if known is None:
            raise InputError(f"{RTX} {library.__version__} does not know compute capability {capability}")
        config.set_compute_capability(known, 0)
    return builder.build_serialized_network(network, config)
