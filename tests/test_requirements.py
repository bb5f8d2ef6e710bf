"""The contract and the tests agree, in both directions."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import REQUIREMENTS

TESTS = Path(__file__).parent


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "covers"
        ):
            for argument in node.args:
                assert isinstance(argument, ast.Constant)
                yield str(argument.value)


@pytest.fixture(scope="module")
def covered() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in TESTS.rglob("test_*.py"):
        for id_ in _named(ast.parse(path.read_text())):
            found[id_].append(path.name)
    return found


def test_every_promise_that_is_kept_is_proved_by_a_test(covered: dict[str, list[str]]) -> None:
    unproved = [
        id_
        for id_, requirement in REQUIREMENTS.items()
        if requirement.state != "later" and id_ not in covered
    ]
    assert unproved == []


def test_every_test_names_promises_that_exist(covered: dict[str, list[str]]) -> None:
    assert [id_ for id_ in covered if id_ not in REQUIREMENTS] == []


def test_no_test_claims_a_promise_that_is_for_later(covered: dict[str, list[str]]) -> None:
    later = [id_ for id_, requirement in REQUIREMENTS.items() if requirement.state == "later"]
    assert [id_ for id_ in later if id_ in covered] == []


def test_what_is_kept_in_part_says_which_part() -> None:
    parts = [requirement for requirement in REQUIREMENTS.values() if requirement.state == "part"]
    assert all(requirement.note for requirement in parts)
