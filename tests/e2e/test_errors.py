"""Faults of the upstream and of Redis: a clear error in time, never a hang or a silent close."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import openai
import pytest
import redis
from pydantic import SecretStr

from gateway.adapters.redis.embedded import EmbeddedValkey
from tests.support.events import numbers, read_events
from tests.support.provider import OPENING, Call, delta, frame, provider, response
from tests.support.stack import Gateway, Stack, upstream_entry


def ask(text: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "input": text, "stream": stream, **more}


@pytest.fixture(scope="module")
def hasty(stack: Stack) -> Iterator[Gateway]:
    """A gateway that waits for its upstream for two seconds only."""
    entry = stack.settings().upstreams[0].model_dump() | {"timeout": 2}
    entry["auth"] = {"type": "api_key", "value": "env:TEST_UPSTREAM_KEY"}
    with stack.gateway(upstreams=[entry]) as running:
        yield running


REFUSALS: list[tuple[str, int, str | None, type[openai.APIStatusError]]] = [
    ("429", 429, "rate_limit_exceeded", openai.RateLimitError),
    ("500", 500, None, openai.InternalServerError),
    ("503", 503, "service_unavailable", openai.InternalServerError),
    ("content_filter", 400, "content_filter", openai.BadRequestError),
]


@pytest.mark.covers("API-5")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("fault", "status", "code", "kind"), REFUSALS)
async def test_a_refusal_keeps_its_status_body_and_request_id(
    gateway: Gateway,
    fault: str,
    status: int,
    code: str | None,
    kind: type[openai.APIStatusError],
    streamed: bool,
) -> None:
    with pytest.raises(kind) as caught:
        await gateway.client().responses.create(
            model="gpt-4.1", input=f"/fault {fault}", stream=streamed
        )
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert set(error.response.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.covers("API-5")
async def test_429_keeps_the_times_to_wait(gateway: Gateway) -> None:
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", json=ask("/fault 429:1.5"))
    assert answer.headers["retry-after-ms"] == "1500"
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.covers("API-5")
async def test_a_content_filter_keeps_its_inner_error(gateway: Gateway) -> None:
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", json=ask("/fault content_filter"))
    error = answer.json()["error"]
    assert error["innererror"]["code"] == "ResponsibleAIPolicyViolation"
    assert error["innererror"]["content_filter_result"]["violence"]["filtered"] is True


@pytest.mark.covers("API-5", "MCP-3")
@pytest.mark.parametrize("streamed", [False, True])
async def test_401_of_the_upstream_does_not_repeat_parts_of_its_key(
    gateway: Gateway, streamed: bool
) -> None:
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", json=ask("/fault 401", stream=streamed))
    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "The upstream refused the gateway's credential."
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.covers("API-5")
async def test_an_error_page_that_is_no_json_becomes_an_error(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.head("text/html", status=502)
        await call.send(b"<html>Bad Gateway</html>")
        await call.end()

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                answered = await client.post("/v1/responses", json=ask("hello", stream=True))
    assert answered.status_code == 502
    assert answered.json()["error"]["code"] == "upstream_error"


@pytest.mark.covers("API-5")
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refused_port_is_502_at_once(stack: Stack, streamed: bool) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        entry = upstream_entry(url, name="gone", kind="compatible")
        with stack.gateway(upstreams=[entry]) as gateway:
            async with gateway.http() as client:
                with anyio.fail_after(30):
                    answer = await client.post("/v1/responses", json=ask("x", stream=streamed))
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_unreachable"
    assert answer.json()["error"]["type"] == "upstream_error"


@pytest.mark.covers("API-5")
@pytest.mark.parametrize("streamed", [False, True])
async def test_silence_is_504(hasty: Gateway, streamed: bool) -> None:
    async with hasty.http() as client:
        with anyio.fail_after(30):
            answer = await client.post("/v1/responses", json=ask("/fault silence", stream=streamed))
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "upstream_timeout"


@pytest.mark.covers("API-5")
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reset_before_the_first_byte_is_502(gateway: Gateway, streamed: bool) -> None:
    async with gateway.http() as client:
        answer = await client.post(
            "/v1/responses", json=ask("/fault reset_before", stream=streamed)
        )
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_disconnected"


@pytest.mark.covers("API-5")
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("reset", 502, "upstream_disconnected"),
        ("malformed", 502, "upstream_malformed"),
        ("no_terminal", 502, "upstream_malformed"),
        ("stall", 504, "upstream_timeout"),
    ],
)
async def test_a_broken_json_answer_is_an_error(
    hasty: Gateway, fault: str, status: int, code: str
) -> None:
    async with hasty.http() as client:
        with anyio.fail_after(30):
            answer = await client.post("/v1/responses", json=ask(f"/fault {fault}"))
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


@pytest.mark.covers("API-5")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("reset", "upstream_disconnected"),
        ("no_terminal", "upstream_incomplete"),
        ("stall", "upstream_timeout"),
    ],
)
async def test_a_stream_that_breaks_ends_with_error_and_response_failed(
    hasty: Gateway, fault: str, code: str
) -> None:
    async with hasty.http() as client:
        with anyio.fail_after(30):
            answer = await client.post("/v1/responses", json=ask(f"/fault {fault}", stream=True))
    assert answer.status_code == 200
    events = read_events(answer.content)
    assert numbers(events) == list(range(len(events)))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["error"]["code"] == code
    assert events[-2]["error"].keys() == {"type", "code", "message", "param"}
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == code
    assert failed["id"] == events[0]["response"]["id"]


@pytest.mark.covers("API-5")
async def test_the_sdk_raises_when_a_stream_breaks(gateway: Gateway) -> None:
    stream = await gateway.client().responses.create(
        model="gpt-4.1", input="/fault no_terminal", stream=True
    )
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "upstream_incomplete"


@pytest.mark.covers("API-5")
async def test_a_malformed_frame_passes_when_nothing_depends_on_it(gateway: Gateway) -> None:
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", json=ask("/fault malformed", stream=True))
    assert b'"sequen\n\n' in answer.content
    assert b"event: response.completed" in answer.content


@asynccontextmanager
async def malformed(stack: Stack, kind: str) -> AsyncIterator[httpx2.Response]:
    """Read a stream that holds a frame that cannot be read, in one piece with good ones."""

    async def answer(call: Call) -> None:
        broken = f'event: {kind}\ndata: {{"type":"{kind}","respon\n\n'.encode()
        await call.stream([OPENING + delta(2) + broken + delta(3)])

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                yield await client.post("/v1/responses", json=ask("x", stream=True))


@pytest.mark.covers("API-5")
@pytest.mark.parametrize("kind", ["response.completed", "response.output_item.done"])
async def test_a_malformed_frame_that_matters_ends_the_stream_with_an_error(
    stack: Stack, kind: str
) -> None:
    async with malformed(stack, kind) as answered:
        events = read_events(answered.content)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "upstream_malformed"


@pytest.mark.covers("API-5")
async def test_what_came_before_a_malformed_frame_is_not_lost(stack: Stack) -> None:
    async with malformed(stack, "response.output_item.done") as answered:
        events = read_events(answered.content)
    assert numbers(events) == [0, 1, 2, 3, 4]


@pytest.mark.covers("API-5")
async def test_a_failure_of_the_provider_passes_as_it_came(gateway: Gateway) -> None:
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", json=ask("/fault failed", stream=True))
    events = read_events(answer.content)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert [event["type"] for event in events].count("error") == 1
    assert numbers(events) == list(range(len(events)))


@pytest.mark.covers("API-5")
async def test_an_error_event_alone_is_completed_by_response_failed(stack: Stack) -> None:
    error = {"type": "server_error", "code": "server_error", "message": "Sorry", "param": None}

    async def answer(call: Call) -> None:
        await call.stream([OPENING, frame("error", sequence_number=2, error=error)])

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                answered = await client.post("/v1/responses", json=ask("x", stream=True))
    events = read_events(answered.content)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["id"] == "resp_1"
    assert numbers(events) == list(range(len(events)))


@pytest.mark.covers("API-5", "STREAM-1")
async def test_an_event_without_end_is_an_error_and_not_a_leak(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING + b"event: response.output_text.delta\ndata: ")
        while True:
            await call.send(b"x" * (1 << 20))

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                with anyio.fail_after(30):
                    answered = await client.post("/v1/responses", json=ask("x", stream=True))
                    await upstream.calls[0].left.wait()
    events = read_events(answered.content)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]


@pytest.mark.covers("API-5")
async def test_a_redirect_is_not_followed_and_is_an_error(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.head("text/html", status=307, headers={"location": "http://evil.example/"})
        await call.end()

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                answered = await client.post("/v1/responses", json=ask("x"))
        assert len(upstream.calls) == 1
    assert answered.status_code == 502
    assert answered.json()["error"]["code"] == "upstream_error"
    assert "evil" not in answered.text


@contextmanager
def lonely(stack: Stack, valkey: EmbeddedValkey) -> Iterator[Gateway]:
    """A gateway with a Valkey of its own."""
    section = {"url": SecretStr(valkey.url), "allow_volatile": True, "timeout": 2.0}
    with stack.gateway(redis=section) as running:
        yield running


async def until_ready(gateway: Gateway, *, ready: bool) -> httpx2.Response:
    """Wait until readiness says what is expected."""
    async with gateway.http(None) as client:
        with anyio.fail_after(30):
            while True:
                answer = await client.get("/readyz")
                if (answer.status_code == 200) is ready:
                    return answer
                await anyio.sleep(0.02)


async def assert_closed(stack: Stack, gateway: Gateway, code: str) -> None:
    """What needs state is refused in time, before the upstream; the process lives."""
    answer = await until_ready(gateway, ready=False)
    assert answer.json()["checks"]["store"] == code
    await stack.forget()
    async with gateway.http() as client:
        with anyio.fail_after(30):
            assert (await client.get("/livez")).status_code == 200
            for body in (ask("a"), ask("b", stream=True), ask("c", store=False)):
                refused = await client.post("/v1/responses", json=body)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == code
                assert refused.json()["error"]["type"] == "server_error"
                assert int(refused.headers["retry-after"]) > 0
    assert await stack.requests() == []


async def assert_open(gateway: Gateway) -> None:
    """The gateway works again, by itself."""
    await until_ready(gateway, ready=True)
    client = gateway.client()
    first = await client.responses.create(model="gpt-4.1", input="/echo one", store=False)
    again = await client.responses.create(
        model="gpt-4.1", input="/echo two", store=False, previous_response_id=first.id
    )
    assert again.output_text == "two"


@pytest.mark.covers("OPS-1", "OPS-4", "API-5")
async def test_with_redis_down_turns_are_refused_until_it_is_back(
    stack: Stack, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path) as valkey, lonely(stack, valkey) as gateway:
        kept = await gateway.client().responses.create(
            model="gpt-4.1", input="/echo kept", store=False
        )
        assert valkey.pid is not None
        os.kill(valkey.pid, signal.SIGKILL)
        await assert_closed(stack, gateway, "store_unavailable")
        async with gateway.http() as client:
            for path in (f"/v1/responses/{kept.id}", f"/v1/responses/{kept.id}/input_items"):
                assert (await client.get(path)).json()["error"]["code"] == "store_unavailable"
        valkey.__exit__(None, None, None)
        with EmbeddedValkey(tmp_path):
            await assert_open(gateway)
            again = await gateway.client().responses.create(
                model="gpt-4.1", input="/recall", store=False, previous_response_id=kept.id
            )
            assert "kept" in again.output_text


@pytest.mark.covers("OPS-1", "OPS-4", "API-5")
async def test_with_redis_hanging_turns_are_refused_in_time(stack: Stack) -> None:
    with EmbeddedValkey() as valkey, lonely(stack, valkey) as gateway:
        await assert_open(gateway)
        assert valkey.pid is not None
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            await assert_closed(stack, gateway, "store_unavailable")
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        await assert_open(gateway)


@pytest.mark.covers("OPS-1", "OPS-4", "API-5")
async def test_with_redis_full_turns_are_refused_and_reading_goes_on(stack: Stack) -> None:
    with EmbeddedValkey() as valkey, lonely(stack, valkey) as gateway:
        kept = await gateway.client().responses.create(
            model="gpt-4.1", input="/echo kept", store=False
        )
        admin = redis.Redis.from_url(valkey.url)
        admin.config_set("maxmemory", "1kb")
        await assert_closed(stack, gateway, "storage_full")
        assert (await gateway.client().responses.retrieve(kept.id)).output_text == "kept"
        admin.config_set("maxmemory", "0")
        admin.close()
        await assert_open(gateway)


@asynccontextmanager
async def held_back(stack: Stack, valkey: EmbeddedValkey) -> AsyncIterator[Gateway]:
    """A gateway whose upstream stops Redis just before its last event."""

    async def answer(call: Call) -> None:
        assert valkey.pid is not None
        ending = frame("response.completed", sequence_number=3, response=response())
        if call.json.get("stream"):
            await call.head()
            await call.send(OPENING + delta(2))
            os.kill(valkey.pid, signal.SIGSTOP)
            await call.send(ending)
            await call.end()
        else:
            os.kill(valkey.pid, signal.SIGSTOP)
            await call.document(json.dumps(response()).encode())

    async with provider(answer) as upstream:
        section = {"url": SecretStr(valkey.url), "allow_volatile": True, "timeout": 2.0}
        with stack.gateway(redis=section, upstreams=[upstream.settings()]) as gateway:
            yield gateway


@pytest.mark.covers("OPS-4", "API-5", "CHAIN-4")
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_turn_that_cannot_be_recorded_does_not_end_as_completed(
    stack: Stack, streamed: bool
) -> None:
    with EmbeddedValkey() as valkey:
        async with held_back(stack, valkey) as gateway, gateway.http() as client:
            assert valkey.pid is not None
            try:
                with anyio.fail_after(30):
                    answer = await client.post("/v1/responses", json=ask("x", stream=streamed))
            finally:
                os.kill(valkey.pid, signal.SIGCONT)
    if not streamed:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"
        return
    events = read_events(answer.content)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "store_unavailable"
    assert numbers(events) == list(range(len(events)))


@pytest.mark.covers("API-5")
async def test_an_upstream_error_without_a_failed_response_is_told_once(stack: Stack) -> None:
    error = {"type": "server_error", "code": "overloaded", "message": "Busy.", "param": None}

    async def answer(call: Call) -> None:
        await call.stream([OPENING + frame("error", sequence_number=2, error=error)])

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                answered = await client.post("/v1/responses", json=ask("x", stream=True))
    events = read_events(answered.content)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert sum(event["type"] == "error" for event in events) == 1
    assert events[-1]["sequence_number"] == events[-2]["sequence_number"] + 1
    assert events[-1]["response"]["error"] == {"code": "overloaded", "message": "Busy."}
