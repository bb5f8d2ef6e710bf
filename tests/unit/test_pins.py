"""Definitions of tools: hashed, compared, pinned (MCP-5)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.domain.errors import Conflict
from gateway.domain.pins import MOST_TOOLS, Definition, PinSet, define, differences

pytestmark = pytest.mark.covers("MCP-5")

TOOL: dict[str, Any] = {
    "name": "search",
    "description": "Search.",
    "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}},
    "annotations": {"read_only": True},
}


def defined(complete: bool = False, **changes: Any) -> Definition:
    return define(json.dumps({**TOOL, **changes}).encode(), complete=complete)


def backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return value


def test_neither_the_order_of_keys_nor_that_of_tools_matters() -> None:
    assert define(json.dumps(backwards(TOOL)).encode()).hash == defined().hash
    names = ["a", "b", "c"]
    seen = [defined(name=name) for name in names]
    pins, _ = PinSet().after(seen, "first_use")
    again, changes = pins.after(reversed(seen), "first_use")
    assert again.pins == pins.pins
    assert changes == ()


@pytest.mark.parametrize(
    "change",
    [
        {"description": "Search!"},
        {"description": "Search.\u200b"},
        {"input_schema": {"type": "object"}},
        {"annotations": {"read_only": False}},
        {"annotations": None},
    ],
)
def test_any_change_of_what_a_listing_shows_is_another_definition(change: Any) -> None:
    assert defined(**change).hash != defined().hash


def test_both_spellings_of_an_annotation_are_one_and_none_is_no() -> None:
    assert defined(annotations={"readOnlyHint": True}).same_as(defined())
    assert defined(annotations=None).same_as(defined(annotations={"read_only": False}))


def test_numbers_that_have_no_canonical_form_are_hashed_all_the_same() -> None:
    large = {"type": "integer", "maximum": 2**63 - 1}
    first, second = defined(input_schema=large), defined(input_schema=backwards(large))
    assert first.hash == second.hash
    assert defined(input_schema={**large, "maximum": 2**63 - 2}).hash != first.hash


def test_a_listing_is_compared_with_the_servers_own_by_what_it_shows() -> None:
    own = defined(complete=True, annotations={"readOnlyHint": True}, title="T")
    assert own.same_as(defined())
    assert own.hash != defined().hash
    assert not own.same_as(defined(complete=True, annotations={"readOnlyHint": True}, title="t"))


def test_a_large_or_deep_definition_is_known_by_its_hash() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    for schema in ({"description": "x" * 100_000}, deep):
        one = defined(input_schema=schema)
        assert one.trimmed
        assert bytes(one.input_schema) == b"null"
        assert not one.same_as(defined(input_schema={**schema, "b": 1}))


def test_a_tool_that_is_listed_twice_with_two_definitions_is_in_quarantine() -> None:
    pins, _ = PinSet().after([defined(), defined(description="Other.")], "first_use")
    assert pins.status("search", "first_use") == "quarantined"


def test_what_comes_beyond_the_most_tools_is_in_quarantine() -> None:
    many = [defined(name=f"t{i}") for i in range(MOST_TOOLS + 1)]
    pins, _ = PinSet().after(many, "first_use")
    assert pins.status("t0", "first_use") == "trusted"
    assert pins.status(f"t{MOST_TOOLS}", "first_use") == "quarantined"
    assert pins.holds_back("first_use")


def test_the_definition_that_comes_back_is_a_question_too() -> None:
    pins, _ = PinSet().after([defined()], "first_use")
    pins, _ = pins.after([defined(description="Other.")], "first_use")
    pins, (change,) = pins.after([defined()], "first_use")
    assert (change.kind, pins.status("search", "first_use")) == ("drifted", "quarantined")
    assert differences(pins.pins["search"].trusted, defined()) == []
    with pytest.raises(Conflict):
        pins.decided("search", defined(description="Other.").hash, accept=True, by="ann")
    accepted = pins.decided("search", defined().hash, accept=True, by="ann")
    assert accepted.status("search", "first_use") == "trusted"


def test_a_difference_names_the_place_and_both_values() -> None:
    schema = {"type": "object", "properties": {"q": {"type": "number"}, "to": {}}}
    found = differences(defined(), defined(input_schema=schema, description="Search!"))
    assert [(one.field, one.old, one.new) for one in found] == [
        ("/description", '"Search."', '"Search!"'),
        ("/input_schema/properties/q/type", '"string"', '"number"'),
        ("/input_schema/properties/to", None, "{}"),
    ]
    (type_,) = differences(defined(input_schema={"a": 1}), defined(input_schema={"a": "1"}))
    assert (type_.old, type_.new) == ("1", '"1"')
