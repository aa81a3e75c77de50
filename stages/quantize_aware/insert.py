"""Put roundings into a model: NNCF says where and how wide, after SmoothQuant; ours take the place of its quantizers.

NNCF's own quantizers train by a C++ extension that it compiles on the user's machine (on a GPU by nvcc, or not at all),
and its export of them needs torchao; ours are plain torch and trace to Q/DQ operators.

Shapes: C channels, H and W of the model's input.
"""

import io
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.export.graph import NamedOutputs
from stages.quantize_aware.rounding import Rounding
from stages.vit.model import Attention, ViT

if TYPE_CHECKING:
    from stages.quantize_aware.stage import QuantizeAwareOptions

UNWANTED = ("openvino", "openvino_telemetry")
"""what NNCF imports though torch alone is asked for: a runtime, and what reports every run to NNCF's makers"""
FLOAT_FOR_TENSORRT = ("matmul", "__matmul__", "conv2d")
"""what quantize leaves in float in symmetric graphs: one product of an attention is not fused without the other"""


class QuantizedViT(nn.Module):
    """A ViT whose products read rounded numbers; it answers as a ViT does."""

    def __init__(self, model: ViT, root: nn.Module) -> None:
        """Take the model, for what is known of it, and the module that NNCF made of its NamedOutputs."""
        super().__init__()
        self.root = root
        self.spec = model.spec
        self.image_size = model.image_size
        self.output_names = model.output_names

    def outputs(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return named outputs for images [B, C, H, W]."""
        names = tuple(names)
        self.root.outputs = names  # type: ignore[assignment]  # a tuple, and no parameter
        return dict(zip(names, self.root(images), strict=True))

    @property
    def roundings(self) -> list[Rounding]:
        """All roundings, in the order of the module."""
        return [one for one in self.modules() if isinstance(one, Rounding)]


def insert_roundings(
    model: ViT, images: Sequence[Tensor], options: "QuantizeAwareOptions", *, outputs: Sequence[str]
) -> QuantizedViT:
    """Return the model with roundings, calibrated on images [1, C, H, W]; the model itself is used up.

    outputs: those that the training or the graph asks for, at least one.
    """
    for part in model.modules():
        if isinstance(part, Attention):
            part.fused = False  # NNCF knows operators by their names and order, which are those of the graph
    with _nncf_alone():
        root = _quantized(NamedOutputs(model, outputs).eval(), images, options)
        found = QuantizedViT(model, root)
        _exchange(root, options)
    for name, parameter in found.named_parameters():
        if name.endswith("_scale_value") or (name.endswith("log_scale") and not options.train_ranges):
            parameter.requires_grad_(False)  # SmoothQuant's factors: the weights behind them say the same
    if options.half_range:
        with torch.no_grad():
            _visit(found, images[0], lambda one, x: one.to_half_range(x) if isinstance(x, nn.Parameter) else None)
    return found


def freeze(model: QuantizedViT, image: Tensor) -> None:
    """Turn the roundings into operators, those of weights into constants: from now on it can only be traced."""
    seen: list[tuple[Rounding, Tensor]] = []
    with torch.no_grad():
        _visit(model, image, lambda one, x: seen.append((one, x)))
    for one, x in seen:
        one.freeze(x, constant=isinstance(x, nn.Parameter))


def _visit(model: QuantizedViT, image: Tensor, look: Any) -> None:
    """Call look(rounding, what it is given) for every rounding, in the order in which they run."""
    hooks = [one.register_forward_pre_hook(lambda module, given: look(module, given[0])) for one in model.roundings]
    model.outputs(image, model.output_names[:1])
    for hook in hooks:
        hook.remove()


def _quantized(root: nn.Module, images: Sequence[Tensor], options: "QuantizeAwareOptions") -> nn.Module:
    """Let NNCF smooth, place its quantizers and set their ranges, as quantize does on the graph."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    made: nn.Module = nncf.quantize(
        root,
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.PERFORMANCE if options.symmetric else nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(types=list(FLOAT_FOR_TENSORRT), validate=False) if options.symmetric else None,
        subset_size=len(images),
        fast_bias_correction=True,
        advanced_parameters=AdvancedQuantizationParameters(
            disable_bias_correction=True,  # biases are trained
            smooth_quant_alphas=AdvancedSmoothQuantParameters(
                matmul=-1 if options.alpha == "off" else options.alpha,
                convolution=-1,  # the patch embedding reads pixels, whose channels are alike
            ),
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        ),
    )
    return made


def _exchange(root: nn.Module, options: "QuantizeAwareOptions") -> None:
    """Put ours in the place of NNCF's quantizers."""
    from nncf.torch.function_hook import get_hook_storage
    from nncf.torch.quantization.layers import BaseQuantizer

    storage = get_hook_storage(root)
    for name, one in list(storage.named_hooks()):
        if not isinstance(one, BaseQuantizer):
            continue
        _, _, scale, zero = one.get_parameters_for_torch_fq()
        low, high = int(one.level_low), int(one.level_high)
        if low == 0 and options.symmetric:  # what is never negative: TensorRT reads no unsigned integers
            scale, low, high = scale * (high / 127), -128, 127
        elif low == 0:  # the same numbers with a sign, as quantize writes them: OpenVINO multiplies few others in int8
            zero, low, high = zero - 128, -128, 127
        axis = next((place for place, size in enumerate(one.scale_shape) if size > 1), 0) if one.per_channel else None
        storage.set_submodule(name, Rounding(scale, zero, low=low, high=high, axis=axis))


@contextmanager
def _nncf_alone() -> Iterator[None]:
    """Keep NNCF from loading a runtime into the process of torch, and from drawing on the user's terminal."""
    hidden = [name for name in UNWANTED if name not in sys.modules]
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [one.level for one in loggers]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
