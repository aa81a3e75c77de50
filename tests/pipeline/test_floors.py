"""The floor of a target: from its profile, else from the processor; what answers faster is found out."""

from pathlib import Path
from typing import Any

import pytest
import sleep_runtime
from tiny_graphs import images

from pipeline.floors import floor_on
from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import WorkerError
from targets.facts import probe
from targets.measure.latency import EngineUnderTest, Procedure, compare
from targets.preprocess import Preprocess
from targets.profile import RuntimeChoice, load_profile
from targets.worker import Worker

ONCE = Procedure(
    processes=1, queries=4, seconds=0, blocks=2, warmup_queries=5, warmup_seconds=0, warmup_limit_seconds=2
)


class Quiet:
    """A watcher of a machine that tells nothing."""

    def watch(self) -> dict[str, Any]:
        return {"sources": {}, "facts": {}}

    def watched(self) -> list[dict[str, Any]]:
        return []


@pytest.fixture(scope="module")
def vit() -> ViTSpec:
    """A huge one: some 10^12 multiply-accumulates an image."""
    block = BlockSpec(heads=16, d_qk=80, d_v=80, scale=0.1, mlp_width=5120, norm1_eps=1e-6, norm2_eps=1e-6)
    reads = Preprocess(height=518, width=518)
    return ViTSpec(
        architecture="huge", preprocess=reads, patch_size=(14, 14), width=1280, classes=10, blocks=(block,) * 32
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8_weights"])
def test_the_processor_at_hand_has_a_floor(vit: ViTSpec, runtime: str, precision: str) -> None:
    if probe()["architecture"] not in ("x86_64", "aarch64"):
        pytest.skip("no bound is known of this kind of processor")
    found = floor_on(load_profile("cpu"), vit, precision=precision, batch=1, runtime=runtime, facts=probe())

    assert found.ms is not None
    assert found.ms > 0
    assert found.note == "bound by computing; not known: bandwidth, size of the cache"


def test_an_engine_that_does_not_compute_falls_below_the_floor_of_the_cpu_target(vit: ViTSpec, tmp_path: Path) -> None:
    facts = {**probe(), "architecture": "x86_64", "instruction_sets": ["avx2"], "cores": 1}
    floor = floor_on(load_profile("cpu"), vit, precision="fp32", batch=1, runtime="onnxruntime", facts=facts)
    assert floor.ms is not None
    folder = sleep_runtime.make_engine(tmp_path / "engine", milliseconds=0)
    engine = EngineUnderTest(folder=folder, batch=1, threads=1, floor_ms=floor.ms)

    with pytest.raises(WorkerError, match=r"engine 'engine' answered in .* ms, this hardware needs .* ms at least"):
        compare(
            {"engine": engine},
            images(16),
            level="quick",
            procedure=ONCE,
            start=lambda threads: Worker(threads, runtimes={"sleep": Path(sleep_runtime.__file__)}),
            watcher=Quiet(),
            rest=lambda seconds: None,
        )


def test_an_integrated_gpu_is_not_held_to_what_the_cores_can(vit: ViTSpec) -> None:
    target = load_profile("core-ultra-258v")

    assert floor_on(target, vit, precision="int8", batch=1, runtime="openvino").ms is not None
    assert "peak" in floor_on(target, vit, precision="int8", batch=1, runtime="openvino_gpu", facts=probe()).note


def test_weights_that_the_cache_cannot_keep_are_read_again(vit: ViTSpec) -> None:
    target = load_profile("l4")
    floor = floor_on(target, vit, precision="fp16", batch=1, runtime="tensorrt")
    small = vit.replace(preprocess=Preprocess(height=14, width=14))  # two tokens: hardly anything to compute

    waiting = floor_on(target, small, precision="fp16", batch=1, runtime="tensorrt")
    assert floor.note == "bound by computing"
    assert waiting.note == "bound by memory traffic"
    assert waiting.ms is not None
    weights = 2 * sum(12 * 1280 * 1280 for _ in range(32))
    assert waiting.ms == pytest.approx((weights - 48 * 2**20) / 300e9 * 1000, rel=0.1)


def test_with_tf32_fp32_is_held_to_the_faster_units(vit: ViTSpec) -> None:
    target = load_profile("l4")
    rounded = target.replace(runtimes=(RuntimeChoice(name="tensorrt", options={"tf32": True}),))

    exact = floor_on(target, vit, precision="fp32", batch=1, runtime="tensorrt").ms
    faster = floor_on(rounded, vit, precision="fp32", batch=1, runtime="tensorrt").ms
    assert exact is not None
    assert faster is not None
    assert faster < exact / 3


def test_the_precision_that_a_graph_computes_in_is_what_counts(vit: ViTSpec) -> None:
    def floor(precision: str) -> float | None:
        return floor_on(load_profile("raspberry-pi-5"), vit, precision=precision, batch=1, runtime="onnxruntime").ms

    assert floor("int8_dynamic") == floor("int8")
    assert floor("int8_weights") == pytest.approx(floor("fp32"), rel=0.2)
