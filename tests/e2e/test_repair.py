"""What an upstream refuses of an input, or leaves out of it by itself (STATE-5)."""

from __future__ import annotations

import json
import re
from contextlib import aclosing
from html import unescape
from typing import Any

import pytest

from tests.console.conftest import Browser
from tests.support.approvals import GITHUB, tenancy
from tests.support.provider import Call, asked_for, message, provider, ran, response
from tests.support.stack import Gateway, Stack

REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"}
CUSTOM = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c2", "name": "g", "input": ""}
SAID = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "yes", "annotations": []}],
}
NEEDS_ITS_ID = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}}
INPUT: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    REASONING,
    CALL,
    {"type": "function_call_output", "call_id": "c1", "output": "1"},
    CUSTOM,
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "1"},
    NEEDS_ITS_ID,
    SAID,
]
OPTIONAL = ("fc_1", "ctc_1", "msg_1")
"""The items that an upstream takes without their ids."""


def without_reasoning(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in items if item is not REASONING]


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in item.items() if key != "id"}
        if item.get("id") in OPTIONAL
        else item
        for item in items
    ]


def error(text: str, code: str | None = None, param: str | None = "input") -> bytes:
    told = {"message": text, "type": "invalid_request_error", "param": param, "code": code}
    return json.dumps({"error": told}).encode()


UNVERIFIED = "The encrypted content gAAA... could not be verified."

REFUSALS: dict[str, tuple[int, bytes, str]] = {
    "code": (400, error(UNVERIFIED, "invalid_encrypted_content"), "reasoning"),
    "azure": (
        400,
        error("The encrypted content for item rs_1 could not be verified. Reason: decryption."),
        "reasoning",
    ),
    "relayed as text": (
        400,
        b"upstream said: The encrypted content\ngAAA could not be verified",
        "reasoning",
    ),
    "without its successor": (
        400,
        error("Item 'rs_1' of type 'reasoning' was provided without its required following item."),
        "reasoning",
    ),
    "reasoning not found": (
        404,
        error("Item with id 'rs_1' not found. Items are not persisted when `store` is false."),
        "reasoning",
    ),
    "escaped": (
        400,
        error("Item with id 'rs_1' not found.").replace(b"'", b"\\u0027"),
        "reasoning",
    ),
    "without its reasoning": (
        400,
        error(
            "Item 'fc_1' of type 'function_call' was provided without its required 'reasoning' "
            "item: 'rs_0'."
        ),
        "ids",
    ),
    "message not found": (400, error("Item with id 'msg_1' not found."), "ids"),
    "id of another kind": (
        400,
        error(
            "Invalid 'input[2].id': 'fc_1'. Expected an ID that begins with 'msg'.",
            "invalid_value",
            "input[2].id",
        ),
        "ids",
    ),
}
"""What providers say, and what must be left out then."""

OTHERS: dict[str, tuple[int, bytes, str]] = {
    "another error": (400, error("Invalid value for 'temperature'.", "invalid_value"), ""),
    "a limit": (429, error(UNVERIFIED, "rate_limit_exceeded"), ""),
    "a fault": (500, error(UNVERIFIED), ""),
}


async def refused_once(
    stack: Stack, refusals: dict[str, tuple[int, bytes, str]], repair: str
) -> tuple[dict[str, tuple[int, list[Any]]], str]:
    """Send the input to an upstream that refuses it; the status and the inputs that came."""
    sent: dict[str, list[Any]] = {name: [] for name in refusals}

    async def answer(call: Call) -> None:
        name = call.json["model"]
        sent[name].append(call.json["input"])
        if len(sent[name]) == 1:
            status, body, _ = refusals[name]
            return await call.document(body, status=status)
        return await call.document(json.dumps(response(f"resp_{len(name)}")).encode())

    async with provider(answer) as upstream:
        with stack.gateway(
            **tenancy(stack, stateless=True), upstreams=[upstream.settings(repair=repair)]
        ) as gateway:
            async with gateway.http() as client:
                statuses = {
                    name: (
                        await client.post("/v1/responses", json={"model": name, "input": INPUT})
                    ).status_code
                    for name in refusals
                }
                metrics = (await client.get("/metrics")).text
    return {name: (status, sent[name]) for name, status in statuses.items()}, metrics


@pytest.mark.covers("STATE-5")
async def test_what_was_refused_is_left_out_and_no_more(stack: Stack) -> None:
    left = {"reasoning": without_reasoning(INPUT), "ids": without_ids(INPUT)}
    found, metrics = await refused_once(stack, REFUSALS, "strip_reasoning")
    assert found == {name: (200, [INPUT, left[cause]]) for name, (_, _, cause) in REFUSALS.items()}
    for cause, count in (("reasoning", 6), ("ids", 3)):
        line = f'gateway_repairs_total{{left_out="{cause}",upstream="emulator"}} {count}.0'
        assert line in metrics


@pytest.mark.covers("STATE-5")
async def test_reasoning_and_ids_may_be_left_out_together(stack: Stack) -> None:
    found, _ = await refused_once(stack, REFUSALS, "strip_ids")
    both = without_ids(without_reasoning(INPUT))
    assert found == {name: (200, [INPUT, both]) for name in REFUSALS}


@pytest.mark.covers("STATE-5")
async def test_what_is_refused_for_something_else_is_not_sent_again(stack: Stack) -> None:
    found, metrics = await refused_once(stack, OTHERS, "strip_ids")
    assert found == {name: (status, [INPUT]) for name, (status, _, _) in OTHERS.items()}
    assert "gateway_repairs_total{" not in metrics
    found, _ = await refused_once(stack, REFUSALS, "off")
    assert found == {name: (status, [INPUT]) for name, (status, _, _) in REFUSALS.items()}


@pytest.mark.covers("STATE-5")
async def test_what_holds_nothing_to_leave_out_is_not_sent_again(stack: Stack) -> None:
    items = [{"role": "user", "content": "hello"}, NEEDS_ITS_ID]
    calls: list[Call] = []

    async def answer(call: Call) -> None:
        calls.append(call)
        await call.document(error("Item with id 'ws_1' not found."), status=404)

    async with provider(answer) as upstream:
        with stack.gateway(**tenancy(stack), upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                body = {"model": "m", "input": items, "store": False}
                refused = await client.post("/v1/responses", json=body)
    assert refused.status_code == 404
    assert len(calls) == 1


def withheld(id_: str, reason: str) -> dict[str, Any]:
    return {"id": id_, "type": "reasoning", "action": "removed", "reason": reason}


async def course_of(gateway: Gateway, turn_id: str) -> str:
    """What the console says of the legs of a turn."""
    async with aclosing(Browser(gateway)) as browser:
        await browser.sign_in()
        page = (await browser.get(f"/console/turns/{turn_id}")).text
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.mark.covers("STATE-5", "APPR-10")
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_an_upstream_leaves_out_itself_is_counted_and_shown_leg_by_leg(
    stack: Stack, streamed: bool
) -> None:
    request = asked_for("withheld")
    told: list[list[Any]] = [
        [withheld("rs_1", "prefix_mismatch"), withheld("rs_2", "prefix_mismatch")],
        [withheld("rs_3", "end_user_mismatch"), {"id": "rs_4", "reason": "a new\nreason"}, 7],
    ]
    outputs: list[list[Any]] = [[request], [ran(request), message("done")]]
    calls: list[Call] = []

    async def answer(call: Call) -> None:
        calls.append(call)
        leg = len(calls) - 2
        if leg < 0:
            return await call.document(error(UNVERIFIED, "invalid_encrypted_content"), status=400)
        document = response(
            f"resp_{leg}", output=outputs[leg], input_transformations=told[leg], store=True
        )
        if not call.json.get("stream"):
            return await call.document(json.dumps(document).encode())
        ending = {"type": "response.completed", "sequence_number": 0, "response": document}
        wire = f"event: response.completed\ndata: {json.dumps(ending)}\n\n".encode()
        return await call.stream([wire])

    everything = [{"id": "all", "match": {"server": "github", "tool": "*"}, "effect": "allow"}]
    async with provider(answer) as upstream:
        with stack.gateway(
            **tenancy(stack), upstreams=[upstream.settings()], rules=everything
        ) as gateway:
            async with gateway.http() as client:
                body = {"model": "m", "input": INPUT, "tools": [GITHUB], "stream": streamed}
                made = await client.post("/v1/responses", json=body)
                metrics = (await client.get("/metrics")).text
            shown = await course_of(gateway, "resp_0")
    final = json.loads(made.text.rstrip().rpartition("data: ")[2])
    final = final["response"] if streamed else final
    assert final["status"] == "completed"
    assert final["input_transformations"] == told[0] + told[1]
    for reason, count in (("prefix_mismatch", 2), ("end_user_mismatch", 1), ("other", 2)):
        line = f'gateway_reasoning_withheld_total{{reason="{reason}",upstream="emulator"}} {count}'
        assert line in metrics
    assert "refused once sent again without its reasoning" in shown
    assert "2 left out: prefix_mismatch" in shown
    assert "1 left out: end_user_mismatch , 2 left out: other" in shown
