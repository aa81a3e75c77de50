"""Options of the stage and what they ask of each block. Light."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.record import Record

Method = Literal["ols", "dgmr", "similarity", "energy", "l2", "random"]
READ_ACTIVATIONS = ("ols", "similarity", "energy")
SAY_WIDTH = ("keep", "r", "widths", "threshold")
Repair = Literal["sequential", "parallel", "none"]
Refine = Literal["auto"] | Annotated[int, Field(ge=0)]


class PruneMlpOptions(Record):
    """How many neurons stay, how they are chosen, and how the layer behind them is fitted again."""

    method: Method = Field(
        default="ols",
        description="ols: by the error that each neuron takes away; dgmr: by diversity of input weights; similarity: "
        "one of each group of similar activations; energy: by variance times fc2 column; l2: by length of input "
        "weights; random: drawn",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="share of each MLP's width that stays; 0.75 where nothing else is given"
    )
    r: float | None = Field(
        default=None, gt=0, description="instead of keep: MLP width over embedding width, as in papers"
    )
    widths: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="instead of keep: width of each block's MLP, 0 where the block has none"
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="instead of keep, for similarity: neurons at least this alike become one in each block",
    )
    measure: Literal["pearson", "cosine"] = Field(
        default="pearson", description="for similarity: correlation of activations, or their cosine"
    )
    round_to: int = Field(default=8, gt=0, description="widths from keep, r or threshold become a multiple of this")
    repair: Repair = Field(
        default="sequential",
        description="how to fit fc2 again: on the pruned stream (sequential), on the source's (parallel), not (none)",
    )
    ridge: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        default="auto", description="of the fit, in units of the neurons' mean variance; auto: best on images held out"
    )
    take_back: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the error of the blocks before that a block is to take back; sequential repair only",
    )
    refine: Refine = Field(
        default="auto",
        description="passes over the images in which each pruned MLP is trained by itself, towards the source; auto: 1 "
        "with sequential repair of a pre-norm model, where the images are enough, else 0",
    )
    refine_lr: float = Field(default=3e-3, gt=0, description="peak learning rate of Adam in these passes")
    images: int | None = Field(default=1024, gt=0, description="at most so many of the images of fit; null: all")

    @model_validator(mode="before")
    @classmethod
    def _keeps_three_quarters_by_default(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(name) is None for name in SAY_WIDTH):
            return {**given, "keep": 0.75}
        return given

    @model_validator(mode="after")
    def _says_the_width_once(self) -> "PruneMlpOptions":
        given = [name for name in SAY_WIDTH if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say the width; give one of {', '.join(SAY_WIDTH)}")
        if self.threshold is not None and self.method != "similarity":
            raise ValueError(f"threshold goes with method: similarity only, got {self.method!r}")
        return self

    @model_validator(mode="after")
    def _refines_the_pruned_stream_only(self) -> "PruneMlpOptions":
        if self.asks_to_refine and self.repair != "sequential":
            raise ValueError(f"refine goes with repair: sequential only, got {self.repair!r}")
        return self

    @property
    def reads_images(self) -> bool:
        """Whether calibration images are needed: some methods work on weights alone, if nothing is repaired."""
        return self.method in READ_ACTIVATIONS or self.repair != "none"

    @property
    def asks_to_refine(self) -> bool:
        """Whether a number of passes is asked for by name, so that what cannot be refined is to be refused."""
        return self.refine not in ("auto", 0)

    def passes_to_refine(self, *, post_norm: bool, enough: bool) -> int:
        """Return the passes for one MLP. enough: whether there are tokens enough to follow them without a warning."""
        if self.refine == "auto":
            return int(self.repair == "sequential" and not post_norm and enough)
        return self.refine

    @property
    def sets_bias(self) -> bool:
        """Whether fc2 is fitted again and so has a bias afterwards."""
        return self.method == "similarity" or self.repair != "none"

    def rounded_up(self, count: int, *, width: int) -> int:
        """Return the next multiple of `round_to`, or all of the width."""
        return min(-(-count // self.round_to) * self.round_to, width)


def widths_asked(options: PruneMlpOptions, spec: ViTSpec) -> tuple[int, ...]:
    """Return the MLP width that each block shall have; raises InputError where it is not possible.

    With a threshold images decide on the widths, and the answer is what they cannot exceed: the widths as they are.
    """
    before = [block.mlp_width if block.mlp else 0 for block in spec.blocks]
    if options.threshold is not None:
        return tuple(before)
    if options.widths is not None:
        if len(options.widths) != len(before):
            raise InputError(f"widths has {len(options.widths)} entries, the model has {len(before)} blocks")
        for index, (asked, width) in enumerate(zip(options.widths, before, strict=True)):
            if not min(width, 1) <= asked <= width:
                raise InputError(
                    f"widths: block {index} cannot have {asked} neurons; allowed: {min(width, 1)} to {width}"
                )
        return options.widths
    return tuple(_rounded(options, spec.width, width) if width else 0 for width in before)


def reshaped(options: PruneMlpOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage, without weights or images; raises InputError where it cannot be done.

    With a threshold the widths are only bounds: see `widths_asked`.
    """
    refuse_impossible(options, spec)
    widths = widths_asked(options, spec)
    blocks = tuple(block.replace(mlp_width=width) for block, width in zip(spec.blocks, widths, strict=True))
    return spec.replace(blocks=blocks, fc2_bias=spec.fc2_bias or options.sets_bias)


def refuse_impossible(options: PruneMlpOptions, spec: ViTSpec) -> None:
    """Raise InputError, with the reason, for models whose MLPs cannot be pruned as asked."""
    if any(spec.merge):
        raise InputError("prune_mlp does not know models that merge tokens; put merge_tokens behind it")
    if any(block.attention == "diluting" for block in spec.blocks):
        raise InputError("prune_mlp needs a finished model, but an attention of this one is diluting; distil it first")
    if options.asks_to_refine and spec.norm_placement == "post":
        raise InputError("refine needs a pre-norm model, this one is post-norm; set refine to 0")
    needs_a_second_look = spec.mlp_norm_eps is not None and options.repair != "none"
    if needs_a_second_look and (options.repair == "parallel" or spec.norm_placement == "post"):
        raise InputError(
            "this model's MLPs have a norm before fc2, whose statistics change with the neurons; they can be repaired "
            "in pre-norm models by repair: sequential only"
        )


def _rounded(options: PruneMlpOptions, embedding: int, width: int) -> int:
    """Width for one block from `keep` or `r`: the nearest multiple of `round_to`, at least one of it."""
    wish = options.r * embedding if options.r is not None else (options.keep or 1) * width
    if wish > width:
        raise InputError(
            f"r {options.r!r} asks for {wish:.0f} neurons, an MLP of this model has {width}; "
            f"allowed: up to {width / embedding:g}"
        )
    if wish == width:
        return width
    return min(max(round(wish / options.round_to), 1) * options.round_to, width)


def neurons_described(options: PruneMlpOptions, spec: ViTSpec, widths: Sequence[int]) -> int:
    """Return the width of the widest MLP that is cut by what images say of it; 0 where none is."""
    if not options.reads_images:
        return 0
    before = [block.mlp_width if block.mlp else 0 for block in spec.blocks]
    cut = options.threshold is not None
    return max((was for was, is_now in zip(before, widths, strict=True) if cut or 0 < is_now < was), default=0)
