"""Extra events about approvals, for callers that ask for them."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.approvals import GITHUB, decide, issue, marker
from tests.support.stack import Gateway


async def _types(gateway: Gateway, **headers: str) -> list[str]:
    word = marker()
    body = {"model": "gpt-4.1", "stream": True, "input": issue(word), "tools": [GITHUB]}
    decision = asyncio.ensure_future(decide(gateway, word))
    types = []
    async with (
        gateway.http() as client,
        client.stream("POST", "/v1/responses", json=body, headers=headers) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                types.append(json.loads(line[6:])["type"])
    await decision
    return types


@pytest.mark.covers("APPR-3")
async def test_a_caller_that_asks_is_told_when_an_approval_is_requested_and_resolved(
    gateway: Gateway,
) -> None:
    types = await _types(gateway, **{"Gateway-Events": "approvals"})
    extra = [kind for kind in types if kind.startswith("gateway.")]
    assert extra == [
        "gateway.approval.requested",
        "gateway.approval.resolved",
        "gateway.continuation.started",
        "gateway.continuation.completed",
    ]
    assert types[-1] == "response.completed"


@pytest.mark.covers("APPR-3")
async def test_a_caller_that_does_not_ask_sees_no_unknown_event(gateway: Gateway) -> None:
    assert not [kind for kind in await _types(gateway) if kind.startswith("gateway.")]
