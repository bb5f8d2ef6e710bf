"""A held turn on a stream: one response, whoever decides, wherever it goes on (APPR-2 to APPR-5)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.approvals import (
    GITHUB,
    create,
    executed,
    frames,
    issue,
    marker,
    output_types,
    pending,
    refused,
    settled,
    tenancy,
    vote,
)
from tests.support.stack import Gateway, Stack


@pytest.fixture(scope="module")
def pair(stack: Stack) -> Iterator[tuple[Gateway, Gateway]]:
    """Two replicas on one Valkey, with a short heartbeat."""
    sections: dict[str, Any] = tenancy(stack)
    sections["server"] = {"lame_duck": 0, "grace_period": 1, "heartbeat": 0.1}
    with stack.gateway(**sections) as one, stack.gateway(**sections) as two:
        yield one, two


@pytest.mark.covers("APPR-2", "APPR-3", "APPR-4")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_the_sdk_sees_one_response_over_several_rounds(
    pair: tuple[Gateway, Gateway], stack: Stack, store: bool
) -> None:
    """Two rounds, decided at another replica, with a call that the rules allow in between."""
    one, two = pair
    words = [marker(), marker()]
    text = f"/think hm\n{issue(words[0])}\n/echo between\n{issue(words[1])}\n/echo end"

    async def approve() -> None:
        for word in words:
            (approval,) = await pending(two, word)
            await vote(two, approval)

    deciding = asyncio.ensure_future(approve())
    events = []
    async with one.client().responses.stream(
        model="gpt-4.1",
        input=text,
        store=store,
        tools=[{"type": "mcp", "server_label": "github"}],
    ) as stream:
        async for event in stream:
            events.append(event)
        final = await stream.get_final_response()
    await deciding
    kinds = [event.type for event in events]
    raw: list[Any] = list(events)
    assert kinds.count("response.created") == 1
    assert kinds[-1] == "response.completed"
    assert sum(kind in ("response.completed", "response.failed") for kind in kinds) == 1
    assert [event.sequence_number for event in raw] == list(range(len(raw)))
    added = [event.output_index for event in raw if event.type == "response.output_item.added"]
    done = [event.item.id for event in raw if event.type == "response.output_item.done"]
    assert added == list(range(len(final.output)))
    output: list[Any] = list(final.output)
    assert done == [item.id for item in output]
    assert {event.response.id for event in raw if hasattr(event, "response")} == {final.id}
    assert [item.type for item in final.output].count("mcp_call") == 2
    assert final.usage is not None
    assert final.usage.total_tokens == final.usage.input_tokens + final.usage.output_tokens
    for word in words:
        assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-3", "APPR-4", "STREAM-3")
async def test_comments_come_while_a_person_decides_and_the_stream_can_be_read_again(
    pair: tuple[Gateway, Gateway], stack: Stack
) -> None:
    one, two = pair
    word = marker()
    body = {"model": "gpt-4.1", "input": issue(word), "tools": [GITHUB], "stream": True}
    seen = ""
    decided = False
    async with one.http() as client, client.stream("POST", "/v1/responses", json=body) as stream:
        async for text in stream.aiter_text():
            seen += text
            if not decided and ("\n: " in seen or "\n:\n" in seen):
                (approval,) = await pending(two, word)
                await vote(two, approval)
                decided = True
    assert decided
    events = frames("\n\n".join(b for b in seen.split("\n\n") if not b.startswith(":")))
    assert events[-1]["type"] == "response.completed"
    id_ = events[0]["response"]["id"]
    plain = "".join(
        block + "\n\n" for block in seen.split("\n\n") if block and not block.startswith(":")
    )
    for gateway in pair:
        async with gateway.http() as client:
            whole = await client.get(f"/v1/responses/{id_}?stream=true")
            assert whole.text == plain
            for after in (0, 3, len(events) - 2, len(events) - 1, len(events) + 5):
                part = await client.get(f"/v1/responses/{id_}?stream=true&starting_after={after}")
                assert frames(part.text) == events[after + 1 :]
                assert plain.endswith(part.text)


@pytest.mark.covers("APPR-4", "STREAM-2")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_caller_who_leaves_a_held_turn_loses_nothing(
    pair: tuple[Gateway, Gateway], stack: Stack, stream: bool
) -> None:
    one, two = pair
    word = marker()
    if stream:
        body = {"model": "gpt-4.1", "input": issue(word), "tools": [GITHUB], "stream": True}
        async with one.http() as client, client.stream("POST", "/v1/responses", json=body) as held:
            async for text in held.aiter_text():
                if "mcp_approval_request" in text:
                    break
            (approval,) = await pending(two, word)
    else:
        await create(one, issue(word))
        (approval,) = await pending(two, word)
    await vote(two, approval)
    done = await settled(two, approval["response_id"])
    assert output_types(done)[-2:] == ["mcp_call", "message"]
    assert len(await executed(stack, word)) == 1
    after = await create(one, "/recall", previous_response_id=done["id"])
    assert "mcp calls: 1" in after.text


@pytest.mark.covers("APPR-3")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_new_input_on_a_held_chain_is_refused(
    pair: tuple[Gateway, Gateway], store: bool, stream: bool
) -> None:
    one, two = pair
    word = marker()
    held = (await create(one, issue(word), store=store)).json()
    for gateway in pair:
        status, error = await refused(
            gateway, "/echo hi", previous_response_id=held["id"], store=store, stream=stream
        )
        assert (status, error["code"]) == (409, "approval_pending")
    (approval,) = await pending(two, word)
    await vote(two, approval, "deny", reason="No.")
    await settled(one, held["id"])
    answer = await create(one, "/echo hi", previous_response_id=held["id"], store=store)
    assert answer.status_code == 200


@pytest.mark.covers("APPR-5")
async def test_many_decisions_at_once_run_each_tool_once(
    pair: tuple[Gateway, Gateway], stack: Stack
) -> None:
    words = [marker() for _ in range(4)]
    held = (await create(pair[0], "\n".join(issue(word) for word in words))).json()
    found = [(await pending(pair[1], word))[0] for word in words]
    votes = [
        vote(pair[number % 2], approval, key=key)
        for approval in found
        for number, key in enumerate(("approver", "second", "approver"))
    ]
    answers = await asyncio.gather(*votes)
    assert {answer.status_code for answer in answers} <= {200, 409}
    done = await settled(pair[0], held["id"])
    assert output_types(done).count("mcp_call") == 4
    for word in words:
        assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-7")
async def test_an_approval_does_not_move_to_another_server_or_past_a_new_deny(
    stack: Stack,
) -> None:
    """The rest of the turn is taken by a replica that knows the label or the rules differently."""
    moved = {"mcp_servers": [stack.mcp_server(url=stack.mcp_url + "?tenant=other")]}
    denied = {"rules": [{"id": "now", "match": {"server": "github"}, "effect": "deny"}]}
    gone: dict[str, Any] = {"mcp_servers": [], "rules": []}
    for change in (moved, denied, gone):
        word, sections = marker(), tenancy(stack)
        with stack.gateway(**sections) as before:
            held = (await create(before, issue(word))).json()
            (approval,) = await pending(before, word)
        with stack.gateway(**{**sections, **change}) as after:
            assert (await vote(after, approval, reason="checked")).status_code == 200
            done = await settled(after, held["id"])
        assert "mcp_call" not in output_types(done)
        assert "changed before a decision" in done["output"][-1]["content"][0]["text"]
        assert await executed(stack, word) == []


@pytest.mark.covers("APPR-7")
async def test_what_a_revoked_caller_asked_for_never_runs(stack: Stack) -> None:
    word, sections = marker(), tenancy(stack)
    with stack.gateway(**sections) as before:
        held = (await create(before, issue(word))).json()
        (approval,) = await pending(before, word)
    sections["api_keys"] = [key for key in sections["api_keys"] if key["id"] != "caller"]
    with stack.gateway(**sections) as after:
        assert (await vote(after, approval, reason="checked")).status_code == 200
        done = await settled(after, held["id"], key="second")
    assert "mcp_call" not in output_types(done)
    assert await executed(stack, word) == []
