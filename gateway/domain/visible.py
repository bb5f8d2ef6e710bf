"""Texts of strangers written so that nothing in them is hidden, as in `⟦U+202E⟧`."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MOST_BLANKS = 8
"""Longest run of blanks and line breaks that is shown as it is; more push text out of sight."""

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANK_LETTERS = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u034f")
_VARIATION = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef\u180b-\u180d\u180f]")
_TAG = re.compile("[\U000e0000-\U000e007f]")
_RUN = re.compile(rf"[ \t\n]{{{MOST_BLANKS + 1},}}")
_CATEGORIES = {
    "Cc": "control characters",
    "Cf": "invisible characters",
    "Cn": "unassigned characters",
    "Co": "private characters",
    "Cs": "broken characters",
    "Zl": "unusual line breaks",
    "Zp": "unusual line breaks",
    "Zs": "unusual spaces",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text as it is shown.

    Attributes:
        name: What was written out, for a tooltip; "" for plain text.
    """

    text: str
    name: str = ""


@lru_cache(8192)
def oddity(character: str) -> str:
    """Say what is odd about a character, or "" where it shows what it is."""
    if character in _BIDI:
        return "characters that reverse the direction of text"
    if character in _BLANK_LETTERS:
        return "invisible characters"
    if _VARIATION.match(character):
        return "variation selectors"
    if _TAG.match(character):
        return "invisible tag characters"
    if character in " \n\t":
        return ""
    return _CATEGORIES.get(unicodedata.category(character), "")


def reveal(text: str, *, lines: bool = False) -> list[Piece]:
    """Split a text into plain parts and what had to be written out.

    Args:
        lines: Line breaks are shown as such; otherwise they are written out too.
    """
    if not lines:
        return _spell(text, "\n\t")
    pieces: list[Piece] = []
    start = 0
    for run in _RUN.finditer(text):
        pieces += _spell(text[start : run.start()])
        pieces.append(_blanks(run.group()))
        start = run.end()
    return pieces + _spell(text[start:])


def _blanks(run: str) -> Piece:
    breaks = run.count("\n")
    said = f"⟦{len(run)} blanks⟧" if not breaks else f"⟦{len(run)} blanks, {breaks} line breaks⟧"
    return Piece(said, "a long run of blanks, which would push text out of sight")


def _spell(text: str, also: str = "") -> list[Piece]:
    pieces: list[Piece] = []
    start = 0
    for place, character in enumerate(text):
        if character not in also and not oddity(character):
            continue
        if start < place:
            pieces.append(Piece(text[start:place]))
        name = unicodedata.name(character, oddity(character) or "a line break or tab")
        pieces.append(Piece(f"⟦U+{ord(character):04X}⟧", name))
        start = place + 1
    return [*pieces, Piece(text[start:])] if start < len(text) else pieces


def visible(text: str) -> str:
    """Write a text with what is hidden in it spelled out; line breaks stay."""
    return "".join(piece.text for piece in reveal(text, lines=True))
