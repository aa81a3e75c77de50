"""Options that a profile gives a runtime: each goes where it counts, and what is wrong is told in one line."""

import pytest

from targets.errors import InputError
from targets.runtimes.catalog import CATALOG
from targets.runtimes.own import ELSEWHERE, own_table, split_options


def test_options_go_where_they_count() -> None:
    found = split_options("tensorrt", {"workspace_mib": 512, "cuda_graph": False, "timing_cache": "none"})

    assert found.build == {"workspace_mib": 512, "timing_cache": "none"}
    assert found.load == {"cuda_graph": False}


def test_an_option_of_both_is_given_to_the_build_which_keeps_it() -> None:
    assert split_options("onnxruntime_cuda", {"tf32": True}).build == {"tf32": True}


@pytest.mark.parametrize("runtime", CATALOG)
def test_nothing_can_be_set_twice(runtime: str) -> None:
    assert not set(own_table(runtime)) & set(ELSEWHERE)


@pytest.mark.parametrize(
    ("runtime", "given", "words"),
    [
        ("tensorrt", {"workspace": 1}, "has no option 'workspace'; did you mean 'workspace_mib'"),
        ("tensorrt", {"optimization_level": 9}, "'optimization_level' is a whole number from 0 to 5, got 9"),
        ("tensorrt", {"tf32": 1}, "'tf32' is true or false, got 1"),
        ("tensorrt", {"batch": 4}, "option 'batch' is not set here: the profile's batch says it"),
        ("tensorrt", {"batch_max": 2}, "batch_min 4, batch 4 and batch_max 2 are out of order"),
        ("tensorrt_rtx", {"timing_cache": "x"}, "'tensorrt_rtx' has no option 'timing_cache'"),
        ("openvino", {"hint": "throughput"}, "it stands beside the runtime's name"),
        ("openvino", {"pinning": True}, "has no option 'pinning'; it has none; hint and streams stand beside"),
        ("onnxruntime", {"workspace_mib": 4}, "has no option 'workspace_mib'; it has none; threads and cores are"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(runtime: str, given: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        split_options(runtime, given, batch=4)

    assert "\n" not in str(caught.value)
