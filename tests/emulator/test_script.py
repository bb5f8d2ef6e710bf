from typing import Any

import pytest

from gateway.emulator.plan import is_allowed, needs_approval
from gateway.emulator.script import Command, Kind, parse_commands, sample


def test_commands_are_read_in_order() -> None:
    text = 'Please\n/think about it\n/call github.create_issue {"title": "A b"}\n/echo done'
    assert parse_commands(text) == [
        Command(Kind.THINK, text="about it"),
        Command(Kind.CALL, label="github", name="create_issue", arguments='{"title":"A b"}'),
        Command(Kind.ECHO, text="done"),
    ]


@pytest.mark.parametrize(
    "text", ["", "hello", "see /think", "/unknown", "/thinking hard", "a/echo b"]
)
def test_other_text_is_no_command(text: str) -> None:
    assert parse_commands(text) == []


def test_arguments_may_span_lines_and_be_followed_by_prose() -> None:
    (command,) = parse_commands('/call a.b {\n  "x": 1\n}\nthanks')
    assert command.arguments == '{"x":1}'


def test_arguments_may_be_left_out() -> None:
    (command,) = parse_commands("/function ping")
    assert (command.name, command.arguments) == ("ping", "{}")


def test_broken_arguments_are_said_not_guessed() -> None:
    (command,) = parse_commands('/call a.b {"x":')
    assert command.kind is Kind.ECHO
    assert "not JSON" in command.text


@pytest.mark.parametrize(
    ("rule", "asks"),
    [
        (None, True),
        ("always", True),
        ("never", False),
        ("sometimes", True),
        ({}, True),
        ({"never": {"tool_names": ["t"]}}, False),
        ({"never": {"tool_names": ["u"]}}, True),
        ({"always": {"tool_names": ["u"]}}, True),  # recorded: an unlisted tool asks
        ({"always": {"tool_names": ["t"]}, "never": {"tool_names": ["t"]}}, True),
        ({"never": {"read_only": True}}, False),
        ({"never": {"read_only": False}}, True),
        ({"never": {"read_only": True, "tool_names": ["u"]}}, True),
        ({"never": {}}, True),
        ({"always": None, "never": None}, True),
    ],
)
def test_only_never_skips_approval(rule: Any, asks: bool) -> None:
    assert needs_approval({"require_approval": rule}, "t", read_only=True) is asks


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [
        (None, True),
        (["t"], True),
        (["u"], False),
        ([], False),
        ({"tool_names": ["t"]}, True),
        ({"tool_names": ["u"]}, False),
        ({"read_only": True}, True),
        ({"read_only": False}, False),
    ],
)
def test_allowed_tools_has_two_forms(allowed: Any, seen: bool) -> None:
    assert is_allowed({"allowed_tools": allowed}, "t", read_only=True) is seen


def test_a_sample_fits_its_schema() -> None:
    schema = {
        "type": "object",
        "required": ["a", "b", "c", "d"],
        "properties": {
            "a": {"type": "string"},
            "b": {"enum": ["x", "y"]},
            "c": {"type": ["null", "integer"]},
            "d": {"type": "array", "items": {"type": "boolean"}},
        },
    }
    assert sample(schema, text="what about New York?") == {
        "a": "New York",
        "b": "x",
        "c": 1,
        "d": [True],
    }
