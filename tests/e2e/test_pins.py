"""Tool pins: what changes after it was accepted does not run (MCP-5)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.approvals import (
    GITHUB,
    create,
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
from tests.support.mcp import Server, mcp_server
from tests.support.provider import provider
from tests.support.stack import Gateway, Stack
from tests.support.told import hooked, noted, taking, told

pytestmark = [pytest.mark.anyio, pytest.mark.covers("MCP-5")]

RULES: list[dict[str, Any]] = [
    {"id": "reads", "match": {"tool": "search_*"}, "effect": "allow"},
    {"id": "pays", "match": {"tool": "send_*"}, "effect": "allow"},
]


@pytest.fixture
def server() -> Iterator[Server]:
    with mcp_server() as server:
        yield server


@contextmanager
def running(stack: Stack, server: Server, **changes: Any) -> Iterator[Gateway]:
    rules = changes.pop("rules", RULES)
    entries = changes.pop("mcp_servers", None)
    entries = entries or [stack.mcp_server(url=server.url + "/mcp", **changes)]
    with stack.gateway(mcp_servers=entries, rules=rules, **tenancy(stack)) as gateway:
        yield gateway


@pytest.fixture
def gateway(stack: Stack, server: Server) -> Iterator[Gateway]:
    with running(stack, server) as gateway:
        yield gateway


async def pins(gateway: Gateway, **query: str) -> dict[str, dict[str, Any]]:
    async with gateway.http("approver") as client:
        answer = await client.get("/v1/tools/pins", params={"limit": "100", **query})
    assert answer.status_code == 200, answer.text
    return {one["tool"]: one for one in answer.json()["data"]}


async def pin(gateway: Gateway, tool: str) -> dict[str, Any]:
    """One pin with its definitions."""
    url = (await pins(gateway))[tool]["url"]
    async with gateway.http("approver") as client:
        found: dict[str, Any] = (await client.get(url)).json()
    return found


async def say(
    gateway: Gateway, tool: str, digest: str, word: str = "accept", key: str = "approver"
) -> httpx2.Response:
    url = (await pins(gateway))[tool]["url"]
    async with gateway.http(key) as client:
        return await client.post(f"{url}/{word}", json={"definition_hash": digest})


async def turn(gateway: Gateway, input: str, **body: Any) -> Any:
    answer = await create(gateway, input, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def search(word: str, label: str = "github") -> str:
    return f'/call {label}.search_issues {{"query": "{word}"}}'


async def counted(gateway: Gateway, outcome: str) -> float:
    async with gateway.http(None) as client:
        text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("gateway_tool_pins_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if f'outcome="{outcome}"' in line)


async def test_the_first_listing_is_pinned(gateway: Gateway) -> None:
    assert await pins(gateway) == {}
    await turn(gateway, search("dark"))
    found = await pins(gateway)
    assert set(found) == {"search_issues", "create_issue", "send_payment"}
    assert {one["status"] for one in found.values()} == {"trusted"}
    assert found["search_issues"]["annotations"]["read_only"] is True
    assert found["search_issues"]["annotations"]["verified"] is True
    assert await counted(gateway, "pinned") == 3
    assert await counted(gateway, "drifted") == 0


async def test_a_tool_that_changed_between_two_turns_does_not_run(
    gateway: Gateway, server: Server, stack: Stack
) -> None:
    await turn(gateway, search("dark"))
    await server.change("search_issues", description="Search the issues, by words of their Title.")
    second = await turn(gateway, search("typo"))
    assert "quarantine" in text_of(second)
    assert "mcp_call" not in output_types(second)
    assert [call["arguments"]["query"] for call in await server.calls()] == ["dark"]

    # From the next turn on it is not offered, and the others are.
    word = marker()
    await turn(gateway, f"/echo {word}")
    (body,) = await sent(stack, word)
    assert body["tools"][0]["allowed_tools"] == ["create_issue", "send_payment"]
    assert await counted(gateway, "drifted") == 1

    status, error = await refused(
        gateway, "hi", tools=[{**GITHUB, "allowed_tools": ["search_issues"]}]
    )
    assert (status, error["code"]) == (403, "mcp_tools_quarantined")


async def test_a_person_accepts_the_very_definition_that_was_read(
    gateway: Gateway, server: Server
) -> None:
    await turn(gateway, search("dark"))
    await server.change("search_issues", description="Search\u202e the issues.")
    await turn(gateway, search("typo"))
    found = await pin(gateway, "search_issues")
    assert found["status"] == "quarantined"
    (difference,) = found["difference"]
    assert difference["field"] == "/description"
    assert "by words" in difference["old"]
    assert "⟦U+202E⟧" in difference["new"]

    old = await say(gateway, "search_issues", found["definition_hash"])
    assert (old.status_code, old.json()["error"]["code"]) == (409, "definition_changed")
    caller = await say(gateway, "search_issues", found["candidate_hash"], key="caller")
    assert (caller.status_code, caller.json()["error"]["code"]) == (403, "missing_role")

    rejected = await say(gateway, "search_issues", found["candidate_hash"], "reject")
    assert (rejected.json()["status"], rejected.json()["rejected"]) == ("quarantined", True)

    accepted = await say(gateway, "search_issues", found["candidate_hash"])
    assert accepted.json()["status"] == "trusted"
    assert accepted.json()["accepted_by"] == "user:ann"
    again = await say(gateway, "search_issues", found["candidate_hash"])
    assert (again.status_code, again.json()["error"]["code"]) == (409, "not_quarantined")
    async with gateway.http("admin") as client:
        with anyio.fail_after(30):
            while True:
                listed = (await client.get("/v1/audit", params={"limit": "100"})).json()["data"]
                noted = [one for one in listed if one["event"].startswith("pin.")]
                if len(noted) == 3:
                    break
                await anyio.sleep(0.05)
    assert {one["event"] for one in noted} == {"pin.drifted", "pin.rejected", "pin.accepted"}
    assert {one["actor"] for one in noted} == {"gateway", "subject:user:ann"}
    assert "mcp_call" in output_types(await turn(gateway, search("slow")))


async def test_a_definition_that_comes_back_still_asks_a_person(
    gateway: Gateway, server: Server
) -> None:
    await turn(gateway, search("dark"))
    await server.change("create_issue", description="Changed.")
    await turn(gateway, "/echo hi")
    assert set(await pins(gateway, status="quarantined")) == {"create_issue"}
    await server.restore()
    found = await pin(gateway, "create_issue")
    # It is listed to nobody while it is in quarantine, so what was seen stays what is shown.
    assert found["candidate"]["description"] == "Changed."


async def test_a_tool_that_disappears_and_comes_back_the_same_is_trusted(
    gateway: Gateway, server: Server
) -> None:
    await turn(gateway, search("dark"))
    await server.change("search_issues", hidden=True)
    await turn(gateway, "/echo hi")
    await server.restore()
    assert "mcp_call" in output_types(await turn(gateway, search("typo")))
    assert set(await pins(gateway, status="quarantined")) == set()


async def test_a_new_tool_of_a_known_server_is_pinned_and_reported(
    gateway: Gateway, server: Server
) -> None:
    await turn(gateway, search("dark"))
    await server.change("search_secrets", description="New.")
    await turn(gateway, "/echo hi")
    assert (await pins(gateway))["search_secrets"]["status"] == "trusted"
    assert await counted(gateway, "new") == 1


@pytest.mark.covers("APPR-7")
async def test_an_approval_is_superseded_when_its_tool_changes_before_the_answer(
    gateway: Gateway, server: Server
) -> None:
    word = marker()
    held = await turn(gateway, issue(word))
    (approval,) = await pending(gateway, word)
    await server.change("create_issue", description="Create an issue, and tell everybody.")
    await turn(gateway, "/echo hi")
    answer = await vote(gateway, approval)
    assert answer.status_code == 409, answer.text
    ended = await settled(gateway, held["id"])
    assert "mcp_call" not in output_types(ended)
    assert await server.calls() == []


@pytest.mark.covers("APPR-7")
async def test_an_approval_of_the_old_definition_does_not_stand_after_the_new_one_is_accepted(
    gateway: Gateway, server: Server
) -> None:
    word = marker()
    held = await turn(gateway, issue(word))
    (approval,) = await pending(gateway, word)
    await server.change("create_issue", description="Create an issue, and tell everybody.")
    await turn(gateway, "/echo hi")
    found = await pin(gateway, "create_issue")
    assert (await say(gateway, "create_issue", found["candidate_hash"])).status_code == 200
    await vote(gateway, approval)
    assert "mcp_call" not in output_types(await settled(gateway, held["id"]))
    assert await server.calls() == []


@pytest.mark.covers("APPR-7", "APPR-9", "APPR-11")
async def test_a_tool_that_drifts_while_its_approval_waits_is_told_to_everybody(
    stack: Stack, server: Server
) -> None:
    word = marker()
    entries = [stack.mcp_server(url=server.url + "/mcp")]
    async with provider(taking) as receiver:
        sections = hooked(stack, receiver, mcp_servers=entries, rules=RULES)
        with stack.gateway(**sections) as gateway:
            held = await turn(gateway, issue(word))
            (approval,) = await pending(gateway, word)
            await server.change("create_issue", description="Create an issue, and tell everybody.")
            await turn(gateway, "/echo hi")

            ended = await settled(gateway, held["id"])  # nobody has decided: it ends by itself
            assert "The definition of the tool has changed." in text_of(ended)
            drifted = await told(receiver, "tool.drifted")
            assert (drifted["server"], drifted["tool"]) == ("github", "create_issue")
            assert drifted["status"] == "quarantined"
            resolved = await told(receiver, "approval.resolved")
            assert (resolved["id"], resolved["status"]) == (approval["id"], "superseded")
            assert (await told(receiver, "continuation.completed"))["id"] == held["id"]

            noted_drift = await noted(gateway, "pin.drifted")
            assert noted_drift["subject"] == "github.create_issue"
            assert noted_drift["detail"]["pin"] == drifted["id"]
            outcome = await noted(gateway, "approval.resolved", approval=approval["id"])
            assert (outcome["outcome"], outcome["approval_id"]) == ("superseded", approval["id"])
            assert outcome["reason"] == "The definition of the tool has changed."
    assert "everybody" not in "".join(call.body.decode() for call in receiver.calls)
    assert await server.calls() == []


async def test_strict_pins_run_nothing_that_nobody_accepted(stack: Stack, server: Server) -> None:
    word = marker()
    with running(stack, server, pins="strict", allowed_tools=["search_issues"]) as gateway:
        first = await turn(gateway, f"{search('dark')} \n/echo {word}")
        assert "mcp_call" not in output_types(first)
        (body,) = (await sent(stack, word))[:1]
        assert body["tools"][0]["require_approval"] == "always"
        found = await pin(gateway, "search_issues")
        assert (found["status"], found["definition"]) == ("quarantined", None)
        status, error = await refused(gateway, "hi")
        assert (status, error["code"]) == (403, "mcp_tools_quarantined")
        await say(gateway, "search_issues", found["candidate_hash"])
        assert "mcp_call" in output_types(await turn(gateway, search("typo")))


async def test_pins_switched_off_look_at_nothing(stack: Stack, server: Server) -> None:
    with running(stack, server, pins="off") as gateway:
        await turn(gateway, search("dark"))
        await server.change("search_issues", description="Changed.")
        assert "mcp_call" in output_types(await turn(gateway, search("typo")))
        assert await pins(gateway) == {}


async def test_a_tool_name_of_two_servers_has_two_pins(stack: Stack, server: Server) -> None:
    other = stack.mcp_server(label="tracker")
    entries = [stack.mcp_server(url=server.url + "/mcp"), other]
    tools = [GITHUB, {**GITHUB, "server_label": "tracker"}]
    with running(stack, server, mcp_servers=entries) as gateway:
        await turn(gateway, search("dark"), tools=tools)
        await server.change("search_issues", description="Changed.")
        await turn(gateway, "/echo hi", tools=tools)
        assert set(await pins(gateway, server="github", status="quarantined")) == {"search_issues"}
        assert set(await pins(gateway, server="tracker", status="quarantined")) == set()
        found = await turn(gateway, search("typo", "tracker"), tools=tools)
        assert "mcp_call" in output_types(found)


async def test_another_server_under_the_same_label_has_no_pins(
    stack: Stack, server: Server
) -> None:
    tenant = tenancy(stack)
    with stack.gateway(mcp_servers=[stack.mcp_server()], rules=RULES, **tenant) as gateway:
        await turn(gateway, search("dark"))
        before = await pins(gateway)
    moved = stack.mcp_server(url=server.url + "/mcp")
    with stack.gateway(mcp_servers=[moved], rules=RULES, **tenant) as gateway:
        assert await pins(gateway) == {}
        await turn(gateway, search("dark"))
        after = await pins(gateway)
    assert before["search_issues"]["definition_hash"] == after["search_issues"]["definition_hash"]
    assert before["search_issues"]["id"] != after["search_issues"]["id"]


async def test_a_tool_that_runs_in_the_response_that_changes_it_is_told(
    stack: Stack, server: Server
) -> None:
    with running(stack, server, allowed_tools=["search_issues"]) as gateway:
        await turn(gateway, search("dark"))
        assert await counted(gateway, "ran_drifted") == 0
        await server.change("search_issues", description="Changed.")
        ran = await turn(gateway, search("typo"))
        assert output_types(ran) == ["mcp_list_tools", "mcp_call", "message"]
        assert await counted(gateway, "ran_drifted") == 1
        status, error = await refused(gateway, search("slow"))
        assert (status, error["code"]) == (403, "mcp_tools_quarantined")


# Arguments


async def test_arguments_that_do_not_fit_the_pinned_schema_ask_a_person(
    gateway: Gateway, server: Server
) -> None:
    word = marker()
    fits = await turn(gateway, f'/call github.send_payment {{"to": "{word}", "amount": 1}}')
    assert "mcp_call" in output_types(fits)
    await turn(gateway, f'/call github.send_payment {{"to": "{word}", "amount": "all"}}')
    (approval,) = await pending(gateway, word)
    assert "arguments_invalid: '/amount' does not fit 'type'" in approval["policy"]["explain"]
    assert len(await server.calls()) == 1


class Port:
    """A port that knows whether anybody connected."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"

    def visited(self) -> bool:
        try:
            self._sock.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def port() -> Iterator[Port]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = Port(sock)
        with socket.create_connection(sock.getsockname()):
            assert port.visited()
        yield port


@pytest.mark.parametrize("keyword", ["$ref", "$schema", "$dynamicRef"])
async def test_a_schema_that_leads_elsewhere_is_not_followed_and_asks(
    gateway: Gateway, server: Server, port: Port, keyword: str
) -> None:
    word = marker()
    schema = {"type": "object", "properties": {"to": {keyword: f"{port.url}/schema.json"}}}
    await server.change("send_payment", input_schema=schema)
    held = await turn(gateway, f'/call github.send_payment {{"to": "{word}"}}')
    assert held["status"] == "in_progress"
    (approval,) = await pending(gateway, word)
    assert "schema_ref_not_allowed" in approval["policy"]["explain"]
    entry = await noted(gateway, "policy.error")
    assert entry["subject"] == "github.send_payment"
    assert entry["detail"]["effect"] == "ask"
    assert any("schema_ref_not_allowed" in error for error in entry["detail"]["errors"])
    assert not port.visited()


# Annotations


async def test_claims_of_an_untrusted_server_make_nothing_laxer(
    stack: Stack, server: Server
) -> None:
    rules = [{"id": "r", "match": {"annotations": {"read_only": True}}, "effect": "allow"}]
    with running(stack, server, rules=rules, trust="untrusted") as gateway:
        first = await turn(gateway, search("dark"))
        assert first["status"] == "in_progress"
        assert (await pins(gateway))["search_issues"]["annotations"]["verified"] is False
    assert await server.calls() == []


async def test_claims_of_a_reviewed_server_count_while_they_are_pinned(
    stack: Stack, server: Server
) -> None:
    rules = [{"id": "r", "match": {"annotations": {"read_only": True}}, "effect": "allow"}]
    with running(stack, server, rules=rules) as gateway:
        assert "mcp_call" in output_types(await turn(gateway, search("dark")))
        await server.change("create_issue", annotations={"readOnlyHint": True})
        await turn(gateway, issue(marker()))
    assert [call["name"] for call in await server.calls()] == ["search_issues"]


async def test_the_operators_word_beats_what_a_server_says(stack: Stack, server: Server) -> None:
    rules = [{"id": "r", "match": {"annotations": {"read_only": True}}, "effect": "allow"}]
    word = [{"name": "create_issue", "read_only": True}]
    with running(stack, server, rules=rules, trust="untrusted", tools=word) as gateway:
        assert "mcp_call" in output_types(await turn(gateway, issue(marker())))


# Who may look


async def test_pins_are_for_approvers_and_auditors_of_the_tenant(gateway: Gateway) -> None:
    await turn(gateway, search("dark"))
    url = (await pins(gateway))["search_issues"]["url"]
    async with gateway.http("caller") as client:
        assert (await client.get("/v1/tools/pins")).status_code == 403
    async with gateway.http("other") as client:
        answer = await client.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "tool_pin_not_found")


async def test_pins_are_listed_page_by_page(gateway: Gateway) -> None:
    await turn(gateway, search("dark"))
    async with gateway.http("admin") as client:
        first = (await client.get("/v1/tools/pins", params={"limit": "2"})).json()
        after = {"limit": "2", "after": first["last_id"]}
        second = (await client.get("/v1/tools/pins", params=after)).json()
        bad = await client.get("/v1/tools/pins", params={"status": "odd"})
    assert [one["tool"] for one in first["data"]] == ["create_issue", "search_issues"]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [one["tool"] for one in second["data"]] == ["send_payment"]
    assert bad.status_code == 400


async def test_nothing_of_a_pin_is_readable_in_the_store(gateway: Gateway, stack: Stack) -> None:
    from redis.asyncio import Redis

    await turn(gateway, search("dark"))
    client = Redis.from_url(stack.redis_url)
    try:
        found = [key async for key in client.scan_iter("gw:*:pins:*")]
        records = [await client.hgetall(key) for key in found]
    finally:
        await client.aclose()
    assert records
    assert not any(b"search_issues" in json.dumps(str(one)).encode() for one in records)
    assert not any(b"Search the issues" in value for one in records for value in one.values())
