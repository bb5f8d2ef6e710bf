"""Webhooks out: which endpoint wants what, the thin payload, its signature (APPR-9).

Standard Webhooks v1: the text `id.timestamp.body` is signed with HMAC-SHA256. The payload names
the approval and never carries arguments, links carry no authority, and an answer decides nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime

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
    "webhook.test",
)
"""Everything that endpoints can be told."""


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """Where the operator wants to be told.

    Attributes:
        secret: Reference of the signing secret, `whsec_…` with base64, or any other text.
        events: Event names, or prefixes such as `approval.*`.
        tenants: The tenants whose events go there; `None` means all of them (AUTH-2).
    """

    url: str
    secret: SecretRef
    events: tuple[str, ...] = ("approval.*",)
    tenants: frozenset[str] | None = None

    @property
    def id(self) -> str:
        """A short name for jobs and logs: the URL itself may hold a secret."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def wants(self, tenant: str, event: str) -> bool:
        """Tell whether the endpoint is to be told of an event."""
        if self.tenants is not None and tenant not in self.tenants:
            return False
        return any(_matches(pattern, event) for pattern in self.events)


def _matches(pattern: str, event: str) -> bool:
    if pattern.endswith("*"):
        return event.startswith(pattern[:-1])
    return pattern == event


def payload(approval: Approval, *, event: str, occurred_at: float, public_url: str) -> bytes:
    """Write the body: what a receiver needs to look the approval up, and no more.

    Args:
        public_url: Where approvers reach the gateway; the link leads to a page behind a log-in.
    """
    data = {
        "object": "approval",
        "id": approval.id,
        "status": approval.status.value,
        "turn_id": approval.turn_id,
        "response_id": approval.response_id,
        "server": approval.server,
        "tool": approval.tool,
        "expires_at": _iso(approval.expires_at),
        "url": f"{public_url.rstrip('/')}/console/approvals/{approval.id}",
        "fingerprint": approval.fingerprint,
        "version": approval.version,
    }
    body = {"type": event, "timestamp": _iso(occurred_at), "data": data}
    return json.dumps(body, separators=(",", ":")).encode()


def _iso(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def signed_headers(body: bytes, *, secret: str, message_id: str, timestamp: int) -> dict[str, str]:
    """Return the headers of a signed message.

    Args:
        message_id: The same for every repeat; must not hold a dot, which separates the parts.
        timestamp: Of this very attempt: receivers refuse what is older than minutes.

    Raises:
        ValueError: The secret or the id has the wrong form; the secret is not repeated.
    """
    if "." in message_id:
        raise ValueError("a webhook id must not hold a dot")
    text = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.digest(_key(secret), text, "sha256")
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
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
