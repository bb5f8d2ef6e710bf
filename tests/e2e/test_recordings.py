"""Recorded streams of real providers: server, gateway, openai-python (API-3, STATE-1).

Each is replayed byte by byte by a server, and read through the gateway by `responses.stream()`,
the strictest reader that there is, once where responses are stored and once where they are not.
The bytes that arrive are those that were sent, except the `tools` echo of MCP servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from typing_extensions import override

from tests.support.approvals import marker
from tests.support.provider import Call, awkward, provider
from tests.support.recordings import ALL, COPY, Recording, recorded_streams
from tests.support.stack import Gateway, Stack

pytestmark = pytest.mark.filterwarnings(
    # openai-python copies with its models what they do not know.
    "ignore:Pydantic serializer warnings:UserWarning"
)

EXPECTED = 47
"""Streams in the repository's copy."""

REFUSED = {
    r"/openai-error\.1\.chunks\.txt#0": "quota",  # the recording is of an error
    # openai-python reads no response that begins anywhere but at its beginning.
    r"/test_background_mode_streaming_starting_after_vcr\.yaml#1": "response.created",
    # These end with `response.incomplete`, which openai-python takes for no final response.
    r"/ConformanceTraces/Responses/streaming/response\.txt": "response.completed",
    r"/Conversations/basic_streaming/first_message_response\.txt": "response.completed",
    # Its proxy gives each event of an item another id.
    r"/github-copilot-id-rotation\.1\.chunks\.txt#0": "identity",
    # The item of `done` is not the one of `added`.
    r"/openai-client-tool-search\.1\.chunks\.txt#0": "identity",
}
"""The only streams that openai-python does not read to their end, and what it says."""


class Listening(httpx2.AsyncHTTPTransport):
    """Keeps what arrived, before the SDK looks at it."""

    heard = b""

    @override
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await super().handle_async_request(request)
        self.heard = await answer.aread()
        headers = {"content-type": answer.headers["content-type"]}
        return httpx2.Response(answer.status_code, headers=headers, content=self.heard)


@dataclass
class Outcome:
    """What came of the streams that were tried, by name."""

    different: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def servers(recordings: list[Recording]) -> list[dict[str, Any]]:
    labels = {tool["server_label"] for found in recordings for tool in found.mcp_tools}
    return [{"label": label, "url": "https://mcp.example.com/mcp"} for label in sorted(labels)]


def rules(labels: list[dict[str, Any]], **effect: Any) -> list[dict[str, Any]]:
    return [
        {"id": one["label"], "match": {"server": one["label"], "tool": "*"}, **effect}
        for one in labels
    ]


def same(sent: bytes, received: bytes) -> bool:
    """Compare two streams frame by frame; only the MCP servers in `tools` may differ."""
    ours, theirs = received.split(b"\n\n"), sent.split(b"\n\n")
    return len(ours) == len(theirs) and all(
        one == other or without_tools(one) == without_tools(other)
        for one, other in zip(ours, theirs, strict=True)
    )


def without_tools(block: bytes) -> Any:
    name, _, data = block.partition(b"\n")
    event = msgspec.json.decode(data.removeprefix(b"data: "), type=dict[str, msgspec.Raw])
    inner = msgspec.json.decode(event["response"], type=dict[str, msgspec.Raw])
    inner.pop("tools")
    return name, event | {"response": b""}, inner


async def read(gateway: Gateway, recording: Recording) -> tuple[bytes, dict[str, Any] | str]:
    """Read a recording with the SDK: the bytes that arrived, and the response or the error."""
    transport = Listening()
    tools: Any = [
        {"type": "mcp", "server_label": tool["server_label"]} for tool in recording.mcp_tools
    ]
    async with gateway.client(
        http_client=httpx2.AsyncClient(transport=transport, trust_env=False)
    ) as client:
        try:
            async with client.responses.stream(
                model=recording.name,
                input="hello",
                tools=tools or openai.omit,
                include=["reasoning.encrypted_content"],  # else it is rightly taken out
            ) as stream:
                final = (await stream.get_final_response()).to_dict(warnings=False)
        except (openai.OpenAIError, RuntimeError) as exc:
            return transport.heard, str(exc)
    return transport.heard, final


async def tried(gateway: Gateway, recordings: list[Recording]) -> Outcome:
    outcome = Outcome()
    for recording in recordings:
        heard, final = await read(gateway, recording)
        equal = same(recording.wire, heard) if recording.mcp_tools else heard == recording.wire
        if not equal:
            outcome.different.append(recording.name)
        if isinstance(final, str):
            outcome.refused[recording.name] = final
        elif shown(final) != shown(recording.final):
            outcome.different.append(recording.name)
    return outcome


def shown(response: dict[str, Any]) -> tuple[Any, ...]:
    """What a caller builds on."""
    items = [(item["type"], item.get("id"), item.get("status")) for item in response["output"]]
    return response["id"], response["status"], response.get("usage"), items


@contextmanager
def gateways(
    stack: Stack, upstream: dict[str, Any], known: list[dict[str, Any]], **tenant: Any
) -> Iterator[tuple[Gateway, Gateway]]:
    """Run two gateways: calls must be allowed, or be asked of the caller, or we would step in."""
    ask: dict[str, Any] = {"by": "caller", "approvers": ["role:caller"]}
    name = marker()  # a response id names one turn of a tenant
    common: dict[str, Any] = {
        "upstreams": [upstream],
        "mcp_servers": known,
        "tenants": [{"id": name, **tenant}],
        "api_keys": [stack.key("caller", tenant=name)],
    }
    with (
        stack.gateway(**common, rules=rules(known, effect="allow")) as allowing,
        stack.gateway(**common, rules=rules(known, effect="ask", approval=ask)) as asking,
    ):
        yield allowing, asking


async def outcome_of(stack: Stack, recordings: list[Recording], **tenant: Any) -> Outcome:
    by_name = {recording.name: recording for recording in recordings}

    async def answer(call: Call) -> None:
        await call.stream(awkward(by_name[call.json["model"]].wire))

    async with provider(answer) as upstream:
        with gateways(stack, upstream.settings(), servers(recordings), **tenant) as found:
            allowing, asking = found
            first = await tried(allowing, [one for one in recordings if not one.asks])
            second = await tried(asking, [one for one in recordings if one.asks])
    return Outcome(first.different + second.different, first.refused | second.refused)


def unexpected(refused: dict[str, str], recordings: list[Recording]) -> dict[str, str]:
    """Compare what was refused with what is known to be, both ways."""
    known = {
        recording.name: said
        for recording in recordings
        for name, said in REFUSED.items()
        if re.search(name + "$", "/" + recording.name)
    }
    return {
        name: refused.get(name, "was read, against what is written here")
        for name in refused.keys() | known.keys()
        if name not in known or known[name] not in refused.get(name, "")
    }


@pytest.mark.covers("API-1", "API-3", "STATE-1")
@pytest.mark.parametrize("stateless", [False, True], ids=["stored", "stateless"])
async def test_each_kind_of_recorded_stream_is_read_as_it_was_sent(
    stack: Stack, stateless: bool
) -> None:
    recordings = recorded_streams(COPY)
    outcome = await outcome_of(stack, recordings, stateless=stateless)
    assert outcome.different == []
    assert unexpected(outcome.refused, recordings) == {}
    assert len(recordings) == EXPECTED


@pytest.mark.covers("API-3")
@pytest.mark.skipif(not ALL.is_dir(), reason="the other recordings are not at hand")
@pytest.mark.parametrize("stateless", [False, True], ids=["stored", "stateless"])
async def test_so_is_every_other_recorded_stream(stack: Stack, stateless: bool) -> None:
    recordings = recorded_streams(ALL)
    outcome = await outcome_of(stack, recordings, stateless=stateless)
    assert outcome.different == []
    assert unexpected(outcome.refused, recordings) == {}
    assert len(recordings) >= 100
