"""Bad input: a clear error in OpenAI's shape; nothing is sent upstream, nothing is stored."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import redis

from gateway.adapters.redis.embedded import EmbeddedValkey
from tests.support.stack import Gateway, Stack

MODEL = "gpt-4.1"


@pytest.fixture(scope="module")
def small(stack: Stack) -> Iterator[tuple[Gateway, str]]:
    """A gateway with tight bounds and a Valkey of its own."""
    bounds = {
        "lame_duck": 0,
        "grace_period": 1,
        "max_body_bytes": 100_000,
        "max_json_depth": 16,
        "max_tools": 4,
        "max_items": 8,
    }
    with EmbeddedValkey() as valkey:
        section = stack.redis(valkey.url)
        with stack.gateway(redis=section, server=bounds) as running:
            yield running, valkey.url


@pytest.fixture
async def gateway(small: tuple[Gateway, str], stack: Stack) -> AsyncIterator[Gateway]:
    """The gateway; after the test nothing was sent and nothing was stored."""
    running, url = small
    await stack.forget()
    yield running
    assert await stack.requests() == []
    with redis.Redis.from_url(url) as admin:
        kept = [key.rpartition(b"}:")[2].removeprefix(b"gw:") for key in admin.scan_iter()]
    own = (b"audit", b"jobs", b"fleet", b"probe")  # what a gateway keeps of itself
    assert [key for key in kept if not key.startswith(own)] == []


def body(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "input": "hello", **fields}).encode()


def nested(depth: int) -> bytes:
    return b'{"model":"m","input":' + b"[" * depth + b"]" * depth + b"}"


INVALID: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("cut", b'{"model": "m", "input'),
    ("words", b"hello"),
    ("two values", b"{} {}"),
    ("trailing comma", b'{"model": "m",}'),
    ("single quotes", b"{'model': 'm'}"),
    ("comment", b'{"model": "m" /* x */}'),
    ("an array", b"[]"),
    ("a string", b'"text"'),
    ("null", b"null"),
    ("invalid UTF-8", b'{"model": "\xff\xfe"}'),
    ("overlong UTF-8", b'{"model": "\xc0\xaf"}'),
    ("surrogate in UTF-8", b'{"model": "\xed\xa0\x80"}'),
    ("UTF-16", '{"model": "m"}'.encode("utf-16")),
    ("byte order mark", b'\xef\xbb\xbf{"model": "m"}'),
    ("control character", b'{"model": "a\x00b"}'),
    ("NaN", b'{"model": "m", "temperature": NaN}'),
    ("infinity", b'{"model": "m", "temperature": -Infinity}'),
    ("too deep", nested(17)),
    ("far too deep", nested(40_000)),
    ("deep objects", b'{"a":' * 20 + b"1" + b"}" * 20),
    ("duplicate key", b'{"model": "m", "input": "x", "input": "y"}'),
    ("duplicate by escape", b'{"store": false, "st\\u006fre": true}'),
    ("duplicate in an item", b'{"input": [{"type": "message", "role": "user", "role": "system"}]}'),
    ("duplicate in a tool", b'{"tools": [{"type": "mcp", "headers": {"a": "1", "a": "2"}}]}'),
    ("duplicate far down", b'{"a": [[[{"b": {"c": 1, "c": 1}}]]]}'),
]
DOORS = ("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact")


@pytest.mark.covers("LIMIT-3", "API-5")
@pytest.mark.parametrize("text", [text for _, text in INVALID], ids=[name for name, _ in INVALID])
async def test_what_is_no_good_json_is_refused(gateway: Gateway, text: bytes) -> None:
    async with gateway.http() as client:
        for door in DOORS:
            with anyio.fail_after(30):
                answer = await client.post(door, content=text)
            assert answer.status_code == 400
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
            assert answer.json()["error"]["code"] == "invalid_json"
            assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.covers("LIMIT-3")
async def test_duplicate_keys_are_refused_for_conversations_and_decisions_too(
    gateway: Gateway,
) -> None:
    text = b'{"metadata": {"a": "1", "a": "2"}}'
    async with gateway.http() as client:
        answer = await client.post("/v1/conversations", content=text)
    assert answer.json()["error"]["code"] == "invalid_json"
    async with gateway.http("approver") as client:
        twice = b'{"decision": "deny", "decision": "approve", "fingerprint": "x"}'
        answer = await client.post("/v1/approvals/apr_1/decision", content=twice)
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.covers("LIMIT-3")
@pytest.mark.parametrize("door", [*DOORS, "/v1/conversations"])
async def test_a_body_that_is_too_large_is_413(gateway: Gateway, door: str) -> None:
    async with gateway.http() as client:
        answer = await client.post(door, content=body(input="x" * 200_000))
    assert answer.status_code == 413
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.covers("LIMIT-3")
async def test_a_body_that_does_not_say_its_length_is_bounded_too(gateway: Gateway) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model": "m", "input": "'
        for _ in range(100):
            yield b"x" * 10_000
        yield b'"}'

    async with gateway.http() as client:
        answer = await client.post("/v1/responses", content=pieces())
    assert answer.status_code == 413


def crowd(one: bytes, count: int) -> bytes:
    return b'{"model":"gpt-4.1","input":[' + one * count + b"0]}"


@pytest.mark.covers("LIMIT-3", "OPS-1")
@pytest.mark.parametrize("one", [b"[],", b"{},", b'"",', b"0,", b'"\\\\",', b'{"a":1},'])
async def test_millions_of_tiny_values_are_refused_before_they_are_read(
    stack: Stack, one: bytes
) -> None:
    await stack.forget()
    with stack.gateway() as gateway:
        async with gateway.http() as client:
            with anyio.fail_after(30):
                answer = await client.post("/v1/responses", content=crowd(one, 2_000_000))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The body holds more than 500,000 values."
    assert await stack.requests() == []


@pytest.mark.covers("LIMIT-3")
@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "identity, gzip"])
async def test_a_compressed_body_is_refused(gateway: Gateway, encoding: str) -> None:
    async with gateway.http() as client:
        answer = await client.post(
            "/v1/responses", content=gzip.compress(body()), headers={"content-encoding": encoding}
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_encoding"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": 7}, "model", "invalid_type"),
    ({"model": ["m"]}, "model", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream": 1}, "stream", "invalid_type"),
    ({"store": "no"}, "store", "invalid_type"),
    ({"background": "no"}, "background", "invalid_type"),
    ({"previous_response_id": 7}, "previous_response_id", "invalid_type"),
    ({"conversation": 7}, "conversation", "invalid_type"),
    ({"conversation": {"id": 7}}, "conversation.id", "invalid_type"),
    ({"include": "reasoning.encrypted_content"}, "include", "invalid_type"),
    ({"include": [7]}, "include", "invalid_type"),
    ({"input": 7}, "input", "invalid_type"),
    ({"input": {"role": "user"}}, "input", "invalid_type"),
    ({"input": ["text"]}, "input[0]", "invalid_type"),
    ({"input": [{"role": "user"}, 7]}, "input[1]", "invalid_type"),
    ({"input": [{"type": 7}]}, "input[0].type", "invalid_type"),
    ({"input": [{"type": "message", "id": 7}]}, "input[0].id", "invalid_type"),
    ({"tools": {"type": "mcp"}}, "tools", "invalid_type"),
    ({"tools": "mcp"}, "tools", "invalid_type"),
    ({"tools": [7]}, "tools[0]", "invalid_type"),
    ({"tools": [{"type": 7}]}, "tools[0].type", "invalid_type"),
    ({"user": 7}, "user", "invalid_type"),
    ({"safety_identifier": {}}, "safety_identifier", "invalid_type"),
    ({"tools": [{"type": "web_search"}] * 5}, "tools", "array_above_max_length"),
    ({"input": [{"role": "user", "content": "x"}] * 9}, "input", "array_above_max_length"),
    (
        {"input": [{"type": "mcp_approval_response", "approve": True}]},
        "input[0]",
        "invalid_type",
    ),
]


@pytest.mark.covers("LIMIT-3", "API-5")
@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
async def test_a_wrong_field_is_named(
    gateway: Gateway, fields: dict[str, Any], param: str, code: str
) -> None:
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", content=body(**fields))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.covers("LIMIT-3")
async def test_a_stored_prompt_is_refused(gateway: Gateway) -> None:
    async with gateway.http() as client:
        answer = await client.post("/v1/responses", content=body(prompt={"id": "pmpt_1"}))
    assert answer.status_code == 403
    assert answer.json()["error"]["param"] == "prompt"


@pytest.mark.covers("LIMIT-3")
@pytest.mark.parametrize("after", ["x", "1.5", ""])
async def test_a_cursor_that_is_no_number_is_refused(gateway: Gateway, after: str) -> None:
    async with gateway.http() as client:
        answer = await client.get(
            "/v1/responses/resp_1", params={"stream": "true", "starting_after": after}
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "starting_after"


@pytest.mark.covers("LIMIT-3")
async def test_what_is_allowed_is_not_refused_by_mistake(stack: Stack) -> None:
    fine = [
        b'{"model": "gpt-4.1", "input": "[[[[[[[[[[[[[[[[[[[[{{{{{{{{{{{{{{{{{{{{{{{{{"}',
        '{"model": "gpt-4.1", "input": "é\u2028 \U0001f600 \\ud83d\\ude00"}'.encode(),
        b'\n\t {"model": "gpt-4.1", "input": "x"} \r\n',
        b'{"model": "gpt-4.1", "input": "x", "stream": null, "store": null, "tools": null}',
        b'{"model": "gpt-4.1", "input": "x", "metadata": {"input": "a", "model": "b"}}',
        json.dumps({"model": MODEL, "input": '",[{' * 200_000}).encode(),
    ]
    with stack.gateway() as gateway:
        async with gateway.http() as client:
            for text in fine:
                answer = await client.post("/v1/responses", content=text)
                assert answer.status_code == 200, answer.text
