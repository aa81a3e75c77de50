"""From a model folder to one for pictures of another size."""

from pathlib import Path
from typing import Any

from torch import Tensor

from stages.resize_input.options import ResizeInputOptions, reshaped
from stages.vit.counts import count_macs
from stages.vit.files import load_labels, load_spec, load_state, save_model
from stages.vit.spec import ViTSpec


def resize_folder(options: ResizeInputOptions, *, model_folder: Path, output: Path) -> dict[str, Any]:
    """Write the folder and return the facts; raises InputError where the model cannot be resized."""
    before = load_spec(model_folder)
    after = reshaped(options, before)
    save_model(output, after, resized(load_state(model_folder), before, after), labels=load_labels(model_folder))
    macs = {"before": count_macs(before), "after": count_macs(after)}
    sizes = [f"{one.preprocess.height}x{one.preprocess.width}" for one in (before, after)]
    return {
        "summary": f"input {sizes[0]} becomes {sizes[1]}, {before.tokens} tokens become {after.tokens}",
        "tokens": {"before": before.tokens, "after": after.tokens},
        "macs": macs,
    }


def resized(state: dict[str, Tensor], before: ViTSpec, after: ViTSpec) -> dict[str, Tensor]:
    """Return the weights with the position embedding [1, prefix + patches, D] resampled, as timm does at loading."""
    if before.position == "none" or _grid(before) == _grid(after):
        return state
    from timm.layers import resample_abs_pos_embed

    position = resample_abs_pos_embed(
        state["pos_embed"],
        new_size=list(_grid(after)),
        old_size=list(_grid(before)),
        num_prefix_tokens=before.prefix_tokens if before.position_covers_prefix else 0,
    )
    return {**state, "pos_embed": position}


def _grid(spec: ViTSpec) -> tuple[int, int]:
    size = (spec.preprocess.height, spec.preprocess.width)
    return size[0] // spec.patch_size[0], size[1] // spec.patch_size[1]
