"""What is sealed opens in its own place only, under the keys of the ring (STATE-4)."""

from __future__ import annotations

import base64
import itertools
import os

import pytest

from gateway.adapters.crypto import KeyRing, new_key, parse_key
from gateway.domain.errors import Undecipherable

OLD, NEW = ("k1", b"\1" * 32), ("k2", b"\2" * 32)
PLACE = {"tenant": "acme", "kind": "turn.items", "id": "resp_1"}


@pytest.mark.parametrize("plain", [b"", b"x", os.urandom(100_000)])
def test_what_was_sealed_opens(plain: bytes) -> None:
    ring = KeyRing([NEW, OLD])
    sealed = ring.encrypt(plain, **PLACE)
    assert ring.decrypt(sealed, **PLACE) == plain


def test_the_same_text_is_never_sealed_alike() -> None:
    ring = KeyRing([OLD])
    assert ring.encrypt(b"text", **PLACE) != ring.encrypt(b"text", **PLACE)


@pytest.mark.covers("STATE-4")
def test_rotation_opens_the_old_and_seals_with_the_new() -> None:
    before, during, after = KeyRing([OLD]), KeyRing([NEW, OLD]), KeyRing([NEW])
    old, new = before.encrypt(b"text", **PLACE), during.encrypt(b"text", **PLACE)
    assert during.decrypt(old, **PLACE) == b"text"
    assert after.decrypt(new, **PLACE) == b"text"
    for ring, sealed in ((before, new), (after, old)):
        with pytest.raises(Undecipherable, match="needs the key"):
            ring.decrypt(sealed, **PLACE)


@pytest.mark.covers("STATE-4")
@pytest.mark.parametrize("moved", [{"tenant": "globex"}, {"kind": "turn.head"}, {"id": "resp_2"}])
def test_a_sealed_record_opens_only_in_its_own_place(moved: dict[str, str]) -> None:
    ring = KeyRing([OLD])
    with pytest.raises(Undecipherable):
        ring.decrypt(ring.encrypt(b"text", **PLACE), **(PLACE | moved))


def test_places_that_read_alike_when_joined_are_different() -> None:
    ring = KeyRing([OLD])
    names = ["", "a", "1:a", "a1:a", "aa", "1", ":"]
    places = [{"tenant": t, "kind": k, "id": i} for t, k, i in itertools.product(names, repeat=3)]
    here = places[17]
    sealed = ring.encrypt(b"text", **here)
    for place in places:
        if place != here:
            with pytest.raises(Undecipherable):
                ring.decrypt(sealed, **place)


@pytest.mark.covers("STATE-4")
def test_every_altered_byte_is_noticed() -> None:
    ring = KeyRing([OLD, NEW])
    sealed = ring.encrypt(b"text", **PLACE)
    for at in range(len(sealed)):
        altered = sealed[:at] + bytes([sealed[at] ^ 3]) + sealed[at + 1 :]
        with pytest.raises(Undecipherable):
            ring.decrypt(altered, **PLACE)


def test_what_is_cut_short_does_not_open() -> None:
    ring = KeyRing([OLD])
    sealed = ring.encrypt(b"text", **PLACE)
    for end in range(len(sealed)):
        with pytest.raises(Undecipherable):
            ring.decrypt(sealed[:end], **PLACE)


def test_a_key_id_cannot_be_exchanged() -> None:
    one, other = KeyRing([("k1", b"\1" * 32)]), KeyRing([("k2", b"\1" * 32)])
    sealed = one.encrypt(b"text", **PLACE)
    with pytest.raises(Undecipherable):
        other.decrypt(sealed.replace(b"k1", b"k2", 1), **PLACE)


def test_tokens_tell_equal_texts_across_a_rotation_and_nothing_else() -> None:
    place = {"tenant": "acme", "kind": "approval.actor", "id": "apr_1"}
    (old,) = KeyRing([OLD]).tokens("ann", **place)
    ring = KeyRing([NEW, OLD])
    assert ring.tokens("ann", **place)[1] == old
    assert old not in ring.tokens("ben", **place)
    for moved in ({"tenant": "globex"}, {"kind": "x"}, {"id": "apr_2"}):
        assert old not in ring.tokens("ann", **(place | moved))


def test_a_key_is_read_in_every_usual_form_of_base64() -> None:
    key = b"\xfb\xff" * 16
    standard = base64.b64encode(key).decode()
    url_safe = base64.urlsafe_b64encode(key).decode()
    for text in (standard, url_safe, url_safe.rstrip("="), f" {standard}\n"):
        assert parse_key(text) == key
    assert len(parse_key(new_key())) == 32


@pytest.mark.parametrize("text", ["", "secret!", base64.b64encode(b"\1" * 31).decode(), "ä" * 44])
def test_a_bad_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="encryption key") as caught:
        parse_key(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [[], [OLD, OLD], [("", b"\1" * 32)], [("k" * 65, b"\1" * 32)], [("k1", b"\1" * 16)]],
)
def test_a_ring_of_unfit_keys_is_refused(keys: list[tuple[str, bytes]]) -> None:
    with pytest.raises(ValueError, match="key"):
        KeyRing(keys)
