"""Texts of strangers made readable: nothing hidden, nothing that looks like something else.

Arguments and names come from a model or from a server. Whoever decides must see each character of
them, so those that show nothing or change what is shown are written out, as in `⟦U+202E⟧`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.domain.visible import Piece as Piece
from gateway.domain.visible import oddity as oddity
from gateway.domain.visible import reveal as reveal

DEEPEST = 64
"""Deepest nesting of arguments that is shown as a table."""

_WORD = re.compile(r"[^\s\"'`<>{}\[\](),;=|]+")
_CONFUSABLE = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU"})
_DISGUISED = ("FULLWIDTH ", "MATHEMATICAL ")


@dataclass(frozen=True, slots=True)
class Row:
    """One argument: its name, its type, and its value for reading."""

    key: str
    type: str
    value: Sequence[Piece]
    nested: bool = False


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a call for reading.

    Attributes:
        rows: `None` when they are not JSON that can be shown as a table.
        length: Characters of the raw text.
    """

    rows: Sequence[Row] | None
    raw: Sequence[Piece]
    warnings: Sequence[str]
    length: int


class Number(str):
    """A number as it is written: `1e999` and twenty digits stay what they are."""

    __slots__ = ()


class Members(tuple[tuple[str, Any], ...]):
    """A JSON object as it is written: a name that comes twice is there twice."""

    __slots__ = ()


def warnings(texts: Sequence[str]) -> list[str]:
    """Say what is odd about texts, each kind once."""
    counts = Counter(kind for text in texts for kind in map(oddity, text) if kind)
    found = [f"{kind} ({count})" for kind, count in counts.items()]
    words = dict.fromkeys(word for text in texts for word in _WORD.findall(text))
    return found + [said for word in words if (said := _lookalike(word))]


def _lookalike(word: str) -> str:
    """Tell that a word mixes scripts whose letters look alike, or wears another alphabet."""
    if word.isascii():
        return ""
    letters = {one: unicodedata.name(one, "") for one in word if one.isalpha()}
    shown = "".join(piece.text for piece in reveal(word[:40]))
    scripts = sorted({name.partition(" ")[0] for name in letters.values()} & _CONFUSABLE)
    if len(scripts) > 1:
        foreign = [one for one, name in letters.items() if not name.startswith("LATIN")]
        which = ", ".join(f"{one} is {letters[one]}" for one in foreign[:5])
        return f"letters of different scripts in one word: {shown} ({which})"
    if any(name.startswith(_DISGUISED) for name in letters.values()):
        return f"letters that only look like plain ones: {shown}"
    return ""


def read_arguments(raw: str) -> Arguments:
    """Prepare the raw arguments of a call for reading."""
    rows: list[Row] | None = None
    found: list[str] = []
    try:
        document = _read(raw or "{}")
        texts = list(_texts(document, 0))
        found += _repeated(document)
        rows = [_row(key, value) for key, value in _top(document)]
    except (ValueError, RecursionError):
        texts = [raw]
        found.append("not JSON that can be shown as a table; read the raw text")
    return Arguments(rows, reveal(raw, lines=True), found + warnings(texts), len(raw))


def layout(raw: bytes | str) -> Sequence[Piece]:
    """Lay JSON that was read before out over lines."""
    return _layout(_read(raw))


def _read(raw: bytes | str) -> Any:
    return json.loads(
        raw,
        object_pairs_hook=Members,
        parse_int=Number,
        parse_float=Number,
        parse_constant=Number,
    )


def _top(document: Any) -> Sequence[tuple[str, Any]]:
    return document if isinstance(document, Members) else (("(all)", document),)


def _row(key: str, value: Any) -> Row:
    if isinstance(value, Members):
        return Row(key, f"object of {len(value)}", _layout(value), nested=True)
    if isinstance(value, list):
        return Row(key, f"list of {len(value)}", _layout(value), nested=True)
    if isinstance(value, Number):
        return Row(key, "number", reveal(value))
    if isinstance(value, str):
        return Row(key, "text", reveal(value, lines=True))
    if value is None:
        return Row(key, "null", [Piece("null")])
    return Row(key, "boolean", [Piece(json.dumps(value))])


def _texts(value: Any, depth: int) -> Iterator[str]:
    """Give every name and text of a document.

    Raises:
        ValueError: It is nested too deeply to be shown.
    """
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Members):
        for key, inner in value:
            yield key
            yield from _texts(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, depth + 1)


def _repeated(value: Any) -> Iterator[str]:
    if isinstance(value, Members):
        for key, count in Counter(key for key, _ in value).items():
            if count > 1:
                shown = "".join(piece.text for piece in reveal(key))
                yield f"the name {shown} {count} times; which one counts is up to the tool"
    inner = [one for _, one in value] if isinstance(value, Members) else value
    if isinstance(inner, list):
        for one in inner:
            yield from _repeated(one)


def _layout(value: Any) -> list[Piece]:
    """Lay nested JSON out over lines; its own indentation is the only one that is kept."""
    pieces: list[Piece] = []
    for depth, text in _lines(value, 0, "", ""):
        pieces.append(Piece(("\n" if pieces else "") + "  " * depth))
        pieces += reveal(text, lines=True)
    return pieces


def _lines(value: Any, depth: int, before: str, after: str) -> Iterator[tuple[int, str]]:
    """Give indentation and text of each line, between what stands before and after the value."""
    if not isinstance(value, Members | list) or not value:
        yield depth, before + _scalar(value) + after
        return
    opening, closing = "{}" if isinstance(value, Members) else "[]"
    yield depth, before + opening
    last = len(value) - 1
    for place, one in enumerate(value):
        comma = "" if place == last else ","
        if isinstance(value, Members):
            yield from _lines(one[1], depth + 1, _quoted(one[0]) + ": ", comma)
        else:
            yield from _lines(one, depth + 1, "", comma)
    yield depth, closing + after


def _scalar(value: Any) -> str:
    if isinstance(value, Number):
        return value
    if isinstance(value, Members | list):
        return "{}" if isinstance(value, Members) else "[]"
    return _quoted(value)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
