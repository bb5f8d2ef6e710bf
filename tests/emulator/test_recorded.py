"""The emulator emits what providers were recorded to emit: same events, same keys."""

import json
from collections.abc import Iterable
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from .support import ENCRYPTED, DemoServer, Json, Provider, approve, items_of, read_sse

TRACES = Path(__file__).parents[1] / "data" / "traces"
OPENAI = TRACES / "vercel-ai/packages/openai/src/responses/__fixtures__"
AZURE = TRACES / "vercel-ai/packages/azure/src/__fixtures__"
AGENT_FRAMEWORK = (
    TRACES
    / "agent-framework/dotnet/tests/Microsoft.Agents.AI.Hosting.OpenAI.UnitTests"
    / "ConformanceTraces/Responses"
)
PYDANTIC = TRACES / "pydantic-ai/tests/models/cassettes/test_openai_responses"

LATER_KEYS: dict[str, set[str]] = {
    # Keys that the API has gained since these recordings (2025-09 to 2026-02), all of them seen in
    # recordings of 2026-04 and later, see `test_openai_responses_phase_live` of pydantic-ai.
    "response": {
        "billing",
        "completed_at",
        "frequency_penalty",
        "moderation",
        "presence_penalty",
        "prompt_cache_retention",
    },
    "message": {"phase"},
    # openai 3.51 declares it as required.
    "input_tokens_details": {"cache_write_tokens"},
    # These recordings had `stream_options.include_obfuscation` off, or predate padding.
    "response.output_text.delta": {"obfuscation"},
}


def recorded(path: Path, turn: int = 0) -> list[Json]:
    """Return one response of a recorded stream."""
    text = path.read_text()
    if path.suffix == ".yaml":
        cassette = import_module("yaml").safe_load(text)  # it has no type stubs
        return read_sse(cassette["interactions"][0]["response"]["body"]["string"])
    if text.lstrip().startswith("event:"):
        return read_sse(text)
    events = [json.loads(line) for line in text.splitlines() if line.strip()]
    starts = [i for i, e in enumerate(events) if e["type"] == "response.created"]
    return events[starts[turn] : [*starts, len(events)][turn + 1]]


def sequence(events: Iterable[Json]) -> list[str]:
    """Return the event types with the item types they carry; runs of deltas count once."""
    named = (f"{e['type']} {e['item']['type']}" if "item" in e else e["type"] for e in events)
    return [name for name, _ in groupby(named)]


def shapes(events: Iterable[Json]) -> dict[str, set[str]]:
    """Return the keys of every event type, item type and nested object of the stream."""
    found: dict[str, set[str]] = {}
    for event in events:
        found.setdefault(event["type"], set()).update(event)
        if "item" in event:
            stage = event["type"].rpartition(".")[2]
            found.setdefault(f"{event['item']['type']} {stage}", set()).update(event["item"])
        if "part" in event:
            found.setdefault(f"part {event['part']['type']}", set()).update(event["part"])
        _response_shapes(event, found)
    return found


def _response_shapes(event: Json, found: dict[str, set[str]]) -> None:
    response: Any = event.get("response")
    if response is None:
        return
    stage = event["type"].rpartition(".")[2]
    found.setdefault(f"response {stage}", set()).update(response)
    for key in ("usage", "error", "text", "reasoning"):
        if response[key]:
            found.setdefault(f"{key} {stage}", set()).update(response[key])
    for key in ("input_tokens_details", "output_tokens_details"):
        found.setdefault(key, set()).update((response["usage"] or {}).get(key, {}))
    for item in response["output"]:
        found.setdefault(f"{item['type']} output", set()).update(item)


def assert_same_shapes(ours: list[Json], theirs: list[Json]) -> None:
    emitted, expected = shapes(ours), shapes(theirs)
    for name, keys in expected.items():
        assert name in emitted, f"we never emit {name}"
        assert keys <= emitted[name], f"{name} lacks {keys - emitted[name]}"
        extra = emitted[name] - keys
        allowed = LATER_KEYS.get(name, set()) | LATER_KEYS.get(name.partition(" ")[0], set())
        assert extra <= allowed, f"{name} has {extra - allowed}"


def assert_like(ours: list[Json], path: Path, turn: int = 0) -> None:
    theirs = recorded(path, turn)
    assert sequence(ours) == sequence(theirs)
    assert_same_shapes(ours, theirs)


FUNCTION = {
    "type": "function",
    "name": "calculator",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    "strict": True,
}


async def test_plain_text(provider: Provider) -> None:
    events = await provider.stream("hello", store=False)
    assert_like(events, OPENAI / "openai-reasoning-encrypted-content.1.chunks.txt", turn=3)


async def test_text_cut_off(provider: Provider) -> None:
    events = await provider.stream("/long 40", max_output_tokens=20)
    assert_like(events, AGENT_FRAMEWORK / "streaming/response.txt")


async def test_plain_text_on_azure(azure: Provider) -> None:
    assert_like(await azure.stream("hello"), AZURE / "azure-text.1.chunks.txt")


@pytest.mark.parametrize("where", ["provider", "azure"])
async def test_encrypted_reasoning_and_function_call(
    where: str, request: pytest.FixtureRequest
) -> None:
    provider: Provider = request.getfixturevalue(where)
    events = await provider.stream(
        '/think Calculating step by step.\n/function calculator {"a":12,"b":7,"op":"add"}',
        store=False,
        include=ENCRYPTED,
        reasoning={"effort": "high", "summary": "detailed"},
        tools=[FUNCTION],
    )
    folder, name = (OPENAI, "openai") if where == "provider" else (AZURE, "azure")
    assert_like(events, folder / f"{name}-reasoning-encrypted-content.1.chunks.txt")


async def test_function_call_on_azure(azure: Provider) -> None:
    events = await azure.stream(
        '/function calculator {"location":"San Francisco"}', tools=[FUNCTION]
    )
    assert_like(events, AZURE / "azure-tool-call.1.chunks.txt")


async def test_mcp_approval_request(provider: Provider, demo: DemoServer) -> None:
    events = await provider.stream(
        '/think\n/call github.create_issue {"title":"A"}', tools=[demo.tool()]
    )
    assert_like(events, OPENAI / "openai-mcp-tool-approval.1.chunks.txt")


async def _replayed(
    provider: Provider, demo: DemoServer, text: str, *, yes: bool
) -> tuple[list[Json], str]:
    """Answer an approval as recorded: without the listing, so that the provider lists again."""
    first = await provider.create(text, tools=[demo.tool()], store=False)
    (request,) = items_of(first, "mcp_approval_request")
    replay = [{"role": "user", "content": text}, request, approve(request, yes=yes)]
    return await provider.stream(replay, tools=[demo.tool()], store=False), request["id"]


async def test_mcp_approved(provider: Provider, demo: DemoServer) -> None:
    events, request_id = await _replayed(
        provider, demo, '/call github.create_issue {"title":"A"}', yes=True
    )
    assert_like(events, OPENAI / "openai-mcp-tool-approval.4.chunks.txt")
    (call,) = items_of(events[-1]["response"], "mcp_call")
    assert call["approval_request_id"] == request_id


async def test_mcp_denied(provider: Provider, demo: DemoServer) -> None:
    events, _ = await _replayed(
        provider, demo, '/think\n/call github.create_issue {"title":"A"}', yes=False
    )
    assert_like(events, OPENAI / "openai-mcp-tool-approval.2.chunks.txt")


async def test_mcp_without_approval(provider: Provider, demo: DemoServer) -> None:
    events = await provider.stream(
        '/think\n/call github.search_issues {"query":"login"}\n'
        '/think\n/call github.search_issues {"query":"dark"}\n/think',
        tools=[demo.tool(require_approval="never")],
    )
    assert_like(events, OPENAI / "openai-mcp-tool.1.chunks.txt")


async def test_image(provider: Provider) -> None:
    events = await provider.stream(
        "/think\n/image a cat\n/echo", tools=[{"type": "image_generation", "output_format": "webp"}]
    )
    assert_like(events, OPENAI / "openai-image-generation-tool.1.chunks.txt")


async def test_image_on_azure(azure: Provider) -> None:
    events = await azure.stream(
        "/image a raccoon\n/echo Here it is.", tools=[{"type": "image_generation"}]
    )
    assert_like(events, AZURE / "azure-image-generation-tool.1.chunks.txt")


async def test_error_in_stream(provider: Provider) -> None:
    theirs = recorded(OPENAI / "openai-error.1.chunks.txt")
    ours = await provider.stream("/fault failed")
    assert sequence(ours)[:2] == sequence(theirs)[:2]
    assert sequence(ours)[-2:] == sequence(theirs)[-2:]
    assert_same_shapes(ours, theirs)
    assert set(ours[-2]["error"]) == set(theirs[-2]["error"])


async def test_background_stream(provider: Provider) -> None:
    events = await provider.stream("hello", background=True)
    assert_like(events, PYDANTIC / "test_background_mode_streaming_starting_after_vcr.yaml")
    statuses = [e["response"]["status"] for e in events if "response" in e]
    assert statuses == ["queued", "queued", "in_progress", "completed"]
