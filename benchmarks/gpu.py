"""Every figure that needs an NVIDIA GPU, in one command: published shapes, precisions, EVA-CLIP-E, DGMR, distillation.

    make gpu [GPU_FLAGS="--minutes 9 --images FOLDER --output FILE"]
    python benchmarks/gpu.py [--parts NAME ...] [--runtimes NAME ...] [--batches N ...] [--small] [--device cpu]
    python benchmarks/gpu.py --prepare FOLDER

The result file is written anew after every group of rows. What cannot run, because a package, images or minutes are
missing, is skipped and says why. --device cpu tries the script where there is no GPU: its times mean nothing.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PARTS = ("enormous", "selection", "distill", "quantized", "shapes")
"""in this order; shapes takes what is left of the minutes"""
RUNTIMES = ("eager", "onnxruntime", "compile")
COMPILE_MODES = ("reduce-overhead", "max-autotune-no-cudagraphs")
NEEDED = ("torch", "numpy", "pydantic")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write weights, images, an int8 graph (nncf)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="of part shapes")
    parser.add_argument(
        "--batches", nargs="+", type=positive, metavar="N", help="shapes and quantized; default: 1 64 8"
    )
    parser.add_argument("--compile-mode", choices=COMPILE_MODES, default=COMPILE_MODES[0])
    parser.add_argument("--minutes", type=positive_float, default=9.0, help="for everything (default: 9)")
    parser.add_argument(
        "--distill-minutes", type=positive_float, default=2.0, help="of them, for training (default: 2)"
    )
    parser.add_argument("--images", type=Path, help="a prepared folder; default: VITRIM_ASSETS")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, a few seconds each: to try the script")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu.json; on a CPU out/gpu-cpu.json")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def positive_float(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


class ResultFile:
    """The result so far, on disk after every change, whole or not at all."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.data = path, {**head, "parts": {}}
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Replace the file."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


def main() -> None:
    """Run the parts asked for."""
    options = parsed()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        end(f"benchmarks/gpu.py needs {', '.join(missing)}, not installed in {sys.executable}")
    if options.prepare is not None:
        from benchmarks.gpu_distill import prepare

        prepare(options.prepare)
        return
    import torch

    from benchmarks.conditions import conditions
    from benchmarks.gpu_timing import Budget, gpu_state

    if options.device == "cuda" and not torch.cuda.is_available():
        end("no CUDA device that torch can use; --device cpu --small tries the script without one")
    budget = Budget(60 * options.minutes)
    default = ROOT / ("benchmarks/results/gpu.json" if options.device == "cuda" else "out/gpu-cpu.json")
    result = ResultFile(
        options.output or default,
        {
            "script": "benchmarks/gpu.py",
            "conditions": conditions(),
            "device": device_facts(options.device),
            "arguments": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()},
            "weights": "random, but for part distill and for ViT-Tiny in part quantized",
            "timing": "wall clock around a query and the wait for its end; rounds in which every model runs once; "
            "times_faster: median over rounds of the unpruned model's median over the model's own in that round",
        },
    )
    for part in options.parts:
        run_part(part, options, budget, result, gpu_state)
    print(f"wrote {result.path}")


def run_part(part: str, options: argparse.Namespace, budget: Any, result: ResultFile, gpu_state: Any) -> None:
    """Run one part; whatever happens in it, the rows before are kept."""
    from benchmarks.gpu_timing import SkipError

    found: dict[str, Any] = {"gpu_before": gpu_state(), "rows": [], "skipped": []}
    result.data["parts"][part] = found
    started = time.perf_counter()
    with TemporaryDirectory(prefix="vitrim-gpu-") as scratch:
        try:
            for row in rows_of(part, options, budget, Path(scratch)):
                found["skipped" if "skipped" in row else "rows"].append(row)
                print(f"{part}: {told(row)}", flush=True)
                result.write()
        except SkipError as why:
            found["skipped"].append({"skipped": str(why)})
            print(f"{part}: skipped: {why}", flush=True)
        except Exception as error:  # of one part: the others still run
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            found["skipped"].append({"skipped": reason})
            print(f"{part}: failed: {reason}", flush=True)
    found |= {"gpu_after": gpu_state(), "seconds": round(time.perf_counter() - started, 1)}
    result.write()


def rows_of(part: str, options: argparse.Namespace, budget: Any, scratch: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part, as they come."""
    from benchmarks.gpu_timing import Effort

    small, device = options.small, options.device
    effort = Effort(rounds=5, block_s=0.004, warm_up=3) if small else Effort(rounds=15, block_s=0.06)
    if part == "shapes":
        from benchmarks.gpu_shapes import Shapes

        shapes = Shapes(
            device=device,
            dtype="float16",
            small=small,
            mode=options.compile_mode,
            effort=effort,
            budget=budget,
            folder=scratch,
        )
        yield from shapes.run(options.runtimes, options.batches or ([1, 2] if small else [1, 64, 8]))
    elif part == "enormous":
        from benchmarks.gpu_enormous import enormous

        yield from enormous(device=device, dtype="bfloat16", small=small, effort=effort, budget=budget)
    elif part == "selection":
        from benchmarks.gpu_enormous import selection

        yield from selection(device=device, small=small, budget=budget)
    elif part == "quantized":
        from benchmarks.gpu_quantized import quantized

        yield from quantized(
            place=given_images(options),
            device=device,
            small=small,
            batches=options.batches or ([1, 2] if small else [1, 8, 64]),
            mode=options.compile_mode,
            effort=effort,
            budget=budget,
            scratch=scratch,
        )
    else:
        from benchmarks.gpu_distill import distillation

        given = given_images(options)
        yield from distillation(
            place=given,
            device=device,
            small=small,
            minutes=options.distill_minutes,
            budget=budget,
            scratch=scratch,
        )


def given_images(options: argparse.Namespace) -> Path | None:
    """A prepared folder, or one with the assets; None where neither is named."""
    assets = os.environ.get("VITRIM_ASSETS")
    return options.images or (Path(assets) if assets else None)


def device_facts(device: str) -> dict[str, Any]:
    """What torch says of the device."""
    import torch

    if device == "cpu":
        return {"kind": "cpu", "note": "tried without a GPU; times mean nothing"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(0)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    names = ("model", "family", "runtime", "device", "method", "batch", "variant", "skipped")
    what = ", ".join(f"{'batch ' if name == 'batch' else ''}{row[name]}" for name in names if name in row)
    if "p50_ms" in row:
        return f"{what}: {row['p50_ms']:.3f} ms, {row['times_faster']:.2f}x {row['times_faster_ci95']}"
    if "top1" in row:
        return f"{what}: top-1 {100 * row['top1']:.1f} %, agreement {100 * row['agreement']:.1f} %"
    return f"{what}: {row['median_s']:.3f} s" if "median_s" in row else what


def end(message: str) -> None:
    """Say why there is nothing to run; exit 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
