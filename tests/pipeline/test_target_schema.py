"""The published schema of a target's file accepts what loads, extending or not, and refuses what does not."""

from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.schemas import target_schema
from targets.profile import PROFILES, TargetProfile, list_profiles


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(target_schema())
    return Draft202012Validator(target_schema())


@pytest.mark.parametrize("name", list_profiles())
def test_it_accepts_what_ships(validator: Draft202012Validator, name: str) -> None:
    facts = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())

    assert [error.message for error in validator.iter_errors(facts)] == []


def test_it_knows_every_key() -> None:
    assert set(target_schema()["properties"]) == set(TargetProfile.model_fields)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"extends": "cpu", "name": "a", "verified": "not yet"}, "'summary' is a required property"),
        ({"name": "a", "summary": "a", "verified": "not yet"}, "'board' is a required property"),
        ({"extends": "cpu", "name": "a", "summary": "a", "verified": "not yet", "bord": 1}, "bord"),
        (
            {
                "extends": "cpu",
                "name": "a",
                "summary": "a",
                "verified": "not yet",
                "board": {"memory_gb": {"value": 8}},
            },
            "is a required property",
        ),
    ],
    ids=["extends", "by itself", "unknown", "without source"],
)
def test_it_refuses_what_does_not_load(validator: Draft202012Validator, facts: dict[str, Any], message: str) -> None:
    errors = [str(one) for error in validator.iter_errors(facts) for one in (error, *(error.context or ()))]

    assert any(message in error for error in errors), errors
