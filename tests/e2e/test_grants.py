"""Grants: what they answer, and everything that they must not (APPR-8)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import httpx2
import pytest

from gateway.emulator.demo_mcp import create_demo_mcp
from gateway.emulator.serve import serving
from tests.support.approvals import create, executed, issue, marker, tenancy
from tests.support.stack import CANARY, Gateway, Stack

pytestmark = [pytest.mark.anyio, pytest.mark.covers("APPR-8")]

LISTED: set[str] = set()
"""Tenants whose callers have had the tools listed."""

WIDE = {"max_scope": "server", "max_scope_destructive": "server"}


def asking(**grants: Any) -> list[dict[str, Any]]:
    """One rule that asks about everything, with its terms of grants."""
    approval = {"approvers": ["role:approver"], "grants": grants}
    return [{"id": "all", "match": {"server": "*"}, "effect": "ask", "approval": approval}]


@contextlib.contextmanager
def running(stack: Stack, rules: list[dict[str, Any]], **changes: Any) -> Iterator[Gateway]:
    """A gateway with its own tenant and rules."""
    with stack.gateway(**{**tenancy(stack), "rules": rules, **changes}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def wide(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose rule lets people grant everything."""
    with running(stack, asking(**WIDE)) as gateway:
        yield gateway


@pytest.fixture
def own(stack: Stack) -> Iterator[Gateway]:
    """A gateway with no grants but those of one test."""
    with running(stack, asking(**WIDE)) as gateway:
        yield gateway


async def grant(gateway: Gateway, key: str = "approver", **wanted: Any) -> httpx2.Response:
    """Make a standing grant for the caller's calls of `create_issue`."""
    usual = {
        "server": "github",
        "tool": "create_issue",
        "scope": "tool",
        "bound_to": "principal",
        "subject": "svc:caller",
    }
    await listed(gateway, key)
    async with gateway.http(key) as client:
        return await client.post("/v1/grants", json={**usual, **wanted})


async def listed(gateway: Gateway, key: str = "caller") -> None:
    """Have the tools seen: what has no definition cannot be granted."""
    caller = key if key == "other" else "caller"
    tenant = next(one.tenant for one in gateway.settings.api_keys if one.id == caller)
    if tenant not in LISTED:
        assert (await create(gateway, "/echo hi", key=caller)).status_code == 200
        LISTED.add(tenant)


async def made(gateway: Gateway, **wanted: Any) -> dict[str, Any]:
    """The same, and it must be made."""
    answer = await grant(gateway, **wanted)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def now(gateway: Gateway, grant_id: str) -> dict[str, Any]:
    """Read a grant."""
    async with gateway.http("approver") as client:
        return dict((await client.get(f"/v1/grants/{grant_id}")).json())


async def outcome(gateway: Gateway, word: str, **body: Any) -> str:
    """Call the tool with a word; tell whether it ran at once or a person was asked."""
    answer = await create(gateway, issue(word), **body)
    assert answer.status_code == 200, answer.text
    return {"completed": "ran", "in_progress": "asked"}[answer.json()["status"]]


async def test_a_granted_call_runs_and_its_approval_says_by_what(
    stack: Stack, wide: Gateway
) -> None:
    word = marker()
    given = await made(wide, scope="exact_args", arguments={"title": word}, reason="Ticket 1")
    response = (await create(wide, issue(word))).json()
    assert response["status"] == "completed"
    assert len(await executed(stack, word)) == 1
    async with wide.http("approver") as client:
        found = (await client.get(f"/v1/responses/{response['id']}/approvals")).json()["data"]
    (approval,) = found
    assert (approval["status"], approval["by"]) == ("approved", "policy")
    assert approval["decided_by"] == f"grant:{given['id']}"
    assert approval["policy"]["rule"] == "all"
    assert approval["quorum"]["have"] == 0
    read = await now(wide, given["id"])
    assert read["uses"] == {"most": None, "used": 1}
    assert read["created_by"] == {"subject": "user:ann", "approval": None}
    assert read["reason"] == "Ticket 1"
    assert "Ticket 1" not in str(response)
    assert given["id"] not in str(response)


async def test_the_same_arguments_written_otherwise_are_the_same(
    stack: Stack, wide: Gateway
) -> None:
    word = marker()
    await made(wide, scope="exact_args", arguments={"title": word, "body": "b"})
    text = f'/call github.create_issue {{"body" : "b",\n "title": "{word}"}}'
    answer = await create(wide, text)
    assert answer.json()["status"] == "completed"


@pytest.mark.parametrize(
    ("granted", "called"),
    [
        ({"title": "WORD"}, "{}"),
        ({"title": "WORD"}, '{"title": "WORD", "body": ""}'),
        ({"title": "WORD"}, '{"title": "WORD "}'),
        ({"title": "WORD"}, '{"title": ["WORD"]}'),
        ({"title": "WORD", "n": 1}, '{"title": "WORD", "n": "1"}'),
        ({"title": "WORD", "n": 1}, '{"title": "WORD", "n": true}'),
        ({"title": "WORD", "n": None}, '{"title": "WORD"}'),
    ],
)
async def test_exact_arguments_are_exact(
    own: Gateway, granted: dict[str, Any], called: str
) -> None:
    word = marker()
    told = {key: word if value == "WORD" else value for key, value in granted.items()}
    given = await made(own, scope="exact_args", arguments=told)
    answer = await create(own, f"/call github.create_issue {called.replace('WORD', word)}")
    assert answer.json()["status"] == "in_progress"
    assert (await now(own, given["id"]))["uses"]["used"] == 0


async def test_a_grant_of_empty_arguments_runs_only_them(stack: Stack) -> None:
    servers = [stack.mcp_server(pins="off")]  # no schema says that there must be a query
    with running(stack, asking(**WIDE), mcp_servers=servers) as gateway:
        given = await made(gateway, scope="exact_args", arguments={}, tool="search_issues")
        await create(gateway, "/call github.search_issues {}")
        assert (await now(gateway, given["id"]))["uses"]["used"] == 1
        answer = await create(gateway, '/call github.search_issues {"query": "x"}')
        assert answer.json()["status"] == "in_progress"


async def test_once_is_once_also_for_twenty_at_a_time(stack: Stack, wide: Gateway) -> None:
    word = marker()
    given = await made(wide, scope="once", arguments={"title": word})
    outcomes: list[str] = []

    async def call() -> None:
        outcomes.append(await outcome(wide, word))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(call)
    assert sorted(outcomes) == ["asked"] * 19 + ["ran"]
    assert len(await executed(stack, word)) == 1
    assert (await now(wide, given["id"]))["status"] == "used_up"


async def test_uses_are_counted_over_all_calls(stack: Stack, wide: Gateway) -> None:
    word = marker()
    await made(wide, scope="exact_args", arguments={"title": word}, uses=2)
    found = [await outcome(wide, word) for _ in range(3)]
    assert found == ["ran", "ran", "asked"]
    assert len(await executed(stack, word)) == 2


async def test_time_ends_a_grant(stack: Stack, wide: Gateway) -> None:
    word = marker()
    given = await made(wide, scope="exact_args", arguments={"title": word}, ttl=0.001)
    assert await outcome(wide, word) == "asked"
    assert (await now(wide, given["id"]))["status"] == "expired"


async def test_a_revoked_grant_answers_nothing(stack: Stack, wide: Gateway) -> None:
    word = marker()
    given = await made(wide, scope="exact_args", arguments={"title": word})
    async with wide.http("second") as client:
        ended = (await client.delete(f"/v1/grants/{given['id']}")).json()
    assert (ended["status"], ended["ended"]["by"]) == ("revoked", "user:bob")
    assert await outcome(wide, word) == "asked"


@pytest.mark.parametrize(
    "bound",
    [
        {"subject": "svc:else"},
        {"end_user": "mia"},
        {"bound_to": "chain", "chain_id": "resp_another"},
    ],
)
async def test_another_principal_or_chain_is_asked(wide: Gateway, bound: dict[str, Any]) -> None:
    word = marker()
    await made(wide, scope="exact_args", arguments={"title": word}, **bound)
    assert await outcome(wide, word) == "asked"


async def test_a_grant_for_an_end_user_answers_for_that_one(stack: Stack, wide: Gateway) -> None:
    word = marker()
    await made(wide, scope="exact_args", arguments={"title": word}, end_user="mia")
    assert await outcome(wide, word, headers={"gateway-end-user": "tom"}) == "asked"
    assert await outcome(wide, word, headers={"gateway-end-user": "mia"}) == "ran"


async def test_a_grant_of_one_tenant_is_nothing_to_another(stack: Stack, wide: Gateway) -> None:
    word = marker()
    given = await made(
        wide, scope="exact_args", arguments={"title": word}, bound_to="tenant", subject=""
    )
    assert await outcome(wide, word, key="other") == "asked"
    async with wide.http("other") as client:
        read = await client.get(f"/v1/grants/{given['id']}")
        ended = await client.delete(f"/v1/grants/{given['id']}")
        listed = (await client.get("/v1/grants?status=all")).json()["data"]
    assert (read.status_code, ended.status_code, listed) == (404, 404, [])
    assert await outcome(wide, word) == "ran"


async def test_nobody_is_answered_by_a_grant_of_their_own(stack: Stack, wide: Gateway) -> None:
    word = marker()
    refused = await grant(wide, key="second", subject="user:bob")
    assert refused.json()["error"]["code"] == "self_approval"
    refused = await grant(wide, key="second", subject="svc:x", end_user="user:bob")
    assert refused.json()["error"]["code"] == "self_approval"
    wanted = {"scope": "exact_args", "arguments": {"title": word}}
    await made(wide, key="second", bound_to="tenant", subject="", **wanted)
    assert await outcome(wide, word, key="second") == "asked"
    assert await outcome(wide, word, headers={"gateway-end-user": "user:bob"}) == "asked"
    assert await outcome(wide, word) == "ran"


async def test_a_caller_that_wants_each_call_asked_for_is_not_answered_by_a_grant(
    wide: Gateway,
) -> None:
    word = marker()
    await made(wide, scope="exact_args", arguments={"title": word})
    tools = [{"type": "mcp", "server_label": "github", "require_approval": "always"}]
    assert await outcome(wide, word, tools=tools) == "asked"


@contextlib.contextmanager
def another_mcp() -> Iterator[str]:
    with serving(create_demo_mcp(CANARY)) as url:
        yield url + "/mcp"


async def test_the_same_tool_on_another_server_and_under_another_label_is_asked(
    stack: Stack,
) -> None:
    servers = [stack.mcp_server(), stack.mcp_server(label="mirror")]
    with running(stack, asking(**WIDE), mcp_servers=servers) as gateway:
        word = marker()
        await made(gateway, scope="server")
        await made(gateway, scope="exact_args", arguments={"title": word})
        text = f'/call mirror.create_issue {{"title": "{word}"}}'
        tools = [{"type": "mcp", "server_label": "mirror"}]
        answer = await create(gateway, text, tools=tools)
        assert answer.json()["status"] == "in_progress"
        assert await outcome(gateway, word) == "ran"


async def test_a_server_that_moved_drops_what_was_granted_for_it(stack: Stack) -> None:
    word = marker()
    people = tenancy(stack)
    with ExitStack() as servers:
        moved = servers.enter_context(another_mcp())
        with stack.gateway(**people, rules=asking(**WIDE)) as before:
            exact = await made(before, scope="exact_args", arguments={"title": word})
            whole = await made(before, scope="server")
        at = [stack.mcp_server(url=moved)]
        with stack.gateway(**people, rules=asking(**WIDE), mcp_servers=at) as after:
            assert await outcome(after, word) == "asked"
            for given in (exact, whole):
                read = await now(after, given["id"])
                assert (read["status"], read["ended"]["cause"]) == ("dropped", "drift")
        with stack.gateway(**people, rules=asking(**WIDE)) as back:
            assert await outcome(back, word) == "asked"  # dropped is dropped


async def test_a_deny_rule_that_comes_later_beats_every_grant(stack: Stack) -> None:
    word = marker()
    people = tenancy(stack)
    with stack.gateway(**people, rules=asking(**WIDE)) as before:
        await made(before, scope="exact_args", arguments={"title": word})
        await made(before, scope="server")
    deny = {"id": "stop", "match": {"tool": "create_*"}, "effect": "deny", "reason": "Frozen."}
    with stack.gateway(**people, rules=[*asking(**WIDE), deny]) as after:
        answer = await create(after, f'/call! github.create_issue {{"title": "{word}"}}')
        assert answer.json()["status"] == "completed"
        assert "Frozen." in answer.text
    assert await executed(stack, word) == []


async def test_what_another_rule_asks_is_asked(stack: Stack) -> None:
    word = marker()
    people = tenancy(stack)
    with stack.gateway(**people, rules=asking(**WIDE)) as before:
        given = await made(before, scope="server")
    other = {"id": "writes", "match": {"tool": "create_*"}, "effect": "ask"}
    with stack.gateway(**people, rules=[other, *asking(**WIDE)]) as after:
        assert await outcome(after, word) == "asked"
        assert (await now(after, given["id"]))["status"] == "active"


@pytest.mark.parametrize(
    "terms",
    [
        {"max_scope": "none"},
        {"max_scope": "exact_args"},
        {**WIDE, "max_ttl": "1ms"},
    ],
)
async def test_a_rule_that_comes_to_forbid_a_grant_drops_it(
    stack: Stack, terms: dict[str, Any]
) -> None:
    word = marker()
    people = tenancy(stack)
    with stack.gateway(**people, rules=asking(**WIDE)) as before:
        given = await made(before, scope="tool")
    with stack.gateway(**people, rules=asking(**terms)) as after:
        assert await outcome(after, word) == "asked"
        read = await now(after, given["id"])
        assert (read["status"], read["ended"]["cause"]) == ("dropped", "policy")


async def test_a_tool_that_may_destroy_is_granted_no_wider_unless_the_rule_says_so(
    stack: Stack,
) -> None:
    with running(stack, asking(max_scope="server")) as gateway:
        answer = await grant(gateway, scope="tool", tool="send_payment")
        assert answer.json()["error"]["code"] == "grant_scope_too_wide"


async def test_a_quorum_is_not_gone_around(stack: Stack) -> None:
    word = marker()
    (rule,) = asking(**WIDE)
    people = tenancy(stack)
    many = {**rule, "approval": {**rule["approval"], "quorum": 2}}
    with stack.gateway(**people, rules=[rule]) as before:
        await made(before, scope="tool")
    with stack.gateway(**people, rules=[many]) as after:
        answer = await grant(after, scope="tool")
        assert answer.json()["error"]["code"] == "grant_not_allowed"
        assert await outcome(after, word) == "asked"


@pytest.mark.parametrize(
    ("wanted", "status", "code", "param"),
    [
        ({"scope": "everything"}, 422, "invalid_grant", "scope"),
        ({"scope": "tool", "color": "red"}, 422, "invalid_grant", "color"),
        ({"scope": "tool", "ttl": 0}, 422, "invalid_grant", "grant.ttl"),
        ({"scope": "tool", "ttl": 3601}, 422, "invalid_grant", "grant.ttl"),
        ({"scope": "tool", "uses": 0}, 422, "invalid_grant", "grant.uses"),
        (
            {"scope": "once", "uses": 2, "arguments": {"title": "x"}},
            422,
            "invalid_grant",
            "grant.uses",
        ),
        ({"scope": "exact_args", "arguments": {}}, 422, "invalid_grant", "grant.arguments"),
        ({"scope": "tool", "tool": "unseen"}, 422, "grant_not_allowed", "grant"),
        ({"scope": "exact_args"}, 422, "invalid_grant", "grant.arguments"),
        ({"scope": "tool", "arguments": {}}, 422, "invalid_grant", "grant.arguments"),
        ({"scope": "tool", "subject": ""}, 422, "invalid_grant", "grant.subject"),
        ({"scope": "tool", "bound_to": "chain"}, 422, "invalid_grant", "grant.chain_id"),
        ({"scope": "tool", "server": "nowhere"}, 400, "unknown_mcp_server", "server"),
        ({"key": "caller"}, 403, "not_an_approver", None),
        ({"key": "other"}, 200, None, None),
    ],
)
async def test_what_cannot_be_granted_is_refused_by_name(
    wide: Gateway, wanted: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    answer = await grant(wide, **wanted)
    assert answer.status_code == status, answer.text
    error = answer.json().get("error", {})
    assert (error.get("code"), error.get("param")) == (code, param)


async def test_what_the_rules_do_not_ask_cannot_be_granted(gateway: Gateway) -> None:
    for tool in ("search_issues", "send_payment"):  # allowed, denied
        answer = await grant(gateway, tool=tool)
        assert answer.json()["error"]["code"] == "grant_not_allowed"


async def test_callers_see_their_own_grants_and_approvers_all(own: Gateway) -> None:
    mine = await made(own, scope="tool")
    mias = await made(own, scope="tool", end_user="mia")
    all_ = await made(own, scope="server", bound_to="tenant", subject="")

    async def found(key: str, query: str = "", **headers: str) -> list[str]:
        async with own.http(key) as client:
            answer = await client.get("/v1/grants" + query, headers=headers)
            return [one["id"] for one in answer.json()["data"]]

    assert await found("approver") == [all_["id"], mias["id"], mine["id"]]
    assert await found("caller") == [mine["id"]]
    assert await found("caller", **{"gateway-end-user": "mia"}) == [mias["id"], mine["id"]]
    assert await found("approver", "?tool=create_issue&limit=1") == [mias["id"]]
    assert await found("approver", "?subject=svc:caller&server=github") == [
        mias["id"],
        mine["id"],
    ]
    assert await found("approver", f"?after={all_['id']}") == [mias["id"], mine["id"]]
    async with own.http("caller") as client:
        assert (await client.get(f"/v1/grants/{all_['id']}")).status_code == 404
        assert (await client.delete(f"/v1/grants/{mine['id']}")).status_code == 200
    assert await found("caller") == []
    assert await found("caller", "?status=all") == [mine["id"]]
