"""One sweep over the blocks: stream images through a model, and let stages change it sublayer by sublayer.

Two residual streams are kept, for all images at once: the source's, and that of the model being changed. Each block
sees each stream once, so repairing all sublayers costs about two forward passes, however deep the model.

Whoever changes something gives one function per kind of sublayer. It is called with a Visit, front to back, and may

    visit.inputs()    look at the changed stream where it enters the sublayer (as scoring q and k needs)
    visit.both()      look at both streams there
    visit.moments()   get moments of what enters the sublayer's last linear layer (proj, fc2) and what should leave it
    visit.pairs()     then get both, token by token
    visit.block       change the block in place

Sequential: what enters comes from the changed stream, and what should leave is the source's stream behind the
sublayer minus the changed stream before it, so that a fit can also take back the error of the fits before it.
Otherwise (parallel) both come from the source's stream. Post-norm blocks aim at the source's own branch before the
norm in both cases, because a norm stands between the fit and the stream.

Shapes: B images of a chunk, N tokens, D residual width, M inputs of the last linear layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from stages.vit.model import Block, ViT
from stages.vit.moments import Moments
from stages.vit.spec import ViTSpec
from targets.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEMORY_LIMIT_BYTES = 4 * 2**30
"""Streams beyond this are mapped from files."""
HELD_OUT = 5
"""One image in so many is kept apart from the fit, where a visit asks for it."""
READ_BY_HEAD = 4.0
"""Weight of a token that the head reads; that of any other is 1."""


class Part(StrEnum):
    """A sublayer of a block."""

    ATTENTION = "attention"
    MLP = "mlp"


Edit = Callable[["Visit"], None]
"""Changes `visit.block` in place."""
Weigh = Callable[[Tensor], Tensor]
"""Weights of tokens [B, N], from the source's stream behind the sublayer [B, N, D]."""


def sweep(
    source: ViT,
    changed: ViT,
    batches: "Iterable[Tensor | NDArray[np.float32]]",
    edits: Mapping[Part, Edit],
    *,
    sequential: bool = True,
    weigh: Weigh | None = None,
    scratch: Path | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    tell: Callable[[str, float | None], None] = lambda message, share: None,
    project: "Callable[[Tensor], Tensor] | None" = None,
    finish: "Callable[[Iterator[tuple[Tensor, Tensor]]], None]" = lambda both: None,
) -> int:
    """Visit every sublayer that has an edit, front to back, and return the number of images.

    changed: a copy of source; only the edits change it. batches: [B, 3, H, W], read once. scratch: for streams beyond
    the memory limit; without it they stay in memory. project: for a changed model of another residual width, what its
    stream should be where the source's is [B, N, D]; sequential only. finish: gets both streams behind the last block.
    Raises InputError for a model that merges tokens.
    """
    if any(source.spec["merge"]):
        raise InputError(
            "this model merges tokens, whose streams cannot be compared; put merge_tokens behind this stage"
        )
    if project is not None and not sequential:
        raise ValueError("project goes with sequential sweeps only")
    depth = len(source.blocks)
    with torch.no_grad(), TemporaryDirectory(dir=scratch, prefix="streams-") as folder:
        device = next(source.parameters()).device
        streams = _Streams(device, Path(folder) if scratch else None, memory_limit_bytes, project)
        streams.changed = [] if project else streams.source
        for batch in batches:
            pixels = torch.as_tensor(batch).to(device)
            streams.source.append(streams.place(source.embed(pixels).cpu()))
            if project:
                streams.changed.append(streams.place(changed.embed(pixels).cpu()))
        images = sum(len(chunk) for chunk in streams.source)
        for index, (block, copy) in enumerate(zip(source.blocks, changed.blocks, strict=True)):
            for part in Part:
                visit = Visit(index, part, cast(Block, block), cast(Block, copy), streams, weigh)
                if visit.exists and part in edits:
                    if sequential:
                        streams.part()
                    edits[part](visit)
                visit.leave()
            tell(f"block {index + 1} of {depth}", (index + 1) / depth)
        finish(streams.both())
    return images


def look(
    index: int,
    part: Part,
    source: Block,
    block: Block,
    stream: Sequence[Tensor],
    weigh: Weigh | None = None,
    *,
    changed: Sequence[Tensor] | None = None,
) -> "Visit":
    """Return a visit to one sublayer for trying a change: the stream stays as it is.

    stream: chunks [B, N, D] before the sublayer. block: a copy of source, to change. changed: the stream of the model
    being changed, there; the visit is sequential then, else parallel.
    """
    streams = _Streams(next(source.parameters()).device, None, 0)
    streams.source.extend(chunk.clone() for chunk in stream)
    if changed is not None:
        streams.changed = list(changed)
    return Visit(index, part, source, block, streams, weigh)


def weigh_tokens(spec: ViTSpec) -> Weigh:
    """Return the weights that repaired ViT-Tiny best, judged by its answers on images that were not fitted.

    Inverse of a token's variance over D, because the next norm divides by it: otherwise a few tokens of huge norm,
    which carry hardly any information, decide the fit. And more for the token that the head reads, if it is one.
    """
    read = {"token": 1, "token_pair": 2, "token_avg": 1}.get(spec.pooling, 0)

    def weigh(tokens: Tensor) -> Tensor:
        # Not tensor.var: along the last axis it is some fifteen times slower on CPU (torch 2.15).
        variance = (tokens - tokens.mean(dim=-1, keepdim=True)).square_().mean(dim=-1)
        weights = variance.mean() / variance.clamp(min=1e-6 * float(variance.mean()))
        weights[:, :read] *= READ_BY_HEAD
        return weights

    return weigh


class _Streams:
    """The residual streams: a list of chunks [B, N, D] each, one and the same list while they do not differ.

    They lie in main memory or files; computing happens on the models' device.
    """

    def __init__(
        self,
        device: torch.device,
        folder: Path | None,
        limit_bytes: int,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.device = device
        self.narrowed = project is not None
        self.project = project or (lambda stream: stream)
        self.source: list[Tensor] = []
        self.changed = self.source
        self.folder, self.left_bytes, self.files = folder, limit_bytes, 0

    @property
    def apart(self) -> bool:
        return self.changed is not self.source

    def part(self) -> None:
        """From here on the changed stream is one of its own."""
        if not self.apart:
            self.changed = [self.place(chunk.clone()) for chunk in self.source]

    def both(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of both streams, on the models' device."""
        for chunk, other in zip(self.source, self.changed, strict=True):
            yield chunk.to(self.device), other.to(self.device)

    def place(self, chunk: Tensor) -> Tensor:
        """Return the chunk in memory or, beyond the limit, in a file's mapped pages."""
        self.left_bytes -= chunk.nbytes
        if self.folder is None or self.left_bytes >= 0:
            return chunk
        self.files += 1
        mapped = torch.from_file(
            str(self.folder / f"{self.files}.bin"), shared=True, size=chunk.numel(), dtype=chunk.dtype
        )
        return mapped.view(chunk.shape).copy_(chunk)


@dataclass
class Visit:
    """One sublayer of one block, at the moment when both streams stand before it."""

    index: int
    part: Part
    source: Block
    block: Block
    """of the changed model"""
    _streams: _Streams
    _weigh: Weigh | None
    _source_left: bool = False
    _shift: Tensor | None = None

    @property
    def exists(self) -> bool:
        """Whether the block has this sublayer."""
        return (self.block.attn if self.part is Part.ATTENTION else self.block.mlp) is not None

    def inputs(self) -> Iterator[Tensor]:
        """Yield the changed stream before the sublayer, chunk by chunk: [B, N, D]. Not after `moments`."""
        if self._source_left:
            raise RuntimeError("inputs() comes before moments(), which moves the source's stream on")
        for chunk in self._streams.changed:
            yield chunk.to(self._streams.device)

    def both(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the source's stream and the changed one before the sublayer: [B, N, D] each. Not after `moments`."""
        if self._source_left:
            raise RuntimeError("both() comes before moments(), which moves the source's stream on")
        yield from self._streams.both()

    def weights(self, after: Tensor) -> Tensor:
        """Return the weights of tokens [B, N], from the source's stream behind the sublayer [B, N, D]."""
        return after.new_ones(after.shape[:2]) if self._weigh is None else self._weigh(after)

    def moments(
        self, *, hold_out: bool = False, take_back: float = 1.0, through_block: bool = False
    ) -> tuple[Moments, Moments | None]:
        """Return moments of what enters the last linear layer with what should leave it, in the stream's scale.

        LayerScale counts as a part of the layer. hold_out: return those of one image in HELD_OUT apart, as the second.
        take_back: share of the targets; the rest is what the source's sublayer makes of the changed stream (of its own,
        if the changed one has another width); sequential sweeps only. through_block: what enters is computed by the
        block as it is now, in parallel sweeps too.
        The first call moves the source's stream behind the sublayer. A second one, for what enters after the block
        changed, needs no source: it is cheaper, but exists in sequential pre-norm sweeps only.
        """
        if self._source_left and (not self._streams.apart or self.source.post_norm):
            raise RuntimeError("moments() can be asked for twice in sequential sweeps of pre-norm blocks only")
        gathered: list[Moments | None] = [None, None]
        device = self._streams.device
        for chunk, other in zip(self._streams.source, self._streams.changed, strict=True):
            before, changed = chunk.to(device), other.to(device)
            if self._source_left:
                after, targets = before, self._streams.project(before) - changed
            else:
                hidden, branch, after = _run(self.source, self.part, before)
                project = self._streams.project
                aims_at_stream = self._streams.apart and not self.source.post_norm
                targets = project(after) - changed if aims_at_stream else project(branch)
            if self._streams.apart or through_block:
                hidden = _hidden(self.block, self.part, changed)
            if self._streams.apart and take_back < 1:
                if not self._streams.narrowed:
                    _, given, _ = _run(self.source, self.part, changed)
                else:
                    given = self._streams.project(branch)
                targets = take_back * targets + (1 - take_back) * given
            weights = self.weights(after)
            chunk.copy_(after)
            cut = len(chunk) - (len(chunk) // HELD_OUT if hold_out else 0)
            for which, images in enumerate((slice(cut), slice(cut, None))):
                if len(hidden[images]):
                    new = Moments.of(
                        hidden[images].flatten(0, 1), targets[images].flatten(0, 1), weights[images].flatten()
                    )
                    gathered[which] = new if (old := gathered[which]) is None else old.absorb(new)
        self._source_left = True
        fitted, held_out = gathered
        if fitted is None:
            raise ValueError("no images to gather moments from")
        return fitted, held_out

    def pairs(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield what enters the sublayer, what should leave it, and the tokens' weights, chunk by chunk.

        [B, N, D] of the changed stream, [B, N, D] of the source's stream behind the sublayer, [B, N]. After `moments`,
        which moves the source there, and in sequential sweeps only: otherwise what enters is gone by then.
        """
        if not (self._source_left and self._streams.apart):
            raise RuntimeError("pairs() exists after moments(), in sequential sweeps")
        device = self._streams.device
        for chunk, other in zip(self._streams.source, self._streams.changed, strict=True):
            after = chunk.to(device)
            yield other.to(device), after, self.weights(after)

    def shift(self, constant: Tensor) -> None:
        """Add a vector [D] to the changed stream behind the sublayer: what the block before now writes besides."""
        self._shift = constant

    def leave(self) -> None:
        """Move both streams behind the sublayer."""
        if self._streams.apart:
            self._move(self._streams.changed, self.block)
            if self._shift is not None:
                for chunk in self._streams.changed:
                    chunk.add_(self._shift.to(chunk))
        if not self._source_left:
            self._move(self._streams.source, self.source)

    def _move(self, stream: list[Tensor], block: Block) -> None:
        for chunk in stream:
            x = chunk.to(self._streams.device)
            chunk.copy_(block.after_attention(x) if self.part is Part.ATTENTION else block.after_mlp(x))


def _hidden(block: Block, part: Part, x: Tensor) -> Tensor:
    return block.attention_hidden(x) if part is Part.ATTENTION else block.mlp_hidden(x)


def _run(block: Block, part: Part, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what enters the last linear layer, the branch before a post-norm, and the stream behind the sublayer."""
    hidden = _hidden(block, part, x)
    if part is Part.ATTENTION:
        scale, norm, output = block.ls1, block.norm1, block.attention_output(hidden)
    else:
        scale, norm, output = block.ls2, block.norm2, block.mlp_output(hidden)
    branch = scale(output)
    if block.post_norm:
        assert norm is not None  # every sublayer that exists has one
        return hidden, branch, x + norm(branch)
    return hidden, branch, x + branch
