"""Who is signed in: a sealed cookie, and what binds a form to it (AUTH-1, APPR-10).

Nothing is stored. The cookie holds which key signed in, since when, and a nonce; the key's entry
is looked up at each request, so that a key that was removed or replaced has no session left.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from gateway.domain.errors import Undecipherable
from gateway.domain.identity import ApiKey, KeyRing, Principal, Tenant
from gateway.domain.ports import Cipher
from gateway.services.callers import Caller

COOKIE = "__Host-gateway"
LIFETIME = 8 * 3600
"""Seconds that a session lasts."""

PASS_LIFETIME = 900
"""Seconds that a pass opens the API."""

_PASS = "gwp_"  # noqa: S105  # what a pass begins with
_SKEW = 60
"""Seconds by which another replica's clock may be ahead."""

_ATTRIBUTES = "Path=/; Secure; HttpOnly; SameSite=Strict"


class _Session(msgspec.Struct, array_like=True, frozen=True):
    """What the cookie holds; `mark` is of the key's hash, which changes with the key."""

    key_id: str
    mark: str
    issued: float
    nonce: str


class Ticket(msgspec.Struct, array_like=True, frozen=True):
    """What a person was shown of an approval; sealed into the form that decides it."""

    version: int
    fingerprint: str


NOTHING_SHOWN = Ticket(0, "")
"""The ticket of a form that is about nothing which may change."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who is signed in, and the session it is through."""

    caller: Caller
    session: str


class Sessions:
    """Issues and opens sessions and the tickets of their forms."""

    def __init__(
        self,
        cipher: Cipher,
        keys: KeyRing,
        tenants: Mapping[str, Tenant],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cipher = cipher
        self._keys = keys
        self._tenants = tenants
        self._clock = clock

    def sign_in(self, key: str) -> str | None:
        """Return the cookie header of a new session, or `None` for a key that is not valid."""
        principal = self._keys.authenticate(key)
        entry = self._keys.entry(principal.key_id) if principal else None
        if entry is None or entry.tenant not in self._tenants:
            return None
        session = _Session(entry.id, _mark(entry), self._clock(), secrets.token_hex(16))
        sealed = self._seal(msgspec.msgpack.encode(session), "", "session", "")
        return f"{COOKIE}={sealed}; {_ATTRIBUTES}; Max-Age={LIFETIME}"

    def sign_out(self) -> str:
        """Return the cookie header that ends a session in its browser."""
        return f"{COOKIE}=; {_ATTRIBUTES}; Max-Age=0"

    def visitor(self, cookie: str | None) -> Visitor | None:
        """Return who a cookie is of; `None` when it is not ours, too old, or its key is gone."""
        found = self._session(cookie or "", "session", LIFETIME)
        if found is None:
            return None
        session, entry = found
        tenant = self._tenants.get(entry.tenant)
        if tenant is None:
            return None
        caller = Caller(
            principal=entry.principal,
            tenant=tenant,
            request_id="greq_" + secrets.token_hex(12),
        )
        return Visitor(caller, session.nonce)

    def issue_pass(self, visitor: Visitor) -> str:
        """Return a credential that opens the API for the visitor, for a quarter of an hour.

        Pages of the console that call the API like any frontend send it; it is in no cookie, so
        no other site can make a browser send it.
        """
        key_id = visitor.caller.principal.key_id
        entry = self._keys.entry(key_id)
        mark = _mark(entry) if entry else ""
        session = _Session(key_id, mark, self._clock(), visitor.session)
        return _PASS + self._seal(msgspec.msgpack.encode(session), "", "pass", "")

    def holder(self, presented: str) -> Principal | None:
        """Return whose pass it is; `None` when it is no pass, too old, or its key is gone."""
        if not presented.startswith(_PASS):
            return None
        found = self._session(presented.removeprefix(_PASS), "pass", PASS_LIFETIME)
        return None if found is None else found[1].principal

    def _session(self, text: str, kind: str, lifetime: float) -> tuple[_Session, ApiKey] | None:
        plain = self._open(text, "", kind, "")
        if plain is None:
            return None
        session = msgspec.msgpack.decode(plain, type=_Session)
        age = self._clock() - session.issued
        entry = self._keys.entry(session.key_id)
        if entry is None or _mark(entry) != session.mark or not -_SKEW <= age < lifetime:
            return None
        return session, entry

    def ticket(self, visitor: Visitor, purpose: str, shown: Ticket) -> str:
        """Seal what a visitor was shown; it opens in this session and for this purpose only."""
        tenant = visitor.caller.tenant.id
        bound = f"{visitor.session}:{purpose}"
        return self._seal(msgspec.msgpack.encode(shown), tenant, "console.ticket", bound)

    def shown(self, visitor: Visitor, purpose: str, ticket: str) -> Ticket | None:
        """Open a ticket; `None` when it is of another session, another purpose, or forged."""
        tenant = visitor.caller.tenant.id
        bound = f"{visitor.session}:{purpose}"
        plain = self._open(ticket, tenant, "console.ticket", bound)
        return None if plain is None else msgspec.msgpack.decode(plain, type=Ticket)

    def _seal(self, plain: bytes, tenant: str, kind: str, id: str) -> str:
        sealed = self._cipher.encrypt(plain, tenant=tenant, kind=kind, id=id)
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def _open(self, text: str, tenant: str, kind: str, id: str) -> bytes | None:
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            return self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=id)
        except (binascii.Error, ValueError, Undecipherable):
            return None


def _mark(entry: ApiKey) -> str:
    return entry.hash[-16:]
