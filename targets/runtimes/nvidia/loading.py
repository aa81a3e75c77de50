"""From an engine's folder, or a plain ONNX file, to a session. An engine is code: it is read only if it is ours.

Before a plan is deserialised, its SHA-256 is compared with `engine.json`, and the machine with what it was built for.
"""

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from targets.errors import InputError, WorkerError
from targets.runtimes.engine import ENGINE_FILE, check_binding, read_engine, write_engine
from targets.runtimes.nvidia.builder import build_engine, gpu_facts, here_platform, weights_digest
from targets.runtimes.nvidia.cuda import Cuda
from targets.runtimes.nvidia.kernel_file import KernelFile, kernel_folder
from targets.runtimes.nvidia.library import Listener, failure, load_library, obstacle, release
from targets.runtimes.nvidia.options import LOAD, MOST_IMAGES, RTX, read_options
from targets.runtimes.nvidia.session import OFF, GpuSession, Loaded
from targets.runtimes.runtime import Functions


def functions(runtime: str) -> Functions:
    """What the module of a runtime consists of. `available` says nothing of GPUs: engines may be built without one."""

    def version() -> str:
        return str(load_library(runtime).__version__)

    return Functions(
        available=lambda: obstacle(runtime),
        version=version,
        binding=lambda facts: here(runtime, version()),
        build=lambda model, output, options: build_engine(runtime, model, output, options),
        load=lambda path, options: open_session(runtime, path, options),
    )


def here(runtime: str, version: str, device: int = 0) -> dict[str, str]:
    """What this machine is, to compare with what an engine is bound to."""
    facts = {"platform": here_platform(), runtime: version, f"{runtime}_major": str(release(version)[0])}
    try:
        gpu = gpu_facts(device)
    except WorkerError as error:
        return {**facts, **dict.fromkeys(("gpu", "compute_capability", "ampere_or_newer"), f"no GPU ({error})")}
    newer = tuple(map(int, gpu["compute_capability"].split("."))) >= (8, 0)
    return {**facts, **gpu, "ampere_or_newer": "yes" if newer else "no"}


def open_session(runtime: str, path: Path, given: dict[str, Any]) -> GpuSession:
    """Load an engine's plan, or build one of a plain .onnx file in a temporary folder and load that."""
    options = read_options(runtime, LOAD, given)
    if given.get("optimized"):
        return _open(runtime, path, options)
    if path.suffix != ".onnx":
        raise InputError(
            f"{path.name!r} is not an .onnx file; an engine is loaded by its folder with {ENGINE_FILE}, "
            "which says that vitrim built it"
        )
    Cuda(options["device"])  # before minutes of building
    batch = given.get("batch")
    batches = {"batch": batch} if batch else _open_batches(runtime, path)
    asked = {"precision": given.get("precision", "fp32"), "threads": options["threads"], "device": options["device"]}
    with tempfile.TemporaryDirectory(prefix="vitrim-engine-") as name:
        folder = Path(name)
        made = build_engine(runtime, path, folder, {**asked, **batches})
        files = made.pop("files")
        facts = {"runtime": runtime, "version": str(load_library(runtime).__version__), "options": asked, **made}
        write_engine(folder, files=files, precision=asked["precision"], batch=batches["batch"], **facts)
        return _open(runtime, folder / files[0], options)


def _open_batches(runtime: str, path: Path) -> dict[str, int]:
    """Batches of a plain file: its own, else 1 to MOST_IMAGES."""
    from targets.runtimes.nvidia.network import parse, tensor_shape

    library = load_library(runtime)
    fixed = tensor_shape(parse(library, runtime, path, Listener(library)).network.get_input(0).shape)[0]
    return {"batch": fixed} if fixed else {"batch": 1, "batch_min": 1, "batch_max": MOST_IMAGES}


def _open(runtime: str, path: Path, options: dict[str, Any]) -> GpuSession:
    library = load_library(runtime)
    engine = read_engine(path.parent)
    check_binding(engine, here(runtime, str(library.__version__), options["device"]))
    plan = _trusted(path, engine)
    cuda = Cuda(options["device"])
    gpu = gpu_facts(options["device"])
    listener = Listener(library)
    starter = library.Runtime(listener.logger)
    if engine["options"].get("version_compatible"):
        starter.engine_host_code_allowed = True  # the lean runtime inside; the digest says that the plan is ours
    made = starter.deserialize_cuda_engine(plan)
    if made is None:
        raise failure(runtime, "load", path, listener.last_error())
    _put_weights_in(library, runtime, path, engine, made, options, listener)

    facts: dict[str, Any] = {**gpu, "device": options["device"], "threads": options["threads"]}
    make_context, on_close = made.create_execution_context, lambda: None
    if runtime == RTX:
        config = made.create_runtime_config()
        strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if options["cuda_graph"] else None
        config.cuda_graph_strategy = strategy or library.CudaGraphStrategy.DISABLED
        facts["cuda_graph"] = "recorded by the library" if strategy else OFF
        on_close = _attach_runtime_cache(config, plan, options, {**gpu, runtime: str(library.__version__)}, facts)

        def make_context() -> Any:
            return made.create_execution_context(config)

    built = engine.get("built", {})
    loaded = Loaded(
        library,
        starter,
        made,
        make_context,
        listener,
        tuple(built.get("products", {})),
        facts,
        on_close,
        macs=built.get("macs", {}),
        batch=engine["batch"] or 1,
    )
    return GpuSession(loaded, cuda, cuda_graph=options["cuda_graph"] and runtime != RTX)


def _trusted(path: Path, engine: dict[str, Any]) -> bytes:
    """Return the plan if it is the one that engine.json lists; what is hashed is what is returned."""
    listed = engine["files"].get(path.name)
    plan = path.read_bytes()
    if listed is None or hashlib.sha256(plan).hexdigest() != listed["sha256"]:
        raise InputError(
            f"file {path.name!r} of engine {str(path.parent)!r} is not the one that was built; build it again"
        )
    return plan


def _put_weights_in(
    library: Any,
    runtime: str,
    path: Path,
    engine: dict[str, Any],
    made: Any,
    options: dict[str, Any],
    listener: Listener,
) -> None:
    """Give a stripped engine the weights that it was built with. Raises InputError."""
    expected = engine.get("built", {}).get("weights_sha256")
    if expected is None:
        if options["weights"]:
            raise InputError("option 'weights' is for engines built with 'strip_weights'; this one has its own")
        return
    if not options["weights"]:
        raise InputError("the engine has no weights in it; say where its ONNX file is by option 'weights'")
    weights = Path(options["weights"])
    if not weights.is_file() and (path.parent.parent / weights.name).is_file():
        weights = path.parent.parent / weights.name  # a bundle has its graph beside the folder of the engine
    if not weights.is_file() or weights_digest(weights) != expected:
        raise InputError(f"{str(weights)!r} is not the ONNX file that the engine was built from")
    refitter = library.Refitter(made, listener.logger)
    parser = library.OnnxParserRefitter(refitter, listener.logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise failure(runtime, "load", path, f"its weights were refused: {listener.last_error()}")


def _attach_runtime_cache(
    config: Any, plan: bytes, options: dict[str, Any], facts: dict[str, str], told: dict[str, Any]
) -> Any:
    """Use the kernels that an earlier run compiled for this engine, and keep those of this one when it closes."""
    cache = config.create_runtime_cache()
    told["runtime_cache"] = OFF
    folder = kernel_folder(options["runtime_cache"])
    if folder is None:
        config.set_runtime_cache(cache)
        return lambda: None
    digest = hashlib.sha256(plan).hexdigest()
    file = KernelFile(folder, "kernels", {**facts, "engine": digest[:16]})
    before = file.read()
    known = bool(before) and bool(cache.deserialize(before))
    config.set_runtime_cache(cache)
    told["runtime_cache"] = "read" if known else "new"

    def keep() -> None:
        after = bytes(cache.serialize())
        if after and after != before:
            with suppress(OSError):  # they are compiled anew in the next process then
                file.write(after)

    return keep
