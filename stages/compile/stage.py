"""Build a runtime's engine from the ONNX graph, in a worker, and look at what really runs in it.

An engine for a GPU that is elsewhere is built ahead of time and not loaded: what its builder says is all there is.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.artifact import Format
from stages.stage import Stage, StageContext, StageResult
from targets.board import COMPUTES, Precision, RuntimeOptions
from targets.errors import InputError, StageError
from targets.profile import TargetProfile, refuse_image_size, usable_runtimes
from targets.record import Record
from targets.runtimes.intel.options import DEVICES, NPU, hint_obstacle
from targets.runtimes.own import Split, split_options

if TYPE_CHECKING:
    from targets.worker import Loaded

MODEL_FILE = "model.onnx"
UNTOLD = "unknown"
"""precision of products of which the runtime does not tell it"""
SILENT = "the runtime does not tell in which precision its products run"


class CompileOptions(Record):
    """Which runtime builds, in which precision, for which batch."""

    runtime: str = Field(
        description="one of the target's runtimes: onnxruntime, openvino, openvino_gpu, openvino_npu, tensorrt, "
        "tensorrt_rtx, onnxruntime_cuda, onnxruntime_tensorrt"
    )
    precision: Precision = Field(
        default="fp32",
        description="what the graph holds; bf16 and fp16 are also hints to OpenVINO for an fp32 graph",
    )
    batch: int | None = Field(default=None, gt=0, description="images per query; null: the target's")
    threads: int | None = Field(default=None, gt=0, description="null: the target's, else all usable cores")
    cores: tuple[int, ...] = Field(
        default=(), description="logical processors that it runs on; of a target's unless others are given"
    )
    hint: Literal["latency", "throughput"] = Field(
        default="latency", description="openvino: one query as fast as it can be, or many at once"
    )
    streams: int | None = Field(
        default=None, gt=0, description="openvino with hint throughput: queries side by side; null: it chooses"
    )
    options: RuntimeOptions = Field(
        default={}, description="of the runtime's own table (docs/runtimes); those of a target unless others are given"
    )
    compute_capability: str | None = Field(
        default=None,
        description="tensorrt_rtx: build ahead of time for a GPU that is elsewhere; null: for this machine",
    )


def compile_engine(options: CompileOptions, context: StageContext) -> StageResult:
    """Build, load again as a user would, and refuse an engine that runs in another precision than it claims.

    Raises InputError for what the target does not allow, StageError for an engine that is not what it should be.
    """
    from targets.facts import stable_facts
    from targets.worker import Worker

    target = context.target
    _check_choice(options, target)
    model = context.input / MODEL_FILE
    batch, threads = options.batch or target.batch, options.threads or target.threads
    own = split_options(options.runtime, options.options, batch=batch)
    if options.compute_capability is not None:
        return _compile_ahead(options, context, model, batch, own)
    with Worker(threads=threads) as worker:
        context.tell(f"{options.runtime} builds for {options.precision}, batch {batch}", None)
        engine, seconds = worker.build(
            model,
            context.output,
            runtime=options.runtime,
            precision=options.precision,
            batch=batch,
            threads=threads,
            more={"hint": options.hint, "streams": options.streams} if options.runtime in DEVICES else own.build,
            at_load=_at_load(own, model, options.cores or target.cores, threads),
        )
        loaded = worker.load(context.output)
        height, width = loaded.inputs[0]["shape"][-2:]
        refuse_image_size(target, (height, width))
        context.tell("looking at what runs", None)
        products = worker.matrix_products()
        facts = worker.facts()
    if loaded.facts.get("tells_precision", True):  # else there is nothing to look at
        _check_precision(options, products)
    return StageResult(
        facts={
            "summary": f"{_counted(products) or SILENT}{_at_once(options, loaded)}",
            **_facts(options, engine, seconds, batch),
            **({"hint": options.hint, "requests": loaded.requests} if options.runtime in DEVICES else {}),
            "load_seconds": loaded.seconds,
            "matrix_products": products,
            "in_force": loaded.facts,
        },
        bound_to={**stable_facts(facts), **engine["bound_to"], options.runtime: engine["version"]},
    )


def _compile_ahead(options: CompileOptions, context: StageContext, model: Path, batch: int, own: Split) -> StageResult:
    """Build for a GPU that is not here; the engine is bound to what the builder says, and not to this machine."""
    from targets.worker import Worker

    with Worker() as worker:
        context.tell(f"{options.runtime} builds for compute capability {options.compute_capability}", None)
        engine, seconds = worker.build(
            model,
            context.output,
            runtime=options.runtime,
            precision=options.precision,
            batch=batch,
            more={**own.build, "compute_capability": options.compute_capability},
            at_load=own.load,
        )
    height, width = engine["inputs"][0]["shape"][-2:]
    refuse_image_size(context.target, (height, width))
    products: Mapping[str, int] = Counter(engine["built"]["products"].values())
    where = f"compute capability {options.compute_capability}"
    return StageResult(
        facts={
            "summary": f"{_counted(products)} in the graph; built ahead of time for {where}, never loaded",
            **_facts(options, engine, seconds, batch),
            "compute_capability": options.compute_capability,
            "products_of_the_graph": dict(products),
        },
        bound_to=engine["bound_to"],
    )


def _at_load(own: Split, model: Path, cores: tuple[int, ...], threads: int | None) -> dict[str, Any]:
    """Options that hold at every load; an engine without weights finds them in the graph that it was built from.

    threads: where recipe or profile say how many; else as many as the machine that loads it has cores.
    """
    return {
        **own.load,
        **({"weights": str(model.absolute())} if own.build.get("strip_weights") else {}),
        **({"cores": list(cores)} if cores else {}),
        **({"threads": threads} if threads else {}),
    }


def _facts(options: CompileOptions, engine: Mapping[str, Any], seconds: float, batch: int) -> dict[str, Any]:
    return {
        "runtime": options.runtime,
        "version": engine["version"],
        "precision": options.precision,
        "batch": batch,
        **({"options": dict(options.options)} if options.options else {}),
        "build_seconds": seconds,
        "engine_bytes": sum(file["size_bytes"] for file in engine["files"].values()),
    }


def _counted(products: Mapping[str, int]) -> str:
    return ", ".join(
        f"{count} matrix products in {'a precision that is not told' if name == UNTOLD else name}"
        for name, count in sorted(products.items())
    )


def _at_once(options: CompileOptions, loaded: "Loaded") -> str:
    """`; throughput hint, queries at once: 2`; empty where it is built for the latency of one."""
    return "" if options.hint == "latency" else f"; {options.hint} hint, queries at once: {loaded.requests}"


def _check_choice(options: CompileOptions, target: TargetProfile) -> None:
    """Raise InputError where the target has no such runtime, or not in this precision, or not on this machine."""
    wrong = hint_obstacle(options.runtime, options.hint, options.streams)
    if wrong is not None:
        raise InputError(wrong)
    choices = [(choice, reason) for choice, reason in usable_runtimes(target) if choice.name == options.runtime]
    if not choices:
        known = ", ".join(choice.name for choice in target.runtimes)
        raise InputError(f"target {target.name!r} has no runtime {options.runtime!r}; it has {known}")
    fit = [reason for choice, reason in choices if options.precision in choice.precisions]
    if not fit:
        known = ", ".join(one for choice, _ in choices for one in choice.precisions)
        raise InputError(
            f"target {target.name!r} does not run {options.precision!r} with {options.runtime!r}; it runs {known}"
        )
    if fit[0] is not None:
        raise InputError(f"runtime {options.runtime!r} in {options.precision!r} cannot be used here: {fit[0]}")


def _check_precision(options: CompileOptions, products: dict[str, int]) -> None:
    """Raise StageError where no product ran in the precision asked for, or some ran in int8 that nobody asked for."""
    ran = ", ".join(f"{count} in {precision}" for precision, count in sorted(products.items())) or "none"
    wanted = COMPUTES.get(options.precision, options.precision)
    if options.runtime == NPU and not products:
        return  # it does not tell
    if wanted not in products:
        raise StageError(
            f"asked {options.runtime} for {options.precision}, but its matrix products ran otherwise ({ran}); "
            "int8 needs a quantized graph (stage quantize)"
        )
    if wanted != "int8" and "int8" in products:
        raise StageError(f"asked {options.runtime} for {options.precision}, but the graph is quantized ({ran})")


STAGE = Stage(
    name="compile",
    summary="build the engine of one runtime from the ONNX graph, bound to a machine",
    consumes=Format.ONNX,
    produces=Format.ENGINE,
    options=CompileOptions,
    run=compile_engine,
    tools=("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    code=("targets/runtimes",),
    target_bound=True,
)
