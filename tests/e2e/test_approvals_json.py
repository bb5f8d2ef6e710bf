"""Rules and people decide; JSON answers are pending and polled (APPR-1, APPR-3)."""

from __future__ import annotations

import pytest

from tests.support.approvals import (
    create,
    executed,
    issue,
    marker,
    output_types,
    pending,
    refused,
    settled,
    tenancy,
    text_of,
    vote,
)
from tests.support.stack import Gateway, Stack


@pytest.mark.covers("APPR-1")
async def test_what_rules_allow_runs_at_once_and_what_they_deny_is_explained(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    read = await create(gateway, f'/call github.search_issues {{"query": "{word}"}}')
    assert "mcp_call" in output_types(read.json())
    pay = f'/call github.send_payment {{"to": "{word}-pay", "amount": 1}}'
    denied = await create(gateway, pay)
    assert denied.json()["status"] == "completed"
    assert "Payments are switched off." in text_of(denied.json())
    assert await executed(stack, word + "-pay") == []


@pytest.mark.covers("APPR-3")
async def test_a_held_turn_is_pending_and_a_polling_client_gets_its_end(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    answer = await create(gateway, issue(word))
    held = answer.json()
    assert answer.headers["gateway-approval"] == "pending"
    assert held["status"] == "in_progress"
    (shown,) = held["gateway"]["approvals"]
    assert shown["status"] == "pending"
    (approval,) = await pending(gateway, word)
    assert shown["id"] == approval["id"]
    client = gateway.client()
    assert (await client.responses.retrieve(held["id"])).status == "in_progress"
    await vote(gateway, approval)
    await settled(gateway, held["id"])
    done = await client.responses.retrieve(held["id"])
    assert done.status == "completed"
    assert done.id == held["id"]
    assert [item.type for item in done.output][-2:] == ["mcp_call", "message"]
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-3")
async def test_prefer_wait_holds_the_answer(gateway: Gateway) -> None:
    import asyncio

    word = marker()
    waiting = asyncio.ensure_future(
        create(gateway, issue(word), headers={"prefer": "respond-async, wait=20"})
    )
    (approval,) = await pending(gateway, word)
    await vote(gateway, approval)
    answer = await waiting
    assert answer.json()["status"] == "completed"
    assert "gateway-approval" not in answer.headers
    word = marker()
    short = await create(gateway, issue(word), headers={"prefer": "wait=1"})
    assert short.json()["status"] == "in_progress"
    assert short.headers["gateway-approval"] == "pending"
    (approval,) = await pending(gateway, word)
    await vote(gateway, approval, "deny")


@pytest.mark.covers("APPR-1")
async def test_a_mixed_batch_is_answered_once_as_a_whole(gateway: Gateway, stack: Stack) -> None:
    one, two, pay = marker(), marker(), marker()
    text = (
        f'/call github.search_issues {{"query": "{one}"}}\n{issue(one)}\n{issue(two)}\n'
        f'/call! github.send_payment {{"to": "{pay}", "amount": 1}}'
    )
    held = (await create(gateway, text)).json()
    (first,) = await pending(gateway, one)
    (second,) = await pending(gateway, two)
    await vote(gateway, first)
    await vote(gateway, second, "deny", reason="Not that one.")
    done = await settled(gateway, held["id"])
    assert output_types(done).count("mcp_approval_request") == 4
    assert output_types(done).count("mcp_call") == 2
    assert "Not that one." in text_of(done)
    assert "Payments are switched off." in text_of(done)
    assert len(await executed(stack, one)) == 2
    assert await executed(stack, two) == await executed(stack, pay) == []


@pytest.mark.covers("APPR-1")
async def test_a_known_server_without_a_rule_asks(stack: Stack) -> None:
    word = marker()
    with stack.gateway(rules=[], **tenancy(stack)) as gateway:
        held = (await create(gateway, f'/call github.search_issues {{"query": "{word}"}}')).json()
        assert held["status"] == "in_progress"
        (approval,) = await pending(gateway, word)
        assert approval["policy"]["rule"] == "default"
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-6")
async def test_an_expiry_is_told_as_what_it_is(stack: Stack) -> None:
    rules = [
        {
            "id": "quick",
            "match": {"server": "github", "tool": "create_*"},
            "effect": "ask",
            "approval": {"timeout": 0.3},
        }
    ]
    word = marker()
    with stack.gateway(rules=rules, **tenancy(stack)) as gateway:
        held = (await create(gateway, issue(word))).json()
        done = await settled(gateway, held["id"])
        async with gateway.http("approver") as client:
            approval = (await client.get(held["gateway"]["approvals"][0]["url"])).json()
        late = await vote(gateway, approval)
    assert "This is not a human refusal." in text_of(done)
    assert (late.status_code, late.json()["error"]["code"]) == (410, "expired")
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-6")
async def test_a_caller_who_answers_too_late_can_still_go_on(stack: Stack) -> None:
    rules = [
        {
            "id": "quick",
            "match": {"server": "github", "tool": "create_*"},
            "effect": "ask",
            "approval": {"by": "caller", "timeout": 0.2},
        }
    ]
    word = marker()
    with stack.gateway(rules=rules, **tenancy(stack)) as gateway:
        first = (await create(gateway, issue(word))).json()
        while (await pending_status(gateway, first)) == "pending":
            pass
        reply = {
            "type": "mcp_approval_response",
            "approval_request_id": first["output"][-1]["id"],
            "approve": True,
        }
        answer = await create(gateway, [reply], previous_response_id=first["id"])
    assert "not a human refusal" in text_of(answer.json()), answer.text
    assert await executed(stack, word) == []


async def pending_status(gateway: Gateway, response: dict[str, object]) -> object:
    async with gateway.http() as client:
        listed = await client.get(f"/v1/responses/{response['id']}/approvals")
        return listed.json()["data"][0]["status"]


@pytest.mark.covers("APPR-3")
@pytest.mark.parametrize("store", [True, False])
async def test_a_turn_that_was_cancelled_while_it_was_held_is_no_parent(
    gateway: Gateway, store: bool
) -> None:
    word = marker()
    held = (await create(gateway, issue(word), store=store)).json()
    async with gateway.http() as client:
        cancelled = await client.post(f"/v1/responses/{held['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
    status, error = await refused(gateway, "/echo hi", previous_response_id=held["id"], store=store)
    assert (status, error["code"]) == (409, "response_cancelled")
