"""Rounding: the numbers of ONNX's quantizers, the gradients of straight-through estimation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.quantize_aware.rounding import HALF, Rounding


def rounding(scale: list[float], *, zero: int = 0, axis: int | None = None) -> Rounding:
    zeros = torch.full((len(scale),), zero)
    return Rounding(torch.tensor(scale), zeros, low=-128, high=127, axis=axis)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    st.floats(1e-3, 10),
    st.integers(-128, 127),
)
def test_it_is_what_quantize_linear_and_dequantize_linear_give(values: list[float], scale: float, zero: int) -> None:
    one = rounding([scale], zero=zero)
    x = torch.tensor(values)

    step = one.scale.numpy()
    codes = np.clip(np.rint(x.numpy() / step) + zero, -128, 127)
    assert one(x).detach().numpy() == pytest.approx((codes - zero) * step)


def test_what_is_rounded_already_stays() -> None:
    one = rounding([0.5, 0.1], axis=0)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

    once = one(x)
    assert torch.equal(one(once), once)


def test_the_gradient_passes_where_nothing_is_cut_off() -> None:
    one = rounding([0.1])
    x = torch.tensor([-100.0, -3.14, 0.0, 7.77, 100.0], requires_grad=True)
    one(x).sum().backward()

    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_the_gradient_of_a_scale_is_the_rounding_error_within_and_the_border_beyond() -> None:
    one = rounding([0.1, 0.2], axis=0)
    x = torch.tensor([[0.12, 100.0], [-100.0, 0.33]])
    one(x).sum().backward()

    scale = one.scale
    inside = [(round(0.12 / 0.1) - 0.12 / 0.1) * 0.1, (round(0.33 / 0.2) - 0.33 / 0.2) * 0.2]
    border = [127 * 0.1, -128 * 0.2]
    assert one.log_scale.grad is not None
    assert one.log_scale.grad.tolist() == pytest.approx([inside[0] + border[0], inside[1] + border[1]], rel=1e-4)
    assert scale.tolist() == pytest.approx([0.1, 0.2])


def test_a_weight_of_half_range_has_codes_of_seven_bits_and_nothing_is_cut_off() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    one = rounding((weight.abs().amax(dim=1) / 127).tolist(), axis=0)
    one.to_half_range(weight)

    codes = (one(weight).detach() / one.scale[:, None]).round()
    assert codes.abs().max() == HALF
    assert ((one(weight) - weight).abs() <= one.scale[:, None] * 0.5001).all()


def test_a_range_that_was_wide_enough_for_seven_bits_stays() -> None:
    one = rounding([1.0])
    one.to_half_range(torch.tensor([0.3, -0.2]))

    assert one.scale.tolist() == [1.0]
