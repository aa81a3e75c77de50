"""Which layers cost most when quantized, and the loop that returns them to float until the agreement holds.

A layer's cost is measured with it alone quantized and all others as they were. The other way, with it alone in float,
takes as many passes, but there the noise of all others covers the difference, which then needs many more images.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from stages.quantize.agreement import Agreement
from stages.quantize.calibrate import save
from stages.quantize.judge import Judge
from stages.quantize.mixed import return_to_float
from targets.atomic import write_atomic

Tell = Callable[[str, int, int], None]
"""tell(what, how many are done, of how many)"""


@dataclass(frozen=True, kw_only=True)
class Variants:
    """A quantized graph, the fp32 graph it was, and the layers that can change between them."""

    quantized: Path
    source: Path
    precision: str
    layers: Mapping[str, Sequence[str]]
    """name -> nodes"""

    def write(self, path: Path, *, returned: Sequence[str]) -> None:
        """Write the quantized graph with these layers in float."""
        model = onnx.load(self.quantized)
        nodes = {node for layer in returned for node in self.layers[layer]}
        return_to_float(model, onnx.load(self.source), nodes)
        path.parent.mkdir(exist_ok=True)
        save(model, path)


def measure_sensitivity(
    variants: Variants, judge: Judge, folder: Path, *, images: int, tell: Tell
) -> list[dict[str, Any]]:
    """What each layer alone does to the answers, the costliest first: [{layer, divergence, agreement}].

    folder: results found before an interruption are taken over from it.
    """
    known = folder / "sensitivity.json"
    found: dict[str, dict[str, Any]] = json.loads(known.read_bytes()) if known.exists() else {}
    for index, layer in enumerate(variants.layers):
        tell(f"sensitivity of {layer}", index, len(variants.layers))
        if layer in found:
            continue
        variants.write(folder / "variant" / "model.onnx", returned=[one for one in variants.layers if one != layer])
        one = judge.agreement(folder / "variant" / "model.onnx", variants.precision, first=images)
        found[layer] = {"layer": layer, "divergence": one.divergence, "agreement": one.share}
        write_atomic(known, json.dumps(found).encode())
    return sorted(found.values(), key=lambda one: -one["divergence"])


@dataclass(frozen=True, kw_only=True)
class Round:
    """A layer more in float."""

    layer: str
    graph: Path
    found: Agreement


def return_until(
    budget: float, variants: Variants, order: Sequence[str], judge: Judge, folder: Path, *, rounds: int, tell: Tell
) -> list[Round]:
    """Return layers in order, one a round, until the agreement on all images holds or the rounds are over."""
    found: list[Round] = []
    for layer in order[:rounds]:
        tell(f"returning {layer} to float", len(found), rounds)
        graph = folder / f"returned_{len(found) + 1}" / "model.onnx"
        if not graph.exists():
            variants.write(graph, returned=[*(one.layer for one in found), layer])
        found.append(Round(layer=layer, graph=graph, found=judge.agreement(graph, variants.precision)))
        if found[-1].found.share >= budget:
            break
    return found
