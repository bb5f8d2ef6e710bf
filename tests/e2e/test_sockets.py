"""WebSocket mode: the same turns, the same bytes, on one socket (API-6)."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import pytest
from openai.types.responses import ResponseSteerFailedEvent
from typing_extensions import override
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from gateway.app import create_app
from gateway.domain.lifecycle import Lifecycle
from gateway.server.process import GracefulServer, bind, server_config
from tests.support.approvals import (
    GITHUB,
    create,
    decide,
    executed,
    issue,
    marker,
    pending,
    sent,
    tenancy,
    text_of,
)
from tests.support.events import numbers, read_events
from tests.support.passes import passing
from tests.support.provider import ENDING, OPENING, Call, delta, provider
from tests.support.sockets import LAST, MODEL, Talk, talk
from tests.support.stack import Gateway, Stack

FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": {}, "strict": False}


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# The wire


@pytest.mark.covers("API-6", "STREAM-1")
@pytest.mark.parametrize("path", ["/v1/responses", "/openai/v1/responses?api-version=preview"])
async def test_messages_are_the_bytes_of_the_stream(stack: Stack, path: str) -> None:
    odd = b'event: response.output_text.delta\ndata: {"odd" :  "\xc3\xa9 \\u00e9", "n":1.50}\n\n'

    async def answer(call: Call) -> None:
        await call.stream([OPENING, odd + delta(3), b": comment\n\n", ENDING, b"data: [DONE]\n\n"])

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                body = {"model": MODEL, "input": "x", "stream": True}
                streamed = (await client.post("/v1/responses", json=body)).text
            wanted = [line[6:] for line in streamed.splitlines() if line.startswith("data: {")]
            async with talk(gateway, path=path) as one:
                await one.create("x")
                got = [await one.socket.recv() for _ in wanted]
    assert got == wanted
    assert '{"odd" :  "é \\u00e9", "n":1.50}' in got
    on_http, on_socket = (call.json for call in upstream.calls)
    assert on_socket == on_http  # the upstream sees no difference


@pytest.mark.covers("API-6")
async def test_turns_follow_one_another_on_one_socket(gateway: Gateway) -> None:
    async with talk(gateway) as one:
        for word in ("one", "two", "three"):
            await one.create(f"/echo {word}")
            events = await one.rest()
            assert numbers(events) == list(range(len(events)))
            assert text_of(events[-1]["response"]) == word


@pytest.mark.covers("API-6")
async def test_what_a_client_says_of_its_socket_does_not_reach_the_upstream(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.stream([OPENING, ENDING])

    headers = {"openai-beta": "responses_websockets=2026-02-06, assistants=v2"}
    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with talk(gateway, headers=headers, subprotocols=["realtime"]) as one:
                assert one.socket.subprotocol == "realtime"
                await one.create("x", stream_id="lane", client_metadata={"a": "b"})
                await one.rest()
    (call,) = upstream.calls
    assert call.headers["openai-beta"] == "assistants=v2"
    assert not {"type", "stream_id", "generate"} & set(call.json)
    assert call.json["client_metadata"] == {"a": "b"}


@pytest.mark.covers("API-6")
async def test_streams_with_names_run_side_by_side_and_echo_them(gateway: Gateway) -> None:
    async with talk(gateway) as one:
        await one.create("/fault stall:60", stream_id="slow")
        while (await one.hear())["type"] != "response.created":
            pass
        await one.create("/echo quick", stream_id="quick")
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1]["type"] != "response.completed":
            heard.append(await one.hear())
        assert {event["stream_id"] for event in heard} <= {"slow", "quick"}
        assert heard[-1]["stream_id"] == "quick"
        assert text_of(heard[-1]["response"]) == "quick"


# Chains


@pytest.mark.covers("API-6", "STATE-1")
async def test_a_stateless_chain_with_reasoning_goes_over_sockets_and_http(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    async with talk(gateway) as one:
        first = await one.turn(f"/think of {word}\n/echo plum {word}", store=False)
        second = await one.turn(
            "/think again\n/recall", store=False, previous_response_id=first["id"]
        )
    assert "plum" in text_of(second)
    async with talk(gateway) as another:  # the socket has gone, the chain has not
        third = await another.turn("/recall", store=False, previous_response_id=second["id"])
    assert third["previous_response_id"] == second["id"]
    async with gateway.http() as client:
        body = {"model": MODEL, "input": "/recall", "store": False}
        fourth = await client.post(
            "/v1/responses", json={**body, "previous_response_id": third["id"]}
        )
    assert "plum" in text_of(fourth.json())
    for asked in await sent(stack, word):
        assert asked["store"] is False
        assert "previous_response_id" not in asked
    reasoning = [
        item for item in (await sent(stack, word))[-1]["input"] if item["type"] == "reasoning"
    ]
    assert len(reasoning) == 2
    assert all(item["encrypted_content"] for item in reasoning)


@pytest.mark.covers("API-6", "CHAIN-4")
async def test_the_next_turn_may_be_sent_the_moment_the_last_one_ends(gateway: Gateway) -> None:
    async with talk(gateway) as one:
        previous: dict[str, Any] = {}
        for _ in range(20):
            last = await one.turn("/echo go", store=False, **previous)
            previous = {"previous_response_id": last["id"]}


@pytest.mark.covers("API-6")
async def test_a_function_is_called_and_answered(gateway: Gateway) -> None:
    async with talk(gateway) as one:
        asked = await one.turn("/function get_weather {}", store=False, tools=[FUNCTION])
        (call,) = [item for item in asked["output"] if item["type"] == "function_call"]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        done = await one.turn(
            [output], store=False, tools=[FUNCTION], previous_response_id=asked["id"]
        )
    assert "sunny" in text_of(done)


@pytest.mark.covers("API-6", "CHAIN-1", "AUTH-2")
@pytest.mark.parametrize(
    "changes", [{"key": "other"}, {"headers": {"gateway-end-user": "mallory"}}]
)
async def test_a_chain_is_continued_by_its_owner_only(
    gateway: Gateway, changes: dict[str, Any]
) -> None:
    async with talk(gateway, headers={"gateway-end-user": "alice"}) as one:
        mine = await one.turn("/echo mine", store=False)
    async with talk(gateway, **changes) as thief:
        event = await thief.refused(
            type="response.create", model=MODEL, input="x", previous_response_id=mine["id"]
        )
    assert event["status"] == 404
    assert event["error"]["code"] == "previous_response_not_found"


# Prewarming


@pytest.mark.covers("API-6")
@pytest.mark.parametrize("store", [True, False])
async def test_a_prewarmed_turn_calls_no_model_and_is_continued(
    gateway: Gateway, stack: Stack, store: bool
) -> None:
    word = marker()
    rules = {"type": "message", "role": "developer", "content": f"Be brief, {word}."}
    async with talk(gateway) as one:
        await one.create([rules], generate=False, store=store, tools=[FUNCTION])
        begun, ended = await one.rest()
        assert types_of([begun, ended]) == ["response.created", "response.completed"]
        assert ended["response"]["output"] == []
        assert ended["response"]["usage"]["total_tokens"] == 0
        assert await sent(stack, word) == []
        id_ = ended["response"]["id"]
        await one.turn("/echo on", store=store, previous_response_id=id_)
    (asked,) = await sent(stack, word)
    assert "generate" not in asked
    assert "previous_response_id" not in asked  # no upstream knows that id
    assert asked["input"][0]["content"] == rules["content"]
    async with gateway.http() as client:
        found = (await client.get(f"/v1/responses/{id_}")).json()
        assert found == ended["response"]
        assert (await client.delete(f"/v1/responses/{id_}")).status_code == 200


@pytest.mark.covers("API-6", "MCP-3")
async def test_a_prewarmed_turn_shows_no_secret_of_its_tools(gateway: Gateway) -> None:
    tool = {**GITHUB, "require_approval": "always"}
    async with talk(gateway) as one:
        warmed = await one.turn("hello", generate=False, store=False, tools=[tool])
    (shown,) = warmed["tools"]
    assert shown["server_label"] == "github"
    assert not shown.get("headers")
    assert not shown.get("server_url")


@pytest.mark.covers("API-6")
async def test_what_a_prewarmed_turn_cannot_hold_is_refused(stack: Stack) -> None:
    sections = tenancy(stack, stateless=True, cache="off")
    with stack.gateway(**sections) as gateway:
        async with talk(gateway) as one:
            event = await one.refused(
                type="response.create", model=MODEL, input="x", generate=False
            )
    assert (event["status"], event["error"]["code"]) == (400, "generate_not_supported")


@pytest.mark.covers("API-6", "APPR-5")
async def test_a_prewarmed_turn_answers_no_approval(gateway: Gateway) -> None:
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_x", "approve": True}
    async with talk(gateway) as one:
        event = await one.refused(
            type="response.create", model=MODEL, input=[answer], generate=False
        )
    assert (event["status"], event["error"]["param"]) == (400, "generate")


@pytest.mark.covers("API-6", "CHAIN-5")
@pytest.mark.parametrize("stateless", [False, True], ids=["passed on", "kept"])
async def test_a_prewarmed_turn_is_in_no_conversation(stack: Stack, stateless: bool) -> None:
    with stack.gateway(**tenancy(stack, stateless=stateless)) as gateway:
        kept = await gateway.client().conversations.create()
        async with talk(gateway) as one:
            event = await one.refused(
                type="response.create", model=MODEL, input="x", generate=False, conversation=kept.id
            )
            assert event["error"]["code"] == "generate_not_supported"
            assert "previous_response_id" in event["error"]["message"]
            assert text_of(await one.turn("/echo on", conversation=kept.id)) == "on"


# Approvals


@pytest.mark.covers("API-6", "APPR-1", "APPR-2", "APPR-3")
@pytest.mark.parametrize("store", [True, False])
async def test_a_held_turn_goes_on_in_the_same_socket(
    gateway: Gateway, stack: Stack, store: bool
) -> None:
    word = marker()
    async with talk(gateway) as one:
        await one.create(issue(word), tools=[GITHUB], store=store)
        await decide(gateway, word)
        events = await one.rest()
        last = events[-1]["response"]
        assert types_of(events).count("response.created") == 1
        assert numbers(events) == list(range(len(events)))
        assert [item["type"] for item in last["output"]][-2:] == ["mcp_call", "message"]
        assert len(await executed(stack, word)) == 1
        after = await one.turn("/recall", previous_response_id=last["id"], store=store)
        assert after["status"] == "completed"


@pytest.mark.covers("API-6", "APPR-1")
async def test_rules_decide_on_a_socket_as_anywhere(gateway: Gateway, stack: Stack) -> None:
    word = marker()
    async with talk(gateway) as one:
        done = await one.turn(
            f'/call github.send_payment {{"account": "{word}", "amount": 1}}', tools=[GITHUB]
        )
    assert "Payments are switched off" in json.dumps(done)
    assert await executed(stack, word) == []


@pytest.mark.covers("API-6", "APPR-1")
@pytest.mark.parametrize("streamed", [True, False])
async def test_an_approver_answers_a_held_turn_of_another_door_on_a_socket(
    gateway: Gateway, stack: Stack, streamed: bool
) -> None:
    word = marker()
    async with talk(gateway) as first, talk(gateway, key="second") as second:
        if streamed:
            await first.create(issue(word), tools=[GITHUB])
        else:
            await create(gateway, issue(word))
        (approval,) = await pending(gateway, word)
        asked = approval["approval_request_id"]
        answer = {"type": "mcp_approval_response", "approval_request_id": asked, "approve": True}
        await second.create([answer], tools=[GITHUB])
        events = await second.rest()
    assert types_of(events)[0] == "response.created"
    assert types_of(events)[-1] == "response.completed"
    assert "mcp_call" in [item["type"] for item in events[-1]["response"]["output"]]
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("API-6", "STREAM-2", "APPR-4")
async def test_a_held_turn_outlives_its_socket(gateway: Gateway, stack: Stack) -> None:
    word = marker()
    async with talk(gateway) as one:
        await one.create(issue(word), tools=[GITHUB], store=False)
        id_ = (await one.hear())["response"]["id"]
        await pending(gateway, word)
    async with talk(gateway) as another:
        event = await another.refused(
            type="response.create", model=MODEL, input="x", store=False, previous_response_id=id_
        )
        assert (event["status"], event["error"]["code"]) == (409, "approval_pending")
        await decide(gateway, word)
        async with gateway.http() as client:
            waited = await client.get(f"/v1/responses/{id_}", headers={"prefer": "wait=10"})
        assert waited.json()["status"] == "completed"
        done = await another.turn("/recall", store=False, previous_response_id=id_)
        assert done["status"] == "completed"
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("API-6", "APPR-3")
async def test_pings_fill_the_silence(stack: Stack) -> None:
    go_on = asyncio.Event()

    async def answer(call: Call) -> None:
        await go_on.wait()
        await call.stream([OPENING, ENDING])

    pings = 0

    class Noting(ClientConnection):
        @override
        def process_event(self, event: Any) -> None:
            nonlocal pings
            pings += isinstance(event, Frame) and event.opcode is Opcode.PING
            if pings == 3:
                go_on.set()
            super().process_event(event)

    section = {"lame_duck": 0, "grace_period": 1, "heartbeat": 0.1}
    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], server=section) as gateway:
            async with talk(gateway, create_connection=Noting) as one:
                await one.create("x")
                assert types_of(await one.rest())[-1] == "response.completed"
    assert pings >= 3


# Refusals


@pytest.mark.covers("API-6", "API-5")
@pytest.mark.parametrize(
    ("said", "param"),
    [
        (b"\x00\x01", None),
        ("{", None),
        ("[]", None),
        ("{}", "type"),
        ('{"type": "response.cancel"}', "type"),
        ('{"type": "session.update"}', "type"),
        ('{"type": 7}', "type"),
        ('{"type": "response.create", "input": 7}', "input"),
        ('{"type": "response.create", "input": "x", "generate": "no"}', "generate"),
        ('{"type": "response.create", "input": "x", "background": true}', "background"),
        ('{"type": "response.create", "input": "x", "stream_id": ""}', "stream_id"),
        ('{"type": "response.create", "input": "x", "a": ' + "[" * 100 + "]" * 100 + "}", None),
    ],
)
async def test_a_hostile_message_is_refused_and_the_socket_goes_on(
    gateway: Gateway, said: str | bytes, param: str | None
) -> None:
    async with talk(gateway) as one:
        await one.socket.send(said)
        event = await one.hear()
        assert (event["type"], event["status"]) == ("error", 400)
        assert event["error"]["param"] == param
        assert text_of(await one.turn("/echo still here")) == "still here"


@pytest.mark.covers("API-6", "LIMIT-3")
@pytest.mark.parametrize("fragments", [1, 8, 8000])
async def test_a_message_too_large_ends_the_socket(stack: Stack, fragments: int) -> None:
    section = {"lame_duck": 0, "grace_period": 1, "max_body_bytes": 4096}
    with stack.gateway(server=section) as gateway:
        async with talk(gateway) as one:
            with suppress(ConnectionClosed):
                if fragments == 1:
                    await one.socket.send("x" * 5000)
                else:
                    await one.socket.send(["x" * 1000] * fragments)
            with pytest.raises(ConnectionClosed) as closed:
                await one.hear()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@pytest.mark.covers("API-6")
async def test_a_second_create_while_one_runs_is_refused_and_the_first_goes_on(
    gateway: Gateway,
) -> None:
    word = marker()
    async with talk(gateway) as one:
        await one.create(issue(word), tools=[GITHUB])
        await pending(gateway, word)
        await one.create("/echo me too")
        events = await one.rest()
        refused = events[-1]
        assert (refused["status"], refused["error"]["code"]) == (409, "response_in_progress")
        await decide(gateway, word)
        assert types_of(await one.rest())[-1] == "response.completed"
        assert text_of(await one.turn("/echo now")) == "now"


@pytest.mark.covers("API-6", "STREAM-1")
@pytest.mark.parametrize("odd", [b"{oops", b'{"type":5}'], ids=["no JSON", "no type"])
async def test_what_an_upstream_sends_that_is_no_event_ends_no_socket(
    stack: Stack, odd: bytes
) -> None:
    refused = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING + b"data: " + odd + b"\n\n")
        await refused.wait()
        await call.send(ENDING)
        await call.end()

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with talk(gateway) as one:
                await one.create("x")
                while await one.socket.recv() != odd.decode():
                    pass
                await one.create("me too")
                event = await one.hear()
                assert event["error"]["code"] == "response_in_progress"
                refused.set()
                assert (await one.hear())["type"] == "response.completed"


@pytest.mark.covers("API-6")
async def test_not_more_turns_than_lanes_run_on_one_socket(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.left.wait()

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with talk(gateway) as one:
                for number in range(17):
                    await one.create("x", stream_id=f"lane-{number}")
                event = await one.hear()
                assert event["error"]["code"] == "too_many_streams"
                assert event["stream_id"] == "lane-16"


async def steered(one: Talk, **message: Any) -> dict[str, Any]:
    """Try to steer, and return how that failed."""
    await one.say(type="response.steer", **message)
    while (event := await one.hear())["type"] != "response.steer.failed":
        assert event["type"] not in LAST, event
    return event


@pytest.mark.covers("API-6")
async def test_steering_is_refused_with_its_input_and_the_reason(gateway: Gateway) -> None:
    word = marker()
    async with talk(gateway) as one:
        await one.create(issue(word), tools=[GITHUB], stream_id="a")
        wish = {"input": "faster", "previous_response_id": (await one.hear())["response"]["id"]}
        await pending(gateway, word)
        running = await steered(one, **wish)
        assert running["error"]["code"] == "steering_not_supported"
        assert "over HTTP" in running["error"]["message"]
        assert running["stream_id"] == "a"
        other = await steered(one, **{**wish, "previous_response_id": "resp_x"})
        assert other["error"]["code"] == "response_not_found"
        await decide(gateway, word)
        assert (await one.rest())[-1]["type"] == "response.completed"
        over = await steered(one, **wish)
        assert over["error"]["code"] == "response_already_completed"
        for event in (running, other, over):
            assert ResponseSteerFailedEvent.model_validate(event).steer.input == "faster"
        assert text_of(await one.turn("/echo on")) == "on"


@pytest.mark.covers("API-6", "API-5")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"previous_response_id": None}, "previous_response_id"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"stream_id": "a"}, "stream_id"),
    ],
)
async def test_a_wish_to_steer_that_is_none_is_told_so(
    gateway: Gateway, changes: dict[str, Any], named: str
) -> None:
    wish = {"input": "faster", "previous_response_id": "resp_x", **changes}
    async with talk(gateway) as one:
        event = await steered(one, **wish)
        assert event["error"]["code"] == "invalid_input"
        assert named in event["error"]["message"]
        assert text_of(await one.turn("/echo on")) == "on"


@pytest.mark.covers("API-6", "API-5")
async def test_an_upstreams_refusal_keeps_status_body_and_headers(stack: Stack) -> None:
    error = {"message": "Slow down.", "type": "requests", "param": None, "code": "rate_limit"}

    async def answer(call: Call) -> None:
        await call.document(
            json.dumps({"error": error}).encode(), status=429, headers={"retry-after": "7"}
        )

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with talk(gateway) as one:
                event = await one.refused(type="response.create", model=MODEL, input="x")
    assert event["status"] == 429
    assert event["error"] == {**error, "headers": {"retry-after": "7"}}


@pytest.mark.covers("API-6", "API-5")
async def test_a_stream_that_breaks_ends_with_an_error_and_a_failed_response(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING)
        call.writer.close()

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with talk(gateway) as one:
                await one.create("x")
                assert types_of(await one.rest())[-2:] == ["error", "response.failed"]
                await one.create("x")  # and the socket takes the next one
                assert types_of(await one.rest())[-1] == "response.failed"


# Who may connect


async def refusal(gateway: Gateway, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        async with talk(gateway, **options):
            pass
    answer = refused.value.response
    return answer.status_code, json.loads(answer.body or b"")["error"]["code"]


@pytest.mark.covers("API-6", "AUTH-1")
async def test_a_handshake_needs_a_callers_key(gateway: Gateway) -> None:
    wrong = {"authorization": "Bearer gw_caller_wrong"}
    assert await refusal(gateway, headers=wrong) == (401, "invalid_api_key")
    assert await refusal(gateway, key="auditor") == (403, "missing_role")
    named = {"authorization": "", "api-key": gateway.keys["caller"]}
    async with talk(gateway, headers=named, path="/openai/responses") as one:
        assert text_of(await one.turn("/echo azure")) == "azure"


@pytest.mark.covers("API-6")
async def test_browsers_may_come_from_known_origins_only(stack: Stack) -> None:
    section = {"lame_duck": 0, "grace_period": 1, "cors_allow_origins": ["https://app.example"]}
    with stack.gateway(server=section) as gateway:
        for origin in ("https://evil.example", "null", "https://app.example.evil.example"):
            assert await refusal(gateway, origin=origin) == (403, "origin_not_allowed")
        for origin in ("https://app.example", gateway.url):
            async with talk(gateway, origin=origin) as one:
                assert text_of(await one.turn("/echo in")) == "in"


@pytest.mark.covers("API-6", "AUTH-1")
async def test_a_credential_that_ends_takes_no_more_turns(gateway: Gateway) -> None:
    headers = {"authorization": f"Bearer {passing(gateway, seconds=4)}"}
    async with talk(gateway, headers=headers) as one:
        await one.turn("/echo before")
        with anyio.fail_after(30):
            while True:
                await one.create("/echo after")
                last = (await one.rest())[-1]
                if last["type"] == "error":
                    break
        assert (last["status"], last["error"]["code"]) == (401, "invalid_api_key")
        assert await closing(one) == (1008, "The credential is not valid any more.")


KEY = "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n"


@pytest.mark.covers("API-6", "LIMIT-3")
@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        ("POST", KEY, 400),
        ("GET", KEY + "content-length: 5\r\n", 400),
        ("GET", KEY + "transfer-encoding: chunked\r\n", 400),
        ("GET", "sec-websocket-key: short\r\nsec-websocket-version: 13\r\n", 400),
        ("GET", KEY + f"cookie: {'c' * 9000}\r\n", 431),
        ("GET", KEY, 401),
    ],
)
async def test_a_handshake_that_is_none_is_answered_and_the_connection_ends(
    stack: Stack, method: str, fields: str, status: int
) -> None:
    with graceful(stack, 5) as (gateway, _, _):
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"{method} /v1/responses HTTP/1.1\r\nhost: {host}\r\n"
        upgrade = "connection: upgrade\r\nupgrade: websocket\r\n"
        writer.write((head + upgrade + fields + "\r\n").encode())
        with anyio.fail_after(30):
            answer = await reader.read()  # to its end
        writer.close()
        await writer.wait_closed()
    assert answer.split(b" ")[1] == str(status).encode()


@pytest.mark.covers("API-6", "LIMIT-3")
async def test_no_socket_begins_behind_a_request_that_runs(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING)
        await call.left.wait()

    async with provider(answer) as upstream:
        with graceful(stack, 5, upstreams=[upstream.settings()]) as (gateway, _, _):
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps({"model": MODEL, "input": "x", "stream": True})
            head = f"host: {host}\r\nauthorization: Bearer {gateway.keys['caller']}\r\n"
            post = f"POST /v1/responses HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n{body}"
            writer.write(post.encode())
            with anyio.fail_after(30):
                answered = await reader.readuntil(b"response.in_progress")
                upgrade = f"connection: upgrade\r\nupgrade: websocket\r\n{KEY}\r\n"
                writer.write(f"GET /v1/responses HTTP/1.1\r\n{head}{upgrade}".encode())
                answered += await reader.read()  # to its end
            writer.close()
            await writer.wait_closed()
    assert b"HTTP/1.1 101" not in answered


# Readers that are slow, and ends


async def closing(one: Talk) -> tuple[int, str]:
    """Wait for the gateway's goodbye."""
    with pytest.raises(ConnectionClosed) as closed:
        await one.hear()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


PIECE = delta(2, "x" * 60_000)
UNREAD: dict[str, Any] = {"max_queue": 1, "ping_interval": None, "close_timeout": 0.1}


@pytest.mark.covers("API-6", "STREAM-1")
async def test_a_reader_that_stops_stops_the_upstream_and_is_cut_off(stack: Stack) -> None:
    taken = 0

    async def answer(call: Call) -> None:
        nonlocal taken
        if call.json["input"] != "pour":
            await call.stream([OPENING, ENDING])
            return
        await call.head()
        await call.send(OPENING)
        while True:
            await call.send(PIECE)
            taken += len(PIECE)

    section = {"lame_duck": 0, "grace_period": 1, "stall_timeout": 1.0}
    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], server=section) as gateway:
            async with talk(gateway, **UNREAD) as slow:
                await slow.create("pour")
                await slow.hear()
                async with talk(gateway) as other:
                    await other.create("quick")
                    assert types_of(await other.rest())[-1] == "response.completed"
                with anyio.fail_after(30):
                    await upstream.calls[0].left.wait()
            assert taken < 16 * 1024 * 1024


@pytest.mark.covers("API-6", "STREAM-1")
async def test_answers_to_pings_are_not_piled_up_for_a_peer_that_does_not_read(
    stack: Stack,
) -> None:
    taken = pongs = 0

    async def answer(call: Call) -> None:
        nonlocal taken
        await call.head()
        await call.send(OPENING)
        while True:
            await call.send(PIECE)
            taken += 1

    class Noting(ClientConnection):
        @override
        def process_event(self, event: Any) -> None:
            nonlocal pongs
            pongs += isinstance(event, Frame) and event.opcode is Opcode.PONG
            super().process_event(event)

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with talk(gateway, create_connection=Noting, **UNREAD) as slow:
                await slow.create("pour")
                await slow.hear()
                before = -1
                with anyio.fail_after(30):
                    while not before == taken > 0:
                        before = taken
                        await anyio.sleep(0.3)
                for _ in range(1000):
                    _ = await slow.socket.ping()
                with anyio.fail_after(30):
                    while pongs == 0:
                        for _ in range(20):
                            await slow.hear()
                        _ = await slow.socket.ping()
    assert pongs < 100


@pytest.mark.covers("API-6", "STREAM-2")
@pytest.mark.parametrize("silent", [True, False])
async def test_leaving_the_socket_closes_the_upstream(stack: Stack, silent: bool) -> None:
    begun = asyncio.Event()

    async def answer(call: Call) -> None:
        if not silent:
            await call.head()
            await call.send(OPENING)
        begun.set()
        await call.left.wait()

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with talk(gateway) as one:
                await one.create("x")
                with anyio.fail_after(30):
                    await begun.wait()
            with anyio.fail_after(30):
                await upstream.calls[0].left.wait()


@pytest.mark.covers("API-6")
async def test_a_socket_that_has_lived_long_enough_ends_after_its_turn(stack: Stack) -> None:
    section = {"lame_duck": 0, "grace_period": 1, "websocket_lifetime": 4.0}
    word = marker()
    with stack.gateway(**tenancy(stack), server=section) as gateway:
        async with talk(gateway) as one:
            await one.create(issue(word), tools=[GITHUB])
            await pending(gateway, word)
            refused: dict[str, Any] = {}
            with anyio.fail_after(30):  # until the life is over, the turn itself is the reason
                while refused.get("code") != "websocket_connection_limit_reached":
                    await one.create("/echo x", stream_id="other")
                    last = (await one.rest())[-1]
                    refused = last.get("error", {})
            await decide(gateway, word)
            assert types_of(await one.rest())[-1] == "response.completed"
            last = await one.hear()
            assert last["error"]["code"] == "websocket_connection_limit_reached"
            assert (await closing(one))[0] == 1001


@contextmanager
def graceful(
    stack: Stack, grace: float, **sections: Any
) -> Iterator[tuple[Gateway, Callable[[], None], threading.Thread]]:
    """A gateway under its own server, and what SIGTERM does to it."""
    server_section = {"lame_duck": 0, "grace_period": grace, "port": 0}
    settings = stack.settings(server=server_section, **sections)
    life = Lifecycle()
    listener = bind("127.0.0.1", 0)
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    def begun() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()

    app: Any = create_app(settings, lifecycle=life)
    config = server_config(app, settings.server)
    server = GracefulServer(config, lifecycle=life, signals=(), on_ready=begun)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    assert ready.wait(20)

    def stop() -> None:
        loops[0].call_soon_threadsafe(server.stop)

    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield Gateway(url=url, settings=settings, keys=stack.keys), stop, thread
    finally:
        if not life.draining:  # a second time would end it at once
            stop()
        thread.join(grace + 20)
        assert not thread.is_alive()


async def no_more_connections(gateway: Gateway) -> None:
    """Wait until the server has begun to close what it serves."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with anyio.fail_after(30), suppress(ConnectionRefusedError):
        while True:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            await anyio.sleep(0.01)


@pytest.mark.covers("API-6", "STREAM-4")
async def test_a_stop_lets_the_turn_finish_and_says_goodbye(stack: Stack) -> None:
    go_on = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING)
        await go_on.wait()
        await call.send(ENDING)
        await call.end()

    async with provider(answer) as upstream:
        with graceful(stack, 20, upstreams=[upstream.settings()]) as (gateway, stop, thread):
            async with talk(gateway) as idle, talk(gateway) as busy:
                await busy.create("x")
                await busy.hear()
                stop()
                assert (await closing(idle))[0] == 1001
                await no_more_connections(gateway)
                go_on.set()
                assert types_of(await busy.rest())[-1] == "response.completed"
                assert (await closing(busy))[0] == 1001
            with anyio.fail_after(30):
                await anyio.to_thread.run_sync(thread.join)


@pytest.mark.covers("API-6", "STREAM-4", "APPR-4")
async def test_a_stop_hands_a_held_turn_over_and_tells_where_to_go_on(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    with graceful(stack, 20) as (leaving, stop, _):
        async with talk(leaving) as one:
            await one.create(issue(word), tools=[GITHUB])
            await pending(leaving, word)
            stop()
            with anyio.fail_after(30):
                heard = [json.loads(text) async for text in one.socket]
            goodbye = (one.socket.close_code, one.socket.close_reason)
    last = heard[-1]["sequence_number"]
    assert goodbye == (1001, f"draining; go on with starting_after={last}")
    await decide(gateway, word)
    id_ = heard[0]["response"]["id"]
    async with gateway.http() as client:
        path = f"/v1/responses/{id_}?stream=true&starting_after={last}"
        rest = read_events((await client.get(path)).content)
    assert numbers([*heard, *rest]) == list(range(len(heard) + len(rest)))
    assert rest[-1]["type"] == "response.completed"


@pytest.mark.covers("API-6", "STREAM-4")
async def test_a_turn_without_end_is_cut_after_the_grace_period(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING)
        await call.left.wait()

    async with provider(answer) as upstream:
        with graceful(stack, 0.5, upstreams=[upstream.settings()]) as (gateway, stop, thread):
            async with talk(gateway) as one:
                await one.create("x")
                await one.hear()
                await one.hear()
                stop()
                assert await closing(one) == (1001, "The gateway stops.")
            with anyio.fail_after(30):
                await anyio.to_thread.run_sync(thread.join)


@pytest.mark.covers("API-6", "OPS-1")
async def test_open_sockets_are_counted(stack: Stack) -> None:
    async def count(gateway: Gateway) -> float:
        async with gateway.http() as client:
            lines = (await client.get("/metrics")).text.splitlines()
        line = next(one for one in lines if one.startswith("gateway_websockets_open{"))
        return float(line.split(" ")[1])

    with stack.gateway() as gateway:
        async with talk(gateway), talk(gateway):
            assert await count(gateway) == 2
        with anyio.fail_after(30):
            while await count(gateway) > 0:
                await anyio.sleep(0.01)
