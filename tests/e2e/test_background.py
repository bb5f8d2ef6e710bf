"""`background: true` where the upstream stores nothing, or MCP tools are attached (STREAM-3)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import openai
import pytest
import redis

from tests.support.approvals import (
    create,
    decide,
    executed,
    frames,
    issue,
    marker,
    output_types,
    pending,
    refused,
    retrieved,
    sent,
    settled,
    tenancy,
    text_of,
)
from tests.support.stack import Gateway, Stack

STORES = pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
RUNNING = ("queued", "in_progress")


@pytest.fixture(scope="module")
def pair(stack: Stack) -> Iterator[tuple[Gateway, Gateway]]:
    """Two replicas on one Valkey."""
    sections: dict[str, Any] = tenancy(stack)
    sections["server"] = {"lame_duck": 0, "grace_period": 1, "heartbeat": 0.1}
    with stack.gateway(**sections) as one, stack.gateway(**sections) as two:
        yield one, two


async def ended(gateway: Gateway, id_: str) -> Any:
    """Poll a background response until it has ended."""
    with anyio.fail_after(30):
        while (found := await retrieved(gateway, id_, wait=5))["status"] in RUNNING:
            pass
    return found


async def began(gateway: Gateway, input: str, **options: Any) -> Any:
    """Begin a response in background."""
    answer = await create(gateway, input, background=True, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def upstream_is(stack: Stack, count: int) -> None:
    """Wait until the upstream has so many exchanges open."""
    with anyio.fail_after(30):
        while await stack.active() != count:
            await anyio.sleep(0.01)


async def cancelled(gateway: Gateway, id_: str) -> httpx2.Response:
    """Cancel a response."""
    async with gateway.http() as client:
        return await client.post(f"/v1/responses/{id_}/cancel")


@pytest.mark.covers("STREAM-3", "STATE-7")
async def test_the_usual_polling_loop_works(stack: Stack, pair: tuple[Gateway, Gateway]) -> None:
    one, two = pair
    word = marker()
    client = one.client()
    response = await client.responses.create(
        model="gpt-4.1", input=f"/echo {word}", background=True, store=False
    )
    assert response.status == "queued"
    assert response.background is True
    assert response.output == []
    created = response.created_at
    with anyio.fail_after(30):
        while response.status in RUNNING:
            response = await two.client().responses.retrieve(response.id)
    assert response.status == "completed"
    assert response.output_text == word
    assert (response.created_at, response.background) == (created, True)
    (body,) = await sent(stack, word)
    assert body["store"] is False
    assert "background" not in body
    listed = await client.responses.input_items.list(response.id)
    assert [item.type for item in listed.data] == ["message"]


@pytest.mark.covers("STREAM-3", "CHAIN-4", "STATE-1")
@STORES
async def test_a_chain_goes_through_the_background(
    pair: tuple[Gateway, Gateway], store: bool
) -> None:
    one, two = pair
    word = marker()
    first = await began(one, f"/echo {word}", store=store)
    assert (await ended(one, first["id"]))["status"] == "completed"
    second = await began(two, "/recall", store=store, previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    found = await ended(two, second["id"])
    assert found["previous_response_id"] == first["id"]
    assert word in text_of(found)
    third = await create(one, "/recall", store=store, previous_response_id=second["id"])
    assert word in text_of(third.json())


@pytest.mark.covers("STREAM-3", "CHAIN-1")
async def test_a_background_response_is_its_owners_and_goes_when_it_is_deleted(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, two = pair
    word = marker()
    response = await began(one, f"/echo {word}\n/fault silence:60", store=False)
    await upstream_is(stack, 1)
    async with two.http("other") as client:
        for call in (client.get, client.delete):
            assert (await call(f"/v1/responses/{response['id']}")).status_code == 404
        stopped = await client.post(f"/v1/responses/{response['id']}/cancel")
        assert stopped.status_code == 404
    status, error = await refused(one, "go on", store=False, previous_response_id=response["id"])
    assert (status, error["code"]) == (409, "response_in_progress")
    async with two.http() as client:
        assert (await client.delete(f"/v1/responses/{response['id']}")).json()["deleted"]
        await upstream_is(stack, 0)
        assert (await client.get(f"/v1/responses/{response['id']}")).status_code == 404


@pytest.mark.covers("STATE-4", "STREAM-3", "APPR-4")
@pytest.mark.parametrize("background", [True, False], ids=["background", "held"])
@pytest.mark.parametrize("way", ["decided", "cancelled", "deleted"])
async def test_nothing_holds_a_turn_that_is_over_or_deleted(
    stack: Stack, way: str, background: bool
) -> None:
    sections = tenancy(stack, stateless=True)
    word = marker()
    with stack.gateway(**sections) as gateway:
        id_ = (await create(gateway, issue(word), background=background)).json()["id"]
        await pending(gateway, word)
        async with gateway.http() as client:
            if way == "decided":
                await decide(gateway, word)
                assert (await settled(gateway, id_))["status"] == "completed"
                again = await client.post(f"/v1/responses/{id_}/cancel")
                assert again.status_code == (200 if background else 409)
            elif way == "cancelled":
                assert (await client.post(f"/v1/responses/{id_}/cancel")).status_code == 200
            if way != "decided":
                assert (await client.delete(f"/v1/responses/{id_}")).status_code == 200
        prefix = f"gw:{{{sections['tenants'][0]['id']}}}:batch:*"
        with redis.Redis.from_url(stack.redis_url) as store, anyio.fail_after(20):
            while [store.hget(name, "h") for name in store.scan_iter(prefix)] != [b""] * (
                2 if background else 1
            ):
                await anyio.sleep(0.01)


@pytest.mark.covers("STREAM-3")
async def test_cancel_stops_the_upstream_from_any_replica_and_may_be_repeated(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, two = pair
    response = await began(one, "/long 500\n/fault slow:0.2", store=False)
    await upstream_is(stack, 1)
    for gateway in (two, one, two):
        answer = await cancelled(gateway, response["id"])
        assert answer.status_code == 200
        assert answer.json()["status"] == "cancelled"
    await upstream_is(stack, 0)
    assert (await retrieved(one, response["id"]))["status"] == "cancelled"
    done = await began(one, "/echo done", store=False)
    shown = await ended(one, done["id"])
    assert (await cancelled(two, done["id"])).json() == shown


@pytest.mark.covers("STREAM-3", "STREAM-2", "APPR-2")
@STORES
async def test_a_stream_that_its_reader_left_is_read_again_byte_for_byte(
    pair: tuple[Gateway, Gateway], store: bool
) -> None:
    one, two = pair
    body = {
        "model": "gpt-4.1",
        "input": "/think\n/long 30\n/fault slow:0.02",
        "background": True,
        "stream": True,
        "store": store,
        "tools": [{"type": "mcp", "server_label": "github"}],
    }
    seen = ""
    async with one.http() as client, client.stream("POST", "/v1/responses", json=body) as answer:
        async for text in answer.aiter_text():
            seen += text
            if "output_text.delta" in seen:
                break  # the reader leaves
    events = frames(without_comments(seen[: seen.rindex("\n\n")]))
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    id_ = events[0]["response"]["id"]
    again = [await reread(gateway, id_, after=-1) for gateway in pair]
    assert again[0] == again[1]
    assert again[0].startswith(without_comments(seen[: seen.rindex("\n\n")]))
    every = frames(again[0])
    assert [event["sequence_number"] for event in every] == list(range(len(every)))
    assert every[-1]["type"] == "response.completed"
    ids = {event["response"]["id"] for event in every if "response" in event}
    assert ids == {id_}
    middle = len(every) // 2
    assert frames(await reread(two, id_, after=middle)) == every[middle + 1 :]
    assert every[-1]["response"] == await retrieved(one, id_)


@pytest.mark.covers("STREAM-3")
@pytest.mark.parametrize("after", ["", "abc", "1.5", "-2", "1_0", "\u0661", "9" * 5000])
async def test_a_number_that_no_event_has_is_refused(
    pair: tuple[Gateway, Gateway], after: str
) -> None:
    async with pair[0].http() as client:
        query = {"stream": "true", "starting_after": after}
        answer = await client.get("/v1/responses/resp_1", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "starting_after")


@pytest.mark.covers("STREAM-3", "APPR-2")
async def test_the_sdk_accepts_the_stream(pair: tuple[Gateway, Gateway]) -> None:
    one, two = pair
    async with one.client().responses.stream(
        model="gpt-4.1", input="/echo hello", background=True, store=False
    ) as stream:
        last = [event.sequence_number async for event in stream][-1]
        response = await stream.get_final_response()
    assert response.output_text == "hello"
    resumed = await two.client().responses.retrieve(response.id, stream=True, starting_after=1)
    numbers = [event.sequence_number async for event in resumed]
    assert numbers == list(range(2, last + 1))


@pytest.mark.covers("STREAM-3", "APPR-1", "APPR-4", "APPR-5")
@STORES
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_person_decides_in_the_middle(
    stack: Stack, pair: tuple[Gateway, Gateway], store: bool, stream: bool
) -> None:
    one, two = pair
    word = marker()
    client = one.client()
    if stream:
        events = await client.responses.create(
            model="gpt-4.1",
            input=issue(word),
            background=True,
            stream=True,
            store=store,
            tools=[{"type": "mcp", "server_label": "github"}],
        )
        id_ = (await anext(events)).response.id  # type: ignore[union-attr]
        await events.close()
    else:
        id_ = (await began(one, issue(word), store=store))["id"]
    await pending(one, word)
    shown = await retrieved(two, id_)
    assert shown["status"] == "in_progress"
    assert shown["gateway"]["approvals"][0]["status"] == "pending"
    assert await executed(stack, word) == []
    await decide(two, word)
    done = await ended(one, id_)
    assert done["status"] == "completed"
    assert done["id"] == id_
    assert output_types(done)[-2:] == ["mcp_call", "message"]
    assert len(await executed(stack, word)) == 1
    if stream:
        every = frames(await reread(two, id_, after=-1))
        assert [event["sequence_number"] for event in every] == list(range(len(every)))
        assert every[-1]["response"]["output"] == done["output"]
    async with one.http("auditor") as http:
        assert (await http.get("/v1/audit/verify")).json()["ok"] is True


@pytest.mark.covers("STREAM-3", "APPR-6")
async def test_cancel_while_a_person_decides_runs_nothing(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, two = pair
    word = marker()
    response = await began(one, issue(word), store=False)
    (approval,) = await pending(one, word)
    assert (await cancelled(two, response["id"])).json()["status"] == "cancelled"
    async with one.http("approver") as client:
        found = (await client.get(f"/v1/approvals/{approval['id']}")).json()
    assert found["status"] == "canceled"
    assert await executed(stack, word) == []


@pytest.mark.covers("STREAM-3", "API-5")
async def test_a_lost_answer_fails_and_is_not_asked_for_again(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, _ = pair
    for fault, code in (("reset", "upstream_disconnected"), ("no_terminal", "upstream_incomplete")):
        word = marker()
        response = await began(one, f"/fault {fault}\n/long 20\n/echo {word}", store=False)
        shown = await ended(one, response["id"])
        assert (shown["status"], shown["error"]["code"]) == ("failed", code)
        assert len(await sent(stack, word)) == 1


@pytest.mark.covers("STREAM-3", "API-5")
async def test_a_busy_upstream_is_asked_again_and_a_refusal_is_told(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, _ = pair
    word = marker()
    response = await began(one, f"/fault 429:0.1 times=2\n/echo {word}", store=False)
    assert text_of(await ended(one, response["id"])) == word
    assert len(await sent(stack, word)) == 3
    refused_one = await began(one, "/fault content_filter", store=False)
    shown = await ended(one, refused_one["id"])
    assert (shown["status"], shown["error"]["code"]) == ("failed", "content_filter")


async def jobs_running(gateway: Gateway, lane: str) -> float:
    """Read how many jobs of a lane a gateway runs."""
    async with gateway.http() as client:
        lines = (await client.get("/metrics")).text.splitlines()
    name = f'gateway_jobs_running{{lane="{lane}"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.covers("STREAM-3", "APPR-4", "OPS-1")
async def test_a_full_background_is_a_queue_and_holds_up_nothing_else(stack: Stack) -> None:
    sections = tenancy(stack)
    sections["server"] = {"max_background": 2}
    with stack.gateway(**sections) as gateway:
        word = marker()
        slow = [await began(gateway, "/fault silence:60", store=False) for _ in range(2)]
        await upstream_is(stack, 2)
        later = await began(gateway, f"/echo {word}", store=False)
        held = await began(gateway, issue(word), tools=(), store=False)
        plain = await create(gateway, issue(word), headers={"Prefer": "respond-async"})
        await decide(gateway, word)  # what a person decides goes on
        done = await ended(gateway, plain.json()["id"])
        assert (done["status"], len(await executed(stack, word))) == ("completed", 1)
        for waiting in (later, held):
            assert (await retrieved(gateway, waiting["id"]))["status"] == "queued"
        assert await jobs_running(gateway, "background") == 2
        assert await sent(stack, f"/echo {word}") == []
        assert (await cancelled(gateway, held["id"])).json()["status"] == "cancelled"
        assert (await cancelled(gateway, slow[0]["id"])).json()["status"] == "cancelled"
        assert text_of(await ended(gateway, later["id"])) == word  # the place that became free
        await cancelled(gateway, slow[1]["id"])
        await upstream_is(stack, 0)
        assert (await retrieved(gateway, held["id"]))["status"] == "cancelled"


@pytest.mark.covers("STREAM-3", "STATE-4")
async def test_what_cannot_run_in_background_is_refused(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack, stateless=True, cache="off")) as gateway:
        with pytest.raises(openai.BadRequestError) as caught:
            await gateway.client().responses.create(model="gpt-4.1", input="x", background=True)
        assert caught.value.code == "background_not_supported"
    with stack.gateway(**tenancy(stack)) as gateway:
        answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
        status, error = await refused(gateway, [answer], background=True)
        assert (status, error["param"]) == (400, "background")


def without_comments(text: str) -> str:
    """Leave out the comments of a stream."""
    blocks = (block for block in text.split("\n\n") if block and not block.startswith(":"))
    return "".join(block + "\n\n" for block in blocks)


async def reread(gateway: Gateway, id_: str, *, after: int) -> str:
    """Read a background response's events from after a number, without comments."""
    query = {"stream": "true", "starting_after": str(after)} if after >= 0 else {"stream": "true"}
    async with gateway.http() as client:
        answer = await client.get(f"/v1/responses/{id_}", params=query)
    assert answer.status_code == 200, json.dumps(answer.text)
    return without_comments(answer.text)
