"""Rounding of one tensor to int8 and back: with a gradient while the model trains, as Q/DQ operators when it is traced.

Forward, as ONNX's QuantizeLinear and DequantizeLinear: scale * (clamp(round(x / scale) + zero, low, high) - zero).
Backward, straight through the rounding: to x where nothing is cut off, and to the scale as in LSQ (Esser et al., ICLR
2020, https://arxiv.org/abs/1902.08153). What is learned is the scale's logarithm, so that a step of the optimizer is a
share of it: scales of weights are a hundred times smaller than those of activations.

Shapes: x is any; one scale for the whole tensor, or K, one for each place along `axis`.
"""

from typing import Any

import torch
from torch import Tensor, nn

HALF = 63
"""largest code of a weight of 7 bits"""


class Rounding(nn.Module):
    """Rounds what goes through it."""

    def __init__(self, scale: Tensor, zero: Tensor, *, low: int, high: int, axis: int | None) -> None:
        """Take scale and zero point, [1] or [K]; low and high are the least and the largest code."""
        super().__init__()
        self.log_scale = nn.Parameter(scale.detach().float().log())
        self.zero: Tensor
        self.register_buffer("zero", zero.detach().to(torch.int32))
        self.low, self.high, self.axis = low, high, axis
        self.codes: Tensor | None
        self.register_buffer("codes", None, persistent=False)
        self.tracing = False

    @property
    def scale(self) -> Tensor:
        """Step between two codes: [1] or [K]."""
        return self.log_scale.detach().exp()

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded, shape unchanged."""
        if self.tracing:
            return self._operators(x)
        rounded: Tensor = _Round.apply(
            x, self._along(self.log_scale, x), self._along(self.zero, x), self.low, self.high
        )
        return rounded

    def to_half_range(self, weight: Tensor) -> None:
        """Keep the codes of a weight within 7 bits, the scales widened where they must be."""
        others = [axis for axis in range(weight.dim()) if axis != self.axis]
        needed = weight.detach().abs().amax(dim=others) / HALF
        self.low, self.high = -HALF, HALF
        with torch.no_grad():
            self.log_scale.copy_(torch.maximum(self.scale, needed.reshape(-1).clamp_min(1e-12)).log())

    def freeze(self, x: Tensor, *, constant: bool) -> None:
        """Be Q/DQ operators from now on. constant: x is a weight, of which the codes alone remain."""
        self.tracing = True
        if constant:
            steps = x.detach() / self._along(self.scale, x)
            codes = (steps.round() + self._along(self.zero, x)).clamp(self.low, self.high)
            self.codes = codes.to(torch.int8)

    def _operators(self, x: Tensor) -> Tensor:
        scale, zero = self.scale, self.zero.to(torch.int8)
        if self.axis is None:
            scale, zero = scale[0], zero[0]
        where: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        codes = self.codes
        if codes is None:
            codes = torch.onnx.ops.symbolic(
                "QuantizeLinear", (x, scale, zero), where, dtype=torch.int8, shape=tuple(x.shape)
            )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, scale, zero), where, dtype=torch.float32, shape=tuple(x.shape)
        )

    def _along(self, values: Tensor, x: Tensor) -> Tensor:
        """Give one value per place along the axis the shape that broadcasts over x."""
        shape = [1] * x.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        return values.view(shape)


class _Round(torch.autograd.Function):
    """Rounding with the gradients of straight-through estimation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        scale = log_scale.exp()
        steps = x / scale
        rounded = steps.round()
        codes = (rounded + zero).clamp_(low, high) - zero
        inside = rounded == codes
        # d(scale * codes) / d(log scale): the rounding error where x was rounded, the border where it was cut off
        ctx.save_for_backward(inside, (codes - steps * inside) * scale)
        ctx.shape = log_scale.shape
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        inside, slope = ctx.saved_tensors
        to_scale = (gradient * slope).sum_to_size(ctx.shape) if ctx.needs_input_grad[1] else None
        return gradient * inside, to_scale, None, None, None
