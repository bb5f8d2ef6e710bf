"""Chains that go round and round with nobody looking, and people that are asked too often."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.test_grants import listed
from tests.support.approvals import (
    GITHUB,
    create,
    decide,
    executed,
    frames,
    issue,
    marker,
    pending,
    refused,
    sent,
    settled,
    tenancy,
    vote,
)
from tests.support.provider import Call, provider, response
from tests.support.stack import Gateway, Stack

pytestmark = [pytest.mark.anyio, pytest.mark.covers("APPR-8")]

WIDE = {"max_scope": "tool", "max_scope_destructive": "tool"}
ASK: dict[str, Any] = {"id": "all", "match": {"server": "*"}, "effect": "ask"}


@contextlib.contextmanager
def running(
    stack: Stack, *, limits: dict[str, Any] | None = None, by: str = "approver", **changes: Any
) -> Iterator[Gateway]:
    """A gateway with its own tenant, whose one rule asks."""
    rules = [{**ASK, "approval": {"by": by, "grants": WIDE}}]
    people = tenancy(stack, **({"limits": limits} if limits else {}))
    with stack.gateway(**{**people, "rules": rules, **changes}) as gateway:
        yield gateway


async def granted(gateway: Gateway, tool: str = "create_issue") -> None:
    """Let the caller's calls of a tool run."""
    wanted = {"server": "github", "tool": tool, "scope": "tool", "bound_to": "principal"}
    await listed(gateway)
    async with gateway.http("approver") as client:
        answer = await client.post("/v1/grants", json={**wanted, "subject": "svc:caller"})
        assert answer.status_code == 200, answer.text


def rounds(word: str, count: int) -> str:
    """Write commands that call a tool in one response after the other."""
    return "\n/echo next\n".join(issue(f"{word} {n}") for n in range(count))


async def test_a_model_that_calls_for_ever_is_stopped_with_an_error(stack: Stack) -> None:
    word = marker()
    with running(stack) as gateway:
        await granted(gateway)
        status, error = await refused(gateway, rounds(word, 11))
    assert (status, error["code"]) == (502, "too_many_approval_rounds")
    assert "10 times in a row" in error["message"]
    assert len(await executed(stack, word)) == 10


async def test_on_a_stream_the_same_is_an_error_event(stack: Stack) -> None:
    word = marker()
    with running(stack, limits={"max_auto_rounds": 2}) as gateway:
        await granted(gateway)
        answer = await create(gateway, rounds(word, 3), stream=True)
    *_, told, last = frames(answer.text)
    assert (told["type"], told["error"]["code"]) == ("error", "too_many_approval_rounds")
    assert last["type"] == "response.failed"
    assert len(await executed(stack, word)) == 2


async def test_as_many_rounds_as_are_allowed_end_well(stack: Stack) -> None:
    word = marker()
    with running(stack, limits={"max_auto_rounds": 2}) as gateway:
        await granted(gateway)
        client = gateway.client()
        found = await client.responses.create(
            model="gpt-4.1",
            input=rounds(word, 2),
            tools=[GITHUB],  # type: ignore[list-item]
        )
    assert found.status == "completed"
    assert len(await executed(stack, word)) == 2


async def test_what_the_rules_allow_counts_as_well(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        n = len(upstream.calls)
        asked = {
            "id": f"mcpr_{marker()}",
            "type": "mcp_approval_request",
            "server_label": "github",
            "name": "search_issues",
            "arguments": json.dumps({"query": str(n)}),
        }
        ran = [
            {"id": "mcp_1", "type": "mcp_call", **_called(item)}
            for item in call.json["input"]
            if isinstance(item, dict) and item.get("type") == "mcp_approval_response"
        ]
        requests[asked["id"]] = asked
        body = response(f"resp_{marker()}", output=[*ran, asked])
        await call.document(json.dumps(body).encode())

    def _called(item: dict[str, Any]) -> dict[str, Any]:
        asked = requests[item["approval_request_id"]]
        names = ("server_label", "name", "arguments")
        return {"approval_request_id": asked["id"], **{name: asked[name] for name in names}}

    requests: dict[str, dict[str, Any]] = {}
    allow = [{"id": "reads", "match": {"tool": "search_*"}, "effect": "allow"}]
    async with provider(answer) as upstream:
        with running(stack, rules=allow, upstreams=[upstream.settings()]) as gateway:
            status, error = await refused(gateway, "hi")
    assert (status, error["code"]) == (502, "too_many_approval_rounds")
    assert len(upstream.calls) == 11


async def test_a_person_who_decides_begins_a_new_row(stack: Stack) -> None:
    word = marker()
    pay = f'/call github.send_payment {{"to": "{word}", "amount": 1}}'
    steps = [issue(f"{word} 1"), pay, issue(f"{word} 2"), issue(f"{word} 3")]
    with running(stack, limits={"max_auto_rounds": 2}) as gateway:
        await granted(gateway)
        held = (await create(gateway, "\n/echo next\n".join(steps))).json()
        await decide(gateway, word)
        ended = await settled(gateway, held["id"])
    assert ended["status"] == "completed", ended
    assert len(await executed(stack, word)) == 4


FUNCTION = {"type": "function", "name": "look", "parameters": {}}


@pytest.mark.parametrize("spoke", [False, True], ids=["function output", "and a user message"])
async def test_the_row_goes_on_over_turns_until_the_user_speaks(stack: Stack, spoke: bool) -> None:
    word = marker()
    text = f"{issue(word + ' 1')}\n/echo a\n/function look {{}}\n/echo b\n{issue(word + ' 2')}"
    tools = [GITHUB, FUNCTION]
    with running(stack, limits={"max_auto_rounds": 1}) as gateway:
        await granted(gateway)
        first = (await create(gateway, text, tools=tools)).json()
        (call,) = [item for item in first["output"] if item["type"] == "function_call"]
        items = [{"type": "function_call_output", "call_id": call["call_id"], "output": "seen"}]
        if spoke:
            items.append({"role": "user", "content": issue(word + " 2")})
        answer = await create(gateway, items, tools=tools, previous_response_id=first["id"])
    if spoke:
        assert answer.json()["status"] == "completed"
    else:
        assert answer.json()["error"]["code"] == "too_many_approval_rounds"
    assert len(await executed(stack, word)) == 1 + spoke


async def test_a_program_that_approves_for_itself_is_stopped(stack: Stack) -> None:
    word = marker()
    with running(stack, by="caller", limits={"max_auto_rounds": 2}) as gateway:
        answer = await create(gateway, rounds(word, 3))
        for _ in range(2):
            asked = answer.json()
            item = {
                "type": "mcp_approval_response",
                "approval_request_id": asked["output"][-1]["id"],
                "approve": True,
            }
            answer = await create(gateway, [item], previous_response_id=asked["id"])
        assert answer.json()["error"]["code"] == "too_many_approval_rounds"
    assert len(await executed(stack, word)) == 2


@pytest.mark.covers("LIMIT-1")
async def test_a_chain_that_has_used_its_tokens_goes_on_no_more(stack: Stack) -> None:
    word = marker()
    with running(stack, limits={"chain_token_budget": 1}) as gateway:
        client = gateway.client()
        first = await client.responses.create(model="gpt-4.1", input="/echo hello")
        assert first.usage is not None
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.responses.create(
                model="gpt-4.1", input=f"/echo {word}", previous_response_id=first.id
            )
        assert refusal.value.code == "chain_budget_exceeded"
        assert f"used {first.usage.total_tokens} tokens of the 1 " in str(refusal.value)
        assert await sent(stack, word) == []
        again = await client.responses.create(model="gpt-4.1", input="/echo another chain")
        assert again.status == "completed"


@pytest.mark.covers("LIMIT-1")
async def test_within_a_turn_no_tool_runs_beyond_the_budget(stack: Stack) -> None:
    word = marker()
    with running(stack, limits={"chain_token_budget": 1}) as gateway:
        await granted(gateway)
        status, error = await refused(gateway, issue(word))
    assert (status, error["code"]) == (400, "chain_budget_exceeded")
    assert await executed(stack, word) == []


async def test_what_was_denied_twice_is_not_asked_a_third_time(stack: Stack) -> None:
    word = marker()
    text = "\n/echo again\n".join([issue(word)] * 3)
    with running(stack) as gateway:
        held = (await create(gateway, text)).json()
        first = await decide(gateway, word, "deny")
        (second,) = await pending(gateway, word)
        assert second["id"] != first["id"]
        assert (await vote(gateway, second, "deny")).status_code == 200
        ended = await settled(gateway, held["id"])
        async with gateway.http("approver") as client:
            found = await client.get(f"/v1/responses/{held['id']}/approvals")
    assert (ended["status"], ended["error"]["code"]) == ("failed", "repeated_denial")
    assert len(found.json()["data"]) == 2


def tiring(action: str) -> dict[str, Any]:
    """Settings under which two questions are many."""
    return {"fatigue": {"asks": 2, "window": "10m", "action": action}}


async def test_a_call_beyond_what_people_can_read_is_denied_with_the_true_cause(
    stack: Stack,
) -> None:
    word = marker()
    with running(stack, approvals=tiring("deny")) as gateway:
        for n in range(2):
            assert (await create(gateway, issue(f"{word} {n}"))).json()["status"] == "in_progress"
        answer = (await create(gateway, issue(f"{word} 3"))).json()
        assert answer["status"] == "completed"
        assert "not a human refusal" in json.dumps(answer["output"][-1])
        assert len(await pending(gateway, word, count=2)) == 2
        others = [
            await create(gateway, issue(f"{word} 4"), headers={"gateway-end-user": "mia"}),
            await create(gateway, f'/call github.search_issues {{"query": "{word}"}}'),
        ]
        assert [one.json()["status"] for one in others] == ["in_progress"] * 2
        async with gateway.http("approver") as client:
            found = await client.get(f"/v1/responses/{answer['id']}/approvals")
    (approval,) = found.json()["data"]
    assert (approval["status"], approval["decided_by"]) == ("denied", "policy:fatigue")


async def test_an_approver_is_told_that_a_grant_would_be_better(stack: Stack) -> None:
    word = marker()
    with running(stack, approvals=tiring("suggest")) as gateway:
        for n in range(3):
            await create(gateway, issue(f"{word} {n}"))
        found = await pending(gateway, word, count=3)
    assert [one["suggest_grant"] for one in found] == [False, False, True]
