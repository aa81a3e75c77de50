"""The library onnxruntime: imported without telemetry, opened strictly, its session options written out."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.errors import InputError, WorkerError
from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT, PROVIDERS
from targets.runtimes.runtime import TensorFacts, query_shape

CPU = "CPUExecutionProvider"
CUDA, TENSORRT = PROVIDERS[ORT_CUDA], PROVIDERS[ORT_TENSORRT]

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
EXTERNAL_ABOVE_BYTES = 2**30
"""larger models are saved with their weights beside them: a protobuf ends at 2 GiB"""
SPINNING = "session.intra_op.allow_spinning"
AFFINITIES = "session.intra_op_thread_affinities"
_NBITS_LEVEL = "session.qdq_matmulnbits_accuracy_level"
"""1: a product of packed weights computes in fp32. The library's default is 4: it quantizes the activations too"""
_RECORD_PLACES = "session.record_ep_graph_assignment_info"
_WHERE = {"CPU": CPU, "CUDA": CUDA, "TensorRT": TENSORRT}

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

Provider = tuple[str, dict[str, str]]
"""name and options"""


def load_library() -> Any:
    """Import onnxruntime, telemetry off; raises ImportError."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import: calling the API later is too late
    import onnxruntime

    return onnxruntime


def version() -> str:
    """Version of the library that runs."""
    return str(load_library().__version__)


def provider_word(provider: str) -> str:
    """`CUDA` for CUDAExecutionProvider."""
    return next((word for word, name in _WHERE.items() if name == provider), provider)


def new_settings(options: Mapping[str, Any]) -> Any:
    """Session options that every session has. options: threads; cores: logical processors, one for each thread."""
    library = load_library()
    settings = library.SessionOptions()
    settings.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL  # a transformer has no branches
    settings.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = options["threads"]
    settings.inter_op_num_threads = 1
    if affinities := thread_affinities(options.get("cores") or (), options["threads"]):
        settings.add_session_config_entry(AFFINITIES, affinities)
    settings.add_session_config_entry(_NBITS_LEVEL, "1")
    settings.add_session_config_entry(SPINNING, "1")  # the library's default, written out
    settings.log_severity_level = (
        3  # else saving warns that the engine is bound to this machine, which engine.json says
    )
    return settings


def thread_affinities(cores: Sequence[int], threads: int) -> str:
    """Processors of the library's own threads, as it wants them: `3;4`, counted from 1; empty: wherever they may run.

    The first thread is the caller's, which is pinned with its process. cores: logical processors, counted from 0.
    """
    return ";".join(str(one + 1) for one in cores[1:threads]) if len(cores) >= threads else ""


def leave_as_it_is(settings: Any) -> None:
    """Optimise nothing: the graph is optimised already, or somebody else does it."""
    settings.graph_optimization_level = load_library().GraphOptimizationLevel.ORT_DISABLE_ALL


def save_optimised(settings: Any, model: Path, output: Path) -> None:
    """Have the session that is opened next save the optimised graph into a folder."""
    settings.optimized_model_filepath = str(output / MODEL)
    if (
        sum(file.stat().st_size for file in (model, model.with_name(model.name + ".data")) if file.exists())
        > EXTERNAL_ABOVE_BYTES
    ):
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")


def saved_files(output: Path) -> list[str]:
    """Names of what `save_optimised` left there, the graph first."""
    return [MODEL, *([WEIGHTS] if (output / WEIGHTS).exists() else [])]


def record_places(settings: Any) -> None:
    """Have the session know which provider each node went to; see `places`."""
    settings.add_session_config_entry(_RECORD_PLACES, "1")


def places(session: Any) -> list[tuple[str, str, str]]:
    """(provider, name, operator) of each node of a session for which `record_places` was asked."""
    return [
        (str(part.ep_name), str(node.name), str(node.op_type))
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def open_session(
    path: Path, settings: Any, providers: Sequence[Provider], *, disabled: Sequence[str] = (), runtime: str
) -> Any:
    """Open a graph on the providers named. Raises WorkerError where it cannot, or where one of them is not in force.

    Where a session cannot be opened, the library would try once more on the CPU, and tell it on standard output only.
    """
    try:
        session = load_library().InferenceSession(
            str(path), settings, providers=list(providers), disabled_optimizers=list(disabled), enable_fallback=0
        )
    except Exception as error:  # the library's exceptions share no base but RuntimeError and ValueError
        raise WorkerError(f"{runtime} cannot load {path.name!r}: {' '.join(str(error).split())}") from error
    refuse_other_providers(session.get_providers(), [name for name, _ in providers], runtime=runtime)
    return session


def refuse_other_providers(found: Sequence[str], wanted: Sequence[str], *, runtime: str) -> None:
    """Raise WorkerError where a session has not the providers asked for, in their order; the CPU's may follow."""
    rest = list(found[len(wanted) :])
    if list(found[: len(wanted)]) != list(wanted) or rest not in ([], [CPU]):
        raise WorkerError(
            f"{runtime} fell back to {', '.join(found)}, wanted {', '.join(wanted)}; `vitrim doctor` says what it lacks"
        )


def fix_batch(settings: Any, model: Path, batch: int, *, runtime: str) -> None:
    """Replace the name of each input's first dimension by a number."""
    for one in inputs_of(model, runtime=runtime):
        tensor = tensor_facts(one)
        query_shape(tensor.shape, batch=batch, name=tensor.name)
        if isinstance(one.shape[0], str):
            settings.add_free_dimension_override_by_name(one.shape[0], batch)
        elif one.shape[0] is None:
            raise InputError(f"the dynamic batch of input {one.name!r} has no name; export it with a named dimension")


def inputs_of(model: Path, *, runtime: str) -> Sequence[Any]:
    """Inputs of a graph, as the library describes them. Nothing is optimised, no GPU is asked."""
    plain = new_settings({"threads": 1})
    leave_as_it_is(plain)
    inputs: Sequence[Any] = open_session(model, plain, [(CPU, {})], runtime=runtime).get_inputs()
    return inputs


def tensor_facts(one: Any) -> TensorFacts:
    """Describe an input or output."""
    shape = tuple(size if isinstance(size, int) else None for size in one.shape)
    return TensorFacts(name=one.name, shape=shape, dtype=_DTYPES.get(one.type, one.type))


@dataclass(frozen=True)
class Graph:
    """A file, and how a session of it is opened: one that answers, and one for each look at what runs."""

    runtime: str
    path: Path
    settings: Callable[[], Any]
    """new session options"""
    providers: tuple[Provider, ...]
    disabled: tuple[str, ...] = ()
    """optimisers that are left out"""

    def open(self, change: Callable[[Any], None] = lambda settings: None) -> Any:
        """Open a session. change: what its options are to be beside those of all."""
        settings = self.settings()
        change(settings)
        return open_session(self.path, settings, self.providers, disabled=self.disabled, runtime=self.runtime)
