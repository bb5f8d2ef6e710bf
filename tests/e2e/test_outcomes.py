"""How held turns end is told to who is not there: webhooks and the audit (APPR-5, 7, 9, 11)."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from tests.support.approvals import (
    create,
    decide,
    executed,
    issue,
    marker,
    pending,
    refused,
    retrieved,
    settled,
    tenancy,
    vote,
)
from tests.support.provider import Call, asked_for, message, provider, ran, saying
from tests.support.stack import Stack
from tests.support.told import hooked, noted, taking, told


@pytest.mark.covers("APPR-9", "APPR-4")
@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_the_end_of_a_held_turn_is_told(stack: Stack, decision: str) -> None:
    word = marker()
    async with provider(taking) as receiver:
        with stack.gateway(**hooked(stack, receiver)) as gateway:
            held = (await create(gateway, issue(word))).json()
            await decide(gateway, word, decision)
            data = await told(receiver, "continuation.completed")
            assert (data["id"], data["object"], data["status"]) == (
                held["id"],
                "response",
                "completed",
            )
            assert (await retrieved(gateway, held["id"]))["status"] == "completed"
        kinds = [call.json["type"] for call in receiver.calls]
    assert sorted(kinds) == [
        "approval.requested",
        "approval.resolved",
        "continuation.completed",
    ]
    assert word not in "".join(call.body.decode() for call in receiver.calls)


@pytest.mark.covers("APPR-9", "APPR-5")
@pytest.mark.parametrize("action", ["retry", "rewind"])
async def test_a_doubt_is_told_and_so_is_what_a_person_made_of_it(
    stack: Stack, action: str
) -> None:
    word = marker()
    text = f"/fault 500 on=approval times=1\n{issue(word)}"
    async with provider(taking) as receiver:
        with stack.gateway(**hooked(stack, receiver)) as gateway:
            held = (await create(gateway, text)).json()
            await decide(gateway, word)
            data = await told(receiver, "continuation.indeterminate")
            assert (data["id"], data["status"]) == (held["id"], "indeterminate")
            async with gateway.http("approver") as client:
                path = f"/v1/responses/{held['id']}/continue"
                assert (await client.post(path, json={"action": action})).status_code == 200
            end = "completed" if action == "retry" else "failed"
            assert (await told(receiver, f"continuation.{end}"))["id"] == held["id"]
            assert (await settled(gateway, held["id"]))["status"] == end
    assert len(await executed(stack, word)) == (1 if action == "retry" else 0)


@pytest.mark.covers("APPR-9", "APPR-5")
async def test_a_held_turn_that_the_upstream_refuses_for_good_is_told_as_failed(
    stack: Stack,
) -> None:
    word = marker()
    text = f"/fault 429:400 on=approval times=99\n{issue(word)}"
    async with provider(taking) as receiver:
        with stack.gateway(**hooked(stack, receiver)) as gateway:
            held = (await create(gateway, text)).json()
            await decide(gateway, word)
            assert (await told(receiver, "continuation.failed"))["id"] == held["id"]
            assert (await settled(gateway, held["id"]))["status"] == "failed"
            assert (await noted(gateway, "continuation.failed"))["response_id"] == held["id"]
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-7", "APPR-9", "APPR-11")
@pytest.mark.parametrize("held", [True, False], ids=["approved-otherwise", "never-asked"])
async def test_a_call_that_nobody_approved_is_told_and_on_record(stack: Stack, held: bool) -> None:
    word = marker()
    request = asked_for(word)
    other = ran(request, arguments=json.dumps({"title": word + ", and more"}))

    def script(call: Call) -> list[dict[str, Any]]:
        if held and b"mcp_approval_response" not in call.body:
            return [request]
        return [other, message("ok")]

    async with provider(taking) as receiver, provider(saying(script)) as upstream:
        sections = hooked(stack, receiver, upstreams=[upstream.settings()])
        with stack.gateway(**sections) as gateway:
            answer = await create(gateway, "hi")
            approval: dict[str, Any] = {}
            if held:
                (approval,) = await pending(gateway, word)
                await vote(gateway, approval)
                ended = await settled(gateway, answer.json()["id"])
                assert ended["error"]["code"] == "receipt_mismatch"
            else:
                assert answer.json()["error"]["code"] == "receipt_mismatch"
            data = await told(receiver, "approval.receipt_mismatch")
            assert (data["object"], data["code"]) == ("response", "receipt_mismatch")
            entry = await noted(gateway, "approval.receipt_mismatch")
            assert entry["actor"] == "gateway"
            assert entry["subject"] == (approval["id"] if held else data["id"])
            detail = entry["detail"]
            assert (detail["server_label"], detail["tool"]) == ("github", "create_issue")
            assert detail["response_id"] == data["id"]
            if held:
                assert (await told(receiver, "continuation.failed"))["id"] == data["id"]
                of_it = {"approval": approval["id"], "event": "approval.receipt_mismatch"}
                async with gateway.http("auditor") as client:
                    found = (await client.get("/v1/audit", params=of_it)).json()["data"]
                assert [one["id"] for one in found] == [entry["id"]]
            assert word not in json.dumps(entry) + json.dumps(data)
            status, error = await refused(gateway, "x", previous_response_id=data["id"])
            assert (status, error["code"]) == (409, "chain_locked")


@pytest.mark.covers("APPR-7", "CHAIN-5")
@pytest.mark.parametrize("held", [True, False], ids=["approved-otherwise", "never-asked"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@pytest.mark.parametrize("stateless", [False, True], ids=["stored", "stateless"])
async def test_a_conversation_in_which_a_tool_ran_unapproved_is_locked(
    stack: Stack, held: bool, stream: bool, stateless: bool
) -> None:
    word = marker()
    request = asked_for(word)

    def script(call: Call) -> list[dict[str, Any]]:
        if held and b"mcp_approval_response" not in call.body:
            return [request]
        return [ran(request, name="send_payment"), message("ok")]

    async with provider(saying(script, "conv_" + word)) as upstream:
        sections = {"upstreams": [upstream.settings()], **tenancy(stack, stateless=stateless)}
        with stack.gateway(**sections) as gateway:
            async with gateway.http() as client:
                id_ = (await client.post("/v1/conversations", json={})).json()["id"]
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: create(gateway, "hi", conversation=id_, stream=stream))
                if held:
                    (approval,) = await pending(gateway, word)
                    await vote(gateway, approval)
                    await settled(gateway, approval["response_id"])
            sent = len(upstream.calls)
            for named in (id_, {"id": id_}):
                status, error = await refused(gateway, "x", conversation=named)
                assert (status, error["code"]) == (409, "chain_locked")
                assert error["param"] == "conversation"
            assert len(upstream.calls) == sent
            async with gateway.http() as client:
                read = await client.get(f"/v1/conversations/{id_}")
            assert read.status_code == 200
