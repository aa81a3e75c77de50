"""DataSource: what a recipe may say, and that shares are a partition by content."""

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.data.source import DataSource, position

shas = st.binary(max_size=20).map(lambda data: hashlib.sha256(data).hexdigest())
cuts = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), unique=True, max_size=4).map(sorted)


@given(sha=shas, cuts=cuts, at_the_cut=st.booleans())
def test_shares_that_cover_everything_hold_each_image_exactly_once(sha, cuts, at_the_cut):
    bounds = sorted({0.0, *cuts, *([position(sha)] if at_the_cut else []), 1.0})
    sources = [DataSource(images=Path("x"), share=pair) for pair in pairwise(bounds)]

    assert sum(source.holds(sha) for source in sources) == 1


@pytest.mark.parametrize("sha", ["0" * 64, "f" * 64])
def test_the_whole_holds_the_extreme_hashes(sha):
    assert DataSource(images=Path("x")).holds(sha)


@pytest.mark.parametrize("sha", ["0" * 64, "f" * 64])
def test_the_position_of_the_extreme_hashes_is_in_range(sha):
    assert 0 <= position(sha) < 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "either images"),
        ({"images": "a", "dataset": "digits"}, "either images"),
        ({"images": []}, "empty list"),
        ({"dataset": "mnist"}, "digits"),
        ({"dataset": "digits", "labels": "l.csv"}, "has its own labels"),
        ({"images": "a", "where": {"part": "x"}}, "needs labels"),
        ({"images": "a", "share": [0.5, 0.5]}, "0 <= from < to <= 1"),
        ({"images": "a", "share": [0.5, 0.2]}, "0 <= from < to <= 1"),
        ({"images": "a", "share": [-0.1, 0.2]}, "0 <= from < to <= 1"),
        ({"images": "a", "share": [0, 1.1]}, "0 <= from < to <= 1"),
        ({"images": "a", "share": [float("nan"), 1]}, "finite"),
        ({"images": "a", "limit": 0}, "greater than 0"),
        ({"images": "a", "lables": "l.csv"}, "Extra inputs"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        DataSource.model_validate(fields)


def test_one_path_and_several_are_both_paths():
    assert DataSource(images=Path("a")).paths == (Path("a"),)
    assert DataSource(images=(Path("a"), Path("b.zip"))).paths == (Path("a"), Path("b.zip"))
    assert DataSource(dataset="digits").paths == ()


def test_relative_paths_start_at_the_folder_given(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    source = DataSource(images=(Path("a"), Path("/abs"), Path("~/x")), labels=Path("l.csv"))

    moved = source.relative_to(Path("/recipes"))

    assert moved.paths == (Path("/recipes/a"), Path("/abs"), Path("/home/me/x"))
    assert moved.labels == Path("/recipes/l.csv")
    assert moved.classes is None
    assert DataSource(dataset="digits").relative_to(Path("/recipes")) == DataSource(dataset="digits")


def test_a_source_survives_json():
    source = DataSource(
        images=(Path("a"), Path("b")), labels=Path("l"), where={"part": "x"}, share=(0.25, 0.5), limit=3
    )

    assert DataSource.model_validate_json(source.canonical_json()) == source
