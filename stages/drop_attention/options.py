"""Options of the stage and what they ask of a model's blocks. Light."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.vit.counts import attention_params, mlp_params
from stages.vit.fold import refuse_unfoldable
from stages.vit.spec import BlockSpec, ViTSpec
from stages.vit.writers import with_bias, writer_before
from targets.errors import InputError
from targets.record import Record

Unit = Literal["attention", "block"]
By = Literal["auto", "entropy", "divergence", "repaired"]
Removal = Literal["off", "dilute"]
Repair = Literal["mlp", "mean", "none"]


class DropAttentionOptions(Record):
    """How many attentions or blocks go, which, and what makes up for them."""

    unit: Unit = Field(default="attention", description="what is removed: attention alone, or the block with its MLP")
    count: int | None = Field(default=None, gt=0, description="how many are removed")
    share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="instead of count: share that is removed; 0.25 where nothing else is given",
    )
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="instead of count: these blocks, counted from 0, whatever the images say"
    )
    by: By = Field(
        default="auto",
        description="what is kept: entropy of the features (NOSE), the answers (divergence), or the answers after a "
        "repair (repaired); auto: repaired where MLPs are fitted again, else entropy",
    )
    removal: Removal = Field(
        default="off", description="off: at once; dilute: faded out by the distill step behind this one"
    )
    repair: Repair = Field(
        default="mlp",
        description="of removal off: fit the MLPs behind again (mlp), put the mean into a bias (mean), nothing (none)",
    )
    take_back: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the error of what is removed that the MLPs behind it are to take back; repair mlp only",
    )
    images: int | None = Field(default=512, gt=0, description="at most so many images of select, and of fit; null: all")

    @model_validator(mode="before")
    @classmethod
    def _removes_a_quarter_by_default(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(name) is None for name in ("count", "share", "blocks")):
            return {**given, "share": 0.25}
        return given

    @model_validator(mode="after")
    def _says_what_goes_once(self) -> "DropAttentionOptions":
        given = [name for name in ("count", "share", "blocks") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say what is removed; give one of count, share and blocks")
        if self.blocks is not None and (not self.blocks or len(set(self.blocks)) < len(self.blocks)):
            raise ValueError(f"blocks must name at least one block, and each once, got {list(self.blocks)}")
        if self.unit == "block" and self.removal == "dilute":
            raise ValueError("removal dilute goes with unit attention only; a block is removed by removal: off")
        if self.chooses and self.by == "repaired" and not (self.removal == "off" and self.repair == "mlp"):
            raise ValueError("by repaired judges fitted MLPs: it goes with removal: off and repair: mlp")
        return self

    @property
    def chooses(self) -> bool:
        """Whether images of select decide what goes."""
        return self.blocks is None

    @property
    def judged_by(self) -> Literal["entropy", "divergence", "repaired"]:
        """What decides, where `by` leaves it open."""
        if self.by != "auto":
            return self.by
        return "repaired" if self.removal == "off" and self.repair == "mlp" else "entropy"

    @property
    def repairs(self) -> bool:
        """Whether images of fit are needed to make up for what goes."""
        return self.removal == "off" and self.repair != "none"


def candidates(options: DropAttentionOptions, spec: ViTSpec) -> tuple[int, ...]:
    """Return the blocks that have what is to be removed."""
    return tuple(
        index
        for index, block in enumerate(spec.blocks)
        if block.attention != "off" or (options.unit == "block" and block.mlp)
    )


def count_asked(options: DropAttentionOptions, spec: ViTSpec) -> int:
    """Return how many are to be removed; raises InputError where there are not so many."""
    there = len(candidates(options, spec))
    limit = there if options.unit == "attention" else there - 1
    if options.blocks is not None:
        wrong = [index for index in options.blocks if index not in candidates(options, spec)]
        if wrong:
            raise InputError(
                f"blocks: block {wrong[0]} has no {options.unit} to remove; "
                f"blocks that have one: {', '.join(map(str, candidates(options, spec))) or 'none'}"
            )
        asked, said = len(options.blocks), f"blocks names {len(options.blocks)}"
    elif options.count is not None:
        asked, said = options.count, f"count is {options.count}"
    else:
        assert options.share is not None  # one of the three is given
        asked, said = max(round(options.share * there), 1), f"share is {options.share:g} of {there}"
    if asked > limit:
        kept = "" if options.unit == "attention" else ", because one must stay"
        raise InputError(
            f"drop_attention cannot remove {asked} of this model's {there} {options.unit}s ({said}); "
            f"allowed: at most {limit}{kept}"
        )
    return asked


def without(spec: ViTSpec, dropped: tuple[int, ...], options: DropAttentionOptions) -> ViTSpec:
    """Return the spec of a model after these attentions, or blocks, are removed as the options say."""
    if options.removal == "dilute":
        return _changed(spec, dropped, attention="diluting")
    gone: dict[str, Any] = {} if options.unit == "attention" else {"mlp": False, "mlp_width": 0}
    spec = _changed(spec, dropped, attention="off", **gone)
    if not options.repairs:
        return spec
    if options.repair == "mlp":
        spec = spec.replace(fc2_bias=True)
    for index in dropped:
        found = writer_before(spec, index)
        if found is not None:
            spec = with_bias(spec, found[0])
    return spec


def reshaped(options: DropAttentionOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage, without weights or images; raises InputError where it cannot be done.

    Where images choose, the smallest of the candidates stand for those that they will choose: exact where all are
    equal, and never too small.
    """
    refuse_impossible(options, spec)
    count = count_asked(options, spec)
    dropped = options.blocks
    if dropped is None:
        sizes = {index: _size(options, spec, spec.blocks[index]) for index in candidates(options, spec)}
        dropped = tuple(sorted(sizes, key=lambda index: (sizes[index], index))[:count])
    return without(spec, tuple(sorted(dropped)), options)


def refuse_impossible(options: DropAttentionOptions, spec: ViTSpec) -> None:
    """Raise InputError, with the reason, for models from which this cannot be removed in this way."""
    if any(spec.merge):
        raise InputError("drop_attention does not know models that merge tokens; put merge_tokens behind it")
    if any(block.attention == "diluting" for block in spec.blocks):
        raise InputError(
            "drop_attention needs a finished model, but an attention of this one is diluting; distil it first"
        )
    if options.removal == "dilute":
        refuse_unfoldable(spec)
    if options.repairs and spec.norm_placement == "post":
        raise InputError(
            "this model is post-norm: a norm stands between a fit and the residual stream, so that nothing behind can "
            "take back in closed form what is removed; set repair: none"
        )
    count_asked(options, spec)


def _changed(spec: ViTSpec, dropped: tuple[int, ...], **changes: Any) -> ViTSpec:
    return spec.replace(
        blocks=tuple(block.replace(**changes) if index in dropped else block for index, block in enumerate(spec.blocks))
    )


def _size(options: DropAttentionOptions, spec: ViTSpec, block: BlockSpec) -> int:
    return attention_params(spec, block) + (mlp_params(spec, block) if options.unit == "block" else 0)
