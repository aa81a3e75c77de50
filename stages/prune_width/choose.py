"""Which part of the residual stream stays.

rotate: principal axes of the stream as its readers see it, normalised, all sites together, each with the same weight.
energy: channels by what they give to the readers, each site by its own sum. snp: channels by how unlike their writers'
rows are, each writer by its own sum, and the mean over them (Shim, Yun and Choi, ECCV 2024, arXiv 2404.11630; the
authors publish only the names of these rules).

Shapes: B images, N tokens, D residual width.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.prune_width.options import Method
from stages.prune_width.stream import HEAD, Narrowing, Site, entering, readers, rotation, selection, writers
from stages.vit.model import Block, ViT
from stages.vit.spec import ViTSpec
from stages.vit.sweep import READ_BY_HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def choose(
    model: ViT, spec: ViTSpec, width: int, *, method: Method, batches: "Iterable[Tensor | NDArray[np.float32]] | None"
) -> Narrowing:
    """Choose what stays of the stream. batches: [B, 3, H, W], read once; None for snp, which needs none."""
    if method == "snp":
        scores = writer_diversity(model)
        return selection(spec, _best(scores, width))
    assert batches is not None  # the options say that it reads images
    if method == "rotate":
        moments = torch.stack(list(_gather(model, spec, batches, normalised=True).values()))
        _, vectors = torch.linalg.eigh(moments.sum(dim=0))
        return rotation(spec, vectors.flip(1)[:, :width])
    scores = torch.zeros(spec.width, dtype=torch.float64, device=next(model.parameters()).device)
    for site, moments in _gather(model, spec, batches, normalised=False).items():
        rows = torch.cat([layer.weight.detach().double().reshape(-1, spec.width) for layer in readers(model, site)])
        given = moments.diagonal() * rows.square().sum(dim=0)
        scores += given / given.sum()
    return selection(spec, _best(scores, width))


def writer_diversity(model: ViT) -> Tensor:
    """SNP's score of each channel: [D]."""
    scores = []
    for weight in writers(model):
        rows = weight.detach().double().flatten(1)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
        own = (1 - (rows @ rows.T).abs()).sum(dim=1)
        scores.append(own / own.sum().clamp(min=1e-300))
    return torch.stack(scores).mean(dim=0)


def _gather(
    model: ViT, spec: ViTSpec, batches: "Iterable[Tensor | NDArray[np.float32]]", *, normalised: bool
) -> dict[Site, Tensor]:
    """Return second moments [D, D] at each site, as mean over tokens; those that the head reads count more.

    normalised: of the stream without mean and of length 1 per channel; otherwise of what the site reads.
    """
    sums: dict[Site, Tensor] = {}
    tokens = 0
    read = {"token": 1, "token_pair": 2}.get(spec.pooling, 0)

    def add(site: Site, x: Tensor) -> None:
        seen = _normalise(x, spec) if normalised else entering(model, site, x).clone()
        seen[:, :read] *= READ_BY_HEAD**0.5
        flat = seen.flatten(0, 1)
        found = (flat.T @ flat).double()
        sums[site] = sums[site] + found if site in sums else found

    with torch.no_grad():
        device = next(model.parameters()).device
        for batch in batches:
            x = model.embed(torch.as_tensor(batch).to(device))
            tokens += x.shape[0] * x.shape[1]
            for index, block in enumerate(model.blocks):
                assert isinstance(block, Block)
                if block.attn is not None:
                    add((index, "attention"), x)
                x = block.after_attention(x)
                if block.mlp is not None:
                    add((index, "mlp"), x)
                x = block.after_mlp(x)
            add(HEAD, x)
    return {site: found / tokens for site, found in sums.items()}


def _normalise(x: Tensor, spec: ViTSpec) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True) if spec.norm == "layernorm" else x
    return centred / centred.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-30)


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values
