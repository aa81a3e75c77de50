"""Prune attention and MLPs of every block to shapes of their own, in one sweep."""

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.prune.off import remove
from stages.prune.options import (
    BlockShape,
    PruneOptions,
    cuts_attention,
    cuts_mlp,
    refitted,
    removals,
    reshaped,
    shapes_asked,
)
from stages.prune_attention.options import AttentionShape, inputs_described
from stages.prune_attention.options import refuse_impossible as refuse_attention
from stages.prune_attention.prune import few_tokens as few_for_attention
from stages.prune_attention.prune import prune_block as prune_attention
from stages.prune_mlp.options import neurons_described
from stages.prune_mlp.options import refuse_impossible as refuse_mlp
from stages.prune_mlp.prune import few_tokens as few_for_mlps
from stages.prune_mlp.prune import prune_block as prune_mlp
from stages.prune_mlp.prune import redundancy
from stages.vit.enough import refuse_few
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.last_layer import add_before, give_biases
from stages.vit.model import ViT
from stages.vit.refit import TOKENS_PER_NEURON, refit_mlp
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, sweep, weigh_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

log = logging.getLogger("vitrim.prune")

BATCH = 32
Tell = Callable[[str, float | None], None]


def prune_folder(
    options: PruneOptions,
    *,
    model_folder: Path,
    output: Path,
    scratch: Path,
    images: "ImageSet",
    seed: int,
    tell: Tell,
) -> dict[str, Any]:
    """Prune a model folder into another one and return the facts."""
    started = perf_counter()
    spec = load_spec(model_folder)
    chosen = images.first_by_content(options.images)
    _refuse_few(len(chosen), spec, options, shapes_asked(options, spec))
    model = load_model(model_folder).to("cuda" if torch.cuda.is_available() else "cpu")
    batches = chosen.batches(spec.preprocess, BATCH)
    pruned, pruned_spec, facts = prune(model, spec, options, batches, scratch=scratch, seed=seed, tell=tell)
    save_model(output, pruned_spec, pruned.state_dict(), labels=load_labels(model_folder))
    return {**facts, "seconds": round(perf_counter() - started, 3)}


def prune(
    model: ViT,
    spec: ViTSpec,
    options: PruneOptions,
    batches: "Iterable[Tensor | NDArray[np.float32]]",
    *,
    scratch: Path | None = None,
    seed: int = 0,
    tell: Tell = lambda message, share: None,
) -> tuple[ViT, ViTSpec, dict[str, Any]]:
    """Return a pruned copy of a model, its spec and facts. batches: [B, 3, H, W]. seed: of MLPs' method random."""
    shapes = shapes_asked(options, spec)
    sweeper = _Sweeper(model, spec, options, shapes, seed=seed)
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
    return (
        sweeper.pruned,
        sweeper.after,
        {
            **_facts(sweeper.rows, spec, sweeper.after),
            "refitted": sweeper.refits,
            "images": images,
        },
    )


def _refuse_few(images: int, spec: ViTSpec, options: PruneOptions, shapes: Sequence[BlockShape]) -> None:
    """Raise InputError, before any work, where the images have fewer tokens than a layer to be described has inputs."""
    neurons = neurons_described(options.for_mlps(), spec, [shape.mlp_width for shape in shapes])
    refuse_few(images, spec, neurons, "neurons")
    inputs = inputs_described(options.for_attention(), spec, [shape.attention for shape in shapes])
    refuse_few(images, spec, inputs, "inputs of proj")


class _Sweeper:
    """The edits of one sweep."""

    def __init__(
        self, model: ViT, spec: ViTSpec, options: PruneOptions, shapes: tuple[BlockShape, ...], *, seed: int
    ) -> None:
        self.before, self.shapes, self.seed = spec, shapes, seed
        self.for_mlps, self.for_attention = options.for_mlps(), options.for_attention()
        if cuts_mlp(spec, shapes):
            refuse_mlp(self.for_mlps, spec)
        if cuts_attention(spec, shapes):
            refuse_attention(self.for_attention, spec)
        self.after = reshaped(options, spec)
        self.pruned = deepcopy(model)
        give_biases(self.pruned, self.after)
        self.rows: list[dict[str, Any]] = []
        self.refitted = refitted(options, spec, shapes)
        self.refits: list[dict[str, Any]] = []
        self.writers = dict(removals(spec, self.after))
        """what keeps the mean of each sublayer that goes"""

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
            drawn = self.seed * len(self.shapes) + visit.index  # as prune_mlp draws
            facts = prune_mlp(visit.block, width, self.for_mlps, visit, seed=drawn)
            self.rows.append({"block": visit.index, "part": "mlp", **facts})
        elif visit.index in self.refitted:
            found = refit_mlp(visit, take_back=self.for_mlps.take_back, least=TOKENS_PER_NEURON)
            if found is not None:
                self.refits.append({"block": visit.index, **found})

    def _remove(self, visit: Visit) -> None:
        row: dict[str, Any] = {"block": visit.index, "part": visit.part.value, "off": True}
        writer = self.writers[visit.index, visit.part is Part.MLP]
        if writer is not None:
            moments, _ = visit.moments()
            add_before(self.pruned, writer, moments.mean_out)
            visit.shift(moments.mean_out)
            row["mean_kept_in"] = writer[0] if writer[1] < 0 else f"{writer[0]} of block {writer[1]}"
        remove(visit.block, visit.part)
        self.rows.append(row)


def _is_off(shape: BlockShape, part: Part) -> bool:
    return not (shape.heads if part is Part.ATTENTION else shape.mlp_width)


def _facts(rows: list[dict[str, Any]], before: ViTSpec, after: ViTSpec) -> dict[str, Any]:
    """Facts for people and reports."""
    neurons_before, neurons_after = (sum(b.mlp_width for b in spec.blocks if b.mlp) for spec in (before, after))
    heads_before, heads_after = (sum(b.heads for b in spec.blocks) for spec in (before, after))
    gone = [row for row in rows if row.get("off")]
    parts = [f"{neurons_before:,} to {neurons_after:,} neurons", f"{heads_before} to {heads_after} heads"]
    if gone:
        parts.append(f"{len(gone)} sublayers left out")
    mlps, attentions = ([row for row in rows if row["part"] == part.value] for part in (Part.MLP, Part.ATTENTION))
    facts = {"summary": ", ".join(parts), "blocks": rows, **redundancy(mlps), "forward_passes": 2}
    if few := [text for text in (few_for_mlps(mlps), few_for_attention(attentions)) if text]:
        facts["warning"] = "; ".join(few)
        log.warning(facts["warning"])
    return facts
