"""`extends`: values of another profile, one level, with nothing taken over that is not true of both."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from targets.errors import InputError, RecipeError
from targets.inherit import merge
from targets.profile import PROFILES, base_of, load_profile


def write(folder: Path, name: str, **facts: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "summary": "mine", "verified": "not yet", **facts}))
    return path


def figure(value: float, source: str = "measured") -> dict[str, Any]:
    return {"value": value, "source": source, "confidence": "probed"}


def test_values_of_a_shipped_target_hold_where_one_s_own_has_none(tmp_path: Path) -> None:
    mine = load_profile(write(tmp_path, "mine", extends="l4", batch=8, budget={"latency_p99_ms": 5.0}))
    base = load_profile("l4")

    assert (mine.batch, mine.budget.latency_p99_ms) == (8, 5.0)
    assert (mine.board, mine.runtimes, mine.shapes) == (base.board, base.runtimes, base.shapes)
    assert mine.extends is None, "what is in force extends nothing more"
    assert base_of(tmp_path / "mine.yaml") == "l4"
    assert base_of("l4") is None


def test_a_file_may_be_extended_from_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = yaml.safe_load((PROFILES / "cpu.yaml").read_text())
    write(tmp_path, "base", board=cpu["board"], runtimes=cpu["runtimes"], batch=4)
    mine = write(tmp_path, "mine", extends="base.yaml", threads=1)
    monkeypatch.chdir("/")

    found = load_profile(mine)

    assert (found.batch, found.threads) == (4, 1)
    assert base_of(mine) == str(tmp_path / "base.yaml")


def test_two_levels_are_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", extends="h200")

    with pytest.raises(
        InputError, match=r"extends 'h200', which extends 'h100' itself; one level is allowed"
    ) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_what_extends_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one level is allowed"):
        load_profile(write(tmp_path, "mine", extends="mine.yaml"))


@pytest.mark.parametrize(
    ("base", "said"), [("l44", "did you mean 'l4'"), (7, "extends: must be a text"), ("x.yaml", "x.yaml")]
)
def test_what_cannot_be_extended_is_told(tmp_path: Path, base: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_profile(write(tmp_path, "mine", extends=base))


def test_mistakes_of_the_base_are_told_as_its_own(tmp_path: Path) -> None:
    write(tmp_path, "base", bord={}, runtimes=[])
    with pytest.raises(RecipeError, match=r"base\.yaml") as caught:
        load_profile(write(tmp_path, "mine", extends="base.yaml"))
    assert "mine.yaml" not in str(caught.value)


def test_whether_it_was_verified_is_never_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nextends: cpu\n")

    with pytest.raises(RecipeError) as caught:
        load_profile(path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["summary", "verified"]


def test_a_figure_is_replaced_with_its_source(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", extends="l4", board={"memory_gb": {"value": 48}})
    with pytest.raises(RecipeError, match=r"board\.memory_gb\.source: is missing"):
        load_profile(path)

    mine = load_profile(write(tmp_path, "mine", extends="l4", board={"memory_gb": figure(48, "my own card")}))
    assert mine.board.memory_gb is not None
    assert mine.board.memory_gb.source == "my own card"


def test_the_merged_result_is_validated(tmp_path: Path) -> None:
    fp8 = [{"name": "tensorrt", "precisions": ["fp32", "fp8"]}]
    with pytest.raises(RecipeError) as caught:
        load_profile(write(tmp_path, "mine", extends="rtx-3060", runtimes=fp8))
    assert "runtimes[0].precisions[1]: TensorRT does not run 'fp8' on compute capability 8.6" in str(caught.value)


def test_null_takes_a_value_away(tmp_path: Path) -> None:
    mine = load_profile(write(tmp_path, "mine", extends="l4", software={"driver": None}))

    assert mine.software.driver is None
    assert mine.software.cuda is not None


def test_merging_leaves_both_sides_as_they_were() -> None:
    base, own = {"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": 2}

    assert merge(base, own) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": 2}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"status": "unsupported"}, "reason: is missing"),
        ({"reason": "old"}, "reason: stands for unsupported targets only"),
        ({"board": {"kind": "gpu", "gpu": None}}, "board.gpu: is missing"),
        ({"runtimes": [{"name": "tensorrt"}]}, "runtimes[0].name: tensorrt needs a GPU"),
        ({"board": {"gpu": {"name": "X", "compute_capability": {**figure(1), "value": "89"}}}}, 'write it like "8.6"'),
        ({"software": {"cuda": {**figure(1), "value": "13 or so"}}}, "is no range of versions"),
        ({"board": {"memory_gb": figure(0)}}, "must be a number above 0"),
    ],
    ids=str,
)
def test_contradictions_are_told_with_their_place(tmp_path: Path, facts: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_profile(write(tmp_path, "mine", extends="cpu", **facts))
    assert said in str(caught.value)
