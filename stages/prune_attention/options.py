"""Options of the stage and what they ask of each block. Light."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.vit.spec import BlockSpec, ViTSpec
from targets.errors import InputError
from targets.record import Record

Method = Literal["rotate", "snp", "magnitude", "energy", "corp", "random"]
Repair = Literal["sequential", "parallel", "none"]
Share = Annotated[float, Field(gt=0, le=1)]


class AttentionShape(Record):
    """Shape of one block's attention; all three are 0 where the block has none."""

    heads: int = Field(ge=0)
    d_qk: int = Field(ge=0)
    d_v: int = Field(ge=0)

    @classmethod
    def of(cls, block: BlockSpec) -> "AttentionShape":
        """Shape of a block as it is."""
        if block.attention == "off":
            return cls(heads=0, d_qk=0, d_v=0)
        return cls(heads=block.heads, d_qk=block.d_qk, d_v=block.d_v)


class PruneAttentionOptions(Record):
    """How wide the heads stay, how many of them, how that is chosen, and how proj is fitted again."""

    method: Method = Field(
        default="rotate",
        description="rotate: new axes for q with k and for v, the least important ones cut; snp, magnitude, energy, "
        "random: whole dimensions as they are; corp: energy, with q and k made to compensate",
    )
    keep: Share | None = Field(
        default=None, description="share of d_qk and d_v that stays; 0.75 where nothing else is given"
    )
    qk: Share | None = Field(default=None, description="share of d_qk that stays; instead of keep")
    v: Share | None = Field(default=None, description="share of d_v that stays; instead of keep")
    heads: Annotated[int, Field(gt=0)] | Share | None = Field(
        default=None, description="heads that stay: a number (2) or a share (0.5); all where nothing is given"
    )
    shapes: tuple[AttentionShape, ...] | None = Field(
        default=None, description="instead of all these: {heads, d_qk, d_v} of each block, 0 where it has no attention"
    )
    round_to: int = Field(default=8, gt=0, description="d_qk and d_v from shares become a multiple of this")
    repair: Repair = Field(
        default="sequential",
        description="how to fit proj again: on the pruned stream (sequential), on the source's (parallel), not (none)",
    )
    ridge: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        default="auto", description="of the fit, in units of its inputs' mean variance; auto: best on images held out"
    )
    take_back: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of the error of the blocks before that a block is to take back; sequential repair only",
    )
    per_image: bool = Field(
        default=True, description="rotate: refine the axes of q and k on the logits of each image; needs a few seconds"
    )
    snp_directions: int = Field(
        default=4, gt=0, description="snp: leading directions of the logits that a pair is compared with (gamma)"
    )
    refine: int = Field(
        default=0,
        ge=0,
        description="passes over the images in which each pruned attention is trained by itself, towards the source",
    )
    refine_lr: float = Field(default=1e-3, gt=0, description="peak learning rate of Adam in these passes")
    images: int | None = Field(default=1024, gt=0, description="at most so many of the images of fit; null: all")

    @model_validator(mode="before")
    @classmethod
    def _keeps_three_quarters_by_default(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(name) is None for name in ("keep", "qk", "v", "heads", "shapes")):
            return {**given, "keep": 0.75}
        return given

    @model_validator(mode="after")
    def _says_the_shape_once(self) -> "PruneAttentionOptions":
        given = [name for name in ("keep", "qk", "v", "heads", "shapes") if getattr(self, name) is not None]
        if "shapes" in given and len(given) > 1:
            raise ValueError(f"{given[0]} and shapes both say the shape; give one of them")
        if "keep" in given and ("qk" in given or "v" in given):
            raise ValueError(f"keep and {'qk' if 'qk' in given else 'v'} both say the width; give keep, or qk and v")
        return self

    @model_validator(mode="after")
    def _refines_the_pruned_stream_only(self) -> "PruneAttentionOptions":
        if self.refine and self.repair != "sequential":
            raise ValueError(f"refine goes with repair: sequential only, got {self.repair!r}")
        return self

    @property
    def reads_images(self) -> bool:
        """Whether calibration images are needed: only by weights' magnitude (or chance) without repair they are not."""
        return self.method not in ("magnitude", "random") or self.repair != "none"

    @property
    def fits_proj(self) -> bool:
        """Whether proj gets other weights and a bias; corp without repair compensates in proj, too."""
        return self.repair != "none" or self.method == "corp"


def shapes_asked(options: PruneAttentionOptions, spec: ViTSpec) -> tuple[AttentionShape, ...]:
    """Return the shape that each block's attention shall have; raises InputError where it is not possible.

    Where something keeps d_qk or d_v from being cut (see `fixed`), `keep` takes whole heads instead, and a width that
    is asked for by name is refused.
    """
    before = [AttentionShape.of(block) for block in spec.blocks]
    if options.shapes is None:
        return tuple(_shrunk(options, spec, shape) if shape.heads else shape for shape in before)
    if len(options.shapes) != len(before):
        raise InputError(f"shapes has {len(options.shapes)} entries, the model has {len(before)} blocks")
    for index, (asked, shape) in enumerate(zip(options.shapes, before, strict=True)):
        check_shape(spec, index, asked, shape)
    return options.shapes


def check_shape(spec: ViTSpec, index: int, asked: AttentionShape, before: AttentionShape) -> None:
    """Raise InputError where a block cannot be cut to a shape."""
    for name in ("heads", "d_qk", "d_v"):
        wish, most = getattr(asked, name), getattr(before, name)
        least = min(most, 1)
        if not least <= wish <= most:
            raise InputError(f"shapes: block {index} cannot have {name} {wish}; allowed: {least} to {most}")
        reason = fixed(spec).get(name)
        if reason and wish != most:
            raise InputError(f"shapes: block {index} cannot have {name} {wish} instead of {most}: {reason}")


def fixed(spec: ViTSpec) -> dict[str, str]:
    """Return the widths that a model's norms keep from being cut, each with the reason; heads can always go."""
    reasons = {}
    if spec.qk_norm_eps is not None:
        reasons["d_qk"] = "this model normalises q and k head by head; remove whole heads instead"
    elif not getattr(spec, "rotatable_qk", True):
        reasons["d_qk"] = "this model turns q and k by position; remove whole heads instead"
    if spec.attention_norm_eps is not None:
        reasons["d_v"] = "this model has a norm before proj; remove whole heads instead"
    return reasons


def inputs_described(options: PruneAttentionOptions, spec: ViTSpec, shapes: Sequence[AttentionShape]) -> int:
    """Return the most inputs of a proj whose second moments are read, of the attentions that are cut; 0 where none is.

    shapes: what each attention shall have; all 0 where it goes or is not there.
    """
    found = [0]
    for block, asked in zip(spec.blocks, shapes, strict=True):
        before = AttentionShape.of(block)
        outputs_change = (asked.heads, asked.d_v) != (before.heads, before.d_v)
        reads = options.repair != "none" or (outputs_change and options.method in ("rotate", "energy", "corp"))
        if asked.heads and asked != before and reads:
            found.append(before.heads * before.d_v)
    return max(found)


def _shrunk(options: PruneAttentionOptions, spec: ViTSpec, shape: AttentionShape) -> AttentionShape:
    kept = fixed(spec)
    for name, share in (("d_qk", options.qk), ("d_v", options.v)):
        if share is not None and share < 1 and name in kept:
            raise InputError(f"{name.removeprefix('d_')} {share!r} cannot be had: {kept[name]}")
    heads, keep = options.heads, options.keep or 1.0
    if isinstance(heads, int) and heads > shape.heads:
        raise InputError(f"heads {heads} cannot be had: a block has {shape.heads}")
    if heads is None and kept:
        heads, keep = keep, 1.0
    count = shape.heads if heads is None else heads
    if not isinstance(count, int):
        count = max(round(count * shape.heads), 1)
    return AttentionShape(
        heads=count,
        d_qk=_rounded(options.qk or keep, shape.d_qk, options.round_to),
        d_v=_rounded(options.v or keep, shape.d_v, options.round_to),
    )


def _rounded(share: float, width: int, round_to: int) -> int:
    """Nearest multiple of `round_to`, at least one of it, at most the width."""
    return width if share == 1 else min(max(round(share * width / round_to), 1) * round_to, width)


def reshaped(options: PruneAttentionOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage, without weights or images; raises InputError where it cannot be done."""
    refuse_impossible(options, spec)
    shapes = shapes_asked(options, spec)
    blocks = tuple(
        block if block.attention == "off" else block.replace(heads=shape.heads, d_qk=shape.d_qk, d_v=shape.d_v)
        for block, shape in zip(spec.blocks, shapes, strict=True)
    )
    return spec.replace(blocks=blocks, proj_bias=spec.proj_bias or options.fits_proj)


def refuse_impossible(options: PruneAttentionOptions, spec: ViTSpec) -> None:
    """Raise InputError, with the reason, for models whose attention cannot be pruned as asked."""
    if any(spec.merge):
        raise InputError("prune_attention does not know models that merge tokens; put merge_tokens behind it")
    if any(block.attention == "diluting" for block in spec.blocks):
        raise InputError("prune_attention needs a finished model, but an attention of this one is diluting; distil it")
    if options.refine and spec.norm_placement == "post":
        raise InputError("refine needs a pre-norm model, this one is post-norm; set refine to 0")
    needs_a_second_look = spec.attention_norm_eps is not None and options.repair != "none"
    if needs_a_second_look and (options.repair == "parallel" or spec.norm_placement == "post"):
        raise InputError(
            "this model has a norm before proj, whose statistics change with the heads; it can be repaired in pre-norm "
            "models by repair: sequential only"
        )
