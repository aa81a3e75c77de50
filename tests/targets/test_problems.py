"""What is wrong with plain data, in one sentence a value: every problem, its place, what is allowed, what stands."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator, model_validator

from targets.errors import RecipeError
from targets.problems import allowed_at, check, describe, load_record
from targets.record import Record
from targets.strict_yaml import Document, show


class Wheel(Record):
    """A part."""

    size: float = Field(default=1, gt=0, le=9)
    kind: Literal["steel", "wood"] = "steel"


class Cart(Record):
    """Something with every kind of field."""

    name: str = Field(pattern="^[a-z]+$")
    version: Literal[1] = 1
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None
    load: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    seats: int | tuple[int, int] = 2
    pair: tuple[float, float] = (0, 1)
    colours: tuple[str, ...] = Field(default=("red",), min_length=1)
    places: Path | tuple[Path, ...] | None = None
    open: bool = False
    limit: int = Field(default=1, ge=0, lt=2**32)
    extras: dict[str, bool | int | str] = {}

    @field_validator("pair")
    @classmethod
    def _rises(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if pair[0] > pair[1]:
            raise ValueError("must rise")
        return pair

    @model_validator(mode="after")
    def _is_sound(self) -> "Cart":
        if self.open and self.spare is None:
            raise ValueError("an open cart needs a spare wheel")
        return self


GOOD: dict[str, Any] = {"name": "cart", "wheels": [{"size": 2}, {"kind": "wood"}], "seats": [1, 2], "pair": [0, 1]}

# place -> wrong value, and the whole sentence about it
WRONG: dict[str, tuple[Any, str]] = {
    "name": ("Cart", "name: must be a text that matches ^[a-z]+$, got 'Cart'"),
    "version": (2, "version: must be 1, got 2"),
    "load": (-1, "load: must be 'auto', or a number at least 0, got -1"),
    "spare": ("x", "spare: must be keys and values, or null, got 'x'"),
    "seats": ([1, "a"], "seats[1]: must be a whole number, got 'a'"),
    "pair": ([2, 1], "pair: must rise, got [2, 1]"),
    "colours": ([], "colours: must be a list of at least 1, got []"),
    "open": ("yes", "open: must be true or false, got 'yes'"),
    "limit": (2**32, "limit: must be a whole number at least 0 and below 4294967296, got 4294967296"),
    "extras": ({"a": [1]}, "extras.a: must be true or false, or a whole number, or a text, got [1]"),
    "nam": ("cart", "nam: unknown key; did you mean 'name'?"),
}


def problems(data: Any, place: tuple[str | int, ...] = ()) -> list[str]:
    document = Document("file", data=data)
    made = check(Cart, data, document, place=place)
    assert (made is None) == bool(document.problems)
    return [sentence for _, sentence in document.problems]


def test_good_data_becomes_a_record() -> None:
    document = Document("file")
    cart = check(Cart, GOOD, document)

    assert cart == Cart(name="cart", wheels=(Wheel(size=2), Wheel(kind="wood")), seats=(1, 2))
    assert document.problems == []


@given(st.sets(st.sampled_from(sorted(WRONG))))
def test_any_set_of_wrong_values_is_told_completely(keys: set[str]) -> None:
    data = {**GOOD, **{key: WRONG[key][0] for key in keys}}

    assert sorted(problems(data)) == sorted(WRONG[key][1] for key in keys)


def test_a_missing_key_says_what_belongs_there() -> None:
    assert problems({}) == ["name: is missing; it must be a text that matches ^[a-z]+$"]


def test_a_place_inside_a_list_is_counted_from_0_and_knows_its_keys() -> None:
    assert problems({**GOOD, "wheels": [{"sice": 3}, {"size": 10, "kind": "stone"}]}) == [
        "wheels[0].sice: unknown key; did you mean 'size'?",
        "wheels[1].size: must be a number above 0 and at most 9, got 10",
        "wheels[1].kind: must be 'steel' or 'wood', got 'stone'",
    ]


def test_keys_of_an_optional_part_are_known() -> None:
    assert problems({**GOOD, "spare": {"colour": 1}}) == ["spare.colour: unknown key; known: kind, size"]


def test_a_rule_of_the_whole_is_told_in_its_own_words() -> None:
    assert problems({**GOOD, "open": True}) == ["all of it: an open cart needs a spare wheel"]


def test_a_place_around_the_data_is_put_before_every_problem() -> None:
    assert problems({**GOOD, "version": 2}, place=("steps", 1, "cart")) == ["steps[1].cart.version: must be 1, got 2"]


@pytest.mark.parametrize("value", ["1", "0.5", True, [1], {}])
def test_texts_and_truths_are_no_numbers(value: Any) -> None:
    assert len(problems({**GOOD, "limit": value})) == 1
    assert len(problems({**GOOD, "wheels": [{"size": value}]})) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    assert problems({**GOOD, "load": value}) == [f"load: must be 'auto', or a number at least 0, got {value}"]


@pytest.mark.parametrize("value", [[1], [1, 2, 3], "big", {}])
def test_a_list_of_another_length_is_told_as_a_whole(value: Any) -> None:
    [said] = problems({**GOOD, "seats": value})

    assert said == f"seats: must be a whole number, or [a whole number, a whole number], got {show(value)}"


def test_what_is_no_mapping_is_no_record() -> None:
    assert problems([1]) == ["all of it: must be keys and values, got [1]"]


def test_a_schema_in_place_of_the_model_s_own_decides_what_is_suggested() -> None:
    document = Document("file")
    schema = {"type": "object", "properties": {"nume": {"type": "string"}}}
    check(Cart, {**GOOD, "nam": 1}, document, schema=schema)

    assert [sentence for _, sentence in document.problems] == ["nam: unknown key; known: nume"]


def test_what_is_allowed_is_found_through_references_lists_and_unions() -> None:
    schema = Cart.model_json_schema()

    assert describe(allowed_at(schema, ("wheels", 3, "kind"))) == "'steel' or 'wood'"
    assert describe(allowed_at(schema, ("seats", 1))) == "a whole number"
    assert describe(allowed_at(schema, ("pair",))) == "[a number, a number]"
    assert describe(allowed_at(schema, ("places",))) == "a path, or a list, or null"
    assert describe(allowed_at(schema, ("extras", "anything"))) == "true or false, or a whole number, or a text"
    assert allowed_at(schema, ("name", "deeper")) == []


def test_older_pydantic_wraps_references() -> None:
    schema = {"properties": {"a": {"allOf": [{"$ref": "#/$defs/A"}]}}, "$defs": {"A": {"type": "boolean"}}}

    assert describe(allowed_at(schema, ("a",))) == "true or false"


def test_a_file_is_refused_with_every_problem_and_its_lines(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text("name: cart\nopen: yes\nwheels:\n  - sise: 1\nlimit: 1\nlimit: 2\n")

    with pytest.raises(RecipeError) as caught:
        load_record(Cart, tmp_path / "cart.yaml", what="cart")
    assert caught.value.origin == f"cart '{tmp_path}/cart.yaml'"
    assert caught.value.problems == (
        "open: must be true or false, got 'yes' (line 2)",
        "wheels[0].sise: unknown key; did you mean 'size'? (line 4)",
        "all of it: key 'limit' stands twice, first in line 5 (line 6)",
    )


def test_a_good_file_becomes_a_record(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text("name: cart\nseats: [1, 2]\nspare: null\n")

    assert load_record(Cart, tmp_path / "cart.yaml", what="cart") == Cart(name="cart", seats=(1, 2))
