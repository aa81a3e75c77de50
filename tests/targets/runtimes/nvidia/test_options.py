"""The options of both TensorRTs: one table, checked strictly, written down."""

from pathlib import Path
from typing import Any

import pytest

from targets.errors import InputError
from targets.runtimes.nvidia.options import BUILD, LOAD, OPTIONS, RTX, TENSORRT, read_options


@pytest.mark.parametrize("runtime", [TENSORRT, RTX])
def test_defaults_are_filled_in_for_what_applies(runtime: str) -> None:
    for when in (BUILD, LOAD):
        found = read_options(runtime, when, {})
        expected = {name for name, one in OPTIONS.items() if runtime in one.runtimes and when in one.when}

        assert set(found) == expected


@pytest.mark.parametrize(
    ("runtime", "when", "given", "words"),
    [
        (
            TENSORRT,
            BUILD,
            {"workspce_mib": 1},
            "runtime 'tensorrt' has no option 'workspce_mib' at build; did you mean 'workspace_mib'",
        ),
        (RTX, BUILD, {"timing_cache": "x"}, "'timing_cache' is one of runtime 'tensorrt', not of 'tensorrt_rtx'"),
        (RTX, BUILD, {"version_compatible": True}, "one of runtime 'tensorrt', not of 'tensorrt_rtx'"),
        (TENSORRT, BUILD, {"compute_capability": "8.6"}, "one of runtime 'tensorrt_rtx', not of 'tensorrt'"),
        (TENSORRT, LOAD, {"workspace_mib": 1}, "'workspace_mib' counts at build, not at load"),
        (TENSORRT, BUILD, {"cuda_graph": False}, "'cuda_graph' counts at load, not at build"),
        (TENSORRT, BUILD, {"workspace_mib": 0}, "whole number from 1 to .*, got 0"),
        (TENSORRT, BUILD, {"workspace_mib": 1.5}, "whole number from 1 to .*, got 1.5"),
        (TENSORRT, BUILD, {"optimization_level": True}, "whole number from 0 to 5, got True"),
        (TENSORRT, BUILD, {"tf32": 1}, "'tf32' is true or false, got 1"),
        (TENSORRT, BUILD, {"refit": "some"}, "'refit' is one of none, identical, any, got 'some'"),
        (TENSORRT, BUILD, {"precision": ["fp32"]}, "'precision' is one of fp32"),
        (RTX, BUILD, {"compute_capability": 8.6}, "a text like '8.6' or a list of such, got 8.6"),
        (RTX, BUILD, {"compute_capability": []}, "a text like '8.6' or a list of such"),
        (RTX, BUILD, {"compute_capability": ["8.6", 8.9]}, "a text like '8.6' or a list of such"),
        (TENSORRT, BUILD, {"timing_cache": 3}, "'timing_cache' is a path, got 3"),
        (TENSORRT, BUILD, {"batch": 2, "batch_max": 1}, "batch_min 2, batch 2 and batch_max 1 are out of order"),
        (TENSORRT, BUILD, {"batch": 2, "batch_min": 3}, "out of order"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(runtime: str, when: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_options(runtime, when, given)

    assert "\n" not in str(caught.value)


def test_a_capability_that_is_named_twice_counts_once() -> None:
    assert read_options(RTX, BUILD, {"compute_capability": ["8.6", "8.6"]})["compute_capability"] == ["8.6"]


@pytest.mark.parametrize("runtime", [TENSORRT, RTX])
def test_every_option_is_on_the_page_of_its_runtime(root: Path, runtime: str) -> None:
    page = (root / "docs" / "runtimes" / f"{runtime}.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]

    for name, option in OPTIONS.items():
        default = "" if option.default is None else f" `{str(option.default).lower()}`"
        row = f"| `{name}` | {' '.join(option.when)} |{default} | {option.meaning} |"
        assert (row in rows) == (runtime in option.runtimes), row
