"""How much less than another a candidate may agree with the source: what a budget of accuracy is worth in agreement."""

from targets.profile import Budget

AGREEMENT_SLACK = 0.01
"""a candidate may agree with the source this much less than the best one and still win by speed, without a budget"""


def slack_of(budget: Budget) -> float:
    """How much less than the best a candidate may agree with the source: as many images as the budget lets be lost.

    An image on which a candidate disagrees need not be lost, so there is room for what the best one lost already; the
    finished engine is judged by its answers to `evaluate` all the same.
    """
    return max(AGREEMENT_SLACK, (budget.accuracy_drop_points or 0) / 100)
