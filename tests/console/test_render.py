"""What is shown of a hostile text is all of it."""

# ruff: noqa: RUF001

from __future__ import annotations

import json

import pytest

from gateway.console.pages import Pages
from gateway.console.render import DEEPEST, Piece, read_arguments, reveal, warnings


def text(pieces: list[Piece] | object) -> str:
    assert isinstance(pieces, list)
    return "".join(piece.text for piece in pieces)


HIDDEN = [
    *"\u00ad\u034f\u061c\u115f\u1160\u17b4\u180b\u180e\u200b\u200c\u200d\u200e\u200f",
    *"\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2064\u2066\u2067\u2068\u2069\u206f\u2800",
    *"\u3164\ufe00\ufe0f\ufeff\uffa0\ufff9\U000e0001\U000e0041\U000e007f\U000e0100\U000e01ef",
    *"\u00a0\u1680\u2000\u2003\u2009\u202f\u205f\u3000\u2028\u2029\x00\x07\x1b\x7f\x85\r",
    *"\ue000\U0010fffd\ufffe\ud800\udfff\u0378",
]


@pytest.mark.covers("APPR-10")
@pytest.mark.parametrize("character", HIDDEN, ids=lambda one: f"U+{ord(one):04X}")
def test_a_hidden_character_is_written_out_and_warned_of(character: str) -> None:
    for lines in (True, False):
        assert text(reveal(f"a{character}b", lines=lines)) == f"a⟦U+{ord(character):04X}⟧b"
    assert warnings([f"a{character}b"])


@pytest.mark.parametrize(
    "plain",
    [
        "Hello, world!",
        "Grüße aus Köln",
        "привет",
        "日本語のテキスト",
        "שלום",
        "مرحبا",
        "naïve – “x” €",
    ],
)
def test_ordinary_text_stays_as_it_is(plain: str) -> None:
    assert reveal(plain) == [Piece(plain)]
    assert warnings([plain]) == []


def test_a_line_break_in_a_name_is_written_out_and_in_a_text_is_one() -> None:
    assert text(reveal("a\nb\tc")) == "a⟦U+000A⟧b⟦U+0009⟧c"
    assert text(reveal("a\nb\tc", lines=True)) == "a\nb\tc"


def test_long_runs_of_blanks_do_not_push_text_out_of_sight() -> None:
    assert text(reveal("a" + " " * 500 + "b", lines=True)) == "a⟦500 blanks⟧b"
    assert text(reveal("a" + "\n" * 30 + "b", lines=True)) == "a⟦30 blanks, 30 line breaks⟧b"
    assert text(reveal("a" + " " * 8 + "b", lines=True)) == "a" + " " * 8 + "b"


@pytest.mark.parametrize(
    "word", ["p\u0430ypal", "\u0440\u0430ypal.com", "\u03b1dmin", "\u0440\u0430\u0443.com"]
)
def test_a_word_of_several_scripts_is_warned_of(word: str) -> None:
    (found,) = warnings([f"pay {word} now"])
    assert "different scripts" in found
    assert word in found


@pytest.mark.parametrize("word", ["ｐａｙｐａｌ", "𝐩𝐚𝐲𝐩𝐚𝐥"])
def test_letters_in_disguise_are_warned_of(word: str) -> None:
    assert "only look like" in warnings([word])[0]


def test_arguments_are_a_typed_table() -> None:
    raw = (
        '{"t":"x","n":1e999,"big":123456789012345678901,"b":true,"z":null,"l":[1,{"k":"v"}],"o":{}}'
    )
    shown = read_arguments(raw)
    assert shown.rows is not None
    assert [(row.key, row.type) for row in shown.rows] == [
        ("t", "text"),
        ("n", "number"),
        ("big", "number"),
        ("b", "boolean"),
        ("z", "null"),
        ("l", "list of 2"),
        ("o", "object of 0"),
    ]
    values = [text(row.value) for row in shown.rows]
    assert values[:5] == ["x", "1e999", "123456789012345678901", "true", "null"]
    assert values[5:] == ['[\n  1,\n  {\n    "k": "v"\n  }\n]', "{}"]
    assert shown.warnings == []
    assert shown.length == len(raw)


def test_an_escaped_character_is_found_although_the_raw_text_is_plain() -> None:
    shown = read_arguments('{"to":"a\\u202eb\\ud800"}')
    assert shown.rows is not None
    assert text(shown.rows[0].value) == "a⟦U+202E⟧b⟦U+D800⟧"
    assert len(shown.warnings) == 2


def test_a_name_that_comes_twice_is_shown_twice() -> None:
    shown = read_arguments('{"to":"ann","to":"eve","x":[{"y":1,"y":2}]}')
    assert shown.rows is not None
    assert [text(row.value) for row in shown.rows][:2] == ["ann", "eve"]
    assert ["the name to" in shown.warnings[0], "the name y" in shown.warnings[1]] == [True, True]


def test_escapes_in_raw_text_are_no_letters() -> None:
    assert read_arguments(json.dumps({"a": "\nпривет\tмир"}, ensure_ascii=False)).warnings == []


@pytest.mark.parametrize(
    "raw", ["{", "nonsense", "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "[" * 99_999]
)
def test_what_is_no_table_is_shown_raw(raw: str) -> None:
    shown = read_arguments(raw)
    assert shown.rows is None
    assert text(shown.raw) == raw
    assert "not JSON" in shown.warnings[0]


def test_no_arguments_and_a_lone_value() -> None:
    assert read_arguments("").rows == []
    rows = read_arguments('"x"').rows
    assert rows is not None
    assert rows[0].key == "(all)"


def test_a_page_shows_no_hidden_character_even_where_a_template_forgets() -> None:
    page = Pages().page(
        "error.html",
        {"title": "a\u202eb", "message": "<b>&\u200b", "status": 400, "visitor": None},
    )
    shown = page.content.decode()
    assert "\u202e" not in shown
    assert "\u200b" not in shown
    assert "⟦U+202E⟧" in shown
    assert "&lt;b&gt;&amp;" in shown
