"""Prune attention and MLPs of every block to shapes of their own, in one sweep."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stages.prune.off import add_constant, remove, writer_before
from stages.prune.options import BlockShape, PruneOptions, reshaped, shapes_asked
from stages.prune_attention import weights as attention_weights
from stages.prune_attention.options import AttentionShape
from stages.prune_attention.options import refuse_impossible as refuse_attention
from stages.prune_attention.prune import prune_block as prune_attention
from stages.prune_mlp import neurons
from stages.prune_mlp.options import refuse_impossible as refuse_mlp
from stages.prune_mlp.prune import prune_block as prune_mlp
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.model import Block, ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, sweep, weigh_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

BATCH = 32
Tell = Callable[[str, float | None], None]


def prune_folder(
    options: PruneOptions,
    *,
    model_folder: Path,
    output: Path,
    scratch: Path,
    images: "ImageSet",
    tell: Tell,
) -> dict[str, Any]:
    """Prune a model folder into another one and return the facts."""
    started = perf_counter()
    spec = load_spec(model_folder)
    shapes_asked(options, spec)
    model = load_model(model_folder).to("cuda" if torch.cuda.is_available() else "cpu")
    batches = images.first_by_content(options.images).batches(spec.preprocess, BATCH)
    pruned, pruned_spec, facts = prune(model, spec, options, batches, scratch=scratch, tell=tell)
    save_model(output, pruned_spec, pruned.state_dict(), labels=load_labels(model_folder))
    return {**facts, "seconds": round(perf_counter() - started, 3)}


def prune(
    model: ViT,
    spec: ViTSpec,
    options: PruneOptions,
    batches: "Iterable[Tensor | NDArray[np.float32]]",
    *,
    scratch: Path | None = None,
    tell: Tell = lambda message, share: None,
) -> tuple[ViT, ViTSpec, dict[str, Any]]:
    """Return a pruned copy of a model, its spec and facts. batches: [B, 3, H, W]."""
    shapes = shapes_asked(options, spec)
    sweeper = _Sweeper(model, spec, options, shapes)
    images = sweep(
        model,
        sweeper.pruned,
        batches,
        {Part.ATTENTION: sweeper.attention, Part.MLP: sweeper.mlp},
        sequential=options.repair == "sequential",
        weigh=weigh_tokens(spec),
        scratch=scratch,
        tell=tell,
    )
    pruned_spec = sweeper.spec()
    return sweeper.pruned, pruned_spec, {**_facts(sweeper.rows, spec, pruned_spec), "images": images}


class _Sweeper:
    """The edits of one sweep."""

    def __init__(self, model: ViT, spec: ViTSpec, options: PruneOptions, shapes: tuple[BlockShape, ...]) -> None:
        self.before, self.options, self.shapes = spec, options, shapes
        self.for_mlps, self.for_attention = options.for_mlps(), options.for_attention()
        self.cuts_mlp = any(0 < one.mlp_width < was.mlp_width for one, was in self._pairs())
        self.cuts_attention = any(one.heads and one.attention != was.attention for one, was in self._pairs())
        if self.cuts_mlp:
            refuse_mlp(self.for_mlps, spec)
        if self.cuts_attention:
            refuse_attention(self.for_attention, spec)
        self.pruned = deepcopy(model)
        self.blocks = cast("list[Block]", list(self.pruned.blocks))
        self.rows: list[dict[str, Any]] = []
        keeps_mean = spec.norm_placement == "pre"
        self.off = [
            (index, part)
            for index, (one, was) in enumerate(self._pairs())
            for part in Part
            if _is_off(one, part) and not _was_off(was, part)
        ]
        self.writers = {place: writer for place in self.off if (writer := self._writer(*place))} if keeps_mean else {}
        """where the mean of a sublayer that goes is kept"""
        self._give_biases()

    def attention(self, visit: Visit) -> None:
        """Cut one attention."""
        shape = self.shapes[visit.index]
        if _is_off(shape, Part.ATTENTION):
            self._remove(visit)
        elif shape.attention != AttentionShape.of(self.before.blocks[visit.index]):
            facts = prune_attention(visit.block, shape.attention, self.for_attention, visit, index=visit.index)
            self.rows.append({"block": visit.index, "part": "attention", **facts})

    def mlp(self, visit: Visit) -> None:
        """Cut one MLP."""
        width = self.shapes[visit.index].mlp_width
        if not width:
            self._remove(visit)
        elif width < self.before.blocks[visit.index].mlp_width:
            facts = prune_mlp(visit.block, width, self.for_mlps, visit)
            self.rows.append({"block": visit.index, "part": "mlp", **facts})

    def spec(self) -> ViTSpec:
        """The spec of the pruned model."""
        spec = reshaped(self.options, self.before)
        proj = any(block.attn is not None and block.attn.proj.bias is not None for block in self.blocks)
        fc2 = any(block.mlp is not None and block.mlp.fc2.bias is not None for block in self.blocks)
        return spec.replace(proj_bias=spec.proj_bias or proj, fc2_bias=spec.fc2_bias or fc2)

    def _remove(self, visit: Visit) -> None:
        row: dict[str, Any] = {"block": visit.index, "part": visit.part.value, "off": True}
        writer = self.writers.get((visit.index, visit.part))
        if writer is not None:
            moments, _ = visit.moments()
            mean = moments.mean_out
            add_constant(self.blocks[writer[0]], writer[1], mean)
            visit.shift(mean)
            row["mean_kept_in"] = f"block {writer[0]}, {writer[1].value}"
        remove(visit.block, visit.part)
        self.rows.append(row)

    def _writer(self, index: int, part: Part) -> tuple[int, Part] | None:
        """Return the sublayer before this one that stays."""
        gone = set(self.off)
        at: tuple[int, Part] | None = (index, part)
        while at is not None and (at in gone):
            at = writer_before(self.blocks, *at)
        return at

    def _give_biases(self) -> None:
        """Give all last layers of a kind a bias where one of them gets one: a spec says it for all blocks."""
        writes = {part for _, part in self.writers.values()}
        repairs = self.options.repair != "none"
        if Part.ATTENTION in writes or (repairs and self.cuts_attention):
            for block in self.blocks:
                attention_weights.add_bias(block)
        if Part.MLP in writes or (repairs and self.cuts_mlp):
            for block in self.blocks:
                neurons.add_bias(block)

    def _pairs(self) -> list[tuple[BlockShape, BlockShape]]:
        return [(one, BlockShape.of(was)) for one, was in zip(self.shapes, self.before.blocks, strict=True)]


def _is_off(shape: BlockShape, part: Part) -> bool:
    return not (shape.heads if part is Part.ATTENTION else shape.mlp_width)


_was_off = _is_off


def _facts(rows: list[dict[str, Any]], before: ViTSpec, after: ViTSpec) -> dict[str, Any]:
    """Facts for people and reports."""
    neurons_before, neurons_after = (sum(b.mlp_width for b in spec.blocks if b.mlp) for spec in (before, after))
    heads_before, heads_after = (sum(b.heads for b in spec.blocks) for spec in (before, after))
    gone = [row for row in rows if row.get("off")]
    parts = [f"{neurons_before:,} to {neurons_after:,} neurons", f"{heads_before} to {heads_after} heads"]
    if gone:
        parts.append(f"{len(gone)} sublayers left out")
    return {"summary": ", ".join(parts), "blocks": rows, "forward_passes": 2}
