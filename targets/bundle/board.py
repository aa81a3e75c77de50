"""What a bundle holds for a board that builds its own engine: the command that does it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import Any

from targets.bundle.manifest import Tensor
from targets.runtimes.nvidia.kernel_file import AUTO, NONE
from targets.runtimes.nvidia.options import BUILD, ORT_CUDA, PROVIDERS, RTX, TENSORRT, read_options
from targets.runtimes.own import split_options

BUILD_SCRIPT = "build.sh"
_TOOLS = {
    TENSORRT: ("trtexec", "/usr/src/tensorrt/bin/trtexec", "TensorRT; JetPack has it in /usr/src/tensorrt/bin"),
    RTX: ("tensorrt_rtx", "tensorrt_rtx", "TensorRT for RTX"),
}
BUILDER_DEFAULT = 3
"""optimization level of trtexec, and of our table"""
_HARDWARE = {"none": None, "same_compute_capability": "sameComputeCapability", "ampere_plus": "ampere+"}
_SCRIPT = """\
#!/bin/sh
# Build the engine of this bundle on the machine that will run it, with {tool} of {where}:
#
#   sh {script} ENGINE_FOLDER
#
# {versions}. The graph says the precision of every layer: the network is strongly typed.
# Not yet run on hardware.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || {{ echo "usage: sh {script} ENGINE_FOLDER" >&2; exit 2; }}
tool=${{BUILDER:-$(command -v {tool} || echo {path})}}
[ -x "$tool" ] || {{ echo "{tool} is not here: it comes with {where}; or set BUILDER to its path" >&2; exit 1; }}
mkdir -p "$1"
flags=
for flag in --stronglyTyped --skipInference{exact}; do  # not every version has them
    if "$tool" --help 2>&1 | grep -q -e "$flag"; then flags="$flags $flag"; fi
done
exec "$tool" --onnx="$here/model.onnx" $flags --saveEngine="$1/model.plan" --profilingVerbosity=detailed{flags}
"""
_ORT_SCRIPT = """\
#!/bin/sh
# Build the engine of this bundle on the machine that will run it, with ONNX Runtime and its provider {provider}:
#
#   sh {script} ENGINE_FOLDER
#
# {versions} (package onnxruntime-gpu). Where a node would run on the CPU, it fails.
# Not yet run on hardware.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || {{ echo "usage: sh {script} ENGINE_FOLDER" >&2; exit 2; }}
mkdir -p "$1"
exec "${{PYTHON:-python3}}" - "$here/model.onnx" "$1" <<'END'
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import
import onnxruntime
model, folder = sys.argv[1], os.path.abspath(sys.argv[2])
provider = "{provider}"
told = {told}
if provider not in onnxruntime.get_available_providers():
    sys.exit(f"onnxruntime {{onnxruntime.__version__}} has no {{provider}}; install onnxruntime-gpu in its place")
if provider != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
settings = onnxruntime.SessionOptions()
for one in onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs():
    if isinstance(one.shape[0], str):
        settings.add_free_dimension_override_by_name(one.shape[0], {batch})
{settings}
settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
session = onnxruntime.InferenceSession(model, settings, providers=[(provider, told)], enable_fallback=0)
if session.get_providers()[0] != provider:
    sys.exit(f"the session fell back to {{session.get_providers()[0]}}")
END
"""
_ORT_SAVES = 'settings.optimized_model_filepath = os.path.join(folder, "model.onnx")'
_ORT_LEAVES = """\
settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
told["trt_ep_context_file_path"] = os.path.join(folder, told["trt_ep_context_file_path"])"""


def build_script(
    runtime: str,
    *,
    inputs: Sequence[Tensor],
    batch: int,
    versions: str,
    precision: str = "fp32",
    options: Mapping[str, Any] | None = None,
) -> str | None:
    """Shell script that builds the engine by the runtime's own tool; None where the runtime needs no build.

    versions: PEP 440 range that the target needs. precision: what the graph holds. options: of the runtime's own.
    """
    own = split_options(runtime, options or {}, batch=batch).build
    if runtime in PROVIDERS:
        return _ort_script(runtime, batch=batch, versions=versions, precision=precision, own=own)
    if runtime not in _TOOLS:
        return None
    tool, path, where = _TOOLS[runtime]
    asked = read_options(runtime, BUILD, {"batch": batch, **own})
    dynamic = any(size is None for one in inputs for size in one.shape)
    batches = {"min": asked["batch_min"], "opt": batch, "max": asked["batch_max"]}
    shapes = " ".join(f"--{which}Shapes={_sizes(inputs, count)}" for which, count in batches.items()) if dynamic else ""
    needs = f"It needs {runtime} {versions}" if versions else f"It needs {runtime}"
    return _SCRIPT.format(
        tool=tool,
        where=where,
        path=path,
        script=BUILD_SCRIPT,
        versions=needs,
        exact="" if asked["tf32"] else " --noTF32",  # TensorRT's default would round fp32
        flags="".join(f" \\\n    {one}" for one in [*map(shlex.quote, builder_flags(asked)), shapes] if one),
    )


def builder_flags(options: Mapping[str, Any]) -> list[str]:
    """Flags of trtexec for what differs from its defaults. options: as `targets.runtimes.nvidia.options` reads them.

    trtexec has no word for `refit: identical` by itself; `--refit` allows that and more.
    """
    refit = options["refit"] == "any" or (options["refit"] == "identical" and not options["strip_weights"])
    level = options["optimization_level"]
    hardware = _HARDWARE[options.get("hardware_compatibility", "none")]
    told = {
        f"--builderOptimizationLevel={level}": level != BUILDER_DEFAULT,
        f"--memPoolSize=workspace:{options['workspace_mib']}M": options["workspace_mib"] is not None,
        "--stripWeights": options["strip_weights"],
        "--refit": refit,
        "--versionCompatible": options.get("version_compatible", False),
        f"--hardwareCompatibilityLevel={hardware}": hardware is not None,
        f"--timingCacheFile={options.get('timing_cache')}/times.cache": _names_folder(options.get("timing_cache")),
    }
    return [flag for flag, wanted in told.items() if wanted]


def _names_folder(asked: str | None) -> bool:
    """Whether a folder was named for times of kernels; a board has no use for this machine's cache."""
    return asked not in (None, AUTO, NONE)


def _sizes(inputs: Sequence[Tensor], batch: int) -> str:
    return ",".join(f"{one.name}:{'x'.join(str(size or batch) for size in one.shape)}" for one in inputs)


def _ort_script(runtime: str, *, batch: int, versions: str, precision: str, own: Mapping[str, Any]) -> str:
    """What `targets.runtimes.ort` does, for a board without vitrim."""
    from targets.runtimes.ort.options import read_options as read_ort_options
    from targets.runtimes.ort.providers import cuda_provider, tensorrt_builder

    options = read_ort_options(runtime, BUILD, {"precision": precision, "batch": batch, **own})
    if runtime == ORT_CUDA:
        provider, told = cuda_provider(options, cuda_graph=False)
    else:
        times = Path(options["timing_cache"]) if _names_folder(options["timing_cache"]) else None
        provider, told = tensorrt_builder(options, folder=Path(), shapes={}, timing_cache=times)
    return _ORT_SCRIPT.format(
        provider=provider,
        script=BUILD_SCRIPT,
        versions=f"It needs {runtime} {versions}" if versions else f"It needs {runtime}",
        told=pformat(told),
        batch=batch,
        settings=_ORT_SAVES if runtime == ORT_CUDA else _ORT_LEAVES,
    )
