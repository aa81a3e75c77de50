"""The benchmark of ahead-of-time builds: what it builds, and how the page shows it."""

import json
from pathlib import Path

import pytest

from benchmarks import results_page, rtx_builds
from stages.vit.counts import count_params
from targets.runtimes.nvidia.capability import LEGAL
from targets.runtimes.nvidia.options import RTX

CONDITIONS = {
    "measured_at": "2026-11-27T10:00:00+00:00",
    "cores": 2,
    "cpu": "some CPU",
    "versions": {"tensorrt-rtx": "1.7.1"},
}


def test_the_smallest_model_is_built_for_every_gpu_and_the_others_for_two_of_them() -> None:
    assert rtx_builds.FULL.capabilities[rtx_builds.SMALLEST] == tuple(LEGAL[RTX])
    for model in rtx_builds.MODELS:
        assert set(rtx_builds.FULL.capabilities[model]) <= set(LEGAL[RTX])
        assert rtx_builds.FULL.repeats[model] >= 1


@pytest.mark.parametrize("model", rtx_builds.MODELS)
def test_pruned_shapes_have_half_of_every_mlp_and_of_every_query_and_key(model: str) -> None:
    whole, pruned = rtx_builds.shapes(model).values()

    for before, after in zip(whole.blocks, pruned.blocks, strict=True):
        assert (2 * after.mlp_width, 2 * after.d_qk) == (before.mlp_width, before.d_qk)
        assert (after.d_v, after.heads, after.scale) == (before.d_v, before.heads, before.scale)
    assert 7 / 12 < count_params(pruned) / count_params(whole) < 0.7  # of a block: qkv 3, proj 1, MLP 8


def test_every_precision_of_which_there_is_a_graph_is_built() -> None:
    assert {"fp32", "fp16", "int8", "fp8"} <= set(rtx_builds.precisions())


def test_the_page_has_a_column_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"model": "ViT-Tiny", "shape": "pruned", "build_s_median": 2.34, "engine_bytes": 13_840_000}
    rows = [
        {**row, "precision": "fp16", "capability": "8.6"},
        {**row, "precision": "fp16", "capability": "8.9", "failed": "no"},
        {**row, "precision": "fp8", "capability": "8.9"},
    ]
    data = {"conditions": CONDITIONS, "batch": 1, "threads": 2, "left_out": ["bf16"], "rows": rows}
    (tmp_path / "rtx_builds.json").write_text(json.dumps(data))
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)

    page = results_page.page()

    assert "| model, shape, precision | 8.6 | 8.9 |" in page
    assert "| ViT-Tiny, pruned, fp16 | 2.3 s, 13.8 MB | failed |" in page
    assert "| ViT-Tiny, pruned, fp8 | - | 2.3 s, 13.8 MB |" in page
    assert "TensorRT-RTX 1.7.1, batch 1, 2 threads" in page
    assert "No graphs: bf16." in page
