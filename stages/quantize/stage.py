"""Stage quantize: what it is and what it can be told."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from targets.record import Record

Alpha = Annotated[float, Field(ge=0, le=1)] | Literal["off", "auto"]

INTEGER = ("int8", "int8_dynamic", "int8_weights")
MIXED = (*INTEGER, "fp8")
"""precisions whose layers can go back to float one by one"""
ONLY_WITH = {
    "alphas": ("int8",),
    "symmetric": ("int8",),
    "half_range": ("int8",),
    "bias_correction": ("int8",),
    "scope": ("int8", "int8_dynamic"),
    "largest_share": ("fp16",),
    "io": ("fp16", "bf16"),
    "block": ("int8_weights",),
    "percentile": ("fp8",),
    "sensitivity": MIXED,
    "sensitivity_images": MIXED,
    "budget_agreement": MIXED,
    "rounds": MIXED,
}
"""option -> precisions to which it means something"""


class QuantizeOptions(Record):
    """How a graph is quantized."""

    precision: Literal["int8", "int8_dynamic", "int8_weights", "fp8", "fp16", "bf16", "auto"] = Field(
        default="int8",
        description="auto: every precision that a target's runtimes run becomes a candidate, fp32 too",
    )
    alphas: tuple[Alpha, ...] = Field(
        default=("off", 0.5, 0.95),
        min_length=1,
        description="SmoothQuant strengths to try, 0..1, 'off' or 'auto'; the one that agrees best with fp32 stays",
    )
    symmetric: bool = Field(default=False, description="zero points at 0 for activations too, as TensorRT demands")
    half_range: bool = Field(
        default=False,
        description="weights of 7 bits: on x86 without VNNI two products of 8 bits are added in 16, which overflows",
    )
    scope: Literal["all", "linears"] | None = Field(
        default=None,
        description="all matrix products, or only layers with weights (no convolution, not attention's own products); "
        "null: all for int8, linears for int8_dynamic",
    )
    images: int = Field(default=300, gt=0, description="images of `fit` that set the ranges")
    select_images: int | None = Field(
        default=256, gt=0, description="images of `select` that choose alpha; null: all of them"
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="patterns of node names that stay fp32, such as 'blocks.0.*' or 'head/*'"
    )
    bias_correction: bool = Field(default=True, description="correct the mean error of each layer in its bias")
    largest_share: float = Field(
        default=0.5, gt=0, le=1, description="fp16: what exceeds this share of 65504 on `fit` stays fp32"
    )
    io: Literal["float32", "keep"] = Field(
        default="float32", description="fp16, bf16: type of inputs and outputs; keep: that of the graph inside"
    )
    block: int | None = Field(
        default=None, ge=8, description="int8_weights: inputs that share a scale (opset 21); null: one per output"
    )
    percentile: float = Field(
        default=100, ge=90, le=100, description="fp8: percentile of an image's magnitudes that is still represented"
    )
    sensitivity: bool = Field(default=False, description="measure what each layer costs when it alone is quantized")
    sensitivity_images: int = Field(default=32, gt=0, description="images of `select` per layer for that")
    budget_agreement: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="return layers to float, the most sensitive first, until this agreement on `select` holds",
    )
    rounds: int = Field(default=8, gt=0, description="layers that budget_agreement may return, one a round")

    @field_validator("alphas")
    @classmethod
    def _each_once(cls, alphas: tuple[Alpha, ...]) -> tuple[Alpha, ...]:
        if len(set(alphas)) < len(alphas):
            raise ValueError("an alpha is named twice; name each once")
        return alphas

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        for name, precisions in ONLY_WITH.items():
            default = type(self).model_fields[name].default
            if self.precision not in (*precisions, "auto") and getattr(self, name) != default:
                raise ValueError(
                    f"{name} says nothing to precision {self.precision}, only to {', '.join(precisions)}; remove it"
                )
        return self

    def of(self, precision: str) -> Self:
        """One precision of `auto`; options that say nothing to it are left out."""
        left_out = [name for name, precisions in ONLY_WITH.items() if precision not in precisions]
        return self.replace(precision=precision, **{name: type(self).model_fields[name].default for name in left_out})

    @property
    def linears_only(self) -> bool:
        """Whether only layers with weights are quantized."""
        default = "all" if self.precision == "int8" else "linears"
        return (self.scope or default) == "linears"

    def quickly(self, alpha: Alpha | None = None) -> Self:
        """The same operators from hardly any images: for graphs whose speed alone counts. alpha: None is `off`."""
        int8 = (
            {"alphas": ("off" if alpha is None else alpha,), "bias_correction": False}
            if self.precision == "int8"
            else {}
        )
        return self.replace(
            images=2,
            select_images=2,
            **int8,
            **{
                name: type(self).model_fields[name].default
                for name in ("sensitivity", "sensitivity_images", "budget_agreement", "rounds")
            },
        )


def reads_fit(options: QuantizeOptions) -> bool:
    """Whether ranges of activations are set before the graph runs."""
    return options.precision in ("int8", "fp8", "fp16", "auto")


def strength_of(facts: Mapping[str, Any]) -> Alpha | None:
    """The SmoothQuant strength of a graph by the facts of its step, `auto` as the number it found; None: has none."""
    chosen = facts.get("alpha")
    for one in facts.get("candidates", ()):
        if one["alpha"] == chosen:
            found: Alpha | None = one.get("strength", chosen)
            return found
    return None


def quantize(options: QuantizeOptions, context: StageContext) -> StageResult:
    """Write the quantized `model.onnx` whose answers on `select` are nearest to those of the graph it came from."""
    from stages.quantize.run import quantize_graph

    if options.precision == "auto":
        raise RuntimeError("a plan says which precision; auto stands for several")
    return quantize_graph(options, context)


STAGE = Stage(
    name="quantize",
    summary="make an int8, fp8, fp16 or bf16 graph, its choices made by agreement with fp32",
    consumes=Format.ONNX,
    produces=Format.ONNX,
    options=QuantizeOptions,
    run=quantize,
    roles=lambda options: (Role.FIT, Role.SELECT) if reads_fit(options) else (Role.SELECT,),
    tools=("nncf", "numpy", "onnx", "onnxruntime", "pillow", "ml_dtypes"),
    code=("stages/vit", "stages/graph", "stages/data", "targets/bundle/pixels.py", "targets/runtimes/widen.py"),
)
