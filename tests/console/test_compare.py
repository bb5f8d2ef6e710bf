"""Differences for people: marked word by word, and bounded whatever a stranger writes."""

from __future__ import annotations

import time

import pytest

from gateway.console.compare import MOST_WORK, changes, compare
from gateway.domain.pins import Difference

pytestmark = pytest.mark.covers("MCP-5", "APPR-10")


def shown(old: str, new: str) -> tuple[str, str]:
    def one(spans: object) -> str:
        return "".join(f"[{s.text}]" if s.marked else s.text for s in spans)  # type: ignore[attr-defined]

    before, after, _ = compare(old, new)
    return one(before), one(after)


@pytest.mark.parametrize(
    ("old", "new", "before", "after"),
    [
        ("send a mail", "send a mail", "send a mail", "send a mail"),
        ("send a mail", "send two mails", "send [a] [mail]", "send [two] [mails]"),
        ("a b c", "a x b y c", "a b c", "a [x ]b[ y] c"),
        ("pay", "pa\u200by", "[pay]", "[pa\u200by]"),
        ("pay", "p\u0430y", "[pay]", "[p\u0430y]"),
        ("", "all new", "", "[all new]"),
        ("a a a", "a a", "a a[ a]", "a a"),
    ],
)
def test_words_that_the_other_lacks_are_marked(old: str, new: str, before: str, after: str) -> None:
    assert shown(old, new) == (before, after)


def test_every_character_of_both_is_there() -> None:
    old, new = "x " * 300 + "end", "y x " * 200 + "end."
    before, after, _ = compare(old, new)
    assert "".join(span.text for span in before) == old
    assert "".join(span.text for span in after) == new


def test_the_work_is_bounded_over_all_fields() -> None:
    long = ['"' + " ".join(letter * 450) + '"' for letter in "ab"]
    differences = [Difference(f"/{n}", *long) for n in range(200)]
    started = time.process_time()
    found = changes(differences)
    assert len(found) == 200
    assert [len(one.old or ()) for one in found[1:]] == [1] * 199
    assert MOST_WORK < 900 * 900
    assert time.process_time() - started < 5


def test_a_text_and_a_value_that_read_alike_are_told_apart() -> None:
    (one,) = changes([Difference("/a", '"true"', "true")])
    assert not one.text
    assert next(span.text for span in one.old or ()) == '"'
    (gone,) = changes([Difference("/a", '"old"', None)])
    assert (gone.text, gone.new) == (True, None)
