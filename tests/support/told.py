"""What a gateway tells to who is not there: webhooks at a real receiver, and the audit."""

from __future__ import annotations

import base64
import os
from typing import Any

import anyio
import standardwebhooks

from tests.support.approvals import tenancy
from tests.support.provider import Call, Provider
from tests.support.stack import Gateway, Stack

_SECRET = "whsec_" + base64.b64encode(b"t" * 32).decode()


async def taking(call: Call) -> None:
    """Take every message."""
    await call.document(b"{}")


def hooked(stack: Stack, receiver: Provider, **sections: Any) -> dict[str, Any]:
    """Sections of a gateway of its own tenant, which tells a receiver everything."""
    os.environ["TEST_TOLD"] = _SECRET
    hook = {"url": receiver.url, "secret": "env:TEST_TOLD", "events": ["*"], "allow_private": True}
    return {"webhooks": [hook], **tenancy(stack), **sections}


async def told(receiver: Provider, kind: str) -> dict[str, Any]:
    """Wait for the one message about an event; its signature holds."""
    with anyio.fail_after(30):
        while not (found := [call for call in receiver.calls if call.json["type"] == kind]):
            await anyio.sleep(0.01)
    (call,) = found
    standardwebhooks.Webhook(_SECRET).verify(call.body.decode(), call.headers)
    data: dict[str, Any] = call.json["data"]
    return data


async def noted(gateway: Gateway, event: str, **query: str) -> Any:
    """Wait for the one entry of the audit about an event."""
    async with gateway.http("auditor") as client:
        with anyio.fail_after(30):
            while True:
                answer = await client.get("/v1/audit", params={"event": event, **query})
                if found := answer.json()["data"]:
                    (entry,) = found
                    return entry
                await anyio.sleep(0.02)
