import json
import time
from typing import Any

import anyio
import httpx2
import pytest

from .support import MODEL, DemoServer, Provider, read_sse, text_of


async def _read(provider: Provider, text: str, **headers: str) -> tuple[bytes, Exception | None]:
    """Return what arrived of a stream, and how it broke."""
    body = {"model": MODEL, "stream": True, "input": text}
    received = b""
    async with provider.http as client:
        try:
            async with client.stream("POST", "responses", json=body, headers=headers) as response:
                async for chunk in response.aiter_bytes():
                    received += chunk
        except httpx2.TransportError as exc:
            return received, exc
    return received, None


@pytest.mark.parametrize("by", ["text", "header"])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("429", 429, "rate_limit_exceeded"),
        ("500", 500, None),
        ("503", 503, "service_unavailable"),
        ("401", 401, "invalid_api_key"),
        ("content_filter", 400, "content_filter"),
    ],
)
async def test_refusals(
    provider: Provider, by: str, kind: str, status: int, code: str | None
) -> None:
    text = f"/fault {kind}" if by == "text" else "hello"
    headers = {"x-emulator-fault": kind} if by == "header" else {}
    response = await provider.post(text, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    if kind == "429":
        assert response.headers["retry-after-ms"] == "100"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_header_works_on_every_endpoint(provider: Provider) -> None:
    async with provider.http as client:
        response = await client.get("models", headers={"x-emulator-fault": "503"})
    assert response.status_code == 503


async def test_content_filter_has_azures_shape(azure: Provider) -> None:
    _, error = await azure.refused("/fault content_filter")
    assert error["innererror"]["code"] == "ResponsibleAIPolicyViolation"
    assert error["innererror"]["content_filter_result"]["violence"]["filtered"] is True


async def test_fault_may_end_after_some_times(provider: Provider) -> None:
    text = "/fault 429 times=2\n/echo finally"
    statuses = [(await provider.post(text)).status_code for _ in range(3)]
    assert statuses == [429, 429, 200]


async def test_reset_in_mid_stream(provider: Provider) -> None:
    received, broken = await _read(provider, "/fault reset\n/long 50")
    assert isinstance(broken, httpx2.ReadError)
    deltas = [e for e in read_sse(received.decode()) if e["type"].endswith(".delta")]
    assert 0 < len(deltas) < 50


async def test_header_wins_over_the_text(provider: Provider) -> None:
    received, broken = await _read(
        provider, "/fault 500\n/long 50", **{"x-emulator-fault": "no_terminal"}
    )
    assert broken is None
    assert read_sse(received.decode())[-1]["type"] == "response.output_item.done"


async def test_reset_before_the_headers(provider: Provider) -> None:
    for text, headers in [
        ("/fault reset_before", {}),
        ("hi", {"x-emulator-fault": "reset_before"}),
    ]:
        received, broken = await _read(provider, text, **headers)
        assert received == b""
        assert isinstance(broken, httpx2.TransportError)


async def test_reset_of_a_document(provider: Provider) -> None:
    with pytest.raises(httpx2.TransportError):
        await provider.post("/fault reset")


async def test_malformed_frame(provider: Provider) -> None:
    received, broken = await _read(provider, "/fault malformed\n/long 20")
    assert broken is None
    frames = [b for b in received.decode().split("\n\n") if b]
    bad = [f for f in frames if not _is_json(f.split("data: ", 1)[1])]
    assert len(bad) == 1
    assert json.loads(frames[-1].split("data: ", 1)[1])["type"] == "response.completed"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def test_stream_without_terminal_event(provider: Provider) -> None:
    received, broken = await _read(provider, "/fault no_terminal")
    assert broken is None
    assert read_sse(received.decode())[-1]["type"] == "response.output_item.done"


async def test_failed_response(provider: Provider) -> None:
    events = await provider.stream("/fault failed")
    assert [e["type"] for e in events[-2:]] == ["error", "response.failed"]
    response = await provider.create("/fault failed")
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


@pytest.mark.parametrize("kind", ["silence:0.2", "stall:0.2", "slow:0.05"])
async def test_delays(provider: Provider, kind: str) -> None:
    start = time.monotonic()
    events = await provider.stream(f"/fault {kind}\n/echo one two three four")
    assert time.monotonic() - start >= 0.2
    assert events[-1]["type"] == "response.completed"


async def test_unknown_fault_is_refused(provider: Provider) -> None:
    _, error = await provider.refused("/fault nonsense")
    assert error["code"] == "unknown_fault"


async def test_fault_of_an_earlier_turn_does_not_come_back(provider: Provider) -> None:
    response = await provider.create(
        [
            {"role": "user", "content": "/fault 500"},
            {"role": "assistant", "content": "sorry"},
            {"role": "user", "content": "/recall"},
        ]
    )
    assert text_of(response).startswith("I see 1 user message")


async def _introspect(provider: Provider, path: str) -> Any:
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        return (await client.get(f"{provider.url}/_emulator/{path}")).json()


async def test_requests_are_recorded_with_hashed_keys(provider: Provider, demo: DemoServer) -> None:
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        await client.delete(f"{provider.url}/_emulator/requests")
    await provider.post("hello", tools=[demo.tool()])
    await provider.get("models", a="b")
    first, second = await _introspect(provider, "requests")
    assert (first["method"], first["path"]) == ("POST", "/v1/responses")
    assert first["body"] == {"model": MODEL, "input": "hello", "tools": [demo.tool()]}
    assert len(first["headers"]["authorization"]) == 64
    assert (second["path"], second["query"], second["body"]) == ("/v1/models", "a=b", None)


@pytest.mark.parametrize("text", ["/long 100000", "/fault silence:60", "/fault stall:60"])
@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_ends_the_turn(slow: Provider, text: str, stream: bool) -> None:
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            await slow.post(text, stream=stream)

        group.start_soon(ask)
        with anyio.fail_after(30):
            while (await _introspect(slow, "active"))["active"] != 1:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    with anyio.fail_after(30):
        while (await _introspect(slow, "active"))["active"]:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_a_fault_can_wait_for_the_answer_to_an_approval(
    provider: Provider, demo: DemoServer, store: bool
) -> None:
    ask = f'/fault 500 on=approval times=1\n/call github.create_issue {{"title": "later {store}"}}'
    first = (await provider.post(ask, tools=[demo.tool()], store=store)).json()
    request = next(item for item in first["output"] if item["type"] == "mcp_approval_request")
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": True,
    }
    statuses = []
    for _ in range(2):
        if store:
            body = {"input": [answer], "previous_response_id": first["id"]}
        else:
            body = {"input": [{"role": "user", "content": ask}, *first["output"], answer]}
        async with provider.http as client:
            sent = {"model": MODEL, "tools": [demo.tool()], "store": store, **body}
            statuses.append((await client.post("responses", json=sent)).status_code)
    assert statuses == [500, 200]
