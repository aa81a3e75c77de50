"""What a plan says of a model that is larger than a target's memory."""

import pytest

from pipeline.room import lacking_room
from targets.profile import load_profile

NANO = load_profile("jetson-orin-nano")
"""8 GB"""


@pytest.mark.parametrize(
    ("params", "precisions", "said"),
    [
        (86_000_000, ("fp32", "int8"), None),
        (3_000_000_000, ("fp32", "fp16", "int8"), "the baseline does not fit, fp16, int8 may"),
        (9_000_000_000, ("fp16", "int8"), "and 9.0 GB in int8: nothing fits; choose a smaller model"),
        (0, ("int8",), None),
        (9_000_000_000, (), None),
    ],
)
def test_weights_are_held_against_the_memory(params: int, precisions: tuple[str, ...], said: str | None) -> None:
    found = lacking_room(NANO, params, precisions)

    assert (found is None) == (said is None)
    if said is not None:
        assert str(found).endswith(said)


def test_a_target_whose_memory_is_not_known_says_nothing() -> None:
    assert lacking_room(load_profile("cpu"), 10**12, ("fp32",)) is None
