"""Arguments of a call, read strictly, and JSON pointers into them (RFC 6901).

A tool's reader may not read what ours does: of a key that comes twice, or of a number that is no
finite one, nobody knows what the tool will see. Such arguments are refused as a whole. Strings are
compared code point by code point; nothing is normalised.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final, NoReturn

from typing_extensions import override

from gateway.domain.documents import depth_exceeds
from gateway.domain.pointers import names_of
from gateway.domain.rules.model import RuleError

MAX_BYTES = 64 * 1024
"""Longest arguments that rules look at."""

MAX_DEPTH = 64
"""Deepest nesting that rules look at."""


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""What a pointer finds where nothing is; `null` is something."""


def parse_arguments(text: str) -> dict[str, Any]:
    """Read the arguments of a call; numbers become exact (`int` or `Decimal`).

    Raises:
        RuleError: They are no JSON object, or readers may disagree about them.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise RuleError("they are not valid Unicode") from None
    if len(data) > MAX_BYTES:
        raise RuleError(f"they are longer than {MAX_BYTES // 1024} KiB")
    if depth_exceeds(data, MAX_DEPTH):
        raise RuleError(f"they are nested deeper than {MAX_DEPTH} levels")
    try:
        value = _reader.decode(text)
    except json.JSONDecodeError as exc:
        raise RuleError(f"they are not valid JSON (character {exc.pos})") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits
        raise RuleError("they are not valid JSON") from None
    if not isinstance(value, dict):
        raise RuleError("they are not a JSON object")
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RuleError("they hold a key twice in one object")
    return found


def _number(text: str) -> Decimal:
    try:
        if math.isfinite(float(text)):
            return Decimal(text)
    except InvalidOperation:  # an exponent beyond what decimals have
        pass
    raise RuleError("they hold a number that is out of range")


def _integer(text: str) -> int:
    if len(text) > 308:
        raise RuleError("they hold a number that is out of range")
    return int(text)


def _constant(_: str) -> NoReturn:
    raise RuleError("they hold a number that is not finite")


_reader = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=_number, parse_int=_integer, parse_constant=_constant
)


def _refuse_surrogates(value: object) -> None:
    """Refuse half of a surrogate pair: readers replace, drop or keep it."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise RuleError("they hold half of a surrogate pair")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _refuse_surrogates(key)
            _refuse_surrogates(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_surrogates(inner)


_BAD_ESCAPE = re.compile(r"~(?![01])")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Pointer:
    """A JSON pointer."""

    text: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Pointer:
        """Read a pointer such as `/to/0/address`.

        Raises:
            ValueError: It does not begin with `/`, or holds a `~` that is neither `~0` nor `~1`.
        """
        if not text.startswith("/"):
            raise ValueError('must be a JSON pointer such as "/amount"')
        if _BAD_ESCAPE.search(text):
            raise ValueError("'~' must be written ~0, and '/' in a name ~1")
        return cls(text, names_of(text))

    @override
    def __str__(self) -> str:
        return self.text

    def find(self, value: Any) -> Any:
        """Return what it points to, or `MISSING`."""
        for part in self.parts:
            if isinstance(value, dict):
                value = value.get(part, MISSING)
            elif isinstance(value, list) and _INDEX.fullmatch(part) and int(part) < len(value):
                value = value[int(part)]
            else:
                return MISSING
        return value
