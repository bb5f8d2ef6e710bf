"""MCP servers are named by label; a caller may narrow and tighten, never widen (MCP-1, 2, 4)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.approvals import (
    GITHUB,
    create,
    executed,
    issue,
    marker,
    output_types,
    pending,
    refused,
    sent,
    settled,
    tenancy,
    text_of,
    vote,
)
from tests.support.stack import CANARY, RULES, Gateway, Stack

ESCAPED = "\\u006dcp"


def sha(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


async def attached(stack: Stack, word: str, label: str = "github") -> dict[str, Any]:
    """The MCP tool as the upstream received it last."""
    body = (await sent(stack, word))[-1]
    found: dict[str, Any] = next(
        tool for tool in body["tools"] if tool.get("server_label") == label
    )
    return found


@pytest.mark.covers("MCP-1", "MCP-2")
async def test_a_label_alone_brings_url_headers_and_rules(gateway: Gateway, stack: Stack) -> None:
    word = marker()
    answer = await create(gateway, f'/call github.search_issues {{"query": "{word}"}}')
    assert output_types(answer.json())[-2:] == ["mcp_call", "message"]
    tool = await attached(stack, word)
    assert tool["server_url"] == stack.mcp_url
    assert tool["headers"] == {"Authorization": f"Bearer {CANARY}"}
    (call,) = await executed(stack, word)
    assert call["authorization_sha256"] == sha(f"Bearer {CANARY}")


@pytest.mark.covers("MCP-1")
async def test_a_server_that_is_always_attached_needs_no_asking(stack: Stack) -> None:
    word = marker()
    with stack.gateway(mcp_servers=[stack.mcp_server(attach="always")]) as gateway:
        answer = await create(gateway, f"/echo {word}", tools=())
        assert answer.status_code == 200
        assert (await attached(stack, word))["server_url"] == stack.mcp_url


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"server_label": "nowhere"}, 400, "unknown_mcp_server"),
    ({}, 400, "missing_required_parameter"),
    ({"server_label": ""}, 400, "missing_required_parameter"),
    ({"server_label": 7}, 400, "invalid_type"),
    ({"server_label": "github", "server_url": "https://evil.test/"}, 403, "server_url_not_allowed"),
    ({"server_label": "nowhere", "server_url": "https://e.test/"}, 403, "server_url_not_allowed"),
    ({"server_label": "github", "connector_id": "c"}, 403, "connector_id_not_allowed"),
    ({"server_label": "nowhere", "connector_id": "c"}, 403, "connector_id_not_allowed"),
    ({"server_label": "nowhere", "tunnel_id": "t"}, 403, "tunnel_id_not_allowed"),
    ({"server_label": "github", "headers": {"X": "1"}}, 403, "mcp_headers_not_allowed"),
    ({"server_label": "github", "authorization": "t"}, 403, "mcp_headers_not_allowed"),
    (
        {"server_label": "github", "allowed_callers": ["programmatic"]},
        403,
        "allowed_callers_not_allowed",
    ),
    (
        {"server_label": "github", "allowed_callers": ["direct", "programmatic"]},
        403,
        "allowed_callers_not_allowed",
    ),
    ({"server_label": "github", "require_approval": "never"}, 403, "require_approval_not_allowed"),
    ({"server_label": "github", "require_approval": "NEVER"}, 400, "invalid_value"),
    (
        {"server_label": "github", "require_approval": {"never": {"tool_names": ["create_issue"]}}},
        403,
        "require_approval_not_allowed",
    ),
    (
        {"server_label": "github", "require_approval": {"never": {"read_only": True}}},
        400,
        "invalid_type",
    ),
    ({"server_label": "github", "require_approval": {"sometimes": {}}}, 400, "invalid_type"),
    ({"server_label": "github", "allowed_tools": {"read_only": True}}, 400, "invalid_type"),
    ({"server_label": "github", "allowed_tools": ["send_payment"]}, 403, "mcp_tools_denied"),
]


@pytest.mark.covers("MCP-1")
@pytest.mark.parametrize(("tool", "status", "code"), REFUSED, ids=lambda part: str(part)[:60])
async def test_what_a_caller_may_not_bring_is_refused_and_not_sent(
    gateway: Gateway, stack: Stack, tool: dict[str, Any], status: int, code: str
) -> None:
    word = marker()
    found, error = await refused(gateway, f"/echo {word}", tools=[{"type": "mcp", **tool}])
    assert (found, error["code"]) == (status, code)
    assert error["param"].startswith("tools[0]")
    assert await sent(stack, word) == []


@pytest.mark.covers("MCP-1")
async def test_the_same_label_twice_is_refused(gateway: Gateway) -> None:
    status, error = await refused(gateway, "/echo hi", tools=[GITHUB, GITHUB])
    assert (status, error["code"]) == (400, "duplicate_server_label")
    assert error["param"] == "tools[1].server_label"


@pytest.mark.covers("MCP-1")
async def test_a_server_of_other_tenants_reads_like_an_unknown_one(stack: Stack) -> None:
    tenants = [{"id": "acme", "mcp_servers": []}, {"id": "rival"}]
    with stack.gateway(tenants=tenants) as gateway:
        kept = await refused(gateway, "/echo hi", tools=[GITHUB])
        unknown = await refused(
            gateway, "/echo hi", tools=[{"type": "mcp", "server_label": "gitbuh"}]
        )
        assert json.dumps(kept).replace("github", "gitbuh") == json.dumps(unknown)
        assert (await create(gateway, "/echo hi", key="other")).status_code == 200


SMUGGLED: list[dict[str, Any]] = [
    {"type": "namespace", "name": "n", "tools": [{"type": "mcp", "server_url": "https://e.test"}]},
    {"type": "future", "deep": {"er": [{"type": "mcp", "server_label": "github"}]}},
    {"type": "function", "name": "f", "server_url": "https://e.test"},
    {"name": "f", "connector_id": "connector_gmail"},
]


@pytest.mark.covers("MCP-1")
@pytest.mark.parametrize("tool", SMUGGLED, ids=lambda tool: json.dumps(tool)[:40])
@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
async def test_an_mcp_tool_cannot_hide_in_another_tool(
    gateway: Gateway, stack: Stack, tool: dict[str, Any], escaped: bool
) -> None:
    word = marker()
    text = json.dumps({"model": "gpt-4.1", "input": word, "tools": [tool]})
    if escaped:
        text = text.replace('"mcp"', f'"{ESCAPED}"')
    async with gateway.http() as client:
        answer = await client.post(
            "/v1/responses", content=text, headers={"content-type": "application/json"}
        )
    assert answer.status_code == 403, answer.text
    assert await sent(stack, word) == []


@pytest.mark.covers("MCP-1")
@pytest.mark.parametrize("spelled", ["mcp", ESCAPED])
@pytest.mark.parametrize(
    "where",
    [
        '"input": [{"type": "additional_tools", "tools": [%s]}]',
        '"input": [{"type": "tool_search_output", "tools": [{"x": [%s]}]}]',
        '"input": "hi", "agents": [{"tools": [%s]}]',
        '"input": "hi", "context_management": {"a": %s}',
        '"input": "hi", "tool_choice": {"type": "allowed_tools", "tools": [%s]}',
    ],
)
async def test_an_mcp_tool_cannot_hide_beside_tools(
    gateway: Gateway, stack: Stack, where: str, spelled: str
) -> None:
    word = marker()
    tool = f'{{"type": "{spelled}", "server_label": "x", "server_url": "https://{word}.test"}}'
    async with gateway.http() as client:
        answer = await client.post(
            "/v1/responses",
            content=f'{{"model": "gpt-4.1", {where % tool}}}',
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 403, answer.text
    assert answer.json()["error"]["code"] == "mcp_tool_not_allowed"
    assert await sent(stack, word) == []


@pytest.mark.covers("MCP-1")
async def test_a_stored_prompt_is_refused_because_it_can_hold_tools(gateway: Gateway) -> None:
    status, error = await refused(gateway, "hi", prompt={"id": "pmpt_1"})
    assert (status, error["code"]) == (403, "prompt_not_allowed")


@pytest.mark.covers("MCP-1", "API-3")
async def test_a_tool_choice_may_name_a_server(gateway: Gateway) -> None:
    choice = {"type": "mcp", "server_label": "github", "name": "search_issues"}
    assert (await create(gateway, "/echo hi", tool_choice=choice)).status_code == 200


@pytest.fixture(scope="module")
def open_gateway(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose tenant may bring servers of some hosts."""
    tenants = [{"id": "acme", "server_url_patterns": ["*.good.test", "tools.other.test"]}]
    keys = [stack.key("caller"), stack.key("approver", roles=["approver"])]
    with stack.gateway(tenants=tenants, api_keys=keys) as running:
        yield running


@pytest.mark.covers("MCP-1")
@pytest.mark.parametrize(
    "url",
    [
        "https://evil.test/",
        "https://good.test/",
        "http://a.good.test/",
        "https://a.good.test:8443/",
        "https://a.good.test@evil.test/",
        "https://user:pass@a.good.test/",
        "https://evil.test\\@a.good.test/",
        "https://evil.test\\.good.test/",
        "https://a.good.test.evil.test/",
        "https://evil.test/#.good.test",
        "https://evil.test?.good.test",
        "https://evil.test%2f.good.test/",
        "https:///evil.test/.good.test",
        "https:a.good.test",
        "//a.good.test/",
        "https://\u0430.good.test/",
        "https://a。good.test/",
        "https://a.good.test\n.evil.test/",
        "https://a.good.test\t/",
        " https://a.good.test/",
        "https://[::1]/",
        "https://-.good.test/",
        "https://.good.test/",
        "https://a.good.test./",
        "https://a.good.test:99999/",
        "ftp://a.good.test/",
    ],
)
async def test_tricks_with_urls_do_not_reach_a_foreign_host(
    open_gateway: Gateway, stack: Stack, url: str
) -> None:
    word = marker()
    tool = {"type": "mcp", "server_label": "mine", "server_url": url}
    status, error = await refused(open_gateway, word, tools=[tool])
    assert (status, error["code"]) == (403, "server_url_not_allowed")
    assert await sent(stack, word) == []


@pytest.mark.covers("MCP-1", "MCP-4")
@pytest.mark.parametrize("url", ["https://a.good.test/mcp", "https://TOOLS.other.test:443/x?y=1"])
async def test_an_own_server_of_an_allowed_host_always_asks(
    open_gateway: Gateway, stack: Stack, url: str
) -> None:
    word = marker()
    tool = {"type": "mcp", "server_label": "mine", "server_url": url, "require_approval": "never"}
    # The host does not exist, so the answer is the upstream's error; what it was sent counts.
    await create(open_gateway, f"/echo {word}", tools=[tool])
    found = await attached(stack, word, "mine")
    assert found["server_url"] == url
    assert found["require_approval"] == "always"
    assert found["allowed_callers"] == ["direct"]


@pytest.mark.covers("MCP-1")
async def test_an_own_server_cannot_take_the_label_of_a_registered_one(
    open_gateway: Gateway,
) -> None:
    tool = {**GITHUB, "server_url": "https://a.good.test/"}
    status, error = await refused(open_gateway, "hi", tools=[tool])
    assert (status, error["code"]) == (403, "server_url_not_allowed")


@pytest.mark.covers("MCP-1")
async def test_an_own_server_may_not_use_a_connector_beside_its_url(open_gateway: Gateway) -> None:
    tool = {
        "type": "mcp",
        "server_label": "mine",
        "server_url": "https://a.good.test/",
        "connector_id": "connector_gmail",
    }
    status, _ = await refused(open_gateway, "hi", tools=[tool])
    assert status == 403


@pytest.mark.covers("MCP-1")
@pytest.mark.parametrize("given", [["search_issues"], {"tool_names": ["search_issues"]}])
async def test_a_caller_may_narrow_the_tools(gateway: Gateway, stack: Stack, given: Any) -> None:
    word = marker()
    await create(gateway, f"/echo {word}", tools=[{**GITHUB, "allowed_tools": given}])
    tool = await attached(stack, word)
    assert tool["allowed_tools"] == ["search_issues"]
    assert tool["require_approval"] == {"never": {"tool_names": ["search_issues"]}}


@pytest.mark.covers("MCP-1")
async def test_a_caller_cannot_ask_for_tools_beyond_the_registered_ones(stack: Stack) -> None:
    server = stack.mcp_server(allowed_tools=["search_issues"])
    with stack.gateway(mcp_servers=[server]) as gateway:
        status, error = await refused(
            gateway, "hi", tools=[{**GITHUB, "allowed_tools": ["create_issue"]}]
        )
        assert (status, error["code"]) == (403, "tool_not_allowed")


@pytest.mark.covers("MCP-1", "APPR-1")
async def test_a_tool_that_was_not_offered_is_denied_though_the_upstream_asks(
    stack: Stack,
) -> None:
    word = marker()
    with stack.gateway(mcp_servers=[stack.mcp_server(allowed_tools=["search_issues"])]) as gateway:
        answer = await create(gateway, f'/call! github.create_issue {{"title": "{word}"}}')
        assert "not offered" in text_of(answer.json())
    assert await executed(stack, word) == []


@pytest.mark.covers("MCP-1", "APPR-1")
@pytest.mark.parametrize(
    "wanted",
    [
        "always",
        {"always": {"tool_names": ["search_issues"]}},
        {"never": {"tool_names": []}},
        {"always": {"tool_names": ["search_issues"]}, "never": {"tool_names": ["search_issues"]}},
    ],
    ids=str,
)
async def test_a_caller_who_tightens_is_asked_itself(
    gateway: Gateway, stack: Stack, wanted: Any
) -> None:
    word = marker()
    tool = {**GITHUB, "allowed_tools": ["search_issues"], "require_approval": wanted}
    asked = await create(gateway, f'/call github.search_issues {{"query": "{word}"}}', tools=[tool])
    response = asked.json()
    assert output_types(response)[-1] == "mcp_approval_request"
    assert response["status"] == "completed"
    assert (await attached(stack, word))["require_approval"] == "always"
    assert await executed(stack, word) == []
    reply = {
        "type": "mcp_approval_response",
        "approval_request_id": response["output"][-1]["id"],
        "approve": True,
    }
    done = await create(gateway, [reply], tools=[tool], previous_response_id=response["id"])
    assert "mcp_call" in output_types(done.json())
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("MCP-1")
async def test_never_for_what_the_rules_allow_is_no_widening(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    tool = {**GITHUB, "allowed_tools": ["search_issues"], "require_approval": "never"}
    answer = await create(gateway, f"/echo {word}", tools=[tool])
    assert answer.status_code == 200
    found = await attached(stack, word)
    assert found["require_approval"] == {"never": {"tool_names": ["search_issues"]}}


def rule(effect: str, tool: str, **changes: Any) -> dict[str, Any]:
    name = f"{effect}-{tool}".replace("*", "all").replace("_", "-")
    return {"id": name, "match": {"server": "github", "tool": tool}, "effect": effect, **changes}


COMPILED: list[tuple[list[dict[str, Any]], list[str] | None, Any, list[str] | None]] = [
    ([], None, "always", None),
    ([rule("allow", "*")], None, "always", None),
    ([rule("allow", "search_issues")], None, {"never": {"tool_names": ["search_issues"]}}, None),
    (
        [rule("allow", "search_*"), rule("deny", "send_*")],
        ["search_issues", "create_issue", "send_payment"],
        {"never": {"tool_names": ["search_issues"]}},
        ["search_issues", "create_issue"],
    ),
    ([rule("allow", "*"), rule("ask", "*")], ["search_issues"], "always", ["search_issues"]),
    (
        [rule("allow", "*"), rule("deny", "create_issue")],
        ["search_issues", "create_issue"],
        {"never": {"tool_names": ["search_issues"]}},
        ["search_issues"],
    ),
    ([rule("allow", "search_issues"), rule("deny", "search_issues")], None, "always", None),
]


@pytest.mark.covers("MCP-4")
@pytest.mark.parametrize(("rules", "offered", "approval", "names"), COMPILED)
async def test_rules_are_compiled_into_the_request(
    stack: Stack,
    rules: list[dict[str, Any]],
    offered: list[str] | None,
    approval: Any,
    names: list[str] | None,
) -> None:
    word = marker()
    server = stack.mcp_server(allowed_tools=offered)
    with stack.gateway(rules=rules, mcp_servers=[server]) as gateway:
        assert (await create(gateway, f"/echo {word}")).status_code == 200
    tool = await attached(stack, word)
    assert tool["require_approval"] == approval
    assert tool.get("allowed_tools") == names
    assert "read_only" not in json.dumps(tool)


@pytest.mark.covers("MCP-2")
async def test_a_secret_that_changed_during_a_hold_is_sent_fresh(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word, secret = marker(), tmp_path / "secret"
    secret.write_text("Bearer not-the-right-one")
    server = stack.mcp_server(
        headers={"Authorization": f"file:{secret}", "X-Extra": "env:TEST_EXTRA"}
    )
    monkeypatch.setenv("TEST_EXTRA", "before-the-hold")
    listed = stack.mcp_server(label="other", headers={"Authorization": "env:TEST_MCP_AUTH"})
    secret.write_text(f"Bearer {CANARY}")
    with stack.gateway(mcp_servers=[server, listed], rules=RULES, **tenancy(stack)) as gateway:
        held = (await create(gateway, issue(word))).json()
        (approval,) = await pending(gateway, word)
        monkeypatch.setenv("TEST_EXTRA", "after-the-hold")
        secret.unlink()
        secret.write_text(f"Bearer {CANARY}\n")
        await vote(gateway, approval)
        done = await settled(gateway, held["id"])
    assert "mcp_call" in output_types(done)
    bodies = await sent(stack, "before-the-hold") + await sent(stack, "after-the-hold")
    extras = [tool["headers"]["X-Extra"] for body in bodies for tool in body["tools"]]
    assert extras[-2:] == ["before-the-hold", "after-the-hold"]
    (call,) = await executed(stack, word)
    assert call["authorization_sha256"] == sha(f"Bearer {CANARY}")
    assert "x-extra" in call["header_names"]


@pytest.mark.covers("MCP-2")
async def test_a_secret_that_cannot_be_read_is_a_clear_error(stack: Stack) -> None:
    server = stack.mcp_server(headers={"Authorization": "env:TEST_NOT_THERE"})
    with stack.gateway(mcp_servers=[server]) as gateway:
        status, error = await refused(gateway, "hi")
        assert (status, error["code"]) == (503, "secret_unavailable")
        assert os.environ["TEST_MCP_AUTH"] not in json.dumps(error)


@pytest.fixture(scope="module")
def forwarding(stack: Stack) -> Iterator[Gateway]:
    """A gateway that forwards a header of the caller to the MCP server."""
    server = stack.mcp_server(headers={}, forward_headers={"X-User-Token": "Authorization"})
    with stack.gateway(mcp_servers=[server], **tenancy(stack)) as running:
        yield running


@pytest.mark.covers("MCP-2")
async def test_a_callers_header_reaches_the_server_on_every_leg(
    forwarding: Gateway, stack: Stack
) -> None:
    word = marker()
    token = {"x-user-token": f"Bearer {CANARY}"}
    held = (await create(forwarding, issue(word), headers=token)).json()
    (approval,) = await pending(forwarding, word)
    await vote(forwarding, approval)
    assert "mcp_call" in output_types(await settled(forwarding, held["id"]))
    (call,) = await executed(stack, word)
    assert call["authorization_sha256"] == sha(f"Bearer {CANARY}")


@pytest.mark.covers("MCP-2")
@pytest.mark.parametrize("headers", [{}, {"x-user-token": ""}])
async def test_a_missing_header_refuses_the_request_and_is_named(
    forwarding: Gateway, stack: Stack, headers: dict[str, str]
) -> None:
    word = marker()
    status, error = await refused(forwarding, word, headers=headers)
    assert (status, error["code"]) == (400, "missing_forward_header")
    assert error["param"] == "X-User-Token"
    assert await sent(stack, word) == []


@pytest.mark.covers("MCP-2")
@pytest.mark.parametrize("value", [b"a\r\nx-evil: 1", b"a\nx-evil: 1", b"a\x00b"])
async def test_a_header_value_cannot_bring_a_second_header(
    forwarding: Gateway, stack: Stack, value: bytes
) -> None:
    import asyncio

    word = marker()
    body = json.dumps({"model": "gpt-4.1", "input": word, "tools": [GITHUB]}).encode()
    host, port = forwarding.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        b"authorization: Bearer " + forwarding.keys["caller"].encode() + b"\r\n"
        b"x-user-token: " + value + b"\r\ncontent-type: application/json\r\n"
        b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
    for sent_body in await sent(stack, word):
        assert set(sent_body["tools"][0]["headers"]) == {"Authorization"}
        assert sent_body["tools"][0]["headers"]["Authorization"].isprintable()
