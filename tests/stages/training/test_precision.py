"""Device and arithmetic."""

import pytest
import torch

from stages.training.precision import NARROWEST_FOR_BF16, autocast, has_native_bf16, pick_device, pick_precision

CPU = torch.device("cpu")


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


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
