"""From a model folder to one that merges tokens: the same weights, another spec."""

from pathlib import Path
from typing import Any

from stages.merge_tokens.options import MergeTokensOptions, reshaped
from stages.vit.counts import count_macs
from stages.vit.files import load_labels, load_spec, load_state, save_model


def merge_folder(options: MergeTokensOptions, *, model_folder: Path, output: Path) -> dict[str, Any]:
    """Write the folder and return the facts; raises InputError where the model cannot merge as asked."""
    before = load_spec(model_folder)
    spec = reshaped(options, before)
    save_model(output, spec, load_state(model_folder), labels=load_labels(model_folder))
    blocks = len(spec.blocks)
    tokens = [spec.tokens_in(index) for index in range(blocks + 1)]
    macs = {"before": count_macs(before), "after": count_macs(spec)}
    return {
        "summary": f"{tokens[0]} tokens become {tokens[-1]} over {blocks} blocks, "
        f"{100 * (1 - macs['after'] / macs['before']):.0f} % fewer MACs",
        "merge": list(spec.merge),
        "tokens": tokens,
        "macs": macs,
        "blocks_by_tokens": [
            index
            for index, block in enumerate(spec.blocks)
            if spec.merge[index] and (block.attention == "off" or spec.merge_metric == "tokens")
        ],
    }
