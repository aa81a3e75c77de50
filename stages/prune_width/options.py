"""Options of the stage and what they ask of the model. Light."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import InputError
from targets.record import Record

Method = Literal["rotate", "energy", "snp"]
Repair = Literal["sequential", "none"]
_READER_BIASES: dict[str, Any] = {"qkv_bias": True, "fc1_bias": True, "head_bias": True}


class PruneWidthOptions(Record):
    """How wide the residual stream stays, how that is chosen, and how the layers around it are fitted again."""

    method: Method = Field(
        default="rotate",
        description="rotate: new axes for the stream, the least important ones cut; energy, snp: channels as they are",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="share of the width that stays; 0.75 where width is not given"
    )
    width: int | None = Field(default=None, gt=0, description="instead of keep: the width that stays")
    round_to: int = Field(default=16, gt=0, description="a width from keep becomes a multiple of this")
    repair: Repair = Field(
        default="sequential",
        description="sequential: fit readers and writers of the stream again, front to back; none: as cut",
    )
    ridge: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        default="auto",
        description="of the fits, in units of their inputs' mean variance; auto: best on images held out",
    )
    take_back: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the error of the blocks before that a block is to take back",
    )
    images: int | None = Field(default=1024, gt=0, description="at most so many of the images of fit; null: all")

    @model_validator(mode="before")
    @classmethod
    def _keeps_three_quarters_by_default(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("keep") is None and given.get("width") is None:
            return {**given, "keep": 0.75}
        return given

    @model_validator(mode="after")
    def _says_the_width_once(self) -> "PruneWidthOptions":
        if self.keep is not None and self.width is not None:
            raise ValueError("keep and width both say the width; give one of them")
        return self

    @property
    def reads_images(self) -> bool:
        """Whether calibration images are needed: only snp without repair works on weights alone."""
        return self.method != "snp" or self.repair != "none"


def width_asked(options: PruneWidthOptions, spec: ViTSpec) -> int:
    """Return the width that the stream shall have; raises InputError where it is not possible."""
    if options.width is not None:
        if options.width > spec.width:
            raise InputError(f"width {options.width} cannot be had: the model has {spec.width}")
        return options.width
    keep = options.keep or 1.0
    if keep == 1:
        return spec.width
    return min(max(round(keep * spec.width / options.round_to), 1) * options.round_to, spec.width)


def refuse_impossible(options: PruneWidthOptions, spec: ViTSpec) -> None:
    """Raise InputError, with the reason, for models whose residual stream cannot be narrowed as asked."""
    if any(spec.merge):
        raise InputError("prune_width does not know models that merge tokens; put merge_tokens behind it")
    if any(block.attention == "diluting" for block in spec.blocks):
        raise InputError(
            "prune_width needs a finished model, but an attention of this one is diluting; distil it first"
        )
    if not spec.classes:
        raise InputError("prune_width needs a model with a head: without one, the stream's channels are the output")
    reason = not_rotatable(spec)
    if options.method == "rotate" and reason:
        raise InputError(f"this model's stream cannot be rotated: {reason}; choose method: energy or snp")


def method_for(spec: ViTSpec) -> Method:
    """Return how a search narrows the stream of a model: by rotation where that can be done, else by energy."""
    return "energy" if not_rotatable(spec) else "rotate"


def not_rotatable(spec: ViTSpec) -> str | None:
    """Return why other axes of the stream would change what the model computes; None where they do not.

    A LayerNorm is an RMSNorm of a stream without mean, and an RMSNorm does not see axes, if its factors can be moved
    into the layers behind it. So every norm over the stream must have only linear layers behind it, and only linear
    layers before it.
    """
    if spec.norm_placement == "post":
        return "its norms write into the stream"
    if spec.pre_norm_eps is not None:
        return "a norm before the blocks writes into the stream"
    if spec.pooling in ("max", "avgmax"):
        return f"pooling {spec.pooling!r} goes channel by channel"
    if spec.final_norm_eps is not None and spec.head_norm_eps is not None:
        return "it has two norms before the head"
    if spec.head_norm_eps is not None and spec.pooling == "token_pair":
        return "the norm before its head spans two tokens"
    if spec.norm == "layernorm":
        if spec.final_norm_eps is None and spec.head_norm_eps is None:
            return "no norm stands between stream and head"
        inner = (spec.qk_norm_eps, spec.attention_norm_eps, spec.mlp_norm_eps)
        if any(eps is not None for eps in inner):
            return "it has other LayerNorms inside its blocks, and a model has one kind of norm"
    return None


def reshaped(options: PruneWidthOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage, without weights or images; raises InputError where it cannot be done."""
    refuse_impossible(options, spec)
    width = width_asked(options, spec)
    if width == spec.width:
        return spec
    changed = rotated(spec, width) if options.method == "rotate" else spec.replace(width=width)
    if options.repair == "none":
        return changed
    return changed.replace(proj_bias=True, fc2_bias=True, **_READER_BIASES)


def rotated(spec: ViTSpec, width: int) -> ViTSpec:
    """Return the spec of a model whose stream was turned, and cut to `width`: RMSNorms, and biases for their shifts."""
    part = spec.width / width  # the mean over fewer channels of the same energy is larger, and eps with it

    def scaled(eps: float | None) -> float | None:
        return None if eps is None else eps * part

    def block(old: BlockSpec) -> BlockSpec:
        return old.replace(norm1_eps=old.norm1_eps * part, norm2_eps=old.norm2_eps * part)

    return spec.replace(
        width=width,
        norm="rmsnorm",
        blocks=tuple(block(old) for old in spec.blocks),
        final_norm_eps=scaled(spec.final_norm_eps),
        head_norm_eps=scaled(spec.head_norm_eps),
        **(_READER_BIASES if spec.norm == "layernorm" else {}),
    )
