"""From an ONNX file to a serialized engine: check, parse, configure, build. Needs a GPU for TensorRT, none for RTX."""

import hashlib
import json
from pathlib import Path
from typing import Any

from targets.errors import InputError, WorkerError
from targets.runtimes.nvidia import capability as legal
from targets.runtimes.nvidia.cuda import Cuda
from targets.runtimes.nvidia.kernel_file import KernelFile, kernel_folder
from targets.runtimes.nvidia.library import Listener, failure, load_library, release
from targets.runtimes.nvidia.network import Parsed, check_precision, count_macs, describe, parse, settle_batch
from targets.runtimes.nvidia.options import BUILD, PRECISIONS, RTX, read_options

PLAN = "model.plan"
LAYERS = "layers.json"
_ANY = "yes"


def build_engine(runtime: str, model: Path, output: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Write the engine into an existing folder; returns its files and what engine.json says of it.

    Raises InputError for what the user can change, WorkerError for what the library could not do.
    """
    legal_anywhere(runtime, given)
    options = read_options(runtime, BUILD, given)
    gpu, why = _gpu(options["device"])
    capabilities = _capabilities(runtime, options, gpu, why)
    legal.check_pairs(runtime, capabilities, options["precision"])
    library = load_library(runtime)
    listener = Listener(library)
    parsed = parse(library, runtime, model, listener)
    check_precision(runtime, options["precision"], parsed.products)
    legal.check_types(runtime, capabilities, parsed.types, parsed.wide)

    ranges = settle_batch(parsed.network, options)
    described = describe(parsed.network)
    macs = count_macs(library, parsed.network, options["batch"])
    config = _configure(library, runtime, parsed, options, capabilities)
    _add_profile(parsed, config, ranges)
    cache = _attach_timing_cache(library, config, options, gpu)
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        raise failure(runtime, "compile", model, _hint(options, gpu, listener.last_error()))
    (output / PLAN).write_bytes(plan)
    built: dict[str, Any] = {
        "products": parsed.products,
        "macs": macs,
        "compute_capability": capabilities,
        "batch": {name: options[name] for name in ("batch_min", "batch", "batch_max")},
    }
    if options["strip_weights"]:
        built["weights_sha256"] = weights_digest(model)
    if cache is not None:
        try:
            built["timing_cache_sha256"] = cache.write(bytes(config.get_timing_cache().serialize()))
        except OSError as error:  # an engine is worth more than the times that it was chosen by
            built["timing_cache"] = f"not kept: {error}"
    files = [PLAN]
    if gpu is None:
        built["layers"] = f"not looked at: {why}"
    elif gpu["compute_capability"] in capabilities:
        text = layer_information(library, library.Runtime(listener.logger), bytes(plan), options, listener)
        (output / LAYERS).write_text(text, encoding="utf-8")
        files.append(LAYERS)
    else:
        built["layers"] = f"not looked at: the GPU here has compute capability {gpu['compute_capability']}"
    return {
        "files": files,
        **described,
        "bound_to": bound_to(runtime, str(library.__version__), options, capabilities, gpu),
        "built": built,
    }


def legal_anywhere(runtime: str, given: dict[str, Any]) -> None:
    """Raise InputError for a precision that the runtime runs on no GPU, before anything else is looked at."""
    known = dict.fromkeys(one for precisions in legal.LEGAL[runtime].values() for one in precisions)
    precision = given.get("precision", "fp32")
    if precision not in known:
        order = [one for one in PRECISIONS if one in known]
        raise InputError(f"runtime {runtime!r} does not run {precision!r}; it runs {', '.join(order)}")


def gpu_facts(device: int) -> dict[str, str]:
    """Name, compute capability and CUDA version of a GPU; raises WorkerError where there is none."""
    cuda = Cuda(device)
    return {"gpu": cuda.name(), "compute_capability": cuda.compute_capability(), "cuda": cuda.version()}


def bound_to(
    runtime: str, version: str, options: dict[str, Any], capabilities: list[str], gpu: dict[str, str] | None
) -> dict[str, str]:
    """What an engine needs of the machine that runs it; ` or ` separates what will do."""
    bound = {"platform": here_platform(), runtime: version}
    if runtime == RTX:
        alike = ("linux x86_64", "windows AMD64")  # between which its engines can be moved
        platforms = alike if bound["platform"] in alike else (bound["platform"],)
        return {**bound, "platform": " or ".join(platforms), "compute_capability": " or ".join(capabilities)}
    if options["version_compatible"]:
        del bound[runtime]
        bound[f"{runtime}_major"] = str(release(version)[0])
    if options["hardware_compatibility"] == "ampere_plus":
        return {**bound, "ampere_or_newer": _ANY}
    bound["compute_capability"] = " or ".join(capabilities)
    if options["hardware_compatibility"] == "none" and gpu is not None:
        bound["gpu"] = gpu["gpu"]
    return bound


def here_platform() -> str:
    """Operating system and processor, which the engine's host code is for."""
    import platform

    return f"{platform.system().lower()} {platform.machine()}"


def weights_digest(model: Path) -> str:
    """SHA-256 over an ONNX file and the weights beside it."""
    digest = hashlib.sha256()
    for path in (model, model.with_name(model.name + ".data")):
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def layer_information(library: Any, runtime: Any, plan: bytes, options: dict[str, Any], listener: Listener) -> str:
    """What the library tells of the layers that it made: JSON. Deserialises the plan, which needs a GPU."""
    if options.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # the lean runtime inside; the plan was built just now
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise WorkerError(f"the engine that was just built cannot be loaded: {listener.last_error()}")
    text = str(engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON))
    json.loads(text)
    return text


def _gpu(device: int) -> tuple[dict[str, str] | None, str]:
    try:
        return gpu_facts(device), ""
    except WorkerError as error:
        return None, str(error)


def _capabilities(runtime: str, options: dict[str, Any], gpu: dict[str, str] | None, why: str) -> list[str]:
    """Compute capabilities to build for: those asked for, else that of the GPU here."""
    asked: list[str] | None = options.get("compute_capability")
    if asked:
        return asked
    if gpu is not None:
        return [gpu["compute_capability"]]
    if runtime == RTX:
        known = ", ".join(legal.LEGAL[RTX])
        raise InputError(f"say for which GPU to build: option 'compute_capability', one or more of {known} ({why})")
    raise WorkerError(f"{runtime} builds on the GPU that runs the engine, and there is none: {why}")


def _configure(library: Any, runtime: str, parsed: Parsed, options: dict[str, Any], capabilities: list[str]) -> Any:
    flags = library.BuilderFlag
    parsed.builder.max_threads = options["threads"]
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options["optimization_level"]
    if options["workspace_mib"]:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options["workspace_mib"] << 20)
    if options["tf32"]:
        config.set_flag(flags.TF32)
    else:
        config.clear_flag(flags.TF32)  # on by default: fp32 would not be fp32
    if options["refit"] != "none":
        config.set_flag(flags.REFIT_IDENTICAL if options["refit"] == "identical" else flags.REFIT)
    if options["strip_weights"]:
        config.set_flag(flags.STRIP_PLAN)
    if runtime == RTX:
        config.num_compute_capabilities = len(capabilities)
        for index, one in enumerate(capabilities):
            known = getattr(library.ComputeCapability, f"SM{one.replace('.', '')}", None)
            if known is None:
                raise InputError(
                    f"tensorrt_rtx {library.__version__} does not know compute capability {one}; "
                    "install a later version"
                )
            config.set_compute_capability(known, index)
        return config
    if options["version_compatible"]:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options["hardware_compatibility"] != "none":
        level = getattr(library.HardwareCompatibilityLevel, options["hardware_compatibility"].upper(), None)
        if level is None:
            raise InputError(
                f"tensorrt {library.__version__} has no hardware_compatibility "
                f"{options['hardware_compatibility']!r}; use 'none' or a later version"
            )
        config.hardware_compatibility_level = level
    return config


def _add_profile(parsed: Parsed, config: Any, ranges: dict[str, list[list[int]]]) -> None:
    """Say which batches may come and for which to choose kernels."""
    if not ranges:
        return
    profile = parsed.builder.create_optimization_profile()
    for name, (least, usual, most) in ranges.items():
        profile.set_shape(name, tuple(least), tuple(usual), tuple(most))
    if config.add_optimization_profile(profile) < 0:
        raise InputError(f"no engine can take batches of {ranges}; export the graph with a dynamic batch")


def _attach_timing_cache(
    library: Any, config: Any, options: dict[str, Any], gpu: dict[str, str] | None
) -> KernelFile | None:
    folder = kernel_folder(options.get("timing_cache"))
    if folder is None or gpu is None:
        return None
    file = KernelFile(folder, "timing", {**gpu, "tensorrt": str(library.__version__)})
    if not config.set_timing_cache(config.create_timing_cache(file.read()), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return file


def _hint(options: dict[str, Any], gpu: dict[str, str] | None, reason: str) -> str:
    """Add to the library's words what they do not say."""
    if gpu is None and options["refit"] != "none":
        return (
            f"an engine with 'refit' or 'strip_weights' is built on a machine with a GPU only, here is none ({reason})"
        )
    if options["workspace_mib"] and "memory" in reason.lower():
        return f"{reason}; give it more than {options['workspace_mib']} MiB by 'workspace_mib'"
    return reason
