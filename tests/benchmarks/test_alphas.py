"""The benchmark of SmoothQuant's alpha: what it tries, and what it says of it."""

import numpy as np

from benchmarks import alphas
from stages.quantize.stage import FULL, QuantizeOptions


def test_every_strength_of_the_preset_is_tried_once_with_and_without_zero_points() -> None:
    assert set(FULL) <= set(alphas.ALPHAS)
    assert len(set(alphas.ALPHAS)) == len(alphas.ALPHAS)
    assert {graph["symmetric"] for graph in alphas.GRAPHS} == {True, False}
    for graph in alphas.GRAPHS:
        options = QuantizeOptions(**graph)
        assert options.scope_of(transformer=True) == graph["scope"], "what the row says is what was quantized"


def test_figures_are_those_of_the_answers() -> None:
    labels = np.array([0, 1, 2, 3])
    before = np.eye(4, dtype=np.float32) * 5
    after = before.copy()
    after[3] = before[2]

    found = alphas.figures(before, after, labels)

    assert (found["top1"], found["agreement"], found["drop_points"]) == (0.75, 0.75, 25.0)
    assert found["kl_nats"] > 0
    row = {"symmetric": True, "scope": "linears", "alpha": "auto", **found}
    row |= alphas.strength({"candidates": [{"strength": 0.8}]})
    assert alphas.told(row).startswith("symmetric, linears, alpha auto (0.8): top-1 75.0%, agreement 75.0%, KL ")
