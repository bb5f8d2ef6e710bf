"""What changed in a text, word by word, for people who must find it (MCP-5, APPR-10)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gateway.domain.pins import Difference

MOST_WORK = 250_000
"""Pairs of words that are compared for one page; what would need more is marked as a whole.

Texts of strangers are compared while others wait, so the work has a bound whatever they say.
"""

_WORD = re.compile(r"\w+|[ \t\n]+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text, and whether the other text does not have it."""

    text: str
    marked: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One field that changed; a side is `None` where it has no such field.

    Attributes:
        text: Both sides are texts, and not JSON.
    """

    field: str
    old: Sequence[Span] | None
    new: Sequence[Span] | None
    text: bool


def changes(differences: Sequence[Difference]) -> list[Change]:
    """Write differences for reading; texts without their quotes where both sides are texts."""
    found: list[Change] = []
    left = MOST_WORK
    for one in differences:
        text = all(side.startswith('"') for side in (one.old, one.new) if side is not None)
        old, new = (json.loads(side) if side and text else side for side in (one.old, one.new))
        if old is None or new is None:
            found.append(Change(one.field, _whole(old), _whole(new), text))
            continue
        before, after, work = compare(old, new, left)
        left -= work
        found.append(Change(one.field, before, after, text))
    return found


def _whole(text: str | None) -> Sequence[Span] | None:
    return None if text is None else [Span(text, True)]


def compare(
    old: str, new: str, most: int = MOST_WORK
) -> tuple[Sequence[Span], Sequence[Span], int]:
    """Mark in each text the words that the other does not have there; tell the work it took."""
    before, after = _WORD.findall(old), _WORD.findall(new)
    start = _alike(before, after)
    end = _alike(before[start:][::-1], after[start:][::-1])
    middle = before[start : len(before) - end], after[start : len(after) - end]
    work = len(middle[0]) * len(middle[1])
    kept = _common(*middle) if work <= most else []
    same_before = {start + place for place, _ in kept}
    same_after = {start + place for _, place in kept}
    return (
        list(_spans(before, same_before, start, end)),
        list(_spans(after, same_after, start, end)),
        work if work <= most else 0,
    )


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """Count how many words they begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _common(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Find the longest sequence of words that both have, as places in each."""
    longest = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(len(one) - 1, -1, -1):
        for j in range(len(other) - 1, -1, -1):
            longest[i][j] = (
                longest[i + 1][j + 1] + 1
                if one[i] == other[j]
                else max(longest[i + 1][j], longest[i][j + 1])
            )
    found = []
    i = j = 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return found


def _spans(words: Sequence[str], same: set[int], start: int, end: int) -> Iterator[Span]:
    def marked(place: int) -> bool:
        return start <= place < len(words) - end and place not in same

    for is_marked, places in groupby(range(len(words)), marked):
        yield Span("".join(words[place] for place in places), is_marked)
