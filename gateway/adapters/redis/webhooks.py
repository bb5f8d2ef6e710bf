"""Events for webhooks in Redis (APPR-9).

What an event says is sealed; plain are ids, types, states, times and counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import msgspec
from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.ports import Cipher, Outbox
from gateway.domain.webhooks import EVENTS

_ENCODER = msgspec.json.Encoder()


class RedisOutbox(Outbox):
    """Keeps events, each with the job that hands it to the endpoints, in one step."""

    def __init__(self, client: Client, cipher: Cipher) -> None:
        self._cipher = cipher
        self._script = Script(client, "webhooks.lua")

    @override
    @store_errors
    async def emit(
        self,
        tenant: str,
        event: str,
        subject: str,
        data: Mapping[str, object],
        *,
        occurrence: str = "",
    ) -> bool:
        if event not in EVENTS:
            raise ValueError(f"there is no event {event!r}")
        event_id = _event_id(tenant, event, subject, occurrence)
        plain = _ENCODER.encode({"id": subject, **data})
        sealed = self._cipher.encrypt(plain, tenant=tenant, kind="webhook.event", id=event_id)
        key = keys.event(tenant, event_id)
        # The job tells nothing of the subject: a tool's name is not for the reader of a dump.
        common = ("emit", keys.prefix(tenant), tenant)
        return bool(await self._script(key, *common, event_id, event, event_id, sealed))


def _event_id(tenant: str, event: str, subject: str, occurrence: str) -> str:
    """Name an event by what it is, so that a repeat has the same name."""
    text = json.dumps([tenant, event, subject, occurrence])
    return "evt_" + hashlib.sha256(text.encode()).hexdigest()[:32]
