"""A bundle measured again is held against its build: the source's answers and the budget lie in it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.held import against_build, compare_with_source, expected_of
from pipeline.statistics import compare_answers
from pipeline.told import NO_CLASS, accuracy_told, classes_of
from targets.bundle.expected import FILE, Expected, read_expected
from targets.errors import InputError
from targets.measure.measurement import Measurement, Run
from targets.profile import Budget

LABELS = np.arange(200) % 10
DIGEST = "the images of the build"


def logits(wrong: int) -> np.ndarray:
    """Right for all images but the first ones."""
    found = np.eye(10, dtype=np.float32)[LABELS]
    found[:wrong] = np.roll(found[:wrong], 1, axis=1)
    return found


@dataclass
class Images:
    """What is asked of an image set."""

    labels: np.ndarray | None = field(default_factory=lambda: LABELS)
    fingerprint: str = DIGEST

    def __len__(self) -> int:
        return len(LABELS)


def images(**changes: Any) -> Any:
    return Images(**changes)


def measurement(milliseconds: float = 2.0, memory: int = 1000) -> Measurement:
    run = Run(
        samples=(milliseconds,) * 64,
        blocks=(8,) * 8,
        load_seconds=0.1,
        first_ms=3,
        warmup_queries=10,
        warmup_seconds=0.1,
        stable=True,
        peak_memory_bytes=memory,
    )
    return Measurement(level="quick", engine_sha256="0" * 64, batch=1, runs=(run, run))


def bundle(folder: Path, budget: Budget, *, labelled: bool = True) -> Path:
    """A folder with what a build leaves whose source was right for 190 images of 200, and its engine for 188."""
    source, engine = logits(10), logits(12)
    accuracy = compare_answers(source, engine, LABELS).replace(images_digest=DIGEST)
    told = {"baseline": source.argmax(axis=1).tolist(), "engine": engine.argmax(axis=1).tolist()}
    if labelled:
        told["label"] = LABELS.tolist()
    else:
        accuracy = accuracy.replace(metric="agreement")
    (folder / FILE).write_text(expected_of(budget, accuracy, told).model_dump_json())
    return folder


def held(folder: Path, wrong: int, images: Any, **measured: Any) -> dict[str, Any]:
    return against_build(
        read_expected(folder),
        measurement=measurement(**measured),
        images=images,
        answers=logits(wrong).argmax(axis=1).tolist(),
    )


def test_the_drop_is_paired_with_the_answers_of_the_source(tmp_path: Path) -> None:
    told = held(bundle(tmp_path, Budget(accuracy_drop_points=5)), 30, images())

    assert told["source_top1"] == 0.95
    assert told["drop_points"] == 10.0
    assert told["drop_points_ci95"][0] > 5
    assert told["answered_otherwise"] == 18
    assert told["verdict"]["status"] == "over"
    assert "top-1 drop 10.0 points" in told["verdict"]["sentence"]
    assert "of at most 5" in told["verdict"]["sentence"]


def test_without_labels_the_source_is_what_is_right(tmp_path: Path) -> None:
    told = held(bundle(tmp_path, Budget(accuracy_drop_points=20), labelled=False), 30, images(labels=None))

    assert told["agreement_with_source"] == 0.9
    assert told["drop_points"] == 10.0
    assert told["verdict"]["status"] == "within"


def test_other_images_tell_no_drop(tmp_path: Path) -> None:
    told = held(bundle(tmp_path, Budget(accuracy_drop_points=5)), 30, images(fingerprint="others"))

    assert told["drop"] == "not told: these are not the images of the build, with their labels"
    assert "drop_points" not in told
    assert told["verdict"]["status"] == "not_measured"
    assert "these are not the images of the build" in told["verdict"]["sentence"]


def test_why_there_is_no_drop_is_told(tmp_path: Path) -> None:
    read = read_expected(bundle(tmp_path, Budget(accuracy_drop_points=5)))
    assert read is not None
    by_text = Expected(budget=read.budget)

    def sentence(expected: Expected) -> str:
        return str(against_build(expected, measurement=measurement())["verdict"]["sentence"])

    assert "no images to evaluate on" in sentence(read)
    assert "the build's metric needs more than this bundle" in sentence(by_text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format": "vitrim.expected/2"}', "format: Input should be 'vitrim.expected/1'"),
        ('{"budget": {"latency_p95_ms": 3}}', "budget.latency_p95_ms"),
        ("{", "Invalid JSON"),
        ('{"metric": "top1"}', "without the source's answers"),
        ('{"baseline": [1, 2], "engine": [1]}', "answers of 2, 1 and 0 images"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)

    with pytest.raises(InputError, match="update vitrim") as refused:
        read_expected(tmp_path)

    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("budget", "status"),
    [
        (Budget(latency_p50_ms=3), "within"),
        (Budget(latency_p50_ms=1), "over"),
        (Budget(memory_bytes=999), "over"),
        (Budget(latency_p99_ms=3), "not_measured"),  # level quick
        (Budget(latency_ratio=0.5, engine_bytes=1, parameters=1, macs=1), None),  # the report's
        (Budget(), None),
    ],
)
def test_limits_of_an_engine_alone_are_judged(budget: Budget, status: str | None, tmp_path: Path) -> None:
    told = against_build(read_expected(bundle(tmp_path, budget)), measurement=measurement())

    assert told.get("verdict", {}).get("status") == status


def test_a_bundle_that_tells_nothing_is_held_against_nothing(tmp_path: Path) -> None:
    assert read_expected(tmp_path) is None
    assert held(tmp_path, 30, images()) == {}


def test_a_metric_that_is_no_class_leaves_the_budget_alone() -> None:
    accuracy = compare_answers(logits(0), logits(1), LABELS, metric="zero_shot_top1")
    kept = expected_of(Budget(latency_p50_ms=3), accuracy, {"baseline": (1,), "engine": (1,)})

    assert kept == Expected(budget=Budget(latency_p50_ms=3))


def test_answers_to_other_images_are_refused() -> None:
    with pytest.raises(ValidationError, match="answers of 2, 1 and 0 images"):
        Expected(baseline=(1, 2), engine=(1,))


def test_an_answer_that_is_not_finite_is_wrong_and_another_one(tmp_path: Path) -> None:
    broken = logits(12)
    broken[150] = np.nan
    told, top1 = accuracy_told(images(), broken, "logits")
    assert top1 is not None
    expected = read_expected(bundle(tmp_path, Budget()))
    held_against = against_build(expected, measurement=measurement(), images=images(), answers=top1)

    assert told["top1"] == 187 / 200
    assert held_against["answered_otherwise"] == 1
    assert held_against["drop_points"] == 1.5
    assert classes_of(broken)[149:152] == [9, NO_CLASS, 1]
    same = Expected(metric="agreement", images_digest=DIGEST, baseline=(NO_CLASS, 1), engine=(NO_CLASS, 1))
    assert compare_with_source(same, (NO_CLASS, 1)).drop_points == 50


def test_features_have_no_classes() -> None:
    told, top1 = accuracy_told(images(), logits(0), "features")

    assert top1 is None
    assert "features" in told["accuracy"]
