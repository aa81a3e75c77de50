"""Paths: variables, the home folder, and where a relative path starts."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import Recipe, load_recipe
from targets.profile import load_profile

Text = Callable[..., str]
Load = Callable[..., Recipe]
Problems = Callable[..., list[str]]


def test_a_relative_path_starts_at_the_recipe_wherever_one_stands(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    path = tmp_path / "deep" / "recipe.yaml"
    path.write_text(text({"model.checkpoint": "../w.pth", "measure.text_embeddings": "t.npy"}))
    found = []
    for folder, name in ((tmp_path, "deep/recipe.yaml"), (tmp_path / "deep" / "er", "../recipe.yaml")):
        monkeypatch.chdir(folder)
        found.append(load_recipe(name))

    assert found[0].digest() == found[1].digest()
    assert found[0].model.checkpoint == tmp_path / "w.pth"
    assert found[0].measure.text_embeddings == tmp_path / "deep" / "t.npy"


@pytest.mark.parametrize(
    "place",
    [
        "model.checkpoint",
        "model.labels",
        "data.fit.images",
        "data.evaluate.labels",
        "data.evaluate.classes",
        "measure.text_embeddings",
    ],
)
def test_every_path_knows_home_variables_and_the_recipe_s_folder(
    text: Text, load: Load, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("THINGS", "/things")
    monkeypatch.delenv("NOTHING", raising=False)

    def found(value: str) -> str:
        part: object = load(text({place: value}))
        for word in place.split("."):
            part = getattr(part, word)
        return str(part)

    assert found("a/b") == "/recipes/a/b"
    assert found("/a/../b") == "/b"
    assert found("~/a") == "/home/me/a"
    assert found("${THINGS}/a") == "/things/a"
    assert found("x${THINGS}y") == "/recipes/x/thingsy"
    assert found("${NOTHING:-../b}/c") == "/b/c"
    assert found("${NOTHING:-~}/c") == "/home/me/c"
    assert found("${NOTHING:-}/c") == "/c"


def test_a_model_folder_is_a_path(text: Text, load: Load) -> None:
    assert load(text({"model": {"folder": "saved"}})).model.folder == Path("/recipes/saved")


def test_an_empty_variable_counts_as_unset(
    text: Text, load: Load, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY", "")

    assert load(text({"model.labels": "${EMPTY:-a}/b"})).model.labels == Path("/recipes/a/b")
    assert len(problems(text({"model.labels": "${EMPTY}/b"}))) == 1


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("${UNSET_ONE}/a", "the environment variable UNSET_ONE is not set; set it, or write ${UNSET_ONE:-default}"),
        ("${UNSET", "a variable is written ${NAME} or ${NAME:-default}, got '${UNSET'"),
        ("${1A}", "a variable is written"),
        ("${A:-${B}}", "a variable is written"),
        ("${A-b}", "a variable is written"),
        ("", "is an empty path; name a file or folder, or remove the key"),
        ("${UNSET:-}", "is an empty path"),
    ],
)
def test_a_path_that_cannot_be_filled_in_is_one_problem(
    text: Text, problems: Problems, monkeypatch: pytest.MonkeyPatch, value: str, part: str
) -> None:
    monkeypatch.delenv("UNSET_ONE", raising=False)
    [told] = problems(text({"data.fit.images": ["a", value]}))

    assert told.startswith(f"data.fit.images[1]: {part}")
    assert "(line " in told


def test_every_unset_variable_is_told(text: Text, problems: Problems) -> None:
    places = {"model.labels": "${UNSET_A}", "data.fit.images": ["${UNSET_B}", "${UNSET_C}/x"]}
    told = problems(text({**places, "targets": ["cpu", "${UNSET_D}/mine.yaml"]}))
    names = ("UNSET_A", "UNSET_B", "UNSET_C", "UNSET_D")

    assert [name for name, problem in zip(names, told, strict=True) if name not in problem] == []


def test_variables_are_for_paths_only(text: Text, load: Load) -> None:
    recipe = load(text({"model.timm": "${HOME}", "data.evaluate.where": {"part": "~/${HOME}"}}))

    assert recipe.model.timm == "${HOME}"
    assert recipe.data.evaluate is not None
    assert recipe.data.evaluate.where == {"part": "~/${HOME}"}


def test_what_a_variable_holds_is_not_filled_in_again(text: Text, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "/a/${HOME}")

    assert load(text({"model.labels": "${ODD}/b"})).model.labels == Path("/a/${HOME}/b")


def test_a_target_s_file_is_found_beside_the_recipe(text: Text, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(load_profile("cpu").replace(name="mine").model_dump_json())
    (tmp_path / "recipe.yaml").write_text(text({"targets": ["cpu", "mine.yaml"]}))

    assert load_recipe(tmp_path / "recipe.yaml").targets == ("cpu", str(tmp_path / "mine.yaml"))


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="$~\ufeff"), min_size=1))
def test_any_other_path_is_taken_as_it_is(text: Text, load: Load, name: str) -> None:
    assert load(text({"model.labels": name})).model.labels == Path(
        os.path.abspath(f"/recipes/{name}" if name[0] != "/" else name)
    )
