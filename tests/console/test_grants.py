"""The room of grants over HTTP: what answers for people, and the end of it (APPR-8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.console.conftest import Open, ticket_in
from tests.console.test_console import assert_safe, inline_scripts
from tests.support.approvals import create, issue, marker, pending, tenancy, vote
from tests.support.stack import Gateway, Stack

pytestmark = pytest.mark.covers("APPR-10", "APPR-8")

RULES: list[dict[str, Any]] = [
    {
        "id": "all",
        "match": {"server": "*"},
        "effect": "ask",
        "approval": {
            "approvers": ["role:approver"],
            "grants": {"max_scope": "server", "max_scope_destructive": "server"},
        },
    }
]


@pytest.fixture
def gateway(stack: Stack) -> Iterator[Gateway]:
    with stack.gateway(rules=RULES, **tenancy(stack)) as running:
        yield running


async def granted(gateway: Gateway, **wanted: Any) -> str:
    usual = {
        "server": "github",
        "tool": "create_issue",
        "scope": "tool",
        "subject": "svc:caller",
        "reason": "Release <day>.",
    }
    await create(gateway, "/echo the tools are seen")
    async with gateway.http("approver") as client:
        answer = await client.post("/v1/grants", json={**usual, **wanted})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def test_a_grant_is_shown_and_its_end_is_felt_at_once(
    browser: Open, gateway: Gateway
) -> None:
    grant = await granted(gateway)
    assert (await create(gateway, issue(marker()))).json()["status"] == "completed"
    visitor = browser(gateway)
    await visitor.sign_in()
    answer = await visitor.get("/console/grants")
    assert_safe(answer.headers)
    assert not inline_scripts(answer.text)
    for said in ("create_issue", "svc:caller", "user:ann", "Release &lt;day&gt;.", "used 1"):
        assert said in answer.text
    path = f"/console/grants/{grant}/revoke"
    ended = await visitor.post(path, {"ticket": ticket_in(answer.text, path)})
    assert ended.status_code == 303
    page = (await visitor.get(ended.headers["location"])).text
    assert "<b>Revoked.</b>" in page
    assert "No grant is active" in page
    page = (await visitor.get("/console/grants?status=all")).text
    assert ">revoked</span>" in page
    assert path not in page
    word = marker()
    await create(gateway, issue(word))
    (approval,) = await pending(gateway, word)
    await vote(gateway, approval, "deny")


async def test_who_may_not_end_a_grant_does_not(browser: Open, gateway: Gateway) -> None:
    grant = await granted(gateway)
    path = f"/console/grants/{grant}/revoke"
    approver, auditor, caller, stranger = (browser(gateway) for _ in range(4))
    await approver.sign_in()
    await auditor.sign_in("auditor")
    await caller.sign_in("caller")
    await stranger.sign_in("other")
    stolen = {"ticket": ticket_in((await approver.get("/console/grants")).text, path)}
    page = (await auditor.get("/console/grants")).text
    assert "create_issue" in page
    assert "/revoke" not in page
    for thief in (auditor, caller, stranger):
        assert (await thief.post(path, stolen)).status_code == 403
    assert (await caller.get("/console/grants")).status_code == 403
    assert "/console/grants" not in (await caller.get("/console")).text
    assert "No grant is active" in (await stranger.get("/console/grants")).text
    assert (await stranger.get(f"/console/grants?revoked={grant}")).status_code == 404
    own = {"ticket": ticket_in((await stranger.get("/console")).text, "/console/sign-out")}
    assert (await stranger.post(path, own)).status_code == 403
    other = await granted(gateway, tool="send_payment")
    assert (await approver.post(f"/console/grants/{other}/revoke", stolen)).status_code == 403
    assert (await approver.post(path, {"ticket": "x"})).status_code == 403
    assert (await approver.get("/console/grants?status=odd")).status_code == 400
    page = (await approver.get("/console/grants")).text
    assert grant in page
    assert other in page
