"""What last writes into the residual stream before a place: there a constant can be put as a bias. Light."""

from typing import Literal

from stages.vit.spec import ViTSpec

Writer = Literal["proj", "fc2", "norm_pre", "pos_embed", "patch_embed"]
BIASES = {"proj": "proj_bias", "fc2": "fc2_bias", "patch_embed": "patch_bias"}


def writer_before(spec: ViTSpec, index: int, *, before_mlp: bool = False) -> tuple[Writer, int] | None:
    """Return what last writes into the stream before a block, or before its MLP, with its block or -1.

    A bias there reaches all tokens, and nothing reads the stream in between. None where nothing does that has a bias.
    Pre-norm models.
    """
    if before_mlp and spec.blocks[index].attention != "off":
        return "proj", index
    for earlier in range(index - 1, -1, -1):
        if spec.blocks[earlier].mlp:
            return "fc2", earlier
        if spec.blocks[earlier].attention != "off":
            return "proj", earlier
    if spec.pre_norm_eps is not None:
        return ("norm_pre", -1) if spec.norm == "layernorm" else None
    covered = spec.position == "absolute" and spec.position_covers_prefix
    return ("pos_embed", -1) if covered else ("patch_embed", -1)


def with_bias(spec: ViTSpec, writer: Writer) -> ViTSpec:
    """Return the spec of a model in which this writer has a bias."""
    return spec.replace(**{BIASES[writer]: True}) if writer in BIASES else spec
