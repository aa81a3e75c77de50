"""ONNX Runtime on an NVIDIA GPU: what the runtimes `onnxruntime_cuda` and `onnxruntime_tensorrt` do alike.

Not yet run on hardware; docs/runtimes/onnxruntime.md says what was checked and how.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from targets.errors import InputError, WorkerError
from targets.runtimes.engine import ENGINE_FILE, read_engine
from targets.runtimes.nvidia import capability as legal
from targets.runtimes.nvidia.builder import gpu_facts, legal_anywhere
from targets.runtimes.nvidia.cuda import Cuda
from targets.runtimes.nvidia.kernel_file import AUTO, kernel_folder
from targets.runtimes.nvidia.library import release
from targets.runtimes.nvidia.loading import here
from targets.runtimes.nvidia.onnx_file import check_graph, read_contents
from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT, PROVIDERS
from targets.runtimes.options import BUILD, LOAD
from targets.runtimes.ort import library, native, providers
from targets.runtimes.ort.bound import BoundSession
from targets.runtimes.ort.options import PRECISIONS, kept_options, read_options
from targets.runtimes.ort.places import check_places
from targets.runtimes.ort.profile import is_product
from targets.runtimes.runtime import Functions, TensorFacts

DEVICE_TYPE = "cuda"
"""where inputs and outputs lie, in ONNX Runtime's words"""
OLDEST = (1, 24)
"""the first that tells to which provider each node went"""
HELD = {
    "fp32": "neither Q/DQ nodes nor weights of 16 bits",
    "fp16": "weights of float16",
    "bf16": "weights of bfloat16",
    "int8": "Q/DQ nodes",
    "int8_weights": "weights behind DequantizeLinear, and no QuantizeLinear",
    "fp8": "numbers of float8",
}
"""precision of a graph -> what shows it"""
_NO_TF32 = "NVIDIA_TF32_OVERRIDE"
"""0: no library of NVIDIA rounds to TF32. TensorRT's provider has no option for it, and TensorRT's default is to"""


def functions(runtime: str) -> Functions:
    """What the module of a runtime consists of."""
    return Functions(
        available=lambda: obstacle(PROVIDERS[runtime]),
        version=library.version,
        binding=lambda facts: binding(runtime),
        build=lambda model, output, options: build_engine(runtime, model, output, options),
        load=lambda path, options: open_engine(runtime, path, options),
    )


def obstacle(provider: str) -> str | None:
    """Why a provider cannot be used here, with the remedy, in one line; None where it can.

    Loads the libraries that it needs, so that the library finds those which pip brought.
    """
    word = library.provider_word(provider)
    try:
        ort = library.load_library()
    except (ImportError, OSError) as error:
        return f"{' '.join(str(error).split())}; install the package onnxruntime-gpu"
    if provider not in ort.get_available_providers():
        return (
            f"onnxruntime {ort.__version__} was built without the {word} provider; pip uninstall onnxruntime, then "
            "install the package onnxruntime-gpu"
        )
    if release(str(ort.__version__)) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"version {ort.__version__} is installed, {oldest} or later is needed; install onnxruntime-gpu>={oldest}"
    file = native.provider_file(Path(ort.__file__).parent, provider)
    lacking = native.load_what_it_needs(file) if file else None
    if lacking is not None:
        return f"the {word} provider cannot start: {lacking}"
    try:
        Cuda()
    except WorkerError as error:
        return f"the {word} provider cannot start: {error}; look with nvidia-smi"
    return None


def binding(runtime: str, device: int = 0) -> dict[str, str]:
    """What this machine is, to compare with what an engine is bound to. device: number of the GPU."""
    facts = here(runtime, library.version(), device)
    return {**facts, "tensorrt": _tensorrt_version()} if runtime == ORT_TENSORRT else facts


def build_engine(runtime: str, model: Path, output: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Write an engine into an existing folder: the optimised graph, or TensorRT's engine with the graph that names it.

    Raises InputError for what the user can change, WorkerError for what the library could not do.
    """
    legal_anywhere(runtime, given)
    return _build(runtime, model, output, read_options(runtime, BUILD, given))


def open_engine(runtime: str, path: Path, given: dict[str, Any]) -> BoundSession:
    """Load the graph of an engine as it is, or a plain .onnx file, for which TensorRT builds in a temporary folder."""
    legal_anywhere(runtime, given)
    built = read_engine(path.parent) if given.get("optimized") and (path.parent / ENGINE_FILE).is_file() else {}
    kept = kept_options(runtime, built.get("options", {}))
    options = read_options(runtime, LOAD, {**kept, **{name: one for name, one in given.items() if one is not None}})
    if given.get("optimized"):
        return _open(runtime, path, options, optimised=True, products=_hidden(runtime, built.get("built", {})))
    if runtime == ORT_CUDA:
        return _open(runtime, path, options, optimised=False, batch=given.get("batch"))
    folder = tempfile.TemporaryDirectory(prefix="vitrim-engine-")
    try:
        asked = {name: options[name] for name in ("threads", "device", "tf32")}
        asked = read_options(runtime, BUILD, {**asked, "precision": given.get("precision", "fp32")})
        made = _build(runtime, path, Path(folder.name), {**asked, "batch": given.get("batch")})
        file = Path(folder.name) / made["files"][0]
        products = _hidden(runtime, made["built"])
        return _open(runtime, file, options, optimised=True, products=products, on_close=folder.cleanup)
    except BaseException:
        folder.cleanup()
        raise


def check_held(runtime: str, model: Path, precision: str) -> int:
    """Count the matrix products of a graph; raises InputError where it does not hold the precision that is asked for.

    TensorRT's provider tells nothing of the layers it makes, so the graph itself is looked at.
    """
    check_graph(runtime, model)
    held = read_contents(runtime, model)
    found = held.precision
    if found != precision:
        runs = PRECISIONS[ORT_TENSORRT]
        remedy = f"ask for {found}, or quantize otherwise" if found in runs else f"{runtime} runs {', '.join(runs)}"
        raise InputError(f"asked {runtime} for {precision}, but {model.name!r} holds {HELD[found]}: {remedy}")
    return sum(count for operator, count in held.operators.items() if is_product(operator))


def refuse_dynamic(tensors: Sequence[TensorFacts]) -> None:
    """Raise InputError where what goes in or out may have another shape than the one that is recorded.

    The library would launch the recording for it all the same: with the images, and into the memory, of before.
    """
    for one in tensors:
        if None in one.shape:
            shape = ["any" if size is None else size for size in one.shape]
            raise InputError(
                f"option 'cuda_graph' records a query of one shape, but {one.name!r} is {shape}; "
                "give a batch, or leave cuda_graph out"
            )


def timing_folder(options: Mapping[str, Any], facts: Mapping[str, str]) -> Path | None:
    """Folder for the times of kernels of this GPU and these versions alone; made where it is not there."""
    around = kernel_folder(options["timing_cache"])
    if around is None:
        return None
    words = "-".join(facts[name] for name in sorted(facts))
    folder = around / re.sub(r"[^A-Za-z0-9.]+", "-", words)[:200]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        if options["timing_cache"] == AUTO:
            return None  # times are not kept then
        raise InputError(
            f"option 'timing_cache': {str(folder)!r} cannot be a folder ({error.strerror}); name another, or 'none'"
        ) from error
    return folder


def _build(runtime: str, model: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    products = check_held(runtime, model, options["precision"]) if runtime == ORT_TENSORRT else None
    gpu = gpu_facts(options["device"])
    legal.check_pairs(runtime, [gpu["compute_capability"]], options["precision"])
    facts = binding(runtime, options["device"])
    bound = ["platform", runtime, "gpu", "compute_capability", *(["tensorrt"] if runtime == ORT_TENSORRT else [])]

    def settings() -> Any:
        made = _settings(runtime, model, options, options["batch"])
        if runtime == ORT_TENSORRT:
            library.leave_as_it_is(made)  # TensorRT does it, and Q/DQ is to reach it as it was written
        return made

    _settle_tf32(options)
    if runtime == ORT_TENSORRT:
        inputs = () if options["batch"] else library.inputs_of(model, runtime=runtime)
        shapes = providers.profile_shapes([library.tensor_facts(one) for one in inputs])
        cache = timing_folder(options, {**gpu, **{name: facts[name] for name in (runtime, "tensorrt")}})
        halves = read_contents(runtime, model).halves
        provider = providers.tensorrt_builder(options, folder=output, shapes=shapes, timing_cache=cache, halves=halves)
    else:
        provider = providers.cuda_provider(options, cuda_graph=False)
    graph = library.Graph(runtime, model, settings, (provider,))
    session = graph.open(lambda made: None if runtime == ORT_TENSORRT else library.save_optimised(made, model, output))
    nodes = check_places(graph, session, [PROVIDERS[runtime]])
    described = {
        which: [library.tensor_facts(one).to_json() for one in tensors]
        for which, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
    }
    return {
        "files": library.saved_files(output) if runtime == ORT_CUDA else _context_files(output),
        **described,
        "bound_to": {name: facts[name] for name in bound},
        "built": {
            "nodes": nodes,
            "compute_capability": [gpu["compute_capability"]],
            **({} if products is None else {"products": products}),
        },
    }


def _open(
    runtime: str,
    path: Path,
    options: dict[str, Any],
    *,
    optimised: bool,
    batch: int | None = None,
    products: int | None = None,
    on_close: Callable[[], None] = lambda: None,
) -> BoundSession:
    def settings() -> Any:
        made = _settings(runtime, path, options, batch)
        if optimised:
            library.leave_as_it_is(made)
        return made

    def graph(*, cuda_graph: bool) -> library.Graph:
        make = providers.cuda_provider if runtime == ORT_CUDA else providers.tensorrt_loader
        return library.Graph(runtime, path, settings, (make(options, cuda_graph=cuda_graph),))

    _settle_tf32(options)
    gpu = gpu_facts(options["device"])
    looked_at = graph(cuda_graph=False)  # a recorded query has no nodes to tell of
    session = graph(cuda_graph=options["cuda_graph"]).open()
    if options["cuda_graph"]:
        refuse_dynamic([library.tensor_facts(one) for one in (*session.get_inputs(), *session.get_outputs())])
    nodes = check_places(looked_at, session, [PROVIDERS[runtime]])
    facts = {
        **gpu,
        "device": options["device"],
        "nodes": nodes,
        "cuda_graph": "recorded by the library" if options["cuda_graph"] else "off",
        "tf32": options["tf32"],
        "tells_precision": products is None,
    }
    return BoundSession(
        looked_at,
        session,
        device_type=DEVICE_TYPE,
        device=options["device"],
        facts=facts,
        products=products,
        on_close=on_close,
    )


def _settings(runtime: str, model: Path, options: Mapping[str, Any], batch: int | None) -> Any:
    made = library.new_settings(options)
    library.record_places(made)
    if batch:
        library.fix_batch(made, model, batch, runtime=runtime)
    return made


def _hidden(runtime: str, built: Mapping[str, Any]) -> int | None:
    """How many products there are, where nobody tells in which precision they run."""
    return int(built.get("products", 0)) if runtime == ORT_TENSORRT else None


def _context_files(output: Path) -> list[str]:
    """Names of what TensorRT's provider left, the graph first; raises WorkerError where there is no engine."""
    names = sorted(path.name for path in output.iterdir() if path.is_file())
    engines = [one for one in names if one != providers.CONTEXT]
    if providers.CONTEXT not in names or not engines:
        raise WorkerError(f"{ORT_TENSORRT} built, but left no engine: the folder has {', '.join(names) or 'nothing'}")
    return [providers.CONTEXT, *engines]


def _settle_tf32(options: Mapping[str, Any]) -> None:
    """Switch TF32 off for all libraries of NVIDIA in this process, or leave it to them."""
    if options["tf32"]:
        os.environ.pop(_NO_TF32, None)
    else:
        os.environ[_NO_TF32] = "0"


def _tensorrt_version() -> str:
    file = native.provider_file(Path(library.load_library().__file__).parent, library.TENSORRT)
    return native.tensorrt_version(file) if file else "unknown"
