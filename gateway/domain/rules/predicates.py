"""Tests of one argument: a closed set, each with one meaning and no surprise.

A value of the wrong kind is an error, not a mismatch: `"500"` is not less than 100, and a deny
rule that did not understand it must not let it through.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from operator import eq, ge, gt, le, lt
from typing import Any

import re2  # type: ignore[import-untyped]  # it has no stubs
from typing_extensions import override

from gateway.domain.rules.arguments import MISSING
from gateway.domain.rules.model import RuleError

MAX_TEXT = 8192
"""Longest text, in characters, that a pattern is tried on."""

Test = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Predicate:
    """A predicate with its operand.

    Attributes:
        test: Answers for a value that is there; raises `RuleError` for one of the wrong kind.
    """

    name: str
    operand: Any
    test: Test = field(compare=False, repr=False)

    def __call__(self, value: Any) -> bool:
        """Test what a pointer found.

        Raises:
            RuleError: The value is missing, of the wrong kind, or cannot be read in one way only.
        """
        if self.name == "exists":
            return (value is not MISSING) is self.operand
        if value is MISSING:
            raise RuleError("is missing")
        return self.test(value)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return make_predicate, (self.name, self.operand)  # settings go to worker processes


def make_predicate(name: str, operand: Any) -> Predicate:
    """Make a predicate as the configuration writes it.

    Raises:
        ValueError: There is no such predicate, or the operand does not fit it.
    """
    factory = PREDICATES.get(name)
    if factory is None:
        close = difflib.get_close_matches(name, PREDICATES, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else f"; there is {', '.join(PREDICATES)}"
        raise ValueError(f"unknown predicate{hint}")
    return Predicate(name, operand, factory(operand))


def _kind(value: object) -> str:
    """Name the JSON kind of a value; `true` is no number."""
    match value:
        case bool():
            return "boolean"
        case int() | float() | Decimal():
            return "number"
        case str():
            return "string"
        case None:
            return "null"
        case list():
            return "array"
        case _:
            return "object"


def _exact(value: Any) -> Any:
    """Read a number of the configuration as the decimal that is written there."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return Decimal(repr(value))
    return value


def _expect(value: Any, kind: str) -> None:
    if _kind(value) != kind:
        raise RuleError(f"is not a {kind}")


def _text(value: Any) -> str:
    _expect(value, "string")
    if len(value) > MAX_TEXT:
        raise RuleError(f"is longer than {MAX_TEXT} characters")
    return str(value)


# The configuration's side


def _scalar(operand: Any) -> Any:
    if _kind(operand) not in ("boolean", "number", "string"):
        raise ValueError("must be a string, number or boolean")
    return _exact(operand)


def _scalars(operand: Any) -> list[Any]:
    if not isinstance(operand, list) or not operand:
        raise ValueError("must be a list of strings, numbers or booleans")
    return [_scalar(item) for item in operand]


def _words(operand: Any) -> list[str]:
    if (
        not isinstance(operand, list)
        or not operand
        or {_kind(one) for one in operand} != {"string"}
    ):
        raise ValueError("must be a list of strings")
    return operand


def _one_of(operand: Any, *, wanted: bool = True) -> Test:
    values = operand if isinstance(operand, list) else [operand]
    kinds = {_kind(value) for value in values}

    def test(value: Any) -> bool:
        if _kind(value) not in kinds:
            raise RuleError(f"is not a {' or '.join(sorted(kinds))}")
        return any(_kind(one) == _kind(value) and one == value for one in values) is wanted

    return test


def _compare(compare: Callable[[Any, Any], bool], operand: Any) -> Test:
    if _kind(operand) != "number":
        raise ValueError("must be a number")
    bound = _exact(operand)

    def test(value: Any) -> bool:
        _expect(value, "number")
        return compare(value, bound)

    return test


def _glob(operand: Any) -> Test:
    if not isinstance(operand, str) or not 0 < len(operand) <= 256:
        raise ValueError("must be a pattern of 1 to 256 characters")
    return lambda value: fnmatchcase(_text(value), operand)


_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.dot_nl = True  # or a line break would hide what follows from `.*`


def _regex(operand: Any) -> Test:
    if not isinstance(operand, str) or not 0 < len(operand) <= 1024:
        raise ValueError("must be a regular expression of 1 to 1024 characters")
    try:
        pattern = re2.compile(operand, _OPTIONS)
    except re2.error:
        raise ValueError(
            "is not a regular expression of RE2's syntax (no look-around, no back-references)"
        ) from None
    return lambda value: pattern.fullmatch(_text(value)) is not None


_SIZES = {"eq": eq, "lt": lt, "le": le, "gt": gt, "ge": ge}


def _len(operand: Any) -> Test:
    bounds = operand if isinstance(operand, dict) else {"eq": operand}
    if not bounds or any(
        name not in _SIZES or _kind(bound) != "number" or not isinstance(bound, int) or bound < 0
        for name, bound in bounds.items()
    ):
        raise ValueError(f"must be a whole number, or a table of {', '.join(_SIZES)}")

    def test(value: Any) -> bool:
        if not isinstance(value, str | list | dict):
            raise RuleError("has no length")
        return all(_SIZES[name](len(value), bound) for name, bound in bounds.items())

    return test


def _exists(operand: Any) -> Test:
    if _kind(operand) != "boolean":
        raise ValueError("must be true or false")
    return lambda _: operand


_NAME = re.compile(
    r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NUMERIC = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")


def _host(text: str) -> str | None:
    """Write a host in its one form; `None` for what readers take for different hosts."""
    text = text.lower().removesuffix(".")
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1])) if text.endswith("]") else None
        if _NUMERIC.fullmatch(text):  # 0x7f.1 and 2130706433 are addresses to many readers
            return str(IPv4Address(text))
    except ValueError:
        return None
    return text if len(text) <= 253 and _NAME.fullmatch(text) else None


def _hosts(operand: Any) -> Callable[[str], bool]:
    """Read `example.com` (that name alone) and `*.example.com` (names below it, not itself)."""
    names: set[str] = set()
    below: list[str] = []
    for entry in _words(operand):
        host = _host(entry.removeprefix("*."))
        if host is None:
            raise ValueError('must hold names such as "example.com" or "*.example.com"')
        if entry.startswith("*."):
            below.append("." + host)
        else:
            names.add(host)
    return lambda host: host in names or host.endswith(tuple(below))


_URL = re.compile(
    r"(?:https?|wss?)://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?(?:[/?#].*)?",
    re.IGNORECASE | re.ASCII,
)
_URL_NEVER = re.compile(r"[^\x21-\x7e]|\\")


def _host_in(operand: Any) -> Test:
    matches = _hosts(operand)

    def test(value: Any) -> bool:
        text = _text(value)
        found = None if _URL_NEVER.search(text) else _URL.fullmatch(text)
        host = _host(found["host"]) if found else None
        if host is None:
            raise RuleError("is not a plain http(s) or ws(s) URL")
        return matches(host)

    return test


_EMAIL = re.compile(r"[A-Za-z0-9.!#$&'*+/=?^_`{|}~-]{1,64}@(?P<host>[A-Za-z0-9.-]+)")


def _domain_of_email_in(operand: Any) -> Test:
    matches = _hosts(operand)

    def test(value: Any) -> bool:
        found = _EMAIL.fullmatch(_text(value))
        host = _host(found["host"]) if found else None
        if host is None:
            raise RuleError("is not one plain e-mail address")
        return matches(host)

    return test


_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _is_plain_path(path: str) -> bool:
    """Tell whether a path is absolute and means the same to every reader."""
    if not path.startswith("/") or "\\" in path or _CONTROL.search(path) or _ENCODED.search(path):
        return False
    if not path.isascii():
        # Full-width dots and slashes become plain ones where a reader normalises.
        plain = unicodedata.normalize("NFKC", path)
        if any(plain.count(char) != path.count(char) for char in "./\\%"):
            return False
    inner = path[1:].removesuffix("/")
    return inner == "" or not {"", ".", ".."} & set(inner.split("/"))


def _under_path(operand: Any) -> Test:
    if not isinstance(operand, str) or not _is_plain_path(operand):
        raise ValueError('must be an absolute path such as "/srv/data", without "." or ".."')
    base = operand.rstrip("/")

    def test(value: Any) -> bool:
        path = _text(value)
        if not _is_plain_path(path):
            raise RuleError("is not a plain absolute path")
        return path == base or path.startswith(base + "/")

    return test


PREDICATES: dict[str, Callable[[Any], Test]] = {
    "eq": lambda operand: _one_of(_scalar(operand)),
    "ne": lambda operand: _one_of(_scalar(operand), wanted=False),
    "in": lambda operand: _one_of(_scalars(operand)),
    "lt": partial(_compare, lt),
    "le": partial(_compare, le),
    "gt": partial(_compare, gt),
    "ge": partial(_compare, ge),
    "glob": _glob,
    "regex": _regex,
    "len": _len,
    "exists": _exists,
    "host_in": _host_in,
    "domain_of_email_in": _domain_of_email_in,
    "under_path": _under_path,
}
"""The predicates by name; each makes a test of its operand, or raises `ValueError`."""
