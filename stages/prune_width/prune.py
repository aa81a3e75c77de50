"""Narrow the residual stream of a model: choose, cut, and fit every layer around it again in one sweep.

Where a site reads the narrower stream, the affine map from what it reads now to what it read before is fitted (ridge
regression, of what the map without a fit misses), and multiplied into its readers. Where a sublayer writes, its last
layer is fitted to what the source's stream, narrowed, is behind it, as in the other pruning stages.
"""

import logging
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.prune_width.choose import choose
from stages.prune_width.options import PruneWidthOptions, refuse_impossible, reshaped, width_asked
from stages.prune_width.stream import (
    HEAD,
    Narrowing,
    Reading,
    Site,
    entering,
    narrowed,
    projection,
    read_by,
    usual_reading,
)
from stages.vit.files import load_labels, load_model, load_spec, save_model
from stages.vit.model import Block, LayerScale, ViT
from stages.vit.moments import Moments
from stages.vit.repair import RIDGES, Fit, best_ridge, fit, relative_error
from stages.vit.spec import ViTSpec
from stages.vit.sweep import HELD_OUT, Part, Visit, sweep, weigh_tokens
from targets.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from stages.data.images import ImageSet

    Tell = Callable[[str, float | None], None]

log = logging.getLogger("vitrim.prune_width")

BATCH = 32
HEAD_RIDGES = (*RIDGES, 1.0, 10.0, 100.0)
"""The head is fitted on one feature per image: far fewer than the tokens of the other fits."""
TOKENS_PER_CHANNEL = 10


class Again:
    """Batches of an image set that can be read more than once."""

    def __init__(self, images: "ImageSet", spec: ViTSpec) -> None:
        self.images, self.preprocess = images, spec.preprocess

    def __iter__(self) -> "Iterator[NDArray[np.float32]]":
        return iter(self.images.batches(self.preprocess, BATCH))


def prune_folder(
    options: PruneWidthOptions,
    *,
    model_folder: Path,
    output: Path,
    scratch: Path,
    images: "ImageSet | None",
    tell: "Tell",
) -> dict[str, Any]:
    """Prune a model folder into another one and return the facts. images: None where the options need none."""
    started = perf_counter()
    spec = load_spec(model_folder)
    reshaped(options, spec)  # refuses before weights are read
    model = load_model(model_folder).to("cuda" if torch.cuda.is_available() else "cpu")
    batches = None if images is None else Again(images.first_by_content(options.images), spec)
    pruned, pruned_spec, facts = prune(model, spec, options, batches, scratch=scratch, tell=tell)
    save_model(output, pruned_spec, pruned.state_dict(), labels=load_labels(model_folder))
    return {**facts, "seconds": round(perf_counter() - started, 3)}


def prune(
    model: ViT,
    spec: ViTSpec,
    options: PruneWidthOptions,
    batches: "Iterable[Tensor | NDArray[np.float32]] | None",
    *,
    scratch: Path | None = None,
    tell: "Tell" = lambda message, share: None,
) -> tuple[ViT, ViTSpec, dict[str, Any]]:
    """Return a narrower copy of a model, its spec and facts.

    batches: [B, 3, H, W], read twice (a list, not a generator); None where the options need none.
    """
    refuse_impossible(options, spec)
    width, pruned_spec = width_asked(options, spec), reshaped(options, spec)
    facts: dict[str, Any] = {"width_before": spec.width, "width_after": width, "images": 0, "tokens": 0}
    if width == spec.width:
        return deepcopy(model), spec, {**facts, "summary": f"width {width} stays", "sites": []}
    narrowing = choose(model, spec, width, method=options.method, batches=batches)
    pruned = narrowed(model, spec, pruned_spec, narrowing)
    repair = _Repair(model, pruned, spec, options, narrowing)
    if options.repair != "none":
        assert batches is not None  # the options say that it reads images
        facts["images"] = sweep(
            model,
            pruned,
            batches,
            {Part.ATTENTION: repair.visit, Part.MLP: repair.visit},
            weigh=weigh_tokens(spec),
            scratch=scratch,
            tell=tell,
            project=projection(narrowing),
            finish=repair.head,
        )
        facts["tokens"] = facts["images"] * spec.tokens
        if facts["tokens"] < TOKENS_PER_CHANNEL * spec.width:
            facts["warning"] = (
                f"{facts['tokens']} tokens of calibration images for {spec.width} channels are few: give "
                f"{TOKENS_PER_CHANNEL} times as many tokens as channels"
            )
            log.warning(facts["warning"])
    how = "" if options.repair == "none" else ", readers and writers repaired"
    facts["summary"] = f"width {spec.width} to {width}, by {options.method}{how}"
    return pruned, pruned_spec, {**facts, "sites": repair.rows}


class _Repair:
    """Fits the layers around the stream, front to back."""

    def __init__(
        self, model: ViT, pruned: ViT, spec: ViTSpec, options: PruneWidthOptions, narrowing: Narrowing
    ) -> None:
        self.model, self.pruned, self.spec = model, pruned, spec
        self.options, self.narrowing = options, narrowing
        self.rows: list[dict[str, Any]] = []

    def visit(self, visit: Visit) -> None:
        site = (visit.index, str(visit.part))
        seen = (
            (entering(self.model, site, x), entering(self.pruned, site, y), visit.weights(x)) for x, y in visit.both()
        )
        facts = self._read(site, seen, RIDGES)
        fitted, held_out = visit.moments(hold_out=True, take_back=self.options.take_back)
        layer, error = self._fit(fitted, held_out, RIDGES)
        self.rows.append({"block": visit.index, "part": site[1], **facts, "writing_error": error})
        _write(visit.block, visit.part, layer)

    def head(self, both: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Fit the head on what enters it."""

        def features() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for x, y in both:
                before = self.model.pool(self.model.norm(x)).reshape(len(x), -1, self.spec.width)
                after = self.pruned.pool(self.pruned.norm(y))
                yield before, after.reshape(*before.shape[:2], -1), before.new_ones(before.shape[:2])

        self.rows.append({"part": "head", **self._read(HEAD, features(), HEAD_RIDGES)})

    def _read(
        self, site: Site, seen: Iterator[tuple[Tensor, Tensor, Tensor]], ridges: tuple[float, ...]
    ) -> dict[str, Any]:
        """Fit how a site reads. seen: what it read before [B, N, D], what it reads now [B, N, D'], weights [B, N]."""
        usual = usual_reading(self.model, self.spec, self.narrowing, site)
        gathered: list[Moments | None] = [None, None]
        energy = 0.0
        for before, now, weights in seen:
            missed = before - (now @ usual.back.T.to(now) + usual.shift.to(now))
            centre = (weights[..., None] * before).sum(dim=(0, 1)) / weights.sum()
            energy += float((weights[..., None] * (before - centre).square()).sum())
            cut = len(now) - len(now) // HELD_OUT
            for which, some in enumerate((slice(cut), slice(cut, None))):
                if len(now[some]):
                    new = Moments.of(now[some].flatten(0, 1), missed[some].flatten(0, 1), weights[some].flatten())
                    gathered[which] = new if (old := gathered[which]) is None else old.absorb(new)
        fitted, held_out = gathered
        if fitted is None:
            raise ValueError("no images to fit on")
        layer, error = self._fit(fitted, held_out, ridges)
        whole = fitted if held_out is None else deepcopy(fitted).absorb(held_out)
        read_by(self.pruned, self.model, site, Reading(usual.back + layer.weight, usual.shift + layer.bias))
        return {"reading_error": error * whole.energy / energy if energy else 0.0, "ridge": layer.ridge}

    def _fit(self, fitted: Moments, held_out: Moments | None, ridges: tuple[float, ...]) -> tuple[Fit, float]:
        every = torch.arange(len(fitted.gram), device=fitted.gram.device)
        whole = fitted if held_out is None else deepcopy(fitted).absorb(held_out)
        if whole.tokens < 2:
            raise InputError("one token cannot be fitted to; give more images of fit")
        ridge = self.options.ridge
        if ridge == "auto":
            ridge = best_ridge(fitted, held_out or fitted, every, ridges=ridges)
        layer = fit(whole, every, ridge=ridge)
        return layer, relative_error(whole, every, layer)


def _write(block: Block, part: Part, layer: Fit) -> None:
    """Put a fitted layer in the place of a sublayer's last one and of LayerScale, whose factors become 1."""
    if part is Part.ATTENTION:
        assert block.attn is not None
        last, scale = block.attn.proj, block.ls1
    else:
        assert block.mlp is not None
        last, scale = block.mlp.fc2, block.ls2
    last.bias = nn.Parameter(layer.bias.to(last.weight))
    last.weight = nn.Parameter(layer.weight.to(last.weight))
    if isinstance(scale, LayerScale):
        scale.gamma = nn.Parameter(torch.ones_like(scale.gamma))
