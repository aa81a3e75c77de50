"""Where and in which arithmetic to train."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

from stages.training.options import PrecisionWish
from stages.training.ranks import ALONE, Ranks
from stages.vit.model import Attention

Precision = Literal["fp32", "bf16"]

NARROWEST_FOR_BF16 = 128
"""On a CPU with avx512_bf16, bf16 autocast trains a ViT of width 192 about twice as fast as fp32, and one of width 96
at 0.78 of its speed (batch 64, one core): there the casts cost more than the products save."""

LONGEST_FOR_PLAIN_ATTENTION = 256
"""tokens; the plain products keep tokens x tokens numbers of each head and image"""


def pick_device(among: Ranks = ALONE) -> torch.device:
    """This process's GPU, the first one where there is one process, else the CPU."""
    if among.device is not None:
        return among.device
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


def pick_attention(model: nn.Module, precision: Precision, device: torch.device, *, tokens: int) -> None:
    """Take torch's fused attention, or the plain products where they train faster: in bf16 on a CPU.

    torch 2.15's kernel for CPUs multiplies bf16 slowly: forward 13 ms and backward 36 ms for a batch of 32 of ViT-Tiny
    on one core, where the plain products need 7 and 11 ms; a step of distillation takes two thirds of the time. In
    fp32 the two are equal.
    """
    plain = precision == "bf16" and device.type == "cpu" and tokens <= LONGEST_FOR_PLAIN_ATTENTION
    for part in model.modules():
        if isinstance(part, Attention):
            part.fused = not plain
