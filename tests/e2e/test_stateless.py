"""Stateless turns: the upstream keeps nothing, the gateway keeps the chain, encrypted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
import redis

from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.emulator import EmulatorSettings, create_emulator
from gateway.emulator.serve import serving
from tests.support.approvals import decide, issue, marker, tenancy
from tests.support.events import read_events
from tests.support.provider import Call, frame, message, provider, response
from tests.support.stack import UPSTREAM_KEY, Gateway, Stack, upstream_entry

MODEL = "gpt-4.1"
THINK = "/think about plums\n/echo plum"
ENCRYPTED: Any = ["reasoning.encrypted_content"]
FUNCTION: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}


def of_type(items: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in items if item.get("type") == kind]


async def bodies(stack: Stack) -> list[dict[str, Any]]:
    return [request["body"] for request in await stack.requests()]


@pytest.fixture(scope="module")
def strict(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose tenants are stateless; one of them keeps nothing at all."""
    tenants = [
        {"id": "acme", "stateless": True},
        {"id": "rival", "stateless": True, "cache": "off"},
    ]
    with stack.gateway(tenants=tenants) as running:
        yield running


@pytest.mark.covers("STATE-1")
async def test_the_upstream_is_never_asked_to_store_or_to_remember(
    gateway: Gateway, stack: Stack
) -> None:
    client = gateway.client()
    await stack.forget()
    first = await client.responses.create(model=MODEL, input=THINK, store=False)
    second = await client.responses.create(
        model=MODEL, input="/recall", store=False, previous_response_id=first.id
    )
    assert "plum" in second.output_text
    assert second.previous_response_id == first.id
    for body in await bodies(stack):
        assert body["store"] is False
        assert "reasoning.encrypted_content" in body["include"]
        assert "previous_response_id" not in body


@pytest.mark.covers("STATE-1")
@pytest.mark.parametrize("said", [{}, {"store": True}, {"store": None}, {"store": False}])
async def test_a_stateless_tenant_is_stateless_whatever_the_request_says(
    strict: Gateway, stack: Stack, said: dict[str, Any]
) -> None:
    await stack.forget()
    async with strict.http() as client:
        body = {"model": MODEL, "input": "hello", "include": ["message.output_text.logprobs"]}
        made = (await client.post("/v1/responses", json=body | said)).json()
    assert made["status"] == "completed"
    (sent,) = await bodies(stack)
    assert sent["store"] is False
    assert sent["include"] == ["message.output_text.logprobs", *ENCRYPTED]


@asynccontextmanager
async def sealed(stack: Stack, **changes: Any) -> AsyncIterator[tuple[Gateway, list[Call]]]:
    """An upstream that seals one item three times, as OpenAI does: each event has its own."""

    def item(stage: str) -> dict[str, Any]:
        return {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": stage}

    async def answer(call: Call) -> None:
        output = [item("in-completed"), message("plum")]
        if not call.json.get("stream"):
            await call.document(json.dumps(response("resp_json", output=output)).encode())
            return
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": response(status="in_progress")},
            {"type": "response.output_item.added", "output_index": 0, "item": item("in-added")},
            {"type": "response.output_item.done", "output_index": 0, "item": item("in-done")},
            {"type": "response.output_item.done", "output_index": 1, "item": message("plum")},
            {"type": "response.completed", "response": response(output=output)},
        ]
        await call.stream(
            frame(event.pop("type"), **event, sequence_number=number)
            for number, event in enumerate(events)
        )

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], **changes) as gateway:
            yield gateway, upstream.calls


@pytest.mark.covers("STATE-2")
@pytest.mark.parametrize("asked", [True, False])
async def test_the_ciphertext_of_output_item_done_is_replayed_byte_for_byte(
    stack: Stack, asked: bool
) -> None:
    async with sealed(stack) as (gateway, calls), gateway.http() as client:
        body: dict[str, Any] = {"model": "m", "input": "a", "stream": True, "store": False}
        streamed = await client.post(
            "/v1/responses", json=body | ({"include": ENCRYPTED} if asked else {})
        )
        await client.post(
            "/v1/responses", json={**body, "input": "b", "previous_response_id": "resp_1"}
        )
        replayed = calls[1].json["input"]
    assert replayed == [
        {"type": "message", "role": "user", "content": "a"},
        {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "in-done"},
        message("plum"),
        {"type": "message", "role": "user", "content": "b"},
    ]
    events = read_events(streamed.content)
    reasoning = [event["item"] for event in events if "item" in event][:2]
    reasoning += events[-1]["response"]["output"][:1]
    seen = [item.get("encrypted_content") for item in reasoning]
    assert seen == (["in-added", "in-done", "in-completed"] if asked else [None, None, None])
    assert all(item["summary"] == [] for item in reasoning)


@pytest.mark.covers("STATE-2", "STATE-7")
@pytest.mark.parametrize("asked", [True, False])
async def test_ciphertext_is_shown_to_who_asked_for_it_only(stack: Stack, asked: bool) -> None:
    async with sealed(stack) as (gateway, _), gateway.http() as client:
        body = {"model": "m", "input": "a", "store": False}
        made = await client.post(
            "/v1/responses", json=body | ({"include": ENCRYPTED} if asked else {})
        )
        found = await client.get("/v1/responses/resp_json")
        listed = await client.get("/v1/responses/resp_json/input_items")
    assert ("in-completed" in made.text) is asked
    assert ("in-completed" in found.text) is asked
    assert "in-completed" not in listed.text
    assert made.json()["output"][0]["summary"] == []


@pytest.mark.covers("STATE-2")
async def test_reasoning_calls_and_outputs_of_a_tool_loop_go_back_in_order(
    gateway: Gateway, stack: Stack
) -> None:
    client = gateway.client()
    first = await client.responses.create(
        model=MODEL,
        input='/think about rain\n/function get_weather {"city": "Rome"}\n/echo dry',
        store=False,
        tools=[FUNCTION],
    )
    assert [item.type for item in first.output][:2] == ["reasoning", "function_call"]
    call: Any = first.output[1]
    await stack.forget()
    second = await client.responses.create(
        model=MODEL,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sun"}],
        store=False,
        tools=[FUNCTION],
        previous_response_id=first.id,
    )
    assert second.status == "completed"
    (body,) = await bodies(stack)
    kinds = [item["type"] for item in body["input"]]
    assert kinds == ["message", "reasoning", "function_call", "function_call_output"]
    assert [item.get("id") for item in body["input"][1:3]] == [item.id for item in first.output]
    assert body["input"][1]["encrypted_content"]


@pytest.mark.covers("STATE-1", "STATE-2")
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
async def test_a_chain_may_change_between_stored_and_stateless(
    gateway: Gateway, stack: Stack, before: bool, after: bool
) -> None:
    client = gateway.client()
    first = await client.responses.create(
        model=MODEL, input="/echo plum", store=before, include=ENCRYPTED
    )
    second = await client.responses.create(
        model=MODEL, input="/echo pear", store=after, previous_response_id=first.id
    )
    await stack.forget()
    third = await client.responses.create(
        model=MODEL, input="/recall", store=before, previous_response_id=second.id
    )
    assert "plum" in third.output_text
    assert "pear" in third.output_text


@pytest.mark.covers("STATE-1")
async def test_items_may_be_named_by_reference(gateway: Gateway, stack: Stack) -> None:
    client = gateway.client()
    first = await client.responses.create(model=MODEL, input=THINK, store=False)
    said = first.output[-1]
    await stack.forget()
    second = await client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "what was it?"},
            {"type": "item_reference", "id": said.id or ""},
            {"role": "user", "content": "/recall"},
        ],
        store=False,
    )
    assert second.status == "completed"
    (body,) = await bodies(stack)
    assert body["input"][2]["content"][0]["text"] == "plum"
    kinds = [item.get("type", "message") for item in body["input"]]
    assert kinds == ["message", "reasoning", "message", "message"]
    assert body["input"][1]["encrypted_content"]


@pytest.mark.covers("STATE-1", "AUTH-2")
async def test_a_foreign_item_reads_like_an_unknown_one(gateway: Gateway, stack: Stack) -> None:
    made = await gateway.client().responses.create(model=MODEL, input="/echo plum", store=False)
    known = made.output[0].id or ""
    unknown = "msg_" + "0" * (len(known) - 4)
    await stack.forget()
    answers = []
    async with gateway.http("other") as client:
        for id_ in (known, unknown):
            body = {
                "model": MODEL,
                "store": False,
                "input": [{"type": "item_reference", "id": id_}],
            }
            answer = await client.post("/v1/responses", json=body)
            answers.append((answer.status_code, answer.text.replace(id_, "ID")))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404
    assert json.loads(answers[0][1])["error"]["param"] == "input[0]"
    assert await bodies(stack) == []


@pytest.mark.covers("STATE-1")
async def test_a_caller_may_send_the_whole_list_itself(gateway: Gateway, stack: Stack) -> None:
    client = gateway.client()
    question: Any = {"role": "user", "content": THINK}
    first = await client.responses.create(
        model=MODEL, input=[question], store=False, include=ENCRYPTED
    )
    items: list[Any] = [question, *(item.model_dump(exclude_none=True) for item in first.output)]
    await stack.forget()
    for previous in (openai.omit, first.id):
        second = await client.responses.create(
            model=MODEL,
            input=[*items, {"role": "user", "content": "/recall"}],
            store=False,
            previous_response_id=previous,
        )
        assert "plum" in second.output_text
    for body in await bodies(stack):
        ids = [item["id"] for item in body["input"] if "id" in item]
        assert ids == [item.id for item in first.output]  # none twice


@pytest.fixture
def own_valkey(stack: Stack) -> Iterator[tuple[EmbeddedValkey, Gateway]]:
    """A gateway with a Valkey that holds nothing else."""
    tenants = [{"id": "acme", "ttl": "90s"}, {"id": "rival", "stateless": True, "cache": "off"}]
    with EmbeddedValkey() as valkey:
        section = stack.redis(valkey.url)
        with stack.gateway(redis=section, tenants=tenants) as gateway:
            yield valkey, gateway


def everything(valkey: EmbeddedValkey) -> dict[bytes, bytes]:
    """Every key of the store with its value as the server dumps it."""
    with redis.Redis.from_url(valkey.url) as client:
        keys = [key for key in client.scan_iter(count=1000) if key != b"gw:probe"]
        return {key: bytes(client.dump(key) or b"") for key in keys}


def of_turns(valkey: EmbeddedValkey) -> list[bytes]:
    return [key for key in everything(valkey) if b":turn:" in key or b":item:" in key]


@pytest.mark.covers("STATE-4")
async def test_the_store_holds_nothing_that_can_be_read(
    own_valkey: tuple[EmbeddedValkey, Gateway],
) -> None:
    valkey, gateway = own_valkey
    client = gateway.client(default_headers={"Gateway-End-User": "secret-user-77"})
    for store in (True, False):
        made = await client.responses.create(
            model=MODEL,
            input="/think secret-thought-55\n/echo secret-word-66",
            store=store,
            include=[] if store else ENCRYPTED,
            metadata={"k": "secret-meta-88"},
        )
        assert "secret-word-66" in made.output_text
    found = everything(valkey)
    assert found
    with redis.Redis.from_url(valkey.url) as admin:
        for key in found:
            if admin.type(key) == b"hash":
                found[key] += b"".join(admin.hgetall(key).values())
            if admin.type(key) == b"stream":
                found[key] += repr(admin.xrange(key)).encode()
    dump = b"".join(key + value for key, value in found.items())
    for word in (b"secret", b"plum", b"encrypted_content", b"reasoning", MODEL.encode()):
        assert word not in dump


@pytest.mark.covers("STATE-4")
async def test_a_deleted_response_is_gone_at_once_with_its_items(
    own_valkey: tuple[EmbeddedValkey, Gateway], stack: Stack
) -> None:
    valkey, gateway = own_valkey
    client = gateway.client()
    made = await client.responses.create(model=MODEL, input=THINK, store=False)
    assert of_turns(valkey)
    await stack.forget()
    await client.responses.delete(made.id)
    assert of_turns(valkey) == []
    assert await bodies(stack) == []  # the upstream has nothing to delete
    for call in (
        client.responses.retrieve(made.id),
        client.responses.delete(made.id),
        client.responses.create(model=MODEL, input="x", store=False, previous_response_id=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call


@pytest.mark.covers("STATE-4")
async def test_what_is_kept_ends_with_the_tenants_time(
    own_valkey: tuple[EmbeddedValkey, Gateway],
) -> None:
    valkey, gateway = own_valkey
    await gateway.client().responses.create(model=MODEL, input=THINK, store=False)
    with redis.Redis.from_url(valkey.url) as admin:
        times = [admin.pttl(key) for key in of_turns(valkey)]
    assert times
    assert all(0 < int(time) <= 90_000 for time in times)


@pytest.mark.covers("STATE-4")
@pytest.mark.parametrize("streamed", [True, False])
async def test_without_cache_nothing_of_a_turn_is_kept(
    own_valkey: tuple[EmbeddedValkey, Gateway], stack: Stack, streamed: bool
) -> None:
    valkey, gateway = own_valkey
    body = {"model": MODEL, "input": "/echo plum", "stream": streamed}
    async with gateway.http("other") as client:
        made = await client.post("/v1/responses", json=body)
        assert made.status_code == 200
        id_ = read_events(made.content)[0]["response"]["id"] if streamed else made.json()["id"]
        assert of_turns(valkey) == []
        assert (await client.get(f"/v1/responses/{id_}")).status_code == 404
        chained = await client.post("/v1/responses", json=body | {"previous_response_id": id_})
        assert chained.status_code == 404
        whole = [
            {"role": "user", "content": "the word is plum"},
            {"role": "user", "content": "/recall"},
        ]
        recalled = await client.post("/v1/responses", json=body | {"input": whole})
    assert "plum" in recalled.text


@pytest.mark.covers("STATE-7")
async def test_a_stateless_response_can_be_retrieved_and_listed(
    gateway: Gateway, stack: Stack
) -> None:
    client = gateway.client()
    first = await client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "one"}], store=False
    )
    second = await client.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": f"text {n}"} for n in range(3)],
        store=False,
        previous_response_id=first.id,
    )
    await stack.forget()
    found = await client.responses.retrieve(second.id)
    assert found.model_dump() == second.model_dump()
    assert found.previous_response_id == first.id
    pages = client.responses.input_items.list(second.id, limit=2, order="asc")
    listed = [item async for item in pages]
    assert [item.content for item in listed] == [f"text {n}" for n in range(3)]  # type: ignore[union-attr]
    assert len({item.id for item in listed}) == 3
    assert await bodies(stack) == []


@pytest.mark.covers("STATE-7", "API-5")
async def test_bad_pages_of_input_items_are_refused(gateway: Gateway) -> None:
    made = await gateway.client().responses.create(model=MODEL, input="x", store=False)
    async with gateway.http() as client:
        for query, status, param in (
            ({"limit": "0"}, 400, "limit"),
            ({"limit": "x"}, 400, "limit"),
            ({"after": "msg_unknown"}, 404, "after"),
        ):
            answer = await client.get(f"/v1/responses/{made.id}/input_items", params=query)
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@asynccontextmanager
async def moved(stack: Stack, **upstream: Any) -> AsyncIterator[tuple[Gateway, Gateway, str]]:
    """Two gateways over one store; the second's upstream cannot open the first's reasoning."""
    with ExitStack() as running:
        gateways = []
        url = ""
        for resource in ("old", "new"):
            settings = EmulatorSettings(resource=resource, api_keys=frozenset({UPSTREAM_KEY}))
            url = running.enter_context(serving(create_emulator(settings)))
            entry = upstream_entry(url + "/v1/", **upstream)
            gateways.append(running.enter_context(stack.gateway(upstreams=[entry])))
        yield gateways[0], gateways[1], url


async def seen_by(url: str) -> list[dict[str, Any]]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return [one["body"] for one in (await client.get(url + "/_emulator/requests")).json()]


@pytest.mark.covers("STATE-5")
@pytest.mark.parametrize("streamed", [True, False])
async def test_refused_reasoning_is_taken_out_once_and_the_turn_goes_on(
    stack: Stack, streamed: bool
) -> None:
    async with moved(stack) as (old, new, url):
        first = await old.client().responses.create(model=MODEL, input=THINK, store=False)
        async with new.http() as client:
            body = {"model": MODEL, "input": "/recall", "store": False, "stream": streamed}
            answer = await client.post(
                "/v1/responses", json=body | {"previous_response_id": first.id}
            )
            metrics = (await client.get("/metrics")).text
        assert answer.status_code == 200
        assert "plum" in answer.text
        refused, mended = await seen_by(url)
    assert len(of_type(refused["input"], "reasoning")) == 1
    assert of_type(mended["input"], "reasoning") == []
    assert [item for item in refused["input"] if item["type"] != "reasoning"] == mended["input"]
    assert 'gateway_repairs_total{left_out="reasoning",upstream="emulator"} 1.0' in metrics


@pytest.mark.covers("STATE-5")
async def test_a_repair_may_be_switched_off(stack: Stack) -> None:
    async with moved(stack, repair="off") as (old, new, url):
        first = await old.client().responses.create(model=MODEL, input=THINK, store=False)
        with pytest.raises(openai.BadRequestError) as caught:
            await new.client().responses.create(
                model=MODEL, input="/recall", store=False, previous_response_id=first.id
            )
        assert caught.value.code == "invalid_encrypted_content"
        assert len(await seen_by(url)) == 1


@pytest.mark.covers("STATE-5")
async def test_a_repair_may_strip_the_ids_too(stack: Stack) -> None:
    async with moved(stack, repair="strip_ids") as (old, new, url):
        first = await old.client().responses.create(model=MODEL, input=THINK, store=False)
        await new.client().responses.create(
            model=MODEL, input="/recall", store=False, previous_response_id=first.id
        )
        mended = (await seen_by(url))[-1]["input"]
    assert all("id" not in item for item in mended)


@pytest.mark.covers("STATE-5")
async def test_a_second_refusal_is_told_to_the_caller(stack: Stack) -> None:
    error = {
        "message": "The encrypted content gAAA could not be verified.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }

    async def answer(call: Call) -> None:
        await call.document(json.dumps({"error": error}).encode(), status=400)

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                items = [
                    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
                ]
                refused = await client.post(
                    "/v1/responses", json={"model": "m", "store": False, "input": items}
                )
        assert refused.status_code == 400
        assert refused.json()["error"] == error
        assert len(upstream.calls) == 2


@pytest.mark.covers("STATE-1", "API-1")
async def test_tokens_of_a_stateless_chain_are_counted_with_its_history(
    gateway: Gateway, stack: Stack
) -> None:
    client = gateway.client()
    first = await client.responses.create(model=MODEL, input="/echo plum", store=False)
    await stack.forget()
    await client.responses.input_tokens.count(
        model=MODEL, input="more", previous_response_id=first.id
    )
    await client.responses.compact(model=MODEL, input="more", previous_response_id=first.id)
    for body in await bodies(stack):
        assert [item["type"] for item in body["input"]] == ["message"] * 3
        assert "previous_response_id" not in body


@pytest.mark.covers("STATE-1", "CHAIN-4")
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chain_goes_on_where_the_upstream_says_that_it_stored_nothing(
    stack: Stack, streamed: bool
) -> None:
    """An organisation without data retention answers `store: false` to whoever did not ask."""
    settings = EmulatorSettings(api_keys=frozenset({UPSTREAM_KEY}), store=False)
    with serving(create_emulator(settings)) as url:
        entry = upstream_entry(url + "/v1/")
        with stack.gateway(upstreams=[entry]) as gateway:
            async with gateway.http() as client:
                body = {"model": MODEL, "input": "/echo plum", "stream": streamed}
                made = await client.post("/v1/responses", json=body)
                done = read_events(made.content)[-1]["response"] if streamed else made.json()
                assert done["store"] is False
                id_ = done["id"]
                said = await client.post(
                    "/v1/responses",
                    json={"model": MODEL, "input": "/recall", "previous_response_id": id_},
                )
                assert "plum" in said.text
                found = await client.get(f"/v1/responses/{id_}")
                assert found.json()["output"] == done["output"]
                assert (await client.delete(f"/v1/responses/{id_}")).status_code == 200


@pytest.mark.covers("STATE-1", "APPR-2")
@pytest.mark.parametrize("streamed", [True, False])
async def test_approvals_go_on_where_the_upstream_says_that_it_stored_nothing(
    stack: Stack, streamed: bool
) -> None:
    settings = EmulatorSettings(api_keys=frozenset({UPSTREAM_KEY}), store=False)
    with serving(create_emulator(settings)) as url:
        entry = upstream_entry(url + "/v1/")
        sections = tenancy(stack)
        with stack.gateway(**sections, upstreams=[entry]) as gateway:
            word = marker()
            for text in ('/call github.search_issues {"query": "x"}', issue(word)):
                asked = word in text
                decision = asyncio.ensure_future(decide(gateway, word)) if asked else None
                body = {
                    "model": MODEL,
                    "input": text,
                    "stream": streamed,
                    "tools": [{"type": "mcp", "server_label": "github"}],
                }
                async with gateway.http() as client:
                    made = await client.post(
                        "/v1/responses", json=body, headers={"Prefer": "wait=10"}
                    )
                done = read_events(made.content)[-1]["response"] if streamed else made.json()
                assert done["status"] == "completed"
                assert [item["type"] for item in done["output"]][-2:] == ["mcp_call", "message"]
                if decision is not None:
                    await decision
