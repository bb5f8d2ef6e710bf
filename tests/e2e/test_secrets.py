"""No secret is found anywhere but where it belongs, whatever an upstream or a tool repeats (MCP-3)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from typing_extensions import override

from tests.support.approvals import GITHUB, create, frames, issue, marker, pending, tenancy, vote
from tests.support.provider import Call, delta, frame, provider, response
from tests.support.stack import CANARY, UPSTREAM_KEY, Gateway, Stack

FORWARDED = "forwarded-canary-2291/ab+cd"
HEADERS = {"x-user-token": FORWARDED}


def secrets_of(stack: Stack) -> list[str]:
    import os

    found = [CANARY, UPSTREAM_KEY, FORWARDED, os.environ["TEST_ENCRYPTION_KEY"]]
    return [*found, *stack.keys.values(), FORWARDED.replace("/", "\\/"), "k" * 32]


def clean(stack: Stack, *texts: str | bytes) -> None:
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode()
        assert [secret for secret in secrets_of(stack) if secret.encode() in data] == [], data[
            :2000
        ]


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(message)s %(args)s"))

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record) + repr(vars(record)))


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what the gateway and its libraries log, at DEBUG where they let it be set."""
    handler, gateway = _Lines(), logging.getLogger("gateway")
    before = gateway.level
    gateway.addHandler(handler)
    logging.getLogger().addHandler(handler)
    gateway.setLevel(logging.DEBUG)
    try:
        yield handler.lines
    finally:
        gateway.removeHandler(handler)
        logging.getLogger().removeHandler(handler)
        gateway.setLevel(before)


def dump(stack: Stack) -> bytes:
    """Read every key and value of the store."""
    client: Any = redis.Redis.from_url(stack.redis_url)
    parts: list[bytes] = []
    for key in client.scan_iter(count=1000):
        parts += [key, client.dump(key) or b""]
        kind = client.type(key)
        if kind == b"string":
            parts.append(client.get(key) or b"")
        elif kind == b"hash":
            parts += [part for pair in client.hgetall(key).items() for part in pair]
        elif kind == b"stream":
            parts.append(repr(client.xrange(key)).encode())
        elif kind == b"zset":
            parts += client.zrange(key, 0, -1)
        elif kind == b"list":
            parts += client.lrange(key, 0, -1)
        elif kind == b"set":
            parts += client.smembers(key)
    client.close()
    return b"\n".join(parts)


@pytest.mark.covers("MCP-3", "STATE-4", "OPS-1")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_a_whole_held_turn_shows_no_secret_on_any_door(
    stack: Stack, store: bool, stream: bool
) -> None:
    word = marker()
    texts: list[str | bytes] = []
    with logged() as lines, stack.gateway(**tenancy(stack)) as gateway:
        created = await create(gateway, f"/echo {word}", store=store, stream=stream)
        texts.append(created.text)
        held = await create(gateway, issue(word), store=store)
        texts.append(held.text)
        (approval,) = await pending(gateway, word)
        decided = await vote(gateway, approval, reason="fine")
        id_ = held.json()["id"]
        async with gateway.http() as client:
            done = await client.get(f"/v1/responses/{id_}", headers={"prefer": "wait=10"})
            assert done.json()["status"] == "completed", done.text
            texts += [
                json.dumps(approval),
                decided.text,
                done.text,
                (await client.get(f"/v1/responses/{id_}?stream=true")).text,
                (await client.get(f"/v1/responses/{id_}/input_items")).text,
                (await client.get(f"/v1/responses/{id_}/approvals")).text,
                (await client.post(f"/v1/responses/{id_}/cancel")).text,
                (await client.get("/v1/approvals?status=all")).text,
                (await client.get("/metrics")).text,
                (await client.get("/readyz")).text,
                (await client.get("/v1/models")).text,
                (await create(gateway, "/fault 401")).text,
                (await create(gateway, "/fault 500")).text,
                (await create(gateway, "/fault failed", stream=True)).text,
                (await client.get("/v1/nothing")).text,
                (await client.get("/v1/models", headers={"authorization": "Bearer x"})).text,
            ]
        async with gateway.http("auditor") as client:
            paths = ("/v1/audit?limit=1000", "/v1/audit/verify", "/v1/audit/export")
            texts += [(await client.get(path)).text for path in paths]
        clean(stack, *texts, *lines, dump(stack))
        assert word not in "".join(str(text) for text in texts[-3:])
    tools = [json.loads(text)["tools"] for text in (held.text, done.text)]
    for (tool,) in tools:
        assert tool["server_url"] is None
        assert tool.get("headers") is None


def everything_of(call: Call) -> str:
    """All that the upstream received, as a hostile one would repeat it."""
    return json.dumps({"headers": call.headers, "body": call.body.decode()})


def leaky(call: Call, **fields: Any) -> dict[str, Any]:
    said = everything_of(call)
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": said, "annotations": []}],
    }
    tool_call = {
        "id": "mcp_1",
        "type": "mcp_call",
        "server_label": "github",
        "name": "search_issues",
        "arguments": "{}",
        "output": said,
        "error": None,
        "approval_request_id": None,
    }
    return response(
        "resp_" + marker(),
        output=[tool_call, message] if call.json.get("tools") else [message],
        tools=call.json.get("tools", []),
        **fields,
    )


async def leak(call: Call) -> None:
    """Answer with all that was received: as an error, as a stream, or as JSON."""
    if call.method == "GET" or b"leak-answer" in call.body:
        document = leaky(call) if call.method == "POST" else {"seen": everything_of(call)}
        if b'"stream":true' not in call.body:
            return await call.document(json.dumps(document).encode())
        item = document["output"][0]
        pieces = [
            frame("response.created", sequence_number=0, response={**document, "output": []}),
            frame("response.output_item.done", sequence_number=1, output_index=0, item=item),
            frame("response.unheard_of", sequence_number=2, said=everything_of(call)),
            frame("response.completed", sequence_number=3, response=document),
        ]
        return await call.stream(pieces)
    status = int(call.body.partition(b"leak-")[2][:3])
    error = {"message": everything_of(call), "type": "t", "param": everything_of(call), "code": "c"}
    await call.document(json.dumps({"error": error}).encode(), status=status)
    return None


@pytest.mark.covers("MCP-3", "API-5")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_an_upstream_that_repeats_all_it_got_gives_no_secret_away(
    stack: Stack, stream: bool
) -> None:
    texts: list[str | bytes] = []
    said: Any = None
    async with provider(leak) as upstream:
        sections = tenancy(stack)
        servers = [stack.mcp_server(forward_headers={"X-User-Token": "X-Token"})]
        with (
            logged() as lines,
            stack.gateway(
                upstreams=[upstream.settings()], mcp_servers=servers, **sections
            ) as gateway,
        ):
            for status in (400, 401, 403, 404, 409, 422, 429, 500, 503):
                answer = await create(gateway, f"leak-{status}", stream=stream, headers=HEADERS)
                assert answer.status_code == status, answer.text
                texts.append(answer.text)
            for tools in ([GITHUB], []):
                said = await create(
                    gateway, "leak-answer", stream=stream, headers=HEADERS, tools=tools
                )
                assert said.status_code == 200, said.text
                assert "[redacted]" in said.text
                texts.append(said.text)
            first = frames(said.text)[-1]["response"] if stream else said.json()
            async with gateway.http() as client:
                for path in (f"/v1/responses/{first['id']}", "/v1/models"):
                    texts.append((await client.get(path)).text)
        assert any(FORWARDED in call.body.decode() for call in upstream.calls)
        assert any(CANARY in call.body.decode() for call in upstream.calls)
    clean(stack, *texts, *lines, dump(stack))


@pytest.mark.covers("MCP-3", "STATE-2")
async def test_a_credential_that_a_tool_repeats_is_not_kept_and_can_be_replayed(
    stack: Stack,
) -> None:
    """What is kept is what the caller saw, so the caller may send it back."""
    async with provider(leak) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], **tenancy(stack)) as gateway:
            first = (await create(gateway, "leak-answer", store=False)).json()
            history = [
                {"role": "user", "content": "leak-answer"},
                *first["output"],
                {"role": "user", "content": "and now"},
            ]
            again = await create(gateway, history, store=False)
            assert again.status_code == 200, again.text
            chained = await create(
                gateway, "leak-answer", store=False, previous_response_id=first["id"]
            )
            assert chained.status_code == 200
    replayed = upstream.calls[-1].json["input"]
    assert CANARY not in json.dumps(replayed)
    clean(stack, again.text, chained.text)


@pytest.mark.covers("MCP-3")
async def test_a_refused_credential_on_a_later_leg_does_not_show_the_key(
    stack: Stack, gateway: Gateway
) -> None:
    """Providers repeat parts of a refused key; a stream's error must not."""

    async def refuse(call: Call) -> None:
        if b"mcp_approval_response" in call.body:
            body = {"error": {"message": "Incorrect API key: sk-upst***51c0", "code": "k"}}
            return await call.document(json.dumps(body).encode(), status=401)
        request = {
            "id": "mcpr_" + marker(),
            "type": "mcp_approval_request",
            "server_label": "github",
            "name": "search_issues",
            "arguments": "{}",
        }
        document = response("resp_" + marker(), output=[request])
        await call.stream(
            [
                frame("response.created", sequence_number=0, response=document),
                frame("response.completed", sequence_number=1, response=document),
            ]
        )
        return None

    async with provider(refuse) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], **tenancy(stack)) as running:
            answer = await create(running, "hi", stream=True)
    assert "51c0" not in answer.text
    assert frames(answer.text)[-1]["type"] == "response.failed"


@pytest.mark.xfail(strict=True, reason="the scrubber sees one block, not a text over many deltas")
@pytest.mark.covers("MCP-3")
async def test_a_secret_that_a_model_spells_in_pieces_is_not_shown(stack: Stack) -> None:
    """A tool repeats its credential to the model, and the model quotes it token by token."""

    async def spell(call: Call) -> None:
        document = response("resp_" + marker())
        pieces = [frame("response.created", sequence_number=0, response=document)]
        pieces += [
            delta(number + 1, CANARY[number * 5 : number * 5 + 5])
            for number in range(len(CANARY) // 5 + 1)
        ]
        pieces.append(frame("response.completed", sequence_number=99, response=document))
        await call.stream(pieces)

    async with provider(spell) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], **tenancy(stack)) as gateway:
            answer = await create(gateway, "hi", stream=True)
    assert CANARY not in "".join(event.get("delta", "") for event in frames(answer.text))
