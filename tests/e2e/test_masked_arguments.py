"""Who decides sees no value that a rule masks, nor a secret, unless it may and says so (APPR-6)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.approvals import create, executed, marker, pending, settled, tenancy, vote
from tests.support.stack import Gateway, Stack

TOKEN = "ghp_" + "0123456789abcdefghijABCDEFGHIJ456789"
RULES = [
    {
        "id": "writes",
        "match": {"server": "github"},
        "effect": "ask",
        "approval": {"redact": ["/body", "/labels/*"]},
    }
]


@pytest.fixture(scope="module")
def desk(stack: Stack) -> Iterator[Gateway]:
    sections = tenancy(stack)
    tenant = sections["tenants"][0]["id"]
    trusted = stack.key(
        "trusted", tenant=tenant, subject="user:tia", roles=["approver", "revealer"]
    )
    sections["api_keys"].append(trusted)
    with stack.gateway(**sections, rules=RULES) as running:
        yield running


async def _ask(gateway: Gateway) -> tuple[dict[str, object], dict[str, str]]:
    """Hold a call; return its approval as an approver sees it, and what the model wrote."""
    word = marker()
    said = {"title": f"{word} with {TOKEN}", "body": f"the account is {word[::-1]}"}
    await create(gateway, f"/call github.create_issue {json.dumps(said)}")
    (approval,) = await pending(gateway, word)
    return approval, said


@pytest.mark.covers("APPR-6", "APPR-11")
async def test_a_masked_call_runs_with_its_true_values(desk: Gateway, stack: Stack) -> None:
    approval, said = await _ask(desk)
    shown = json.loads(str(approval["arguments"]))
    assert shown["body"] == f"⟦masked, {len(said['body'])} characters⟧"
    assert shown["title"] == said["title"].replace(TOKEN, "⟦masked, 40 characters⟧")
    assert approval["masked"] == ["/title", "/body"]
    assert (await vote(desk, approval)).json()["masked"] == approval["masked"]
    await settled(desk, str(approval["response_id"]))
    assert len(await executed(stack, json.dumps(said))) == 1


@pytest.mark.covers("APPR-6", "APPR-11")
async def test_who_may_reveals_and_the_audit_knows_it(desk: Gateway) -> None:
    approval, said = await _ask(desk)
    path = f"{approval['url']}/reveal"
    async with desk.http("approver") as client:
        refused = await client.post(path)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "missing_role"
    async with desk.http("trusted") as client:
        assert said["body"] not in (await client.get(str(approval["url"]))).text
        whole = (await client.post(path)).json()
        assert json.loads(whole["arguments"]) == said
        assert whole["masked"] == []
        assert (await client.post(path, json={"why": "so"})).status_code == 400
    async with desk.http("auditor") as client:
        listed = await client.get("/v1/audit", params={"approval": str(approval["id"])})
    events = [(one["event"], one.get("actor")) for one in listed.json()["data"]]
    assert ("approval.revealed", "subject:user:tia") in events
    assert ("approval.refused", "subject:user:ann") in events
    assert said["body"] not in listed.text
    await vote(desk, approval, "deny")


@pytest.mark.covers("APPR-6", "APPR-8")
async def test_what_was_not_seen_is_neither_granted_nor_copied_into_a_change(
    desk: Gateway,
) -> None:
    approval, said = await _ask(desk)
    grant = {"scope": "exact_args", "ttl": 600}
    blind = await vote(desk, approval, grant=grant)
    assert (blind.status_code, blind.json()["error"]["code"]) == (403, "masked_arguments")
    copied = await vote(desk, approval, "revise", arguments=json.loads(str(approval["arguments"])))
    assert (copied.status_code, copied.json()["error"]["code"]) == (422, "invalid_arguments")
    revised = await vote(desk, approval, "revise", arguments={**said, "title": "calmer"})
    assert revised.status_code == 200
    assert said["body"] not in revised.text
    await settled(desk, str(approval["response_id"]))


@pytest.mark.covers("APPR-8")
async def test_who_may_reveal_may_grant(desk: Gateway) -> None:
    approval, _ = await _ask(desk)
    granted = await vote(desk, approval, key="trusted", grant={"scope": "exact_args", "ttl": 600})
    assert granted.status_code == 200
    assert granted.json()["grant"]["scope"] == "exact_args"
    await settled(desk, str(approval["response_id"]))
