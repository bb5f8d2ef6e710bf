"""Who calls: tenants, API keys, principals (AUTH-1, AUTH-2, CHAIN-1)."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

_ALPHABET = string.ascii_letters + string.digits
_KEY = re.compile(r"gw_([A-Za-z0-9][A-Za-z0-9_.-]{0,62})_([A-Za-z0-9]{43})")


class Role(StrEnum):
    """What a principal may do: call models, decide approvals, see what these mask, read the audit,
    or all of it."""

    CALLER = "caller"
    APPROVER = "approver"
    REVEALER = "revealer"
    AUDITOR = "auditor"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per tenant; `None` means unbounded (LIMIT-1).

    Attributes:
        max_auto_rounds: Most answers in a row that no person gave (APPR-8).
        chain_token_budget: Most tokens of one chain, input and output of all its legs.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    max_auto_rounds: int = 10
    chain_token_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer of the gateway; nothing crosses from one tenant to another (AUTH-2).

    Attributes:
        stateless: Upstream always gets `store: false`; chains live in the gateway (STATE-1).
        cache: "off" keeps nothing of a `store: false` turn (STATE-4).
        ttl: Seconds that a chain's state is kept after it was last used.
        compact_at_tokens: At how many tokens its stateless chains are compacted; `None` is never
            (STATE-6).
        mcp_servers: Labels the tenant may use; `None` means every registered one.
        server_url_patterns: Host patterns (`*.example.com`) of a caller's own MCP servers that
            are let through; empty means none (MCP-1).
    """

    id: str
    stateless: bool = False
    cache: Literal["on", "off"] = "on"
    ttl: int = 30 * 24 * 3600
    compact_at_tokens: int | None = None
    mcp_servers: frozenset[str] | None = None
    server_url_patterns: tuple[str, ...] = ()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller or approver.

    Attributes:
        subject: Who it is, the same for every key of one person or service.
        key_id: Which credential was used, for logs and audit.
    """

    tenant: str
    subject: str
    roles: frozenset[Role]
    groups: frozenset[str] = frozenset()
    key_id: str = ""

    def has(self, role: Role) -> bool:
        """Tell whether the principal has the role; admins have all of them."""
        return role in self.roles or Role.ADMIN in self.roles


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The configuration entry of an API key: its hash, never the key."""

    id: str
    tenant: str
    subject: str
    roles: frozenset[Role]
    hash: str = field(repr=False)
    groups: frozenset[str] = frozenset()

    @property
    def principal(self) -> Principal:
        """The principal that this key authenticates."""
        return Principal(
            tenant=self.tenant,
            subject=self.subject,
            roles=self.roles,
            groups=self.groups,
            key_id=self.id,
        )


def new_key(key_id: str) -> str:
    """Make an API key `gw_<id>_<secret>` with 256 bits of randomness."""
    key = f"gw_{key_id}_" + "".join(secrets.choice(_ALPHABET) for _ in range(43))
    if _KEY.fullmatch(key) is None:
        raise ValueError("a key id has 1 to 63 letters, digits, '.', '_' or '-'")
    return key


def hash_key(key: str) -> str:
    """Hash an API key for the configuration: `sha256:<hex>`.

    A plain hash suffices: the secret has 256 random bits, so there is nothing to guess.
    """
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """Authenticates API keys by id and hash, in constant time per key (AUTH-1)."""

    def __init__(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = {key.id: key for key in keys}
        self._stranger = "sha256:" + "0" * 64

    def authenticate(self, presented: str) -> Principal | None:
        """Return the principal of a presented key, or `None`; an unknown id costs the same."""
        match = _KEY.fullmatch(presented)
        entry = self._keys.get(match.group(1)) if match else None
        expected = entry.hash if entry else self._stranger
        equal = hmac.compare_digest(hash_key(presented), expected)
        return entry.principal if entry is not None and equal else None

    def entry(self, key_id: str) -> ApiKey | None:
        """Return the entry of a key, for a session that the key itself began."""
        return self._keys.get(key_id)
