"""Arguments against pinned schemas that may be hostile (MCP-5)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.domain.documents import raw
from gateway.domain.schemas import MOST_WORK, arguments_fault

pytestmark = pytest.mark.covers("MCP-5")

TITLE = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}


def fault(arguments: Any, schema: Any) -> str | None:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return arguments_fault(text, raw(schema))


def test_what_fits_has_no_fault() -> None:
    assert fault({"title": "x"}, TITLE) is None
    assert fault("", {"type": "object"}) is None
    named = {"properties": {"$ref": {"type": "string"}, "$id": {"type": "string"}}}
    assert fault({"$ref": "http://x", "$id": "y"}, named) is None
    assert (
        fault(
            {"a": {"b": "x"}}, {"$defs": {"b": TITLE}, "properties": {"c": {"$ref": "#/$defs/b"}}}
        )
        is None
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "'/' does not fit 'required'"),
        ({"title": 1}, "'/title' does not fit 'type'"),
        ('{"title": "a", "title": "b"}', "key twice"),
        ('{"title": "a", "n": 1e999}', "out of range"),
        ('{"title": NaN}', "not finite"),
        ("[1]", "not a JSON object"),
        ("{", "not valid JSON"),
        ('{"a":' * 100, "nested deeper"),
        (json.dumps({"title": "x" * 70_000}), "64 KiB"),
    ],
)
def test_what_does_not_fit_is_told_without_its_value(arguments: Any, said: str) -> None:
    found = fault(arguments, TITLE)
    assert found is not None
    assert found.startswith("arguments_invalid: ")
    assert said in found


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1/x"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "other.json"},
        {"$ref": "#anchor"},
        {"$ref": "#/$defs/none"},
        {"$dynamicRef": "#x"},
        {"$recursiveRef": "#"},
        {"$schema": "http://127.0.0.1/meta"},
        {"properties": {"a": {"$id": "http://127.0.0.1/", "$ref": "#/x"}}},
    ],
)
def test_a_reference_out_of_the_schema_is_named(schema: Any) -> None:
    assert (fault({}, schema) or "").startswith("schema_ref_not_allowed: ")


def test_references_that_multiply_or_turn_in_a_circle_are_refused() -> None:
    doubled = {
        f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} if i else {"type": "object"}
        for i in range(40)
    }
    line = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)} | {"d3000": True}
    for schema in (
        {"$defs": doubled, "$ref": "#/$defs/d39"},
        {"$ref": "#"},
        {"properties": {"a": {"items": {"$ref": "#"}}}},
        {"$defs": line, "$ref": "#/$defs/d0"},
    ):
        assert (fault({}, schema) or "").startswith("schema_too_complex: ")


def test_patterns_are_linear_or_not_used() -> None:
    assert "does not fit" in (
        fault({"a": "a" * 50_000 + "b"}, {"properties": {"a": {"pattern": "^(a+)+$"}}}) or ""
    )
    for pattern in ("(?=a)b", r"(a)\1", "(a{1000}){1000}"):
        assert (fault({}, {"properties": {"a": {"pattern": pattern}}}) or "").startswith(
            "schema_invalid: "
        )


def test_much_against_much_is_not_tried() -> None:
    schema = {"properties": {"a": {"items": {"anyOf": [{"const": i} for i in range(900)]}}}}
    arguments = json.dumps({"a": [-1] * 10_000})
    assert len(arguments) * 900 > MOST_WORK
    assert (fault(arguments, schema) or "").startswith("arguments_too_large: ")


def test_a_schema_that_was_not_kept_is_no_schema() -> None:
    assert (fault({}, None) or "").startswith("schema_too_large: ")
    assert (fault({}, "x") or "").startswith("schema_invalid: ")


@pytest.mark.parametrize("index", ["\u00b2", "9" * 5000, "-1", "01"])
def test_a_place_in_a_list_that_is_no_number_leads_nowhere(index: str) -> None:
    schema = raw({"allOf": [{"$ref": f"#/allOf/{index}"}]})
    assert (arguments_fault("{}", schema) or "").startswith("schema_ref_not_allowed")
