"""Stage quantize: what it is and what it can be told."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from targets.record import Record

Alpha = Annotated[float, Field(ge=0, le=1)] | Literal["off", "auto"]
Scope = Literal["all", "linears", "attention"]
USUAL: tuple[Alpha, ...] = ("off", 0.5, 0.95)
FULL: tuple[Alpha, ...] = ("off", 0.15, 0.5, 0.6, 0.8, 0.95, "auto")
AFFORDABLE_BYTES = 100_000_000
"""graphs up to here are calibrated with every strength of `full` where nobody asked for it: ViT-Small and less"""
MIXED_RUNG = "mixed"
"""variant of a precision: layers go back to float until the budget's agreement holds"""

INTEGER = ("int8", "int8_dynamic", "int8_weights")
MIXED = (*INTEGER, "fp8")
"""precisions whose layers can go back to float one by one"""
ONLY_WITH = {
    "alphas": ("int8",),
    "symmetric": ("int8",),
    "half_range": ("int8",),
    "bias_correction": ("int8",),
    "scope": ("int8", "int8_dynamic", "fp8"),
    "rest": ("int8", "fp8"),
    "largest_share": ("fp16", "int8", "fp8"),
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
    alphas: Annotated[tuple[Alpha, ...], Field(min_length=1)] | Literal["full", "affordable"] = Field(
        default=USUAL,
        description="SmoothQuant strengths to try, 0..1, 'off' or 'auto'; the one that agrees best with fp32 stays; "
        "full: off, 0.15, 0.5, 0.6, 0.8, 0.95 and auto; affordable, which precision auto means where none are named: "
        "those for graphs up to 100 MB, else off, 0.5 and 0.95",
    )
    symmetric: bool = Field(default=False, description="zero points at 0 for activations too, as TensorRT demands")
    half_range: bool = Field(
        default=False,
        description="weights of 7 bits: on x86 without VNNI two products of 8 bits are added in 16, which overflows",
    )
    scope: Scope | None = Field(
        default=None,
        description="linears: layers with weights (no convolution, not attention's own products); attention: both "
        "products of attention too; all: what the quantizer takes; null: all for int8, linears where symmetric",
    )
    rest: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None,
        description="int8, fp8: type of all that is not quantized; null: float16 for the TensorRTs, else float32",
    )
    images: int = Field(default=300, gt=0, description="images of `fit` that set the ranges")
    select_images: int | None = Field(
        default=256, gt=0, description="images of `select` that choose alpha; null: all of them"
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="patterns of node names that stay fp32, such as 'blocks.0[./]*' or 'head/*'"
    )
    keep_float_if_any: tuple[str, ...] = Field(
        default=(), description="the same, of patterns that may fit no node: for graphs whose speed alone counts"
    )
    bias_correction: bool = Field(default=True, description="correct the mean error of each layer in its bias")
    largest_share: float = Field(
        default=0.5, gt=0, le=1, description="fp16, rest: what exceeds this share of 65504 on `fit` stays fp32"
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
    budget_agreement: Annotated[float, Field(gt=0, le=1)] | Literal["budget", "off"] | None = Field(
        default=None,
        description="return layers to float, the most sensitive first, until this agreement on `select` holds; budget: "
        "as many images may change as budget.accuracy_drop_points lets be lost, 1 % at least; null: precision auto has "
        "a rung of int8 with this, unless it is off",
    )
    rounds: int = Field(default=8, gt=0, description="layers that budget_agreement may return, one a round")

    @field_validator("alphas")
    @classmethod
    def _each_once(cls, alphas: tuple[Alpha, ...] | str) -> tuple[Alpha, ...] | str:
        if not isinstance(alphas, str) and len(set(alphas)) < len(alphas):
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
        left_out = {
            name: type(self).model_fields[name].default
            for name, precisions in ONLY_WITH.items()
            if precision not in precisions
        }
        if precision == "int8" and "alphas" not in self.model_fields_set:
            left_out["alphas"] = "affordable"
        return self.replace(precision=precision, **left_out)

    def variants(self, precision: str, *, symmetric: bool) -> tuple[str, ...]:
        """Rungs of one precision of `auto`, of which each quantizes more or less of the model; `""`: there is but one.

        symmetric: for TensorRT, where attention is quantized as a whole or not at all.
        """
        if precision not in ("int8", "fp8"):
            return ("",)
        widest: Scope = "attention" if symmetric or precision == "fp8" else "all"
        scopes = (self.scope,) if self.scope else ("linears", widest)
        return (*scopes, MIXED_RUNG) if precision == "int8" and self.budget_agreement is None else scopes

    def as_variant(self, variant: str) -> Self:
        """Of one precision and one of its variants; what `mixed` must hold is left to `within`."""
        if variant == MIXED_RUNG:
            return self.replace(budget_agreement="budget")
        return self.replace(scope=variant) if variant else self

    def within(self, agreement: float) -> Self:
        """With the agreement that the target's budget asks for, where it is wanted."""
        return self.replace(budget_agreement=agreement) if self.budget_agreement == "budget" else self

    @property
    def least_agreement(self) -> float | None:
        """What layers go back to float for; None: for nothing."""
        return self.budget_agreement if isinstance(self.budget_agreement, float) else None

    def strengths(self, graph_bytes: int) -> tuple[Alpha, ...]:
        """The SmoothQuant strengths to try with a graph of this size."""
        if not isinstance(self.alphas, str):
            return self.alphas
        return FULL if self.alphas == "full" or graph_bytes <= AFFORDABLE_BYTES else USUAL

    def scope_of(self, *, transformer: bool) -> Scope:
        """What is quantized of a graph. transformer: it has attention.

        Of symmetric graphs and fp8, which are for TensorRT: all means both products of attention or none, and never the
        patch embedding, as it fuses no others. A graph without attention has none of these.
        """
        for_tensorrt = self.symmetric or self.precision == "fp8"
        if self.precision == "int8" and not transformer and for_tensorrt:
            return "linears" if self.scope == "linears" else "all"
        if self.scope is None:
            return "all" if self.precision == "int8" and not for_tensorrt else "linears"
        return "attention" if self.scope == "all" and for_tensorrt else self.scope

    def quickly(self, alpha: Alpha | None = None, returned: Sequence[str] = ()) -> Self:
        """The same operators from hardly any images: for graphs whose speed alone counts. alpha: None is `off`.

        returned: layers that go back to float, where the graph has them. Such graphs may lack any layer.
        """
        int8 = (
            {"alphas": ("off" if alpha is None else alpha,), "bias_correction": False}
            if self.precision == "int8"
            else {}
        )
        return self.replace(
            images=2,
            select_images=2,
            keep_float=(),
            keep_float_if_any=(*self.keep_float, *(f"{layer}/*" for layer in returned)),
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
    if options.budget_agreement == "budget":
        raise RuntimeError("a plan says which agreement the target's budget asks for")
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
