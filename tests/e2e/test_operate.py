"""Health, metrics and logs (OPS-1); Redis' faults are in test_errors.py (OPS-4)."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.stack import CANARY, UPSTREAM_KEY, Gateway, Stack

MODEL = "gpt-4.1"


@pytest.mark.covers("OPS-1")
async def test_health_needs_no_key_and_is_not_cached(gateway: Gateway) -> None:
    async with gateway.http(None) as client:
        live = await client.get("/livez")
        ready = await client.get("/readyz")
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert ready.status_code == 200
    assert ready.json() == {"status": "ok", "checks": {"store": "ok", "draining": False}}
    assert live.headers["cache-control"] == ready.headers["cache-control"] == "no-store"


def samples(text: str) -> dict[str, float]:
    """Read Prometheus' text format."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def measured(gateway: Gateway) -> dict[str, float]:
    async with gateway.http(None) as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return samples(answer.text)


@pytest.mark.covers("OPS-1")
async def test_turns_tokens_and_errors_are_counted(stack: Stack) -> None:
    models = [{"name": "fast", "routes": [{"upstream": "emulator", "deployment": MODEL}]}]
    with stack.gateway(models=models) as gateway:
        async with gateway.http() as client:
            for text, stream in (
                ("hi", False),
                ("hi", True),
                ("/fault 500", False),
                ("/fault 500", True),
            ):
                await client.post(
                    "/v1/responses", json={"model": "fast", "input": text, "stream": stream}
                )
        found = await measured(gateway)

    def turns(status: str, mode: str) -> float:
        labels = f'mode="{mode}",model="fast",status="{status}",upstream="emulator"'
        return found.get(f"gateway_turns_total{{{labels}}}", 0)

    assert [turns("completed", mode) for mode in ("json", "stream")] == [1, 1]
    assert [turns("error", mode) for mode in ("json", "stream")] == [1, 1]
    labels = 'model="fast",upstream="emulator"'
    assert found[f'gateway_tokens_total{{direction="input",{labels}}}'] > 0
    assert found[f'gateway_tokens_total{{direction="output",{labels}}}'] > 0
    assert found['gateway_legs_total{upstream="emulator"}'] >= 2
    assert found['gateway_turn_duration_seconds_count{mode="json",upstream="emulator"}'] == 2
    assert found['gateway_time_to_first_event_seconds_count{upstream="emulator"}'] == 1


@pytest.mark.covers("OPS-1")
async def test_callers_cannot_make_series_without_end(gateway: Gateway) -> None:
    async with gateway.http() as client:
        await client.post("/v1/responses", json={"model": "novel-0", "input": "x"})
        before = set(await measured(gateway))
        for number in range(1, 10):
            await client.post(
                "/v1/responses",
                json={"model": f"novel-{number}", "input": "x", "user": f"user-{number}"},
            )
            await client.get(f"/v1/responses/resp_{number}")
    assert set(await measured(gateway)) == before


@pytest.mark.covers("OPS-1", "MCP-3")
async def test_logs_are_json_lines_with_ids_and_without_content_or_secrets(
    stack: Stack, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    logger = logging.getLogger("gateway")
    kept, logger.handlers = logger.handlers, []  # the stream of this test, not of the first one
    try:
        with stack.gateway() as gateway:
            async with gateway.http() as client:
                made = await client.post(
                    "/v1/responses",
                    json={
                        "model": MODEL,
                        "input": '/call github.search_issues {"query": "secret-word"}',
                        "tools": [{"type": "mcp", "server_label": "github"}],
                    },
                )
                for text in (
                    "/fault 429",
                    "/fault reset",
                    "/fault malformed",
                    "/fault no_terminal",
                ):
                    for stream in (True, False):
                        body = {"model": MODEL, "input": text + " secret-word", "stream": stream}
                        await client.post("/v1/responses", json=body)
            key = gateway.keys["caller"]
    finally:
        logger.handlers = kept
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines() if line.strip()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    (ended,) = (
        line
        for line in lines
        if line["message"] == "turn ended" and line["turn"] == made.json()["id"]
    )
    assert ended["request"] == made.headers["gateway-request-id"]
    assert ended["upstream_request"] == made.headers["x-request-id"]
    assert ended["tenant"] == "acme"
    written = out + err
    for secret in ("secret-word", CANARY, UPSTREAM_KEY, key):
        assert secret not in written


@pytest.mark.covers("OPS-1")
async def test_every_answer_names_its_request(gateway: Gateway) -> None:
    async with gateway.http() as client:
        made = await client.post("/v1/responses", json={"model": MODEL, "input": "x"})
        streamed = await client.post(
            "/v1/responses", json={"model": MODEL, "input": "x", "stream": True}
        )
        found = await client.get(f"/v1/responses/{made.json()['id']}")
    ids = [answer.headers["gateway-request-id"] for answer in (made, streamed, found)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"greq_[0-9a-f]{24}", one) for one in ids)
