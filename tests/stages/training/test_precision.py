"""Device and arithmetic."""

import pytest
import torch

from stages.training.precision import (
    LONGEST_FOR_PLAIN_ATTENTION,
    NARROWEST_FOR_BF16,
    Precision,
    autocast,
    has_native_bf16,
    pick_attention,
    pick_device,
    pick_precision,
)
from stages.vit.model import Attention

CPU = torch.device("cpu")
ATTENTION = {"width": 8, "qkv_bias": True, "proj_bias": True, "norm": "layernorm"}
ATTENTION |= {"qk_norm_eps": None, "attention_norm_eps": None}
HEADS = {"heads": 2, "d_qk": 4, "d_v": 4, "scale": 0.5}


def test_a_wish_is_granted() -> None:
    assert pick_precision("bf16", CPU, width=8) == "bf16"
    assert pick_precision("fp32", CPU, width=4096) == "fp32"


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": False}, {"avx2": True}])
def test_a_cpu_without_bf16_products_trains_in_fp32(
    capabilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    assert pick_precision("auto", CPU, width=4096) == "fp32"


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_bf16_products_uses_them_where_the_model_is_wide_enough(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)

    assert has_native_bf16(CPU)
    assert pick_precision("auto", CPU, width=NARROWEST_FOR_BF16) == "bf16"
    assert pick_precision("auto", CPU, width=NARROWEST_FOR_BF16 - 1) == "fp32"


def test_an_old_torch_that_cannot_say_trains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)

    assert pick_precision("auto", CPU, width=4096) == "fp32"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_decides_the_type_of_products_not_of_parameters(precision: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(precision, CPU):
        result = layer(torch.ones(1, 4))

    assert result.dtype == dtype
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "device", "tokens", "fused"),
    [
        ("bf16", "cpu", LONGEST_FOR_PLAIN_ATTENTION, False),
        ("bf16", "cpu", LONGEST_FOR_PLAIN_ATTENTION + 1, True),
        ("bf16", "cuda", LONGEST_FOR_PLAIN_ATTENTION, True),
        ("fp32", "cpu", LONGEST_FOR_PLAIN_ATTENTION, True),
    ],
)
def test_attention_is_plain_only_for_short_sequences_in_bf16_on_a_cpu(
    precision: Precision, device: str, tokens: int, fused: bool
) -> None:
    model = torch.nn.Sequential(Attention(ATTENTION, HEADS), Attention(ATTENTION, HEADS))
    pick_attention(model, precision, torch.device(device), tokens=tokens)

    assert [part.fused for part in model] == [fused, fused]


def test_in_bf16_plain_and_fused_attention_give_the_same_up_to_rounding() -> None:
    torch.manual_seed(0)
    attention, x = Attention(ATTENTION, HEADS), torch.randn(2, 5, 8)
    exact = attention(x)
    found = []
    for tokens in (5, LONGEST_FOR_PLAIN_ATTENTION + 1):
        pick_attention(attention, "bf16", CPU, tokens=tokens)
        with autocast("bf16", CPU):
            found.append(attention(x))

    assert found[0].dtype == found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[0].float(), exact, rtol=0.05, atol=0.02)
    torch.testing.assert_close(found[1].float(), exact, rtol=0.05, atol=0.02)


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
