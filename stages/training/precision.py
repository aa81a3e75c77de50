"""Where and in which arithmetic to train."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch

from stages.training.options import PrecisionWish

Precision = Literal["fp32", "bf16"]

NARROWEST_FOR_BF16 = 128
"""On a CPU with avx512_bf16, bf16 autocast trains a ViT of width 192 about twice as fast as fp32, and one of width 96
at 0.78 of its speed (batch 64, one core): there the casts cost more than the products save."""


def pick_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_precision(wish: PrecisionWish, device: torch.device, *, width: int) -> Precision:
    """Resolve `auto`: bf16 where the device computes it natively and the model is wide enough to gain, else fp32."""
    if wish != "auto":
        return wish
    return "bf16" if width >= NARROWEST_FOR_BF16 and has_native_bf16(device) else "fp32"


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware (torch also emulates it, slowly)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later
    capabilities: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)  # torch >= 2.9
    known = capabilities() if capabilities else {}
    return any(bool(known.get(name)) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context in which matrix products run in the precision; parameters stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
