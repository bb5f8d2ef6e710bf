"""Sessions end when they should, and their forms fit nowhere else."""

from __future__ import annotations

import pytest

from gateway.adapters.crypto import KeyRing as CipherRing
from gateway.console.sessions import COOKIE, LIFETIME, Sessions, Ticket, Visitor
from gateway.domain.identity import ApiKey, KeyRing, Role, Tenant, hash_key, new_key

KEY = new_key("ann")
TENANTS = {"acme": Tenant("acme")}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def entry(key: str = KEY) -> ApiKey:
    return ApiKey("ann", "acme", "user:ann", frozenset({Role.APPROVER}), hash_key(key))


def sessions(clock: Clock, *entries: ApiKey, secret: bytes = b"k" * 32) -> Sessions:
    return Sessions(CipherRing([("k1", secret)]), KeyRing(entries), TENANTS, clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def value(header: str | None) -> str:
    assert header is not None
    return header.removeprefix(f"{COOKIE}=").partition(";")[0]


def visitor(of: Sessions, cookie: str) -> Visitor:
    found = of.visitor(cookie)
    assert found is not None
    return found


@pytest.mark.covers("APPR-10", "AUTH-1")
def test_a_session_lasts_eight_hours(clock: Clock) -> None:
    ours = sessions(clock, entry())
    cookie = value(ours.sign_in(KEY))
    assert visitor(ours, cookie).caller.principal == entry().principal
    clock.now += LIFETIME - 1
    assert ours.visitor(cookie) is not None
    clock.now += 1
    assert ours.visitor(cookie) is None


def test_a_session_from_the_future_is_none(clock: Clock) -> None:
    ours = sessions(clock, entry())
    cookie = value(ours.sign_in(KEY))
    clock.now -= 61
    assert ours.visitor(cookie) is None


@pytest.mark.covers("AUTH-1")
def test_a_key_that_was_removed_or_replaced_has_no_session_left(clock: Clock) -> None:
    cookie = value(sessions(clock, entry()).sign_in(KEY))
    assert sessions(clock).visitor(cookie) is None
    assert sessions(clock, entry(new_key("ann"))).visitor(cookie) is None


def test_the_cookie_holds_no_key_and_cannot_be_altered(clock: Clock) -> None:
    ours = sessions(clock, entry())
    header = ours.sign_in(KEY)
    cookie = value(header)
    assert KEY.rpartition("_")[2] not in str(header)
    assert "Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=28800" in str(header)
    for place in range(len(cookie) - 1):
        other = "A" if cookie[place] != "A" else "B"
        assert ours.visitor(cookie[:place] + other + cookie[place + 1 :]) is None
    assert sessions(clock, entry(), secret=b"o" * 32).visitor(cookie) is None


@pytest.mark.parametrize("cookie", [None, "", "x", "ä", "\ud800", "AQ", "====", "A" * 5000])
def test_a_strange_cookie_is_no_session(clock: Clock, cookie: str | None) -> None:
    assert sessions(clock, entry()).visitor(cookie) is None


@pytest.mark.parametrize(
    "key",
    ["", "x", "gw_ann_" + "A" * 43, KEY + "x", KEY[:-1]],
    ids=["none", "word", "foreign", "longer", "shorter"],
)
def test_no_other_key_signs_in(clock: Clock, key: str) -> None:
    assert sessions(clock, entry()).sign_in(key) is None


@pytest.mark.covers("APPR-10")
def test_a_ticket_opens_in_its_session_for_its_approval_only(clock: Clock) -> None:
    ours = sessions(clock, entry())
    mine, other = (visitor(ours, value(ours.sign_in(KEY))) for _ in range(2))
    shown = Ticket(3, "sha256:x")
    ticket = ours.ticket(mine, "apr_1", shown)
    assert ours.shown(mine, "apr_1", ticket) == shown
    assert ours.shown(mine, "apr_2", ticket) is None
    assert ours.shown(other, "apr_1", ticket) is None
    assert ours.shown(mine, "apr_1", ticket[:-2]) is None
    assert ours.shown(mine, "apr_1", "") is None


def test_a_cookie_is_no_ticket(clock: Clock) -> None:
    ours = sessions(clock, entry())
    cookie = value(ours.sign_in(KEY))
    mine = visitor(ours, cookie)
    assert ours.shown(mine, "sign-out", cookie) is None
    assert ours.visitor(ours.ticket(mine, "sign-out", Ticket(0, ""))) is None
