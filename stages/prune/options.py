"""Options of the stage, and what they ask of each block. Light."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.prune_attention.options import AttentionShape, PruneAttentionOptions, check_shape
from stages.prune_attention.options import Method as AttentionMethod
from stages.prune_attention.options import refuse_impossible as refuse_attention
from stages.prune_mlp.options import Method as MlpMethod
from stages.prune_mlp.options import PruneMlpOptions, Refine
from stages.prune_mlp.options import refuse_impossible as refuse_mlp
from stages.prune_width.options import PruneWidthOptions, method_for
from stages.prune_width.options import reshaped as narrowed
from stages.resize_input.options import ResizeInputOptions
from stages.resize_input.options import reshaped as resized
from stages.vit.spec import BlockSpec, ViTSpec
from stages.vit.writers import Writer, with_bias, writer_before
from targets.errors import InputError
from targets.record import Record

Share = Annotated[float, Field(gt=0, lt=1)]


class BlockShape(Record):
    """What stays of one block; zeros where a sublayer goes altogether."""

    heads: int = Field(ge=0)
    d_qk: int = Field(ge=0)
    d_v: int = Field(ge=0)
    mlp_width: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_whole(self) -> "BlockShape":
        if len({number == 0 for number in (self.heads, self.d_qk, self.d_v)}) > 1:
            raise ValueError("heads, d_qk and d_v are all above 0, or all 0 where the attention goes")
        return self

    @classmethod
    def of(cls, block: BlockSpec) -> "BlockShape":
        """Shape of a block as it is."""
        shape = AttentionShape.of(block)
        width = block.mlp_width if block.mlp else 0
        return cls(heads=shape.heads, d_qk=shape.d_qk, d_v=shape.d_v, mlp_width=width)

    @property
    def attention(self) -> AttentionShape:
        """The attention's part of it."""
        return AttentionShape(heads=self.heads, d_qk=self.d_qk, d_v=self.d_v)


class SearchOptions(Record):
    """Among which shapes `blocks: auto` chooses, and how they are judged."""

    mlp: bool = Field(default=True, description="narrow the MLPs")
    attention: bool = Field(default=True, description="narrow heads and take some out")
    off: bool = Field(default=True, description="leave out whole attentions and MLPs")
    tokens: tuple[Share, ...] = Field(
        default=(), description="shares of the patch tokens left at the end, tried besides all: merge_tokens follows"
    )
    widths: tuple[Share, ...] = Field(
        default=(), description="shares of the residual width, tried besides all of it: prune_width goes before"
    )
    sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="sides of the input in pixels, tried besides the model's: resize_input goes before"
    )
    priced: int = Field(
        default=2, gt=0, description="at most so many of these sizes and widths are priced in full, the most promising"
    )
    pairs: int = Field(
        default=2, ge=1, le=2, description="at most so many pairs of runtime and precision, where the second may win"
    )
    fit_images: int = Field(default=256, gt=0, description="at most so many of fit, to repair what is tried")
    select_images: int = Field(default=128, gt=0, description="at most so many of select, on which it is judged")
    rounds: int = Field(
        default=3, gt=0, le=10, description="at most so many whole models are built to put the table right"
    )


class PruneOptions(Record):
    """Which shape each block gets, how what goes is chosen, and how what stays is fitted again."""

    blocks: Literal["auto"] | tuple[BlockShape, ...] = Field(
        default="auto",
        description="auto: chosen for the target within its budget; or {heads, d_qk, d_v, mlp_width} of each block",
    )
    search: SearchOptions = Field(default=SearchOptions(), description="for blocks: auto")
    mlp_method: MlpMethod = Field(default="ols", description="as in prune_mlp")
    attention_method: AttentionMethod = Field(default="rotate", description="as in prune_attention")
    repair: Literal["sequential", "parallel", "none"] = Field(
        default="sequential", description="how proj and fc2 are fitted again, as in prune_mlp"
    )
    ridge: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(default="auto", description="of the fits")
    take_back: float = Field(
        default=0.7, ge=0, le=1, description="share of the error of what came before that an MLP is to take back"
    )
    attention_take_back: float = Field(default=0.3, ge=0, le=1, description="the same of an attention")
    refit: bool = Field(
        default=True,
        description="fit MLPs that keep their width again, too, behind the first sublayer that was cut; with "
        "sequential repair and enough images only",
    )
    refine: Refine = Field(
        default="auto",
        description="passes over the images in which each MLP that was cut is trained by itself; auto: as in prune_mlp",
    )
    refine_lr: float = Field(default=3e-3, gt=0, description="peak learning rate of Adam in these passes")
    images: int | None = Field(default=1024, gt=0, description="at most so many of the images of fit; null: all")

    def for_mlps(self) -> PruneMlpOptions:
        """How MLPs are cut; the widths come from `blocks`."""
        return PruneMlpOptions(
            method=self.mlp_method,
            repair=self.repair,
            ridge=self.ridge,
            take_back=self.take_back,
            refine=self.refine,
            refine_lr=self.refine_lr,
            images=self.images,
        )

    def for_attention(self) -> PruneAttentionOptions:
        """How attentions are cut; the shapes come from `blocks`."""
        return PruneAttentionOptions(
            method=self.attention_method,
            repair=self.repair,
            ridge=self.ridge,
            take_back=self.attention_take_back,
            images=self.images,
            shapes=(),
        )


def shapes_asked(options: PruneOptions, spec: ViTSpec) -> tuple[BlockShape, ...]:
    """Return the shape of each block; raises InputError where it is not possible or not yet known."""
    if options.blocks == "auto":
        raise InputError("prune: blocks is 'auto', which only a build for a target can decide")
    if len(options.blocks) != len(spec.blocks):
        raise InputError(f"prune: blocks has {len(options.blocks)} entries, the model has {len(spec.blocks)} blocks")
    for index, (asked, block) in enumerate(zip(options.blocks, spec.blocks, strict=True)):
        width = block.mlp_width if block.mlp else 0
        if asked.mlp_width > width:
            raise InputError(f"prune: block {index} cannot have mlp_width {asked.mlp_width}; allowed: 0 to {width}")
        if asked.heads:
            check_shape(spec, index, asked.attention, AttentionShape.of(block))
    return options.blocks


def reshaped(options: PruneOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage, without weights or images; for `auto` the spec as it is, the upper bound."""
    if options.blocks == "auto":
        refuse_search(options, spec)
        for size in options.search.sizes:
            resized(ResizeInputOptions(size=(size, size)), spec)  # refuses what cannot be tried
        for keep in options.search.widths:
            narrowed(PruneWidthOptions(keep=keep, method=method_for(spec)), spec)
        return spec
    shapes = shapes_asked(options, spec)
    after = with_shapes(spec, shapes)
    for _, writer in removals(spec, after):
        after = after if writer is None else with_bias(after, writer[0])
    repairs = options.repair != "none"
    return after.replace(
        proj_bias=after.proj_bias or (repairs and cuts_attention(spec, shapes)),
        fc2_bias=after.fc2_bias or (repairs and cuts_mlp(spec, shapes)) or bool(refitted(options, spec, shapes)),
    )


def refuse_search(options: PruneOptions, spec: ViTSpec) -> None:
    """Raise InputError for what no search can prune as asked, before one begins."""
    if any(spec.merge):
        raise InputError("prune does not know models that merge tokens; put merge_tokens behind it")
    if options.search.tokens and spec.rope:
        raise InputError(
            "prune.search.tokens asks for merged tokens, which a model with rotary positions cannot have; leave it out"
        )
    if options.search.mlp and any(block.mlp for block in spec.blocks):
        refuse_mlp(options.for_mlps(), spec)
    if options.search.attention and any(block.attention != "off" for block in spec.blocks):
        refuse_attention(options.for_attention(), spec)


def cuts_attention(spec: ViTSpec, shapes: tuple[BlockShape, ...]) -> bool:
    """Whether an attention that stays gets another shape."""
    pairs = zip(shapes, map(BlockShape.of, spec.blocks), strict=True)
    return any(shape.heads > 0 and shape.attention != before.attention for shape, before in pairs)


def cuts_mlp(spec: ViTSpec, shapes: tuple[BlockShape, ...]) -> bool:
    """Whether an MLP that stays gets another width."""
    pairs = zip(shapes, map(BlockShape.of, spec.blocks), strict=True)
    return any(0 < shape.mlp_width < before.mlp_width for shape, before in pairs)


def refitted(options: PruneOptions, spec: ViTSpec, shapes: tuple[BlockShape, ...]) -> tuple[int, ...]:
    """Blocks whose MLPs keep their width and are fitted again, behind the first sublayer that was cut."""
    if not options.refit or options.repair != "sequential" or spec.norm_placement == "post":
        return ()
    found, changed = [], False
    for index, (shape, before) in enumerate(zip(shapes, map(BlockShape.of, spec.blocks), strict=True)):
        changed = changed or shape.attention != before.attention
        if changed and shape.mlp_width and shape.mlp_width == before.mlp_width:
            found.append(index)
        changed = changed or shape.mlp_width != before.mlp_width
    return tuple(found)


def removals(before: ViTSpec, after: ViTSpec) -> list[tuple[tuple[int, bool], tuple[Writer, int] | None]]:
    """Return the sublayers that go, as (block, whether it is the MLP), each with what keeps its mean.

    That is None where nothing that has a bias writes into the stream before it, and in post-norm models.
    """
    found: list[tuple[tuple[int, bool], tuple[Writer, int] | None]] = []
    for index, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        for is_mlp, gone in (
            (False, old.attention != "off" and new.attention == "off"),
            (True, old.mlp and not new.mlp),
        ):
            if gone:
                keeps = before.norm_placement == "pre"
                found.append(((index, is_mlp), writer_before(after, index, before_mlp=is_mlp) if keeps else None))
    return found


def with_shapes(spec: ViTSpec, shapes: tuple[BlockShape, ...]) -> ViTSpec:
    """Return the spec with other shapes."""
    return spec.replace(blocks=tuple(_with(block, shape) for block, shape in zip(spec.blocks, shapes, strict=True)))


def _with(block: BlockSpec, shape: BlockShape) -> BlockSpec:
    return block.replace(
        attention=block.attention if shape.heads else "off",
        heads=shape.heads,
        d_qk=shape.d_qk,
        d_v=shape.d_v,
        mlp=shape.mlp_width > 0,
        mlp_width=shape.mlp_width,
    )
