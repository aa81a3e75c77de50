"""The whole way: timm's model, spec, our module, ONNX, each runtime. The last answers what the first does."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from timm.layers import RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from stages.export.parity import clear_images, reference_outputs
from stages.stage import StageResult
from stages.vit.files import load_model, save_model
from stages.vit.timm_reader import read_timm
from targets.errors import StageError
from targets.worker import Worker

Export = Callable[..., StageResult]
DYNAMIC = (1, 2, 5)
"""images per query of a dynamic graph"""

MODELS: dict[str, dict[str, Any]] = {
    "class_token": {},
    "average_pooling": {"global_pool": "avg"},
    "average_of_all": {"global_pool": "avg", "pool_include_prefix": True},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "layer_scale": {"init_values": 0.1},
    "qk_norm": {"qk_norm": True},
    "no_head": {"num_classes": 0},
    "clip": {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5), "act_layer": "quick_gelu"},
    "rmsnorm": {"norm_layer": RmsNorm, "qk_norm": True},
    "packed_swiglu": {"mlp_layer": SwiGLUPacked, "act_layer": "silu"},
    "swiglu_with_norms": {"mlp_layer": SwiGLU, "act_layer": "silu", "scale_mlp_norm": True, "scale_attn_norm": True},
    "post_norm": {"block_fn": ResPostBlock, "act_layer": "gelu_tanh"},
    "relu": {"act_layer": "relu", "pos_embed": "none"},
    "rotary": {"eva": True, "use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "global_pool": "token"},
    "rotary_per_head": {"eva": True, "use_rot_pos_emb": True, "rope_type": "mixed", "qk_norm": True},
}


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, Worker]]:
    """A worker for each runtime of this processor."""
    with Worker(threads=1) as one, Worker(threads=1) as other:
        yield dict(zip(("onnxruntime", "openvino"), (one, other), strict=True))


def make_timm(*, eva: bool = False, **changes: Any) -> VisionTransformer | Eva:
    usual = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
    model = (Eva if eva else VisionTransformer)(**{**usual, **changes}).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # every weight matters: no gain of 1, no bias of 0
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw) + (1.0 if gain else 0.0))
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_every_runtime_answers_as_timm_does(
    kind: str, workers: dict[str, Worker], run_export: Export, tmp_path: Path
) -> None:
    source = make_timm(**MODELS[kind])
    spec, state = read_timm(source, name=kind)
    save_model(tmp_path / "model", spec, state)
    images = torch.randn(5, *spec.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = source(images).numpy()

    run_export(tmp_path / "model", tmp_path / "graph")

    output = "features" if kind == "no_head" else "logits"
    tolerance = 1e-4 * np.abs(expected).max()
    for runtime, worker in workers.items():
        worker.load(tmp_path / "graph" / "model.onnx", runtime=runtime)
        for batch in DYNAMIC:
            found = worker.infer(images.numpy(), batch=batch)
            assert list(found) == [output]
            np.testing.assert_allclose(found[output], expected, atol=tolerance, err_msg=f"{runtime}, batch {batch}")


@pytest.mark.parametrize("kind", ["average_of_all", "registers", "clip", "swiglu_with_norms", "post_norm"])
def test_every_kind_of_model_merges_in_every_runtime_as_in_torch(
    kind: str, workers: dict[str, Worker], run_export: Export, tmp_path: Path
) -> None:
    spec, state = read_timm(make_timm(**MODELS[kind]), name=kind)
    spec = spec.replace(merge=(5, 3))
    save_model(tmp_path / "model", spec, state)
    model = load_model(tmp_path / "model")
    images, _ = clear_images(model, spec, seed=1)
    outputs = (model.output_names[0], "patch_tokens")
    expected = reference_outputs(model, images, outputs)

    run_export(tmp_path / "model", tmp_path / "graph", outputs=outputs)

    assert expected["patch_tokens"].shape == (6, 8, 32)
    for runtime, worker in workers.items():
        worker.load(tmp_path / "graph" / "model.onnx", runtime=runtime)
        for batch in DYNAMIC:
            found = worker.infer(images, batch=batch)
            for name, right in expected.items():
                tolerance = 1e-4 * np.abs(right).max()
                np.testing.assert_allclose(found[name], right, atol=tolerance, err_msg=f"{runtime}, batch {batch}")


@pytest.mark.parametrize("opset", [17, 23])
def test_every_opset_answers_the_same_and_is_what_was_asked_for(
    opset: int, workers: dict[str, Worker], run_export: Export, tmp_path: Path
) -> None:
    source = make_timm(reg_tokens=2, init_values=0.1, qk_norm=True)
    spec, state = read_timm(source, name="small")
    save_model(tmp_path / "model", spec, state)
    images = torch.randn(3, *spec.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = source(images).numpy()

    run_export(tmp_path / "model", tmp_path / "graph", opset=opset, batch=3)

    assert onnx.load(tmp_path / "graph" / "model.onnx").opset_import[0].version == opset
    for runtime, worker in workers.items():
        worker.load(tmp_path / "graph" / "model.onnx", runtime=runtime)
        found = worker.infer(images.numpy(), batch=3)["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), err_msg=runtime)


def test_an_opset_that_the_model_cannot_be_written_in_is_refused(run_export: Export, tmp_path: Path) -> None:
    spec, state = read_timm(make_timm(global_pool="avg"), name="small")  # torch's mean is ReduceMean of opset 18
    save_model(tmp_path / "model", spec, state)

    with pytest.raises(StageError, match="cannot be written in opset 17, only in 18; set opset to that"):
        run_export(tmp_path / "model", tmp_path / "graph", opset=17)
