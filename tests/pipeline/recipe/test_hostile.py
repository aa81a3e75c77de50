"""Recipes made to do harm, or by a program gone wrong: each ends soon, in short lines, with nothing run or read."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import Recipe, load_recipe
from targets.errors import InputError

Text = Callable[..., str]
Load = Callable[..., Recipe]
Problems = Callable[..., list[str]]

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (LAUGHS.encode(), "more than 20,000 values once its aliases are written out"),
        (b"vitrim: 1\nmodel: &m {arguments: *m}\n", "levels deep"),
        (b"model: " + b"[" * 50 + b"]" * 50, "nested more than 40 levels deep"),
        (b"model: " + b"{a: " * 50_000, "is not valid YAML"),
        (b"vitrim: 1\n---\nvitrim: 1\n", "a second document begins; one is expected (line 2"),
        (b"model:\n\ttimm: vit\n", "a tab; YAML indents with spaces (line 2"),
        (b"", "must hold keys and values, it holds nothing"),
        (b"# nothing yet\n", "must hold keys and values, it holds nothing"),
        (b"- vitrim: 1\n- name: a\n", "must hold keys and values, it holds [{vitrim: 1}, {name: 'a'}]"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "is not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is not UTF-8 text"),
        (b"name: " + b"a" * 2**19, "has more than 256 KiB"),
    ],
    ids=str,
)
def test_a_file_that_holds_no_recipe_is_refused_soon_in_one_short_line(tmp_path: Path, raw: bytes, part: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(raw)
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "bad.yaml")
    told = str(caught.value)

    assert told.startswith(f"recipe '{tmp_path}/bad.yaml' ")
    assert part in told
    assert len(told.splitlines()) == 1
    assert len(told) < 400
    assert time.monotonic() - started < 20


def test_tags_of_python_run_nothing_and_hide_no_other_problem(problems: Problems, tmp_path: Path) -> None:
    told = problems(
        "vitrim: 1\n"
        f"name: !!python/object/apply:os.mkdir [{tmp_path}/made]\n"
        "model: {timm: vit, checkpoint: !!python/name:os.system x}\n"
        "data: {select: {dataset: digits}}\n"
        "seed: 1\n"
        "seed: x\n"
    )

    assert [problem.partition(" ")[0] for problem in told] == ["name:", "model.checkpoint:", "all"]
    assert "values of kind 'python/object/apply:os.mkdir' are not understood" in told[0]
    assert told[2] == "all of it: key 'seed' stands twice, first in line 5 (line 6)"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("step", "count", "expected"),
    [
        ("distill", 15_000, 0),
        ("export", 15_000, 14_999),
        ("quantize", 15_000, 14_999),
        ("xyz", 15_000, 15_000),
        ({"prune_mlp": {"kep": 1}}, 2000, 2000),
    ],
    ids=str,
)
def test_thousands_of_steps_take_seconds(text: Text, problems: Problems, step: Any, count: int, expected: int) -> None:
    def taken(steps: int) -> float:
        started = time.process_time()
        found.append(problems(text({"steps": [step] * steps})))
        return time.process_time() - started

    found: list[Any] = []
    taken(10)  # what is loaded and compiled at first use
    few, many = taken(count // 10), taken(count)

    assert len(found[-1]) == expected
    assert many < 25 * few  # ten times the steps take ten times as long, not a hundred times


@pytest.mark.parametrize("key", ["a" + ".a" * 5000, "model.arguments" + ".a" * 50, "steps." + "9" * 5000, "a" * 9999])
def test_an_endless_override_is_one_short_line(text: Text, problems: Problems, key: str) -> None:
    [told] = problems(text(), f"{key}=1")

    assert len(told) < 400
    assert "Exceeds" not in told


@pytest.mark.parametrize("value", ["${A:-" * 9999, "${" + "A" * 9999 + "}"], ids=["open", "long"])
def test_an_endless_variable_is_one_short_line(text: Text, problems: Problems, value: str) -> None:
    [told] = problems(text({"model.labels": value}))

    assert len(told) < 400


@pytest.mark.parametrize("value", ["${ODD}/a", "${ODD}/target.yaml"])
def test_a_path_that_is_no_text_is_told(
    text: Text, problems: Problems, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    # Reports, digests and manifests are UTF-8; such a name would fail in them, long after.
    monkeypatch.setenv("ODD", os.fsdecode(b"/caf\xe9"))
    place = "targets.0" if value.endswith("yaml") else "model.labels"
    [told] = problems(text({place: value}))

    assert f"the name '/caf\\udce9/{Path(value).name}' is not UTF-8" in told
    told.encode()


def test_a_recipe_in_a_folder_that_is_no_text_says_so(text: Text, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "recipe.yaml").write_text(text({}, without=("data", "steps", "model")))
    with pytest.raises(InputError):
        load_recipe(folder / "recipe.yaml")
    absolute = {"data": {"select": {"dataset": "digits"}}, "model": {"timm": "vit"}, "vitrim": 1, "name": "a"}
    (folder / "recipe.yaml").write_text(json.dumps(absolute))

    assert load_recipe(folder / "recipe.yaml").digest()  # nothing in it starts at the folder
    (folder / "recipe.yaml").write_text(json.dumps({**absolute, "model": {"folder": "saved"}}))
    with pytest.raises(InputError, match=r"^recipe .*: model\.folder: the name '.*udce9/saved' is not UTF-8"):
        load_recipe(folder / "recipe.yaml")
