"""The audit tells every decision once, in order, and a chain that was touched is found (APPR-11)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.approvals import create, decide, issue, marker, settled, tenancy
from tests.support.stack import Gateway, Stack


async def audit(gateway: Gateway, *, key: str = "auditor", **query: Any) -> list[dict[str, Any]]:
    """The entries that a query finds, oldest first."""
    async with gateway.http(key) as client:
        answer = await client.get("/v1/audit", params={"order": "asc", "limit": 1000, **query})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])


async def verified(gateway: Gateway) -> dict[str, Any]:
    async with gateway.http("auditor") as client:
        return dict((await client.get("/v1/audit/verify")).json())


@pytest.mark.covers("APPR-11")
async def test_a_decision_is_told_with_rule_actor_fingerprint_and_outcome(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        word = marker()
        held = (await create(gateway, issue(word))).json()
        approval = await decide(gateway, word)
        await settled(gateway, held["id"])
        entries = await audit(gateway)
        assert [entry["event"] for entry in entries] == [
            "policy.loaded",
            "approval.requested",
            "approval.voted",
            "approval.resolved",
            "continuation.claimed",
            "continuation.dispatched",
            "continuation.completed",
        ]
        resolved = entries[3]
        assert resolved["actor"] == "subject:user:ann"
        assert resolved["outcome"] == "approved"
        assert resolved["rule"] == "writes"
        assert resolved["reason"] == "checked"
        assert resolved["fingerprint"] == approval["fingerprint"]
        assert resolved["requester"] == "subject:svc:caller"
        assert word not in json.dumps(entries)
        found = await verified(gateway)
        assert (found["ok"], found["entries"], found["last"]) == (True, 7, 7)
        assert found["head_hash"] == entries[-1]["hash"]
