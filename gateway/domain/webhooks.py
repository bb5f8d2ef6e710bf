"""Webhooks out: endpoints, events, their payloads and signatures (APPR-9).

Standard Webhooks v1: the text `id.timestamp.body` is signed with HMAC-SHA256. A payload names what
it is about and never carries arguments, links carry no authority, and an answer decides nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

from gateway.domain.approvals import Approval
from gateway.domain.secrets import SecretRef

EVENTS = (
    "approval.requested",
    "approval.voted",
    "approval.escalated",
    "approval.extended",
    "approval.expiring",
    "approval.resolved",
    "approval.receipt_mismatch",
    "continuation.completed",
    "continuation.failed",
    "continuation.indeterminate",
    "tool.drifted",
    "tool.new",
    "webhook.test",
)
"""Everything that endpoints can be told."""

TEST = "webhook.test"

RETRIES = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Seconds between one try and the next; after the last one a delivery has failed."""

_TO_DECIDE = frozenset({"requested", "voted", "escalated", "extended", "expiring"})
"""Events of an approval that nobody needs when its time is over."""

_LONGEST_URL = 2048
_ODD = re.compile(r"[\s\\\x00-\x1f\x7f]")

Format = Literal["standard", "slack", "teams"]
FORMATS: tuple[Format, ...] = ("standard", "slack", "teams")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret that signs, `whsec_…` with base64 or any other text.

    Attributes:
        until: Seconds since the epoch, by the store's clock; `None` means for good.
    """

    secret: str
    until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """Who wants to be told of what, and where.

    Attributes:
        events: Event names, or prefixes such as `approval.*`.
        keys: What signs, the newest first; for endpoints that were made over the API.
        secret: Where the secret is kept; for endpoints of the configuration.
        tenants: Of the configuration: whose events go there; `None` means all (AUTH-2).
        allow_private: Of the configuration: loopback and private addresses may be sent to.
        off: Why nothing is sent: "user", or "gone" after the receiver answered 410; or `None`.
        version: Rises with every change.
    """

    id: str
    url: str
    events: tuple[str, ...] = ("*",)
    format: Format = "standard"
    description: str = ""
    keys: tuple[SigningKey, ...] = ()
    secret: SecretRef | None = None
    tenants: frozenset[str] | None = None
    allow_private: bool = False
    off: str | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    version: int = 0

    @property
    def configured(self) -> bool:
        """Whether it is the configuration's, and so not for the API to change."""
        return self.secret is not None

    def wants(self, tenant: str, event: str) -> bool:
        """Tell whether the endpoint is to be told of an event."""
        if self.tenants is not None and tenant not in self.tenants:
            return False
        return any(matches(pattern, event) for pattern in self.events)


def matches(pattern: str, event: str) -> bool:
    """Tell whether a name, or a prefix that ends in `*`, covers an event."""
    if pattern.endswith("*"):
        return event.startswith(pattern[:-1])
    return pattern == event


def known(pattern: str) -> bool:
    """Tell whether a pattern covers any event at all."""
    return any(matches(pattern, event) for event in EVENTS)


def new_endpoint_id() -> str:
    """Make the id of an endpoint."""
    return "we_" + secrets.token_hex(16)


def configured_id(url: str, tenants: Iterable[str] | None) -> str:
    """Name a configured endpoint by what it is: the URL itself may hold a secret."""
    text = json.dumps([url, None if tenants is None else sorted(tenants)])
    return "we_cfg_" + hashlib.sha256(text.encode()).hexdigest()[:16]


def new_secret() -> str:
    """Make a signing secret of 256 random bits."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def url_fault(text: str) -> str | None:
    """Say what is wrong with the form of an endpoint's URL, or `None`."""
    if len(text) > _LONGEST_URL:
        return f"must have at most {_LONGEST_URL} characters"
    if not text.isascii() or _ODD.search(text):
        return "must be ASCII without spaces, control characters or backslashes"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "must be a valid URL"
    if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
        return "must be an https:// URL with a host"
    if "@" in parts.netloc or parts.fragment:
        return "must not hold a user, password or fragment"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """Something that endpoints are told.

    Attributes:
        id: The `webhook-id`, the same for every try and every endpoint.
        data: What the payload says; a `url` that begins with `/` is the gateway's own.
        ends_at: When nobody needs to be told any more, by the store's clock; `None`: never.
    """

    id: str
    type: str
    occurred_at: float
    data: Mapping[str, object]
    ends_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of one event for one endpoint.

    Attributes:
        attempts: How often it was sent; `tries` since it was last sent for anew.
        last_status: The receiver's last HTTP status, if there was an answer.
        last_error: The class of the last failure, such as `timeout`.
        next_attempt_at: When it is sent next, while it is `pending`.
        fence: Rises whenever somebody takes it; an older holder can settle nothing.
    """

    id: str
    tenant: str
    endpoint_id: str
    event_id: str
    type: str
    status: Literal["pending", "delivered", "failed", "canceled"] = "pending"
    attempts: int = 0
    tries: int = 0
    created_at: float = 0.0
    last_attempt_at: float | None = None
    last_status: int | None = None
    last_error: str | None = None
    next_attempt_at: float | None = None
    fence: int = 0


def delivery_id(tenant: str, event_id: str, endpoint_id: str) -> str:
    """Name the delivery of an event to an endpoint: there is one, however often it is asked for."""
    text = json.dumps([tenant, event_id, endpoint_id])
    return "whd_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def approval_event(approval: Approval, *, id: str, type: str, occurred_at: float) -> WebhookEvent:
    """Say what is told of an approval: enough to look it up, and no arguments."""
    data = {
        "object": "approval",
        "id": approval.id,
        "status": approval.status.value,
        "turn_id": approval.turn_id,
        "response_id": approval.response_id,
        "server": approval.server,
        "tool": approval.tool,
        "rule": approval.rule,
        "requester": approval.requester,
        "expires_at": iso(approval.expires_at),
        "url": f"/console/approvals/{approval.id}",
        "fingerprint": approval.fingerprint,
        "version": approval.version,
    }
    passes = type.partition(".")[2] in _TO_DECIDE and approval.on_timeout != "hold"
    ends_at = approval.expires_at if passes else None
    return WebhookEvent(id=id, type=type, occurred_at=occurred_at, data=data, ends_at=ends_at)


def payload(event: WebhookEvent, *, public_url: str) -> bytes:
    """Write the body of the standard format.

    Args:
        public_url: Where people reach the gateway; a link leads to a page behind a log-in.
    """
    data = dict(event.data)
    link = led(event, public_url)
    if link is not None:
        data["url"] = link
    body = {"type": event.type, "timestamp": iso(event.occurred_at), "data": data}
    return json.dumps(body, separators=(",", ":")).encode()


def led(event: WebhookEvent, public_url: str) -> str | None:
    """Return the whole address of an event's page, if it has one."""
    url = event.data.get("url")
    if not isinstance(url, str):
        return None
    return public_url.rstrip("/") + url if url.startswith("/") else url


def iso(seconds: float) -> str:
    """Write a time as RFC 3339 with milliseconds."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def signed_headers(
    body: bytes, *, secrets: Sequence[str], message_id: str, timestamp: int
) -> dict[str, str]:
    """Return the headers of a signed message.

    Args:
        secrets: Each signs; a receiver needs to know one of them.
        message_id: The same for every repeat; must not hold a dot, which separates the parts.
        timestamp: Of this very attempt: receivers refuse what is older than minutes.

    Raises:
        ValueError: A secret or the id has the wrong form; the secret is not repeated.
    """
    if "." in message_id:
        raise ValueError("a webhook id must not hold a dot")
    text = f"{message_id}.{timestamp}.".encode() + body
    digests = [hmac.digest(_key(secret), text, "sha256") for secret in secrets]
    signatures = ["v1," + base64.b64encode(digest).decode() for digest in digests]
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _key(secret: str) -> bytes:
    secret = secret.strip()
    if not secret.startswith("whsec_"):
        key = secret.encode()
    else:
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("a webhook secret that begins with whsec_ must be base64") from None
    if not key:
        raise ValueError("a webhook secret must not be empty")
    return key
