"""Conversations that the gateway keeps for stateless tenants (CHAIN-5)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
import redis

from tests.support.approvals import (
    GITHUB,
    create,
    decide,
    executed,
    issue,
    marker,
    output_types,
    pending,
    retrieved,
    sent,
    settled,
    tenancy,
    text_of,
)
from tests.support.stack import Gateway, Stack

MODEL = "gpt-4.1"


@pytest.fixture(scope="module")
def pair(stack: Stack) -> Iterator[tuple[Gateway, Gateway]]:
    """Two replicas that serve a stateless tenant."""
    sections: dict[str, Any] = tenancy(stack, stateless=True)
    sections["server"] = {"lame_duck": 0, "grace_period": 1, "heartbeat": 0.1}
    with stack.gateway(**sections) as one, stack.gateway(**sections) as two:
        yield one, two


@pytest.mark.covers("CHAIN-5")
async def test_a_conversation_is_made_changed_and_deleted(pair: tuple[Gateway, Gateway]) -> None:
    one, two = pair
    client = one.client()
    talk = await client.conversations.create(
        metadata={"topic": "plums"},
        items=[{"type": "message", "role": "user", "content": "I like plums."}],
    )
    assert talk.id.startswith("conv_")
    other = two.client()
    assert (await other.conversations.retrieve(talk.id)).metadata == {"topic": "plums"}
    changed = await client.conversations.update(talk.id, metadata={"topic": "pears"})
    assert changed.metadata == {"topic": "pears"}
    assert changed.created_at == talk.created_at
    added = await client.conversations.items.create(
        talk.id,
        items=[
            {"type": "message", "role": "user", "content": f"and pear {number}"}
            for number in range(5)
        ],
    )
    assert len(added.data) == 5
    newest = await other.conversations.items.list(talk.id, limit=2)
    assert [item.id for item in newest.data] == [added.data[4].id, added.data[3].id]
    assert newest.has_more
    every = [item.id async for item in other.conversations.items.list(talk.id, order="asc")]
    assert every[1:] == [item.id for item in added.data]
    item = await other.conversations.items.retrieve(every[2] or "", conversation_id=talk.id)
    assert item.id == every[2]
    await client.conversations.items.delete(every[2] or "", conversation_id=talk.id)
    with pytest.raises(openai.NotFoundError) as gone:
        await client.conversations.items.retrieve(every[2] or "", conversation_id=talk.id)
    assert gone.value.code == "item_not_found"
    assert (await client.conversations.delete(talk.id)).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        await other.conversations.items.list(talk.id)
    assert caught.value.code == "conversation_not_found"


@pytest.mark.covers("CHAIN-5", "STATE-1", "STATE-2", "CHAIN-4")
async def test_turns_go_on_with_all_that_was_said(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, two = pair
    word, second = marker(), marker()
    talk = await one.client().conversations.create()
    first = await one.client().responses.create(
        model=MODEL, input=f"/think\n/echo {word}", conversation=talk.id
    )
    assert first.conversation is not None
    assert first.conversation.id == talk.id
    events = await two.client().responses.create(
        model=MODEL, input=f"/echo {second}", conversation={"id": talk.id}, stream=True
    )
    kinds = [event.type async for event in events]
    assert kinds[-1] == "response.completed"
    recalled = await one.client().responses.create(
        model=MODEL, input="/recall", conversation=talk.id
    )
    assert word in recalled.output_text
    assert second in recalled.output_text
    body = (await sent(stack, word))[-1]
    assert body["store"] is False
    assert "conversation" not in body
    (reasoning,) = [item for item in body["input"] if item["type"] == "reasoning"]
    assert reasoning["encrypted_content"]
    listed = [item async for item in one.client().conversations.items.list(talk.id, order="asc")]
    assert [item.type for item in listed] == ["message", "reasoning", *["message"] * 5]
    assert listed[1].encrypted_content is None  # type: ignore[union-attr]
    shown = await one.client().conversations.items.retrieve(
        listed[1].id or "", conversation_id=talk.id, include=["reasoning.encrypted_content"]
    )
    assert shown.encrypted_content == reasoning["encrypted_content"]  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError) as caught:
        await one.client().responses.create(
            model=MODEL, input="and now?", previous_response_id=first.id
        )
    assert caught.value.param == "previous_response_id"


def reference(item: Any) -> Any:
    return {"type": "item_reference", "id": item.id}


@pytest.mark.covers("CHAIN-5", "STATE-1")
async def test_an_item_of_a_conversation_may_be_named_by_reference(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, two = pair
    word = marker()
    client = one.client()
    talk = await client.conversations.create(items=[{"role": "user", "content": f"{word} one"}])
    call: Any = {"type": "function_call", "call_id": "call_1", "name": word, "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
    mine: Any = {"role": "user", "content": f"{word} two", "id": f"msg_{word}"}
    added = (await client.conversations.items.create(talk.id, items=[call, output, mine])).data
    (first,) = [
        item
        async for item in client.conversations.items.list(talk.id)
        if item.id not in [one.id for one in added]
    ]
    said: Any = [reference(item) for item in (first, *added)]
    recall: Any = {"role": "user", "content": "/recall"}
    answer = await two.client().responses.create(model=MODEL, input=[*said, recall])
    assert "I see 2 user messages" in answer.output_text
    (body,) = await sent(stack, word)
    assert [item.get("type", "message") for item in body["input"]] == [
        "message",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ]
    assert body["input"][3]["id"] == f"msg_{word}"

    # What the conversation that goes on holds already is not said twice.
    again = await client.responses.create(model=MODEL, input=[*said, recall], conversation=talk.id)
    assert "I see 2 user messages" in again.output_text
    body = (await sent(stack, word))[-1]
    kinds = ["message", "function_call", "function_call_output", "message"]
    assert [item.get("type", "message") for item in body["input"]] == [*kinds, "message"]
    listed = [item.type async for item in client.conversations.items.list(talk.id, order="asc")]
    assert listed == [*kinds, "message", *(item.type for item in again.output)]


@pytest.mark.covers("CHAIN-5", "CHAIN-1", "AUTH-2", "STATE-4")
async def test_an_item_of_somebody_elses_or_a_deleted_conversation_is_unknown(
    pair: tuple[Gateway, Gateway],
) -> None:
    one, two = pair
    async with one.http() as client:
        made = await client.post(
            "/v1/conversations",
            json={"items": [{"role": "user", "content": "one"}, {"role": "user", "content": "2"}]},
            headers={"gateway-end-user": "ada"},
        )
        path = f"/v1/conversations/{made.json()['id']}"
        ada = {"gateway-end-user": "ada"}
        items = (await client.get(f"{path}/items", headers=ada)).json()["data"]

        async def status(item: Any, gateway: Gateway = two, **more: Any) -> int:
            named = {"type": "item_reference", "id": item["id"]}
            answer = await create(gateway, [named], tools=(), **more)
            if answer.status_code != 200:
                assert answer.json()["error"]["code"] == "item_not_found"
            return answer.status_code

        assert await status(items[0], headers=ada) == 200
        assert await status(items[0]) == 404
        assert await status(items[0], headers={"gateway-end-user": "bob"}) == 404
        assert await status(items[0], key="other", store=False) == 404
        await client.delete(f"{path}/items/{items[0]['id']}", headers=ada)
        assert await status(items[0], headers=ada) == 404
        assert await status(items[1], headers=ada) == 200
        await client.delete(path, headers=ada)
        assert await status(items[1], headers=ada) == 404


@pytest.mark.covers("CHAIN-5", "STATE-4")
async def test_what_finds_an_items_conversation_lives_as_long_as_that(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    client = pair[0].client()
    talk = await client.conversations.create(items=[{"role": "user", "content": "plums"}])
    (item,) = (await client.conversations.items.list(talk.id)).data
    store = redis.Redis.from_url(stack.redis_url)
    (entry,) = store.scan_iter(f"*convitem:{item.id}")
    (held,) = store.scan_iter(f"*conv:{talk.id}")
    whole = store.pttl(held)
    for name in (entry, held):
        store.pexpire(name, whole // 2)
    await client.conversations.items.list(talk.id)
    assert store.pttl(entry) > whole * 0.9
    await client.conversations.delete(talk.id)
    assert not store.exists(entry)
    store.close()


@pytest.mark.covers("CHAIN-5")
async def test_one_turn_at_a_time(stack: Stack, pair: tuple[Gateway, Gateway]) -> None:
    one, two = pair
    talk = await one.client().conversations.create()
    running = asyncio.ensure_future(
        one.client().responses.create(model=MODEL, input="/fault silence:60", conversation=talk.id)
    )
    with anyio.fail_after(30):
        while await stack.active() == 0:
            await anyio.sleep(0.01)
    answer = await create(two, "me too", conversation=talk.id, tools=())
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conversation_locked")
    async with two.http() as client:
        said = {"items": [{"role": "user", "content": "me too"}]}
        added = await client.post(f"/v1/conversations/{talk.id}/items", json=said)
    assert (added.status_code, added.json()["error"]["code"]) == (409, "conversation_locked")
    running.cancel()
    await asyncio.wait({running})
    with anyio.fail_after(30):
        while answer.status_code == 409:
            answer = await create(two, "me too", conversation=talk.id, tools=())
    assert answer.status_code == 200


@pytest.mark.covers("CHAIN-5", "STREAM-2")
async def test_a_turn_that_fails_or_is_left_adds_nothing_and_frees_the_conversation(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, two = pair
    talk = await one.client().conversations.create()
    for stream in (False, True):
        await create(one, "/fault 500", conversation=talk.id, tools=(), stream=stream)
        broken = await create(
            one, "/fault reset\n/long 20", conversation=talk.id, tools=(), stream=stream
        )
        assert broken.status_code == (200 if stream else 502)
        left = one.http()
        body = {"model": MODEL, "input": "/fault silence:60", "conversation": talk.id}
        with anyio.move_on_after(0.5):
            await left.post("/v1/responses", json={**body, "stream": stream})
        await left.aclose()
        with anyio.fail_after(30):
            while await stack.active():
                await anyio.sleep(0.01)
            while (
                answer := await create(two, "/echo on", conversation=talk.id, tools=())
            ).status_code == 409:
                await anyio.sleep(0.01)
        assert answer.status_code == 200
    listed = [item.type async for item in one.client().conversations.items.list(talk.id)]
    assert listed == ["message"] * 4


@pytest.mark.covers("CHAIN-5", "APPR-4", "STREAM-3")
@pytest.mark.parametrize("background", [True, False], ids=["background", "held"])
async def test_a_person_decides_within_a_conversation(
    pair: tuple[Gateway, Gateway], background: bool
) -> None:
    one, two = pair
    word = marker()
    talk = await one.client().conversations.create()
    answer = await create(one, issue(word), conversation=talk.id, background=background)
    id_ = answer.json()["id"]
    await pending(two, word)
    refused = await create(two, "hello?", conversation=talk.id, tools=())
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conversation_locked")
    await decide(two, word)
    done = await settled(one, id_)
    assert done["conversation"] == {"id": talk.id}
    assert output_types(done)[-2:] == ["mcp_call", "message"]
    listed = [item.type async for item in two.client().conversations.items.list(talk.id)]
    assert listed[:2] == ["message", "mcp_call"]
    after = await create(two, "/recall", conversation=talk.id, tools=[GITHUB])
    assert word in text_of(after.json())


@pytest.mark.covers("CHAIN-5", "APPR-5")
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "passed on"])
async def test_what_was_approved_does_not_run_again_in_a_conversation(
    stack: Stack, gateway: Gateway, pair: tuple[Gateway, Gateway], kept: bool
) -> None:
    one = pair[0] if kept else gateway
    word = marker()
    client = one.client()
    talk = await client.conversations.create()
    held = await create(one, issue(word), conversation=talk.id)
    await decide(one, word)
    done = await settled(one, held.json()["id"])
    call, said = done["output"][-2:]
    with pytest.raises(openai.ConflictError) as caught:
        await client.conversations.items.delete(call["id"], conversation_id=talk.id)
    assert caught.value.code == "approved_call"
    await client.conversations.items.delete(said["id"], conversation_id=talk.id)
    for input_ in ("and now?", [{"role": "user", "id": call["id"], "content": "never mind"}]):
        await create(one, input_, conversation=talk.id)
    assert len(await executed(stack, word)) == 1
    await client.conversations.delete(talk.id)


@pytest.mark.covers("CHAIN-5", "STREAM-3")
@pytest.mark.parametrize("way", ["cancel", "delete"])
async def test_a_turn_that_is_given_up_frees_the_conversation(
    pair: tuple[Gateway, Gateway], way: str
) -> None:
    one, two = pair
    talk = await one.client().conversations.create()
    word = marker()
    id_ = (await create(one, issue(word), conversation=talk.id, background=True)).json()["id"]
    await pending(two, word)
    async with two.http() as client:
        if way == "cancel":
            await client.post(f"/v1/responses/{id_}/cancel")
            assert (await retrieved(one, id_))["status"] == "cancelled"
        else:
            await client.delete(f"/v1/responses/{id_}")
    assert (await create(one, "/echo on", conversation=talk.id, tools=())).status_code == 200


@pytest.mark.covers("CHAIN-5", "CHAIN-1", "AUTH-2", "STATE-4")
async def test_a_conversation_is_its_owners_and_not_readable_at_rest(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    one, two = pair
    word = marker()
    async with one.http() as client:
        made = await client.post(
            "/v1/conversations",
            json={"metadata": {"topic": word}, "items": [{"role": "user", "content": word}]},
            headers={"gateway-end-user": "ada"},
        )
        id_ = made.json()["id"]
        foreign = await client.get(f"/v1/conversations/{id_}", headers={"gateway-end-user": "bob"})
        assert foreign.status_code == 404
    async with two.http("other") as client:
        for path in ("", "/items"):
            assert (await client.get(f"/v1/conversations/{id_}{path}")).status_code == 404
    refused = await create(two, "hi", conversation=id_, tools=())
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "conversation_not_found")
    used = await create(two, "hi", conversation=id_, tools=(), headers={"gateway-end-user": "ada"})
    assert used.status_code == 200
    store = redis.Redis.from_url(stack.redis_url)
    names = list(store.scan_iter(f"*conv:{id_}*"))
    assert len(names) == 3
    for name in names:
        assert store.ttl(name) > 0
        assert word.encode() not in (store.dump(name) or b"")
    store.close()


@pytest.mark.covers("CHAIN-5")
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0]"),
        ({"items": [{"role": "user", "content": "x"}] * 21}, "items"),
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ({"items": "hello"}, "items"),
        ({"items": [1]}, "items[0]"),
        ({"items": [{"role": "user"}]}, "items[0].content"),
        ({"items": [{"role": "user", "content": 5}]}, "items[0].content"),
        ({"items": [{"type": "message", "content": "x"}]}, "items[0].role"),
        ({"items": [{"id": "Ada is ill", "role": "user", "content": "x"}]}, "items[0].id"),
        ({"items": [{"id": "m1", "role": "user", "content": "x"}] * 2}, "items[1].id"),
    ],
)
async def test_bad_input_names_its_field(
    pair: tuple[Gateway, Gateway], body: dict[str, Any], param: str
) -> None:
    async with pair[0].http() as client:
        answer = await client.post("/v1/conversations", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.covers("CHAIN-5", "STATE-4")
async def test_an_id_that_says_something_is_no_key_of_the_store(
    stack: Stack, pair: tuple[Gateway, Gateway]
) -> None:
    client = pair[0].client()
    talk = await client.conversations.create()
    word = marker()
    said = {"role": "user", "id": f"{word} is/ill", "content": "/echo hi"}
    assert (await create(pair[1], [said], conversation=talk.id, tools=())).status_code == 200
    first = (await client.conversations.items.list(talk.id, order="asc")).data[0]
    same = await client.conversations.items.retrieve(first.id or "", conversation_id=talk.id)
    assert same.id == first.id
    store = redis.Redis.from_url(stack.redis_url)
    names = list(store.scan_iter("*"))
    assert not [name for name in names if word.encode() in name + (store.dump(name) or b"")]
    store.close()


@pytest.mark.covers("CHAIN-5")
async def test_an_order_that_there_is_not_is_refused(
    gateway: Gateway, pair: tuple[Gateway, Gateway]
) -> None:
    talk = await pair[0].client().conversations.create()
    mine = (await create(gateway, "/echo hi", store=False, tools=())).json()["id"]
    for one, path in (
        (pair[1], f"/v1/conversations/{talk.id}/items"),
        (gateway, f"/v1/responses/{mine}/input_items"),
    ):
        async with one.http() as client:
            answer = await client.get(path, params={"order": "newest"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "order")


@pytest.mark.covers("CHAIN-5", "STATE-4")
async def test_a_tenant_that_keeps_nothing_has_no_conversations(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack, stateless=True, cache="off")) as gateway:
        with pytest.raises(openai.BadRequestError) as caught:
            await gateway.client().conversations.create()
        assert caught.value.code == "conversation_not_supported"


@pytest.mark.covers("CHAIN-5", "APPR-8")
async def test_what_is_known_of_a_conversation_counts_for_its_next_turn(stack: Stack) -> None:
    sections = tenancy(stack, stateless=True, limits={"chain_token_budget": 1})
    with stack.gateway(**sections) as gateway:
        talk = await gateway.client().conversations.create()
        first = await create(gateway, "hello", conversation=talk.id, tools=())
        assert first.status_code == 200
        second = await create(gateway, "hello", conversation=talk.id, tools=())
        assert second.json()["error"]["code"] == "chain_budget_exceeded"
