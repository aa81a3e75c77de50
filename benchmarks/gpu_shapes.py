"""Part `shapes`: published shapes against their unpruned models, by runtime and batch. Random weights.

SNP (arXiv 2404.11630), NOSE (2404.05657), ToMe (2210.09461), DGMR (2506.08591). ViT-B and DeiT-B are one shape, so
that DGMR of ViT-B stands beside the others of DeiT-B.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu_ort import OrtProcess
from benchmarks.gpu_timing import Budget, Effort, SkipError, Timer, gpu_state, interleave, need_packages, summarise
from benchmarks.published_shapes import PUBLISHED, REMOVED
from stages.drop_attention.options import DropAttentionOptions, without
from stages.merge_tokens.options import MergeTokensOptions
from stages.merge_tokens.options import reshaped as merging
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.options import reshaped as narrowed
from stages.vit.counts import count_macs, count_params
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec
from targets.preprocess import Preprocess

UNPRUNED = "unpruned"
RUNTIMES = ("eager", "onnxruntime", "compile")
"""in this order: torch.compile takes longest and comes last"""
COMPILE_MODES = ("reduce-overhead", "max-autotune-no-cudagraphs")
"""reduce-overhead: CUDA graphs, compiled in seconds; autotuning the many widths of SNP takes minutes per model"""
COMPILE_S, EXPORT_S = 15.0, 12.0
"""guesses per model, before the first one is known"""
TOME_R = 8
SMALL_SIDE, SMALL_PATCH, SMALL_BY, SMALL_DEPTH = 32, 4, 16, 2
SMALL_VARIANTS = (UNPRUNED, "SNP", f"NOSE 40 %, ToMe r {TOME_R}", "DGMR r 1")


def families() -> dict[str, dict[str, ViTSpec]]:
    """Specs by family and variant; `unpruned` is what the others are pruned from."""
    small, base = PUBLISHED["snp_deit_small"].source_spec, PUBLISHED["snp_deit_base"].source_spec
    large: dict[str, ViTSpec] = {UNPRUNED: base, "SNP": PUBLISHED["snp_deit_base"].spec}
    for share, blocks in REMOVED.items():
        if blocks:
            large[f"NOSE {share}"] = _nose(base, blocks)
            large[f"NOSE {share}, ToMe r {TOME_R}"] = _tome(_nose(base, blocks))
    large["DGMR r 1"] = narrowed(PruneMlpOptions(method="dgmr", r=1, repair="none"), base)
    return {
        "DeiT-S": {
            UNPRUNED: small,
            "SNP": PUBLISHED["snp_deit_small"].spec,
            "SNP, smaller": PUBLISHED["snp_deit_small_smaller"].spec,
        },
        "DeiT-B and ViT-B": large,
    }


def _nose(spec: ViTSpec, blocks: tuple[int, ...]) -> ViTSpec:
    return without(spec, blocks, DropAttentionOptions(blocks=blocks, repair="none"))


def _tome(spec: ViTSpec) -> ViTSpec:
    return merging(MergeTokensOptions(r=TOME_R), spec)


def shrunk(spec: ViTSpec) -> ViTSpec:
    """The same kind of model, a sixteenth as wide, two blocks deep, 64 patches: to try the script."""
    blocks = tuple(
        block.replace(
            d_qk=max(2, block.d_qk // SMALL_BY),
            d_v=max(2, block.d_v // SMALL_BY),
            mlp_width=max(8, block.mlp_width // SMALL_BY),
        )
        for block in spec.blocks[:SMALL_DEPTH]
    )
    return spec.replace(
        width=max(8, spec.width // SMALL_BY),
        blocks=blocks,
        merge=spec.merge[:SMALL_DEPTH],
        patch_size=(SMALL_PATCH, SMALL_PATCH),
        preprocess=Preprocess(height=SMALL_SIDE, width=SMALL_SIDE),
    )


def build(spec: ViTSpec, *, device: str, dtype: torch.dtype) -> ViT:
    """Random weights, the same ones for a spec."""
    torch.manual_seed(0)
    with torch.device(device):
        return ViT(spec.model_dump(mode="json")).eval().to(dtype)


def query_timer(call: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Timer:
    """Wall clock around a query and the wait for its end: launching is part of what a caller waits for."""
    wait: Callable[[], None] = torch.cuda.synchronize if images.is_cuda else lambda: None

    def time_queries(queries: int) -> list[float]:
        found = []
        with torch.inference_mode():
            for _ in range(queries):
                wait()
                start = time.perf_counter()
                call(images)
                wait()
                found.append(1e3 * (time.perf_counter() - start))
        return found

    return time_queries


def compiled(model: ViT, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model through torch.compile; raises where a part would fall back to eager."""
    import torch._dynamo

    # All models share their code, and beyond the limit torch runs eager without an error.
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 10000
    run = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

    def call(images: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # else the graphs of several models are taken for one sequence
        found: torch.Tensor = run(images)
        return found

    return call


def export_here(spec: dict[str, Any], folder: str, dtype: str) -> None:
    """Write model.onnx of a spec with random weights: fp16 inside and at its input, any batch."""
    from stages.export.graph import save_graph, tidy, trace

    Path(folder).mkdir(parents=True)
    model = build(ViTSpec.model_validate(spec), device="cpu", dtype=getattr(torch, dtype))
    graph = trace(model, outputs=("logits",), batch="dynamic", opset=20)
    tidy(graph)
    save_graph(graph, Path(folder))


def export_all(specs: dict[str, ViTSpec], folder: Path, dtype: str) -> dict[str, Path]:
    """Export in several processes; the file of each."""
    places = {name: folder / str(index) for index, name in enumerate(specs)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(len(specs), max(1, cores // 2), 8)
    if workers == 1:
        for name, spec in specs.items():
            export_here(spec.model_dump(mode="json"), str(places[name]), dtype)
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting = [
                pool.submit(export_here, spec.model_dump(mode="json"), str(places[name]), dtype)
                for name, spec in specs.items()
            ]
            for one in waiting:
                one.result()
    return {name: place / "model.onnx" for name, place in places.items()}


class Shapes:
    """The part: yields rows and skips as they come, so that what was measured is kept."""

    def __init__(
        self, *, device: str, dtype: str, small: bool, mode: str, effort: Effort, budget: Budget, folder: Path
    ) -> None:
        self._device, self._dtype, self._mode, self._small = device, dtype, mode, small
        self._effort, self._budget, self._folder = effort, budget, folder
        self.specs = {
            family: {
                name: shrunk(spec) if small else spec
                for name, spec in variants.items()
                if not small or name in SMALL_VARIANTS
            }
            for family, variants in families().items()
        }
        self._files: dict[str, dict[str, Path]] = {}
        self._compile_s = COMPILE_S

    def run(self, runtimes: Sequence[str], batches: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Rows; one with `skipped` says why there are no others of its group."""
        for runtime in runtimes:
            for batch in batches:
                for family in self.specs:
                    group = {"family": family, "runtime": runtime, "batch": batch}
                    try:
                        yield from ({**group, **row} for row in self._group(family, runtime, batch))
                    except SkipError as why:
                        yield {**group, "skipped": str(why)}
                    except Exception as error:  # one group must not take the others with it
                        yield {**group, "skipped": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}

    def _group(self, family: str, runtime: str, batch: int) -> Iterator[dict[str, Any]]:
        specs = self.specs[family]
        timing = len(specs) * self._effort.rounds * self._effort.block_s
        self._budget.need(timing)
        before = gpu_state()
        with ExitStack() as stack:
            if runtime == "onnxruntime":
                timers, infos = self._ort(family, batch, stack)
            else:
                timers, infos = self._torch(specs, batch, compile_them=runtime == "compile")
            samples = interleave(timers, self._effort)
        rows = summarise(samples, reference=UNPRUNED, batch=batch)
        state = {"gpu_before": before, "gpu_after": gpu_state()}
        for name, row in rows.items():
            shape = {"params": count_params(specs[name]), "macs": count_macs(specs[name])}
            yield {"variant": name, **shape, **row, **infos[name], **(state if name == UNPRUNED else {})}

    def _torch(
        self, specs: dict[str, ViTSpec], batch: int, *, compile_them: bool
    ) -> tuple[dict[str, Timer], dict[str, dict[str, Any]]]:
        dtype: torch.dtype = getattr(torch, self._dtype)
        timers: dict[str, Timer] = {}
        infos: dict[str, dict[str, Any]] = {}
        for name, spec in specs.items():
            model = build(spec, device=self._device, dtype=dtype)
            call: Callable[[torch.Tensor], torch.Tensor] = model
            if compile_them:
                left = len(specs) - len(timers)
                self._budget.need(left * (self._compile_s + self._effort.rounds * self._effort.block_s))
                call = compiled(model, self._mode)
            images = torch.randn(batch, *spec.input_shape, device=self._device, dtype=dtype)
            started = time.perf_counter()
            with torch.inference_mode():
                finite = bool(call(images).isfinite().all())
            ready_s = time.perf_counter() - started
            if compile_them:
                self._compile_s = ready_s
            infos[name] = {"first_query_s": round(ready_s, 3), "finite": finite}
            infos[name] |= {"mode": self._mode} if compile_them else {}
            timers[name] = query_timer(call, images)
        return timers, infos

    def _ort(self, family: str, batch: int, stack: ExitStack) -> tuple[dict[str, Timer], dict[str, dict[str, Any]]]:
        need_packages("onnxruntime", "onnx", "onnxscript", "onnx_ir")
        if family not in self._files:
            self._budget.need(0 if self._small else EXPORT_S * 2)
            place = Path(stack.enter_context(TemporaryDirectory(prefix="vitrim-try-")))
            # A session that cannot be opened at all must not cost the export of every model.
            first = {UNPRUNED: shrunk(self.specs[family][UNPRUNED])}
            with OrtProcess(export_all(first, place, self._dtype)[UNPRUNED], batch=1, device=self._device):
                pass
            self._files[family] = export_all(self.specs[family], self._folder / str(len(self._files)), self._dtype)
        processes = {
            name: stack.enter_context(OrtProcess(file, batch=batch, device=self._device))
            for name, file in self._files[family].items()
        }
        return {name: one.time for name, one in processes.items()}, {name: one.info for name, one in processes.items()}
