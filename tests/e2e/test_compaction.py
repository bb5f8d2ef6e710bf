"""Long stateless chains are compacted by the upstream, and everybody may go on from them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import httpx2
import openai
import pytest
import redis

from tests.console.conftest import Browser
from tests.support.approvals import (
    create,
    decide,
    executed,
    issue,
    marker,
    retrieved,
    settled,
    tenancy,
)
from tests.support.events import read_events
from tests.support.provider import Call, frame, message, provider, response
from tests.support.sockets import talk
from tests.support.stack import Gateway, Stack

MODEL = "gpt-4.1"
THRESHOLD = 1000
LONG: dict[str, Any] = {"role": "developer", "content": "mind the plums " * 400}
"""An item that brings its chain over the threshold, and that a compaction makes small."""

FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose tenant is stateless and has its chains compacted."""
    own = tenancy(stack, stateless=True, compact_at_tokens=THRESHOLD)
    with stack.gateway(**own) as running:
        yield running


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def turn(gateway: Gateway, input: Any, after: str | None = None, **body: Any) -> Any:
    """Make a turn and return its response."""
    tools = body.pop("tools", ())
    answer = await create(gateway, input, tools=tools, previous_response_id=after, **body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        return read_events(answer.content)[-1]["response"]
    return answer.json()


async def ended(gateway: Gateway, id_: str) -> Any:
    """Poll a background turn until it has ended."""
    with anyio.fail_after(30):
        while (found := await retrieved(gateway, id_, wait=5))["status"] in (
            "queued",
            "in_progress",
        ):
            pass
    return found


async def long_chain(gateway: Gateway, text: str = "/echo plum", **body: Any) -> str:
    """Begin a chain that is over the threshold."""
    made = await turn(gateway, [LONG, said(text)], **body)
    assert made["usage"]["total_tokens"] >= THRESHOLD
    return str(made["id"])


async def asked(stack: Stack) -> list[tuple[str, Any]]:
    """What the upstream was asked since it was last told to forget: path's end and body."""
    return [(one["path"].rpartition("/")[2], one["body"]) for one in await stack.requests()]


def types(items: list[dict[str, Any]]) -> list[str]:
    return [item.get("type", "message") for item in items]


def compactions(body: Any) -> list[str]:
    return [item["id"] for item in body["input"] if item.get("type") == "compaction"]


def windows_of(stack: Stack, gateway: Gateway) -> list[bytes]:
    """The windows that are kept for the gateway's tenant."""
    tenant = gateway.settings.tenants[0].id
    with redis.Redis.from_url(stack.redis_url) as admin:
        return list(admin.scan_iter(f"gw:{{{tenant}}}:window:*", count=10_000))


async def metric(gateway: Gateway, line: str) -> float:
    async with gateway.http(None) as client:
        text = (await client.get("/metrics")).text
    found = [one for one in text.splitlines() if one.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.mark.covers("STATE-6", "STATE-2")
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chain_over_the_threshold_is_compacted_before_it_goes_on(
    gateway: Gateway, stack: Stack, streamed: bool
) -> None:
    first = await long_chain(gateway, "/think hard\n/echo plum")
    await stack.forget()
    second = await turn(
        gateway, "/recall", first, stream=streamed, instructions="be kind", temperature=1
    )
    (door, compaction), (_, sent) = await asked(stack)
    assert door == "compact"
    assert set(compaction) == {"model", "input", "instructions"}
    assert types(compaction["input"]) == ["message", "message", "reasoning", "message"]
    assert types(sent["input"]) == ["message", "compaction", "message"]
    assert '"/think hard\\n/echo plum"' in second["output"][0]["content"][0]["text"]
    assert second["previous_response_id"] == first
    # What follows goes on from the window; the caller sees nothing of it.
    third = await turn(gateway, "/recall", second["id"])
    *_, (door, sent) = await asked(stack)
    assert len(await asked(stack)) == 3
    assert door == "responses"
    assert types(sent["input"]) == ["message", "compaction", *["message"] * 3]
    assert '"/recall"' in third["output"][0]["content"][0]["text"]
    async with gateway.http() as client:
        listed = (await client.get(f"/v1/responses/{second['id']}/input_items")).json()
    assert types(listed["data"]) == ["message"]


@pytest.mark.covers("STATE-6")
async def test_a_short_chain_and_one_over_the_threshold_of_nobody_stay_whole(
    gateway: Gateway, stack: Stack
) -> None:
    first = await turn(gateway, "/echo plum")
    await stack.forget()
    await turn(gateway, "/recall", first["id"])
    await long_chain(gateway)
    assert {door for door, _ in await asked(stack)} == {"responses"}


@pytest.mark.covers("STATE-6", "CHAIN-4")
async def test_two_turns_that_branch_at_once_go_on_from_the_same_window(
    gateway: Gateway, stack: Stack
) -> None:
    first = await long_chain(gateway)
    await stack.forget()
    branches = await asyncio.gather(
        *(turn(gateway, f"/echo {name}", first) for name in ("left", "right"))
    )
    late = await turn(gateway, "/echo late", first)
    for one in (*branches, late):
        await turn(gateway, "/recall", one["id"])
    sent = [body for door, body in await asked(stack) if door == "responses"]
    assert len({id_ for body in sent for id_ in compactions(body)}) == 1
    assert [len(compactions(body)) for body in sent] == [1] * 6
    assert [door for door, _ in await asked(stack)].count("compact") <= 2
    recalled = {json.dumps(body["input"][2:]) for body in sent[3:]}
    assert len(recalled) == 3  # each branch has its own turns after the window


@pytest.mark.covers("STATE-6")
async def test_a_call_that_waits_for_its_output_is_not_compacted(
    gateway: Gateway, stack: Stack
) -> None:
    first = await turn(
        gateway,
        [LONG, said("/think\n/echo the weather"), said("what is the weather")],
        tools=[FUNCTION],
        tool_choice={"type": "function", "name": "get_weather"},
    )
    (call,) = [item for item in first["output"] if item["type"] == "function_call"]
    await stack.forget()
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
    second = await turn(gateway, [output], first["id"], tools=[FUNCTION])
    (_, compaction), (_, sent) = await asked(stack)
    assert "function_call" not in types(compaction["input"])
    where = types(sent["input"]).index("compaction")
    assert types(sent["input"])[where + 1 :][-2:] == ["function_call", "function_call_output"]
    assert second["status"] == "completed"
    await turn(gateway, "/recall", second["id"])


@pytest.mark.covers("STATE-6", "APPR-4")
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_held_turn_goes_on_from_the_window_that_it_began_with(
    gateway: Gateway, stack: Stack, streamed: bool
) -> None:
    word = marker()
    first = await long_chain(gateway)
    await stack.forget()
    tools = [{"type": "mcp", "server_label": "github"}]
    if streamed:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(decide, gateway, word)
            held = await turn(gateway, issue(word), first, tools=tools, stream=True)
    else:
        held = await turn(gateway, issue(word), first, tools=tools)
        await decide(gateway, word)
        held = await settled(gateway, held["id"])
    assert held["status"] == "completed", held
    doors, sent = zip(*await asked(stack), strict=True)
    assert doors == ("compact", "responses", "responses")
    assert compactions(sent[1]) == compactions(sent[2]) != []
    assert "mcp_approval_response" in types(sent[2]["input"])
    await turn(gateway, "/recall", held["id"])


@pytest.mark.covers("STATE-6", "APPR-1")
async def test_a_turn_that_answers_approvals_is_not_kept_waiting_by_a_compaction(
    stack: Stack,
) -> None:
    rules = [
        {
            "id": "theirs",
            "match": {"server": "github", "tool": "create_*"},
            "effect": "ask",
            "approval": {"by": "caller"},
        }
    ]
    own = tenancy(stack, stateless=True, compact_at_tokens=THRESHOLD)
    with stack.gateway(rules=rules, **own) as gateway:
        word = marker()
        tools = [{"type": "mcp", "server_label": "github"}]
        first = await turn(gateway, [LONG, said(issue(word))], tools=tools)
        (request,) = [one for one in first["output"] if one["type"] == "mcp_approval_request"]
        await stack.forget()
        answer = {
            "type": "mcp_approval_response",
            "approval_request_id": request["id"],
            "approve": True,
        }
        second = await turn(gateway, [answer], first["id"], tools=tools)
        assert [door for door, _ in await asked(stack)] == ["responses"]
        assert "mcp_call" in types(second["output"])
        await turn(gateway, "/recall", second["id"], tools=tools)
        doors, sent = zip(*await asked(stack), strict=True)
    assert doors == ("responses", "compact", "responses")
    assert "mcp_call" in types(sent[1]["input"])
    assert types(sent[2]["input"]) == ["message", "compaction", "message"]


@pytest.mark.covers("STATE-6", "APPR-6", "APPR-7")
@pytest.mark.parametrize("compacted", [True, False])
async def test_an_approval_that_was_used_is_not_used_again_once_it_is_compacted(
    gateway: Gateway, stack: Stack, compacted: bool
) -> None:
    """What a caller repeats of a chain is not added to it, whether the window holds it or not."""
    word = marker()
    tools = [{"type": "mcp", "server_label": "github"}]
    text = [LONG, said(issue(word))] if compacted else issue(word)
    held = await turn(gateway, text, tools=tools)
    await decide(gateway, word)
    first = await settled(gateway, held["id"])
    (request,) = [one for one in first["output"] if one["type"] == "mcp_approval_request"]
    (ran,) = [one for one in first["output"] if one["type"] == "mcp_call"]
    second = await turn(gateway, "/echo pear", first["id"], tools=tools)
    await stack.forget()
    yes = {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": True,
    }
    statuses: list[int] = []
    for repeated in ([request], [ran], [request, yes], [request, yes, ran]):
        answer = await create(
            gateway,
            [*repeated, said("/recall")],
            tools=tools,
            previous_response_id=second["id"],
        )
        statuses.append(answer.status_code)
    assert statuses == [200, 200, 400, 200]
    for _, body in await asked(stack):
        found = types(body["input"])
        assert found.count("mcp_call") <= (not compacted)
        assert found.count("mcp_approval_request") <= (not compacted)
        assert found.count("mcp_approval_response") <= (not compacted)
    assert await executed(stack, word) == []  # since the calls were forgotten


@pytest.mark.covers("STATE-6", "STREAM-3")
async def test_a_turn_in_background_compacts_in_background(gateway: Gateway, stack: Stack) -> None:
    first = await long_chain(gateway)
    await stack.forget()
    made = await turn(gateway, "/recall", first, background=True)
    assert made["status"] == "queued"
    made = await ended(gateway, made["id"])
    assert made["status"] == "completed"
    doors, sent = zip(*await asked(stack), strict=True)
    assert doors == ("compact", "responses")
    assert types(sent[1]["input"]) == ["message", "compaction", "message"]


@pytest.mark.covers("STATE-6", "API-6")
async def test_a_chain_on_a_websocket_is_compacted(gateway: Gateway, stack: Stack) -> None:
    first = await long_chain(gateway)
    await stack.forget()
    async with talk(gateway) as socket:
        await socket.turn("/recall", store=False, previous_response_id=first)
    doors, sent = zip(*await asked(stack), strict=True)
    assert doors == ("compact", "responses")
    assert types(sent[1]["input"]) == ["message", "compaction", "message"]


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_a_deleted_response_is_in_no_window_any_more(gateway: Gateway, stack: Stack) -> None:
    before = set(windows_of(stack, gateway))
    first = await long_chain(gateway)
    second = await turn(gateway, "/echo pear", first)
    (window,) = set(windows_of(stack, gateway)) - before
    third = await turn(gateway, "/recall", second["id"])
    with redis.Redis.from_url(stack.redis_url) as admin:
        dump = admin.get(window)
        assert isinstance(dump, bytes)
        assert b"plum" not in dump
    async with gateway.http() as client:
        # The newest one is in no window, and the chain goes on without it.
        await client.delete(f"/v1/responses/{third['id']}")
        assert window in windows_of(stack, gateway)
        await turn(gateway, "/recall", second["id"])
        await client.delete(f"/v1/responses/{first}")
        assert window not in windows_of(stack, gateway)
        gone = await create(gateway, "/recall", tools=(), previous_response_id=second["id"])
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "previous_response_not_found"


@pytest.mark.covers("STATE-6")
async def test_a_chain_whose_window_is_lost_is_compacted_anew(
    gateway: Gateway, stack: Stack
) -> None:
    before = set(windows_of(stack, gateway))
    first = await long_chain(gateway)
    second = await turn(gateway, "/echo pear", first)
    (window,) = set(windows_of(stack, gateway)) - before
    with redis.Redis.from_url(stack.redis_url) as admin:
        admin.delete(window)
    await stack.forget()
    await turn(gateway, "/recall", second["id"])
    (door, compaction), (_, sent) = await asked(stack)
    assert door == "compact"
    assert len(compaction["input"]) == 5
    assert types(sent["input"]) == [*["message"] * 2, "compaction", "message"]


@pytest.mark.covers("STATE-6")
async def test_another_model_goes_on_from_the_whole_chain(gateway: Gateway, stack: Stack) -> None:
    first = await long_chain(gateway)
    second = await turn(gateway, "/echo pear", first)
    await stack.forget()
    await turn(gateway, "/recall", second["id"], model="gpt-5")
    (door, compaction), (_, sent) = await asked(stack)
    assert (door, compaction["model"], sent["model"]) == ("compact", "gpt-5", "gpt-5")
    assert compaction["input"][0]["content"] == LONG["content"]
    assert len(compactions(sent)) == 1
    # The first model's window is still there for it.
    await turn(gateway, "/recall", second["id"])
    *_, (door, sent) = await asked(stack)
    assert (door, len(await asked(stack)), len(compactions(sent))) == ("responses", 3, 1)


@pytest.mark.covers("STATE-6", "API-3")
async def test_a_caller_that_compacts_itself_is_left_alone(gateway: Gateway, stack: Stack) -> None:
    first = await long_chain(gateway)
    await stack.forget()
    own = [{"type": "compaction", "compact_threshold": 200_000}]
    await turn(gateway, "/recall", first, context_management=own)
    ((door, body),) = await asked(stack)
    assert door == "responses"
    assert body["context_management"] == own
    assert LONG["content"] in json.dumps(body["input"])


@pytest.mark.covers("STATE-6", "STATE-1")
async def test_what_a_caller_had_compacted_is_the_input_of_its_next_turn(
    gateway: Gateway, stack: Stack
) -> None:
    client = gateway.client()
    first = await client.responses.create(model=MODEL, input="/echo plum")
    second = await client.responses.create(
        model=MODEL, input="/echo pear", previous_response_id=first.id
    )
    (answer,) = second.output
    referring: Any = [said("hi"), {"type": "item_reference", "id": answer.id}]
    await stack.forget()
    whole = await client.responses.compact(
        model=MODEL, input="and apples", previous_response_id=second.id
    )
    told = await client.responses.compact(model=MODEL, input=referring)
    (_, body), (_, referred) = await asked(stack)
    assert len(body["input"]) == 5
    assert referred["input"][1]["id"] == answer.id
    assert [item.type for item in whole.output] == ["message"] * 3 + ["compaction"]
    assert [item.type for item in told.output] == ["message", "compaction"]
    assert whole.usage.total_tokens > 0
    window: Any = [item.model_dump(exclude_none=True, warnings=False) for item in whole.output]
    window.append(said("/recall"))
    third = await client.responses.create(model=MODEL, input=window)
    assert '"/echo plum" | "/echo pear" | "and apples"' in third.output_text
    fourth = await client.responses.create(
        model=MODEL, input="/recall", previous_response_id=third.id
    )
    assert '"/echo plum" | "/echo pear" | "and apples" | "/recall"' in fourth.output_text
    with pytest.raises(openai.NotFoundError):  # its id names no response
        await client.responses.create(model=MODEL, input="x", previous_response_id=whole.id)


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_where_nothing_is_kept_nothing_is_compacted(stack: Stack) -> None:
    own = tenancy(stack, stateless=True, cache="off", compact_at_tokens=1)
    with stack.gateway(**own) as gateway:
        first = await turn(gateway, [LONG, said("/echo plum")])
        await stack.forget()
        await turn(gateway, [LONG, said("/echo plum"), *first["output"], said("/recall")])
        assert [door for door, _ in await asked(stack)] == ["responses"]
        assert windows_of(stack, gateway) == []


@pytest.mark.covers("STATE-6")
async def test_a_model_has_a_threshold_of_its_own(stack: Stack) -> None:
    models = [
        {"name": name, "routes": [{"upstream": "emulator", "deployment": MODEL}], **own}
        for name, own in (
            ("as-tenant", {}),
            ("never", {"compact_at_tokens": 0}),
            ("large", {"compact_at_tokens": 1_000_000}),
        )
    ]
    own = tenancy(stack, stateless=True, compact_at_tokens=THRESHOLD)
    with stack.gateway(models=models, **own) as gateway:
        first = await long_chain(gateway, model="never")
        await stack.forget()
        for model in ("never", "large", "as-tenant"):
            await turn(gateway, "/recall", first, model=model)
    doors, sent = zip(*await asked(stack), strict=True)
    assert doors == ("responses", "responses", "compact", "responses")
    assert sent[2]["model"] == MODEL


@pytest.mark.covers("STATE-6", "APPR-10")
async def test_the_turn_and_the_metrics_show_the_compaction(gateway: Gateway, stack: Stack) -> None:
    done = 'gateway_compactions_total{outcome="done",upstream="emulator"}'
    before = await metric(gateway, done)
    first = await long_chain(gateway)
    second = await turn(gateway, "/recall", first)
    third = await turn(gateway, "/recall", second["id"])
    assert await metric(gateway, done) == before + 1
    async with aclosing(Browser(gateway)) as visitor:
        await visitor.sign_in("admin")
        sheet = (await visitor.get(f"/console/turns/{second['id']}")).text
        later = (await visitor.get(f"/console/turns/{third['id']}")).text
        plain = (await visitor.get(f"/console/turns/{first}")).text
    assert "Compaction" in sheet
    assert "was sent compacted" in later
    for text in ("Compaction", "was sent compacted"):
        assert text not in plain
    assert "Compaction" not in later


def compaction_of(output: Any) -> dict[str, Any]:
    usage = {"input_tokens": 900, "output_tokens": 50, "total_tokens": 950}
    return {
        "id": "resp_cmp",
        "object": "response.compaction",
        "created_at": 1,
        "output": output,
        "usage": usage,
    }


@asynccontextmanager
async def scripted(
    stack: Stack, answers: dict[str, tuple[int, bytes]]
) -> AsyncIterator[tuple[Gateway, list[Call]]]:
    """An upstream whose compactions are what a test says for each model: status and body."""
    turns = iter(range(1, 100))

    async def answer(call: Call) -> None:
        if call.path.endswith("/compact"):
            status, body = answers[call.json["model"]]
            await call.document(body, status=status)
            return
        usage = {"input_tokens": 4990, "output_tokens": 10, "total_tokens": 5000}
        made = response(f"resp_{next(turns)}", output=[message("ok")], usage=usage, store=False)
        await call.document(json.dumps(made).encode())

    async with provider(answer) as upstream:
        own = tenancy(stack, stateless=True, compact_at_tokens=THRESHOLD)
        with stack.gateway(upstreams=[upstream.settings()], **own) as gateway:
            yield gateway, upstream.calls


ERROR = json.dumps({"error": {"message": "no", "type": "x", "param": None, "code": "c"}}).encode()
ODD: dict[str, tuple[int, bytes]] = {
    "not offered": (404, ERROR),
    "not allowed": (405, b"<html>"),
    "in trouble": (500, ERROR),
    "busy": (429, ERROR),
    "refused": (400, ERROR),
    "not JSON": (200, b"not JSON"),
    "no compaction": (200, json.dumps(compaction_of([message("hi")])).encode()),
    "no output": (200, json.dumps(compaction_of("odd")).encode()),
}


@pytest.mark.covers("STATE-6", "OPS-4")
async def test_a_turn_goes_on_with_the_whole_chain_where_it_cannot_be_compacted(
    stack: Stack,
) -> None:
    async with scripted(stack, ODD) as (gateway, calls):
        for model in ODD:
            last = None
            for text in ("one", "two", "three"):
                last = (await turn(gateway, [said(text)], last, model=model))["id"]
        assert windows_of(stack, gateway) == []
        failed = await metric(
            gateway, 'gateway_compactions_total{outcome="failed",upstream="emulator"}'
        )
    sizes: dict[str, list[int]] = {model: [] for model in ODD}
    tries = dict.fromkeys(ODD, 0)
    for call in calls:
        if call.path.endswith("/compact"):
            tries[call.json["model"]] += 1
        else:
            sizes[call.json["model"]].append(len(call.json["input"]))
    assert sizes == {model: [1, 3, 5] for model in ODD}
    # Where asking again is in vain for a while, the second of the two turns did not ask.
    once = {"not offered", "not allowed", "in trouble", "busy"}
    assert tries == {model: 1 if model in once else 2 for model in ODD}
    assert failed == sum(tries.values())


@pytest.mark.covers("STATE-6", "STATE-2")
async def test_the_bytes_of_a_window_are_the_upstreams(stack: Stack) -> None:
    item = b'{"type":"compaction", "id":"cmp_1" ,"encrypted_content":"gA\\u00e4=","n":1.50}'
    body = json.dumps(compaction_of(["HERE"])).encode().replace(b'"HERE"', item)
    async with scripted(stack, {MODEL: (200, body)}) as (gateway, calls):
        first = await turn(gateway, "one")
        second = await turn(gateway, "two", first["id"])
        await turn(gateway, "three", second["id"])
    assert [call.path.rpartition("/")[2] for call in calls] == [
        *("responses", "compact", "responses", "responses")
    ]
    for call in calls[2:]:
        assert item in call.body


@pytest.mark.covers("STATE-5", "STATE-6")
@pytest.mark.parametrize("background", [True, False])
async def test_a_window_that_the_upstream_cannot_read_is_dropped_and_the_turn_goes_on(
    stack: Stack, background: bool
) -> None:
    ids = iter(range(1, 100))
    refusal = {"message": "no", "type": "x", "param": None, "code": "invalid_encrypted_content"}
    made = [{"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}]

    async def answer(call: Call) -> None:
        if call.path.endswith("/compact"):
            await call.document(json.dumps(compaction_of(made)).encode())
        elif "compaction" in types(call.json["input"]):
            await call.document(json.dumps({"error": refusal}).encode(), status=400)
        else:
            usage = {"input_tokens": 5000, "output_tokens": 1, "total_tokens": 5001}
            one = response(f"resp_{next(ids)}", output=[message("ok")], usage=usage, store=False)
            if call.json.get("stream"):
                await call.stream([frame("response.completed", response=one)])
            else:
                await call.document(json.dumps(one).encode())

    async with provider(answer) as upstream:
        own = tenancy(stack, stateless=True, compact_at_tokens=THRESHOLD)
        with stack.gateway(upstreams=[upstream.settings()], **own) as gateway:
            last = None
            for text in ("one", "two", "three"):
                asks = background and text == "two"
                went = await turn(gateway, [said(text)], last, background=asks)
                if asks:
                    went = await ended(gateway, went["id"])
                last = went["id"]
                assert went["status"] == "completed"
            assert windows_of(stack, gateway) == []
            repairs = 'gateway_repairs_total{left_out="compaction",upstream="emulator"}'
            assert await metric(gateway, repairs) == 1
    sent = [(call.path.rpartition("/")[2], len(call.json["input"])) for call in upstream.calls]
    whole = [("responses", 3), ("responses", 5)]
    assert sent == [("responses", 1), ("compact", 2), ("responses", 2), *whole]


@pytest.mark.covers("STATE-6")
async def test_a_window_that_stays_large_is_not_made_anew_in_each_turn(stack: Stack) -> None:
    """It is once a quarter of the threshold has come; what the upstream counts stays the same."""
    body = json.dumps(
        compaction_of([{"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}])
    ).encode()
    async with scripted(stack, {MODEL: (200, body)}) as (gateway, calls):
        last = None
        for text in ("one", "two", "three", "four", "five"):
            last = (await turn(gateway, text, last))["id"]
    assert [call.path.endswith("compact") for call in calls].count(True) == 1


@pytest.mark.covers("STATE-6", "STATE-2")
async def test_what_an_upstream_compacted_in_a_turn_is_not_sent_again(stack: Stack) -> None:
    compaction = {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}
    call_item = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "f",
        "arguments": "{}",
    }
    outputs = [
        [message("one")],
        [compaction, message("two")],
        [call_item, {**compaction, "id": "cmp_2"}],
        [message("four")],
    ]
    turns = iter(enumerate(outputs))

    async def answer(call: Call) -> None:
        number, output = next(turns)
        made = response(f"resp_{number}", output=output, store=False)
        await call.document(json.dumps(made).encode())

    own = [{"type": "compaction", "compact_threshold": 1000}]
    async with provider(answer) as upstream:
        settings = tenancy(stack, stateless=True)
        with stack.gateway(upstreams=[upstream.settings()], **settings) as gateway:
            last = None
            for text in ("a", "b", "c"):
                last = (await turn(gateway, text, last, context_management=own))["id"]
            done = {"type": "function_call_output", "call_id": "call_1", "output": "1"}
            await turn(gateway, [done], last, context_management=own)
    sent = [call.json["input"] for call in upstream.calls]
    assert [types(items) if isinstance(items, list) else items for items in sent] == [
        "a",
        ["message", "message", "message"],
        ["compaction", "message", "message"],
        ["function_call", "compaction", "function_call_output"],
    ]
    assert sent[3][1]["id"] == "cmp_2"


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_a_response_that_is_deleted_while_its_chain_is_compacted_leaves_nothing(
    stack: Stack,
) -> None:
    compacting, go_on = asyncio.Event(), asyncio.Event()
    turns = iter(range(1, 100))
    output = [{"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}]

    async def answer(call: Call) -> None:
        if call.path.endswith("/compact"):
            compacting.set()
            await go_on.wait()
            await call.document(json.dumps(compaction_of(output)).encode())
            return
        usage = {"input_tokens": 5000, "output_tokens": 1, "total_tokens": 5001}
        made = response(f"resp_{next(turns)}", output=[message("ok")], usage=usage, store=False)
        await call.document(json.dumps(made).encode())

    async with provider(answer) as upstream:
        own = tenancy(stack, stateless=True, compact_at_tokens=THRESHOLD)
        with stack.gateway(upstreams=[upstream.settings()], **own) as gateway:
            first = await turn(gateway, "one")
            going: asyncio.Task[httpx2.Response] = asyncio.ensure_future(
                create(gateway, "two", tools=(), previous_response_id=first["id"])
            )
            with anyio.fail_after(30):
                await compacting.wait()
            async with gateway.http() as client:
                await client.delete(f"/v1/responses/{first['id']}")
            go_on.set()
            answered = await going
            assert windows_of(stack, gateway) == []
    assert answered.status_code == 404
    assert answered.json()["error"]["code"] == "previous_response_not_found"
    assert len(upstream.calls) == 2  # the deleted text was not sent in a turn any more
