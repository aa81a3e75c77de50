"""How a bundle's latency is measured again by its runtime's own tool, without vitrim: commands, and a script of them.

What vitrim times is one query after the other, from numpy in to numpy out: the tools are told to wait for each query
and to copy its images in and its answers out. They time random pixels in one process; a ratio of two such runs means
less than one of `vitrim validate`, which lets the engines take turns.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from targets.bundle.manifest import BundleManifest
from targets.measure.procedure import LEVELS
from targets.runtimes.intel.options import CPU, DEVICES, HINTS
from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT, RTX, TENSORRT

REPRODUCE_SCRIPT = "reproduce.sh"
ORT = "onnxruntime"
_GRAPH = "model.onnx"
_FULL = LEVELS["full"]
_TENSORRT_TOOLS = {TENSORRT: ("trtexec", "/usr/src/tensorrt/bin/trtexec"), RTX: ("tensorrt_rtx", "tensorrt_rtx")}
_WANTED = ("--useCudaGraph", "--useSpinWait", "--includeDataTransfers", "--exposeDMA")
"""TensorRT 10 has the first two off unless asked; 11 has them on, and the copies off unless asked. The last lets one
query end before the next is copied in. What a version does not know it does already"""
_HEAD = """\
#!/bin/sh
# Time the model of this bundle with {tool}, the tool of its own runtime ({runtime}{version}): one query after the
# other, copies in and out included, as vitrim timed it.{proof}
#
#   sh {script} [ENGINE_FOLDER]        without a folder: {default}
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -le 1 ] || {{ echo "usage: sh {script} [ENGINE_FOLDER]" >&2; exit 2; }}
engine=${{1:-$here/engine}}
tool=${{TOOL:-$(command -v {tool} || echo {path})}}
command -v "$tool" >/dev/null || {{ echo "{tool} is not here: {where}; or set TOOL to its path" >&2; exit 1; }}
"""
_NEVER_RAN = " Not yet run on hardware."
_FILE = '[ -f "{file}" ] || {{ echo "there is no {file}: {remedy}" >&2; exit 1; }}\n'


def reproduce_script(
    manifest: BundleManifest, *, engine: Mapping[str, Any], open_dimension: str | None = None
) -> str | None:
    """Shell script that times a bundle's engine; None where its runtime has no tool, or needs more than the engine.

    engine: engine.json, or what is planned of it. open_dimension: name of the batch where model.onnx leaves it open.
    """
    facts = {**engine, "runtime": manifest.runtime, "batch": manifest.batch, "precision": manifest.precision}
    facts["inputs"] = [one.model_dump(mode="json") for one in manifest.inputs]
    built = manifest.engine_sha256 is not None
    if manifest.runtime in _TENSORRT_TOOLS:
        return None if facts.get("options", {}).get("strip_weights") else _tensorrt_script(manifest, facts)
    words = _words(facts, built=built, open_dimension=open_dimension)
    if words is None:
        return None
    tool, file, arguments = words
    on_cpu = manifest.runtime == CPU
    needs_build = manifest.runtime in (ORT_CUDA, ORT_TENSORRT) and not built
    head = _head(
        manifest,
        tool=tool,
        path=tool,
        where="it comes with openvino (pip install openvino)"
        if tool == "benchmark_app"
        else "it comes with ONNX Runtime's sources (onnxruntime/test/perftest), not with its package for Python",
        default="engine/ of this bundle" if built else ("there is none yet" if needs_build else "model.onnx"),
        proof="" if on_cpu else _NEVER_RAN,
    )
    place = f"$engine/{file}"
    if built or needs_build:
        check = _FILE.format(file=place, remedy="build it first: sh build.sh ENGINE_FOLDER")
    else:
        place, check = f"$here/{_GRAPH}", ""
    shown = " ".join(f'"{place}"' if word == file else shlex.quote(word) for word in arguments)
    return f'{head}{check}exec "$tool" {shown}\n'


def timing_commands(engine: Mapping[str, Any]) -> str:
    """The same as lines to read, for a report, from the bundle's folder. engine: engine.json; empty where none fits."""
    runtime = engine.get("runtime", "")
    if runtime in _TENSORRT_TOOLS:
        if engine.get("options", {}).get("strip_weights"):
            return ""
        tool, _ = _TENSORRT_TOOLS[runtime]
        plain = [tool, f"--loadEngine=engine/{engine['load']}", *_trtexec_flags(engine)]
        graph = _records(engine)
        ten = ["--useCudaGraph"] * graph + ["--useSpinWait", "--exposeDMA"]
        eleven = ["--noCudaGraph"] * (not graph) + ["--includeDataTransfers", "--exposeDMA"]
        if runtime == RTX:
            return shlex.join([*plain, *ten])
        return f"# TensorRT 10\n{shlex.join([*plain, *ten])}\n# TensorRT 11\n{shlex.join([*plain, *eleven])}"
    words = _words(engine, built=True, open_dimension=None)
    if words is None:
        return ""
    tool, file, arguments = words
    return shlex.join([tool, *(f"engine/{file}" if word == file else word for word in arguments)])


def _words(engine: Mapping[str, Any], *, built: bool, open_dimension: str | None) -> tuple[str, str, list[str]] | None:
    """Tool, file of the model and arguments, in which that file stands alone; None: no tool is known."""
    runtime = str(engine.get("runtime", ""))
    options, kept = engine.get("options", {}), engine.get("at_load", {})
    threads = options.get("threads")
    if runtime in DEVICES:
        file = str(engine["load"]) if built else _GRAPH
        device, hint = DEVICES[runtime], kept.get("hint") or "latency"
        fine = {"-nthreads": threads if device == "CPU" else None, "-nstreams": kept.get("streams")}
        if hint == "latency" and fine["-nthreads"]:
            fine["-nstreams"] = 1
        tuned = [word for flag, value in fine.items() if value for word in (flag, str(value))]
        # Beside threads and streams the tool wants no hint; one stream is what the hint `latency` stands for.
        how = ["-hint", "none" if tuned else hint, "-api", "sync" if hint == "latency" else "async", *tuned]
        how += ["-t", f"{_FULL.seconds:g}"]
        how += ["-infer_precision", HINTS[runtime].get(str(engine["precision"]), "f32")]
        shapes = "" if built or open_dimension is None else _sizes(engine, "[{}]", ",")
        return "benchmark_app", file, ["-m", file, "-d", device, *how, *(["-shape", shapes] if shapes else [])]
    providers = {ORT: "cpu", ORT_CUDA: "cuda", ORT_TENSORRT: "tensorrt"}
    if runtime not in providers:
        return None
    optimised = built or runtime != ORT
    file = str(engine.get("load", "model_ctx.onnx" if runtime == ORT_TENSORRT else _GRAPH)) if optimised else _GRAPH
    how = ["-e", providers[runtime], "-m", "times", "-r", str(_FULL.queries), "-s", "-I"]
    how += ["-x", str(threads or 0), "-y", "1", "-o", "0" if optimised else "99"]
    if runtime == ORT:
        how += ["-C", "session.qdq_matmulnbits_accuracy_level|1"]  # int8 weights are weights only
    if not optimised and open_dimension:
        how += ["-f", f"{open_dimension}:{engine['batch']}"]
    return "onnxruntime_perf_test", file, [*how, file]


def _tensorrt_script(manifest: BundleManifest, engine: Mapping[str, Any]) -> str:
    tool, path = _TENSORRT_TOOLS[manifest.runtime]
    built = manifest.engine_sha256 is not None
    head = _head(
        manifest,
        tool=tool,
        path=path,
        where="it comes with TensorRT; JetPack has it in /usr/src/tensorrt/bin"
        if manifest.runtime == TENSORRT
        else "it comes with TensorRT for RTX",
        default="engine/ of this bundle" if built else "there is none yet",
        proof=_NEVER_RAN,
    )
    file = f"$engine/{engine.get('load', 'model.plan')}"
    wanted = " ".join(one for one in _WANTED if one != "--useCudaGraph" or _records(engine))
    without = "" if _records(engine) else "--noCudaGraph"
    return (
        f"{head}{_FILE.format(file=file, remedy='build it first: sh build.sh ENGINE_FOLDER')}"
        f"# TensorRT 10 and 11 differ in what is on unless asked; each flag is given to a version that knows it.\n"
        f'help=$("$tool" --help 2>&1 || true)\nflags=\n'
        f"for flag in {' '.join(filter(None, [wanted, without]))}; do\n"
        f'    case "$help" in *"$flag"*) flags="$flags $flag" ;; esac\ndone\n'
        f'exec "$tool" --loadEngine="{file}" $flags {shlex.join(_trtexec_flags(engine))}\n'
    )


def _trtexec_flags(engine: Mapping[str, Any]) -> list[str]:
    """Those that no version does without; times of trtexec are seconds and milliseconds."""
    shapes = _sizes(engine, ":{}", "x") if any(one["shape"][0] is None for one in engine["inputs"]) else ""
    return [
        *([f"--shapes={shapes}"] if shapes else []),
        f"--warmUp={1000 * _FULL.warmup_seconds:g}",
        f"--duration={_FULL.seconds:g}",
        f"--iterations={_FULL.queries}",
        "--avgRuns=1",
        "--percentile=50,90,99",
    ]


def _records(engine: Mapping[str, Any]) -> bool:
    """Whether the engine is loaded with a CUDA graph, as it is unless the build said otherwise."""
    return bool(engine.get("at_load", {}).get("cuda_graph", True))


def _sizes(engine: Mapping[str, Any], form: str, between: str) -> str:
    """Shapes of the inputs, an open batch filled in: `pixels:1x3x224x224`."""
    return ",".join(
        one["name"] + form.format(between.join(str(size or engine["batch"]) for size in one["shape"]))
        for one in engine["inputs"]
    )


def _head(manifest: BundleManifest, *, tool: str, path: str, where: str, default: str, proof: str) -> str:
    version = f" {manifest.version}" if manifest.version else ""
    return _HEAD.format(
        tool=tool,
        path=path,
        where=where,
        default=default,
        proof=proof,
        script=REPRODUCE_SCRIPT,
        runtime=manifest.runtime,
        version=version,
    )
