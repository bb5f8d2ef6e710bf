"""Every pitfall has a test that exists, and is described once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.pitfalls import BAD_INPUT, PITFALLS

TESTS = Path(__file__).parent
NAMED = {name for pitfall in PITFALLS.values() for name in pitfall.tests}
TRIED = {name for names in BAD_INPUT.values() for name in names}


@cache
def defined_in(path: str) -> frozenset[str]:
    """The tests of a file that do run."""
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not any("skip" in ast.unparse(mark) for mark in node.decorator_list)
    )


def test_there_are_26_pitfalls_and_each_has_a_test() -> None:
    assert sorted(PITFALLS) == list(range(1, 27))
    assert [number for number, pitfall in PITFALLS.items() if not pitfall.tests] == []
    assert [what for what, tests in BAD_INPUT.items() if not tests] == []
    assert len({pitfall.text for pitfall in PITFALLS.values()}) == len(PITFALLS)


@pytest.mark.parametrize("name", sorted(NAMED | TRIED))
def test_a_test_that_is_named_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert (TESTS / path).name.startswith("test_")
    assert function in defined_in(path)


@pytest.mark.parametrize("path", ["e2e/test_pitfalls.py", "e2e/test_bad_input.py"])
def test_a_test_that_is_there_for_a_pitfall_is_named(path: str) -> None:
    assert {f"{path}::{name}" for name in defined_in(path)} <= NAMED | TRIED
