"""Parts `enormous` and `selection`: a model of 4.35 billion parameters before and after DGMR, and DGMR's choice itself.

Weights are random and made on the device: time and memory do not depend on them. The pruned model therefore is one of
the pruned shape, not a cut of the other; what choosing costs is measured on its own.
"""

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu_shapes import build, query_timer
from benchmarks.gpu_timing import Budget, Effort, gpu_state, interleave, need_packages, summarise
from stages.prune_mlp.dgmr import order_by_diversity
from stages.prune_mlp.options import PruneMlpOptions, reshaped
from stages.vit.counts import count_macs, count_params
from stages.vit.spec import ViTSpec

MODEL = "eva02_enormous_patch14_clip_224"
LAYER, SMALL_LAYER = (15360, 1792), (512, 64)
"""neurons, inputs: fc1 of one block"""
LOOP_PICKS_CPU = 32
"""of 1,792 that the plain loop makes on a CPU; its seconds are scaled to all: each pick costs the same"""
REPEATS = 3


def specs(*, small: bool) -> dict[str, ViTSpec]:
    """The unpruned and the pruned architecture."""
    import timm

    from stages.vit.timm_reader import read_spec

    with torch.device("meta"):
        spec = read_spec(timm.create_model(MODEL), name=MODEL)
    if small:
        blocks = tuple(block.replace(heads=2, d_qk=8, d_v=8, mlp_width=128) for block in spec.blocks[:2])
        spec = spec.replace(width=16, blocks=blocks)
    return {"unpruned": spec, "DGMR r 1": reshaped(PruneMlpOptions(method="dgmr", r=1, repair="none"), spec)}


def enormous(*, device: str, dtype: str, small: bool, effort: Effort, budget: Budget) -> Iterator[dict[str, Any]]:
    """Rows of EVA-CLIP-E by batch and variant."""
    need_packages("timm")
    budget.need(0 if small else 40)
    shapes = specs(small=small)
    models, weight_bytes = {}, {}
    for name, spec in shapes.items():
        started = time.perf_counter()
        # On the device in short numbers from the start: 17 GB in fp32 are never there.
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            models[name] = build(spec, device=device, dtype=getattr(torch, dtype))
        finally:
            torch.set_default_dtype(torch.float32)
        weight_bytes[name] = sum(one.numel() * one.element_size() for one in models[name].parameters())
        print(f"{MODEL} {name}: {time.perf_counter() - started:.1f} s to make", flush=True)
    for batch in (1, 2) if small else (1, 32):
        budget.need(2 * effort.rounds * effort.block_s)
        images = torch.randn(batch, *shapes["unpruned"].input_shape, device=device, dtype=getattr(torch, dtype))
        before, beyond = gpu_state(), {name: _beyond_weights(model, images) for name, model in models.items()}
        samples = interleave({name: query_timer(model, images) for name, model in models.items()}, effort)
        state = {"gpu_before": before, "gpu_after": gpu_state()}
        for name, row in summarise(samples, reference="unpruned", batch=batch).items():
            peak = beyond[name]
            yield {
                "model": MODEL + (", shrunk" if small else ""),
                "variant": name,
                "runtime": "eager",
                "batch": batch,
                "params": count_params(shapes[name]),
                "macs": count_macs(shapes[name]),
                **row,
                "weight_bytes": weight_bytes[name],
                "peak_device_bytes": None if peak is None else weight_bytes[name] + peak,
                **(state if name == "unpruned" else {}),
            }
    models.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _beyond_weights(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> int | None:
    """Bytes that a pass allocates at most beyond what was there, its images included; None on a CPU."""
    if not images.is_cuda:
        return None
    with torch.inference_mode():
        model(images)
        torch.cuda.synchronize()
        there = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(images)
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - there + images.numel() * images.element_size()


def selection(*, device: str, small: bool, budget: Budget) -> Iterator[dict[str, Any]]:
    """Rows of choosing the neurons of one layer: ours and the plain loop, on the device and on the CPU."""
    from benchmarks.selection_speed import layer, loop

    neurons, inputs = SMALL_LAYER if small else LAYER
    rows = layer(neurons, inputs)
    reference: list[int] | None = None
    for place in dict.fromkeys((device, "cpu")):
        methods: dict[str, tuple[Callable[[torch.Tensor, int], list[int]], int]] = {
            "vitrim, float64": (lambda given, count: order_by_diversity(given, count=count).tolist(), inputs),
            "loop, float64": (
                lambda given, count: loop(given, count, torch.float64),
                inputs if place == "cuda" else min(LOOP_PICKS_CPU, inputs),
            ),
        }
        there = rows.to(place)
        for method, (choose, count) in methods.items():
            budget.need(0 if small else 20)
            choose(there[:256], 8)  # libraries loaded, kernels built
            seconds: list[float] = []
            picks: list[int] = []
            for _ in range(REPEATS if place != "cpu" or small else 1):
                _wait(place)
                started = time.perf_counter()
                picks = choose(there, count)
                _wait(place)
                seconds.append((time.perf_counter() - started) * inputs / count)
            reference = picks if reference is None else reference
            compared = min(len(picks), len(reference))
            yield {
                "neurons": neurons,
                "inputs": inputs,
                "device": place,
                "method": method,
                "picks_made": count,
                "seconds": [round(one, 4) for one in seconds],
                "median_s": round(sorted(seconds)[len(seconds) // 2], 4),
                "picks_compared": compared,
                "picks_equal_to_the_first_row": sum(
                    one == other for one, other in zip(picks[:compared], reference[:compared], strict=True)
                ),
                "torch_threads": torch.get_num_threads() if place == "cpu" else None,
            }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
