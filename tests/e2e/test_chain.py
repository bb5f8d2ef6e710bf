"""Chains: whose they are, where they stay, and what they carry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from gateway.emulator import EmulatorSettings, create_emulator
from gateway.emulator.serve import serving
from tests.support.approvals import create, decide, issue, marker, settled
from tests.support.provider import Call, message, provider, response
from tests.support.stack import CANARY, UPSTREAM_KEY, Gateway, Stack, upstream_entry

UNKNOWN = "resp_" + "0" * 48
MODEL = "gpt-4.1"

DOORS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/responses", {"model": MODEL, "input": "x", "previous_response_id": "ID"}),
    (
        "POST",
        "/v1/responses",
        {"model": MODEL, "input": "x", "previous_response_id": "ID", "stream": True},
    ),
    (
        "POST",
        "/v1/responses",
        {"model": MODEL, "input": "x", "previous_response_id": "ID", "store": False},
    ),
    ("POST", "/v1/responses/input_tokens", {"model": MODEL, "previous_response_id": "ID"}),
    ("POST", "/v1/responses/compact", {"model": MODEL, "previous_response_id": "ID"}),
    ("GET", "/v1/responses/ID", None),
    ("GET", "/v1/responses/ID?stream=true", None),
    ("GET", "/v1/responses/ID?stream=true&starting_after=3", None),
    ("GET", "/v1/responses/ID/input_items", None),
    ("POST", "/v1/responses/ID/cancel", None),
    ("DELETE", "/v1/responses/ID", None),
]


async def knock(
    client: httpx2.AsyncClient, door: tuple[str, str, dict[str, Any] | None], id_: str
) -> httpx2.Response:
    method, path, body = door
    content = json.dumps(body).replace("ID", id_).encode() if body is not None else None
    return await client.request(method, path.replace("ID", id_), content=content)


def looks(answer: httpx2.Response, id_: str) -> tuple[int, dict[str, str], bytes]:
    """All that a caller can tell two answers apart by."""
    own = ("date", "gateway-request-id")
    headers = {name: value for name, value in answer.headers.items() if name not in own}
    return answer.status_code, headers, answer.content.replace(id_.encode(), b"ID")


@pytest.mark.covers("CHAIN-1", "AUTH-2")
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
async def test_a_foreign_response_reads_like_an_unknown_one(
    gateway: Gateway, stack: Stack, store: bool, door: tuple[str, str, dict[str, Any] | None]
) -> None:
    made = await gateway.client().responses.create(model=MODEL, input="hello", store=store)
    await stack.forget()
    async with gateway.http("other") as client:
        foreign = looks(await knock(client, door, made.id), made.id)
        unknown = looks(await knock(client, door, UNKNOWN), UNKNOWN)
    assert foreign == unknown
    assert foreign[0] == 404
    code = json.loads(foreign[2])["error"]["code"]
    assert code == ("previous_response_not_found" if door[2] else "response_not_found")
    assert await stack.requests() == []
    assert (await gateway.client().responses.retrieve(made.id)).id == made.id


@pytest.mark.covers("CHAIN-1")
@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[1]}")
async def test_another_end_user_is_a_stranger_too(
    gateway: Gateway, stack: Stack, door: tuple[str, str, dict[str, Any] | None]
) -> None:
    client = gateway.client(default_headers={"Gateway-End-User": "ann"})
    made = await client.responses.create(model=MODEL, input="hello", store=False)
    await stack.forget()
    async with gateway.http() as http:
        for headers in ({"gateway-end-user": "bob"}, {}):
            http.headers.update(headers)
            foreign = looks(await knock(http, door, made.id), made.id)
            unknown = looks(await knock(http, door, UNKNOWN), UNKNOWN)
            assert foreign == unknown
            assert foreign[0] == 404
            http.headers.pop("gateway-end-user", None)
    assert await stack.requests() == []
    assert (await client.responses.retrieve(made.id)).id == made.id


@pytest.mark.covers("CHAIN-1")
@pytest.mark.parametrize("field", ["safety_identifier", "user"])
async def test_the_end_user_may_be_named_in_the_body_and_the_header_wins(
    gateway: Gateway, field: str
) -> None:
    client = gateway.client()
    made = await client.responses.create(
        model=MODEL, input="/echo plum", store=False, extra_body={field: "ann"}
    )

    async def go_on(**more: Any) -> str:
        said = await client.responses.create(
            model=MODEL, input="/recall", store=False, previous_response_id=made.id, **more
        )
        return str(said.output_text)

    assert "plum" in await go_on(extra_body={field: "ann"})
    assert "plum" in await go_on(
        extra_body={field: "bob"}, extra_headers={"Gateway-End-User": "ann"}
    )
    for more in (
        {},
        {"extra_body": {field: "bob"}},
        {"extra_body": {field: "ann"}, "extra_headers": {"Gateway-End-User": "bob"}},
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await go_on(**more)
        assert caught.value.code == "previous_response_not_found"


@pytest.mark.covers("CHAIN-1", "AUTH-2")
async def test_the_approvals_of_a_foreign_response_read_like_those_of_an_unknown_one(
    gateway: Gateway,
) -> None:
    made = await gateway.client().responses.create(model=MODEL, input="hello")
    door = ("GET", "/v1/responses/ID/approvals", None)
    async with gateway.http("other") as client:
        foreign = looks(await knock(client, door, made.id), made.id)
        assert foreign == looks(await knock(client, door, UNKNOWN), UNKNOWN)


@pytest.mark.covers("CHAIN-1", "CHAIN-5", "AUTH-2")
async def test_a_foreign_conversation_reads_like_an_unknown_one(
    gateway: Gateway, stack: Stack
) -> None:
    talk = await gateway.client().conversations.create()
    unknown = "conv_" + "0" * (len(talk.id) - 5)
    doors: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "/v1/responses", {"model": MODEL, "input": "x", "conversation": "ID"}),
        ("POST", "/v1/responses", {"model": MODEL, "input": "x", "conversation": {"id": "ID"}}),
        ("GET", "/v1/conversations/ID", None),
        ("POST", "/v1/conversations/ID", {"metadata": {}}),
        ("DELETE", "/v1/conversations/ID", None),
        ("GET", "/v1/conversations/ID/items", None),
        ("POST", "/v1/conversations/ID/items", {"items": []}),
        ("GET", "/v1/conversations/ID/items/msg_1", None),
        ("DELETE", "/v1/conversations/ID/items/msg_1", None),
    ]
    await stack.forget()
    async with gateway.http("other") as client:
        for door in doors:
            foreign = looks(await knock(client, door, talk.id), talk.id)
            assert foreign == looks(await knock(client, door, unknown), unknown)
            assert foreign[0] == 404
    assert await stack.requests() == []


@pytest.mark.covers("CHAIN-1")
async def test_a_conversation_is_no_response_and_a_response_no_conversation(
    gateway: Gateway,
) -> None:
    client = gateway.client()
    talk = await client.conversations.create()
    made = await client.responses.create(model=MODEL, input="hello")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(talk.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model=MODEL, input="x", previous_response_id=talk.id)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model=MODEL, input="x", conversation=made.id)


@pytest.mark.covers("CHAIN-1")
@pytest.mark.parametrize(
    "id_", ["", "../models", "a" * 5000, "\ud800", "{gw}:turn:x", "résp\u0000"]
)
async def test_a_strange_id_is_only_unknown(gateway: Gateway, stack: Stack, id_: str) -> None:
    await stack.forget()
    body = json.dumps({"model": MODEL, "input": "x", "previous_response_id": id_})
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", content=body.encode())
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["code"] in ("previous_response_not_found", "invalid_json")
    assert await stack.requests() == []


@dataclass
class Pair:
    """Two gateways, as two replicas, over two upstreams that cannot read each other's state."""

    one: Gateway
    two: Gateway
    urls: dict[str, str]

    async def asked(self, name: str) -> list[dict[str, Any]]:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(self.urls[name] + "/_emulator/requests")
            return list(answer.json())


@pytest.fixture(scope="module")
def pair(stack: Stack) -> Iterator[Pair]:
    with ExitStack() as running:
        urls = {
            name: running.enter_context(
                serving(
                    create_emulator(
                        EmulatorSettings(resource=name, api_keys=frozenset({UPSTREAM_KEY}))
                    )
                )
            )
            for name in ("east", "west")
        }
        upstreams = [upstream_entry(url + "/v1/", name=name) for name, url in urls.items()]
        east, west = ({"upstream": name, "deployment": "gpt-4.1"} for name in ("east", "west"))
        models = [
            {"name": "east-first", "routes": [east, west]},
            {"name": "west-first", "routes": [west, east]},
            {"name": "west-only", "routes": [west]},
        ]
        one = running.enter_context(stack.gateway(upstreams=upstreams, models=models))
        two = running.enter_context(stack.gateway(upstreams=upstreams, models=models))
        yield Pair(one, two, urls)


@pytest.mark.covers("CHAIN-2")
@pytest.mark.parametrize("store", [True, False])
async def test_a_chain_stays_with_the_upstream_that_began_it(pair: Pair, store: bool) -> None:
    client = pair.one.client()
    first = await client.responses.create(
        model="east-first", input="/think\n/echo plum", store=store
    )
    before = len(await pair.asked("west"))
    second = await client.responses.create(
        model="west-first", input="/recall", store=store, previous_response_id=first.id
    )
    assert "plum" in second.output_text
    assert len(await pair.asked("west")) == before
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(
            model="west-only", input="x", store=store, previous_response_id=second.id
        )
    assert caught.value.code == "model_not_in_chain"
    assert len(await pair.asked("west")) == before


@pytest.mark.covers("STATE-4", "APPR-2")
async def test_every_leg_of_a_turn_is_deleted_upstream(stack: Stack, gateway: Gateway) -> None:
    before = len(await stack.requests())
    one, two = marker(), marker()
    held = await create(gateway, f"{issue(one)}\n/echo so far\n{issue(two)}")
    for word in (one, two):
        await decide(gateway, word)
    done = await settled(gateway, held.json()["id"])
    assert done["status"] == "completed"
    asked = (await stack.requests())[before:]
    legs = {call["body"]["previous_response_id"] for call in asked if one not in str(call["body"])}
    assert len(legs) == 2
    async with gateway.http() as client:
        assert (await client.delete(f"/v1/responses/{done['id']}")).status_code == 200
    key = {"authorization": f"Bearer {UPSTREAM_KEY}"}
    async with httpx2.AsyncClient(trust_env=False, headers=key) as upstream:
        for leg in legs:
            left = await upstream.get(f"{stack.emulator_url}/v1/responses/{leg}")
            assert left.status_code == 404


@pytest.mark.covers("CHAIN-2")
async def test_what_is_stored_is_read_where_it_is_stored(pair: Pair) -> None:
    client = pair.one.client()
    made = await client.responses.create(model="west-first", input="/echo west")
    assert (await client.responses.retrieve(made.id)).output_text == "west"
    assert (await client.responses.input_items.list(made.id)).data
    await client.responses.delete(made.id)


@pytest.mark.covers("CHAIN-4", "OPS-2")
@pytest.mark.parametrize("store", [True, False])
async def test_the_next_turn_may_go_to_another_replica_when_the_last_event_is_there(
    pair: Pair, store: bool
) -> None:
    replicas = [pair.one.client(), pair.two.client()]
    previous: str | None = None
    for turn in range(6):
        stream = await replicas[turn % 2].responses.create(
            model="east-first",
            input=f"/echo word {turn}",
            store=store,
            stream=True,
            previous_response_id=previous or openai.omit,
        )
        async for event in stream:
            if event.type == "response.completed":
                previous = event.response.id
                break  # at once: whatever the first replica has left to do, it is too late
        await stream.close()
    said = await replicas[0].responses.create(
        model="east-first", input="/recall", store=store, previous_response_id=previous
    )
    assert "word 0" in said.output_text
    assert "word 5" in said.output_text


@pytest.mark.covers("CHAIN-4")
@pytest.mark.parametrize(("before", "after"), [(True, True), (False, False), (True, False)])
async def test_two_turns_go_on_from_one_parent(gateway: Gateway, before: bool, after: bool) -> None:
    client = gateway.client()
    parent = await client.responses.create(model=MODEL, input="/echo root", store=before)
    branches = [
        await client.responses.create(
            model=MODEL, input=f"/echo {name}", store=after, previous_response_id=parent.id
        )
        for name in ("left", "right")
    ]
    for branch, own, other in zip(branches, ("left", "right"), ("right", "left"), strict=True):
        said = await client.responses.create(
            model=MODEL, input="/recall", store=after, previous_response_id=branch.id
        )
        assert "root" in said.output_text
        assert own in said.output_text
        assert other not in said.output_text


@pytest.mark.covers("CHAIN-3")
@pytest.mark.parametrize("store", [True, False])
async def test_instructions_and_tools_are_not_carried_by_a_chain(
    gateway: Gateway, stack: Stack, store: bool
) -> None:
    client = gateway.client()
    first = await client.responses.create(
        model=MODEL,
        input="/echo one",
        store=store,
        instructions="Speak like a pirate.",
        tools=[{"type": "mcp", "server_label": "github"}],
    )
    await stack.forget()
    await client.responses.create(
        model=MODEL, input="/echo two", store=store, previous_response_id=first.id
    )
    (sent,) = await stack.requests()
    assert "instructions" not in sent["body"]
    assert "tools" not in sent["body"]
    await client.responses.create(
        model=MODEL,
        input="/echo three",
        store=store,
        previous_response_id=first.id,
        tools=[{"type": "mcp", "server_label": "github"}],
    )
    (tool,) = (await stack.requests())[-1]["body"]["tools"]
    assert CANARY in json.dumps(tool["headers"])


@pytest.mark.covers("CHAIN-1")
async def test_a_chain_and_a_conversation_exclude_each_other(
    gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    async with gateway.http() as client:
        answer = await client.post(
            "/v1/responses",
            json={
                "model": MODEL,
                "input": "x",
                "previous_response_id": "resp_1",
                "conversation": "conv_1",
            },
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "mutually_exclusive_parameters"
    assert await stack.requests() == []


@pytest.mark.covers("CHAIN-4")
async def test_the_last_event_is_held_until_the_turn_is_on_record(stack: Stack) -> None:
    """The upstream never ends its stream: the turn ends by its last event all the same."""

    async def answer(call: Call) -> None:
        if not call.json.get("stream"):
            done = response("resp_2", output=[message("two", "msg_2")])
            await call.document(json.dumps(done).encode())
            return
        await call.head()
        done = response("resp_1", output=[message("one")])
        event = {"type": "response.completed", "sequence_number": 0, "response": done}
        await call.send(b"event: response.completed\ndata: " + json.dumps(event).encode() + b"\n\n")
        await call.left.wait()

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            client = gateway.client()
            stream = await client.responses.create(model="m", input="a", stream=True, store=False)
            assert [event.type async for event in stream] == ["response.completed"]
            await client.responses.create(
                model="m", input="b", store=False, previous_response_id="resp_1"
            )
        texts = [item.get("content") for item in upstream.calls[1].json["input"]]
    assert texts == ["a", message("one")["content"], "b"]


@pytest.mark.covers("CHAIN-2")
@pytest.mark.parametrize("store", [True, False])
async def test_a_chain_whose_upstream_is_gone_is_refused_with_a_reason(
    gateway: Gateway, stack: Stack, store: bool
) -> None:
    made = await gateway.client().responses.create(model=MODEL, input="x", store=store)
    entry = upstream_entry(stack.emulator_url + "/v1/", name="another")
    with stack.gateway(upstreams=[entry]) as other:
        async with other.http() as client:
            for stream in (True, False):
                body = {"model": MODEL, "input": "x", "store": store, "stream": stream}
                answer = await client.post(
                    "/v1/responses", json=body | {"previous_response_id": made.id}
                )
                assert 400 <= answer.status_code < 600
                assert answer.json()["error"]["code"] == "upstream_gone"
            if store:
                answer = await client.get(f"/v1/responses/{made.id}")
                assert answer.json()["error"]["code"] == "upstream_gone"
