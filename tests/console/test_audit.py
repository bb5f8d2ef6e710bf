"""The room of the audit over HTTP: search, verify, take away (APPR-11)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis

from tests.console.conftest import Browser, Open, ticket_in
from tests.console.test_console import assert_safe, inline_scripts
from tests.support.approvals import create, issue, marker, pending, tenancy, vote
from tests.support.stack import CANARY, UPSTREAM_KEY, Gateway, Stack

pytestmark = pytest.mark.covers("APPR-10", "APPR-11")


@pytest.fixture
def gateway(stack: Stack) -> Iterator[Gateway]:
    with stack.gateway(**tenancy(stack)) as running:
        yield running


async def decided(gateway: Gateway) -> str:
    word = marker()
    await create(gateway, issue(word))
    (approval,) = await pending(gateway, word)
    await vote(gateway, approval, "deny")
    return str(approval["id"])


async def auditor(browser: Open, gateway: Gateway) -> Browser:
    visitor = browser(gateway)
    await visitor.sign_in("auditor")
    return visitor


@pytest.mark.covers("MCP-3")
async def test_entries_are_searched_and_lead_to_their_approval(
    browser: Open, gateway: Gateway
) -> None:
    approval, other = await decided(gateway), await decided(gateway)
    visitor = await auditor(browser, gateway)
    answer = await visitor.get("/console/audit")
    assert_safe(answer.headers)
    assert not inline_scripts(answer.text)
    assert "approval.resolved" in answer.text or "approval.denied" in answer.text
    assert f'href="/console/approvals/{approval}"' in answer.text
    for secret in (CANARY, UPSTREAM_KEY, *gateway.keys.values()):
        assert secret not in answer.text
    page = (await visitor.get(f"/console/audit?approval={approval}")).text
    assert f"/console/approvals/{approval}" in page
    assert other not in page
    page = (await visitor.get("/console/audit?actor=subject:user:ann&event=approval.*")).text
    assert page.count("<summary") == page.count("<bdi>subject:user:ann</bdi>") == 4
    assert "Nothing found" in (await visitor.get("/console/audit?event=no.such")).text
    assert "Nothing found" in (await visitor.get("/console/audit?until=2020-01-01T00:00")).text
    assert approval in (await visitor.get("/console/audit?since=2020-01-01T00:00")).text


async def test_a_search_that_makes_no_sense_is_shown_again(browser: Open, gateway: Gateway) -> None:
    visitor = await auditor(browser, gateway)
    answer = await visitor.get('/console/audit?since=yesterday&event="><b>x')
    assert answer.status_code == 400
    assert "must be seconds since the epoch" in answer.text
    assert 'value="&#34;&gt;&lt;b&gt;x"' in answer.text
    assert (await visitor.get("/console/audit?after=nothing")).status_code == 400


async def test_the_chain_is_verified_and_a_broken_one_is_said_to_be(
    browser: Open, gateway: Gateway, stack: Stack
) -> None:
    await decided(gateway)
    visitor = await auditor(browser, gateway)
    ticket = ticket_in((await visitor.get("/console/audit")).text, "/console/audit/verify")
    answer = await visitor.post("/console/audit/verify", {"ticket": ticket})
    assert answer.status_code == 200
    assert "The chain holds" in answer.text
    tenant = gateway.settings.tenants[0].id
    with redis.Redis.from_url(stack.redis_url) as store:
        chain = f"gw:{{{tenant}}}:audit"
        entries = store.xrange(chain)
        store.xdel(chain, entries[1][0])
    answer = await visitor.post("/console/audit/verify", {"ticket": ticket})
    assert "The chain does not hold" in answer.text
    assert "Entry 2 is missing" in answer.text


async def test_the_whole_chain_can_be_taken_away(browser: Open, gateway: Gateway) -> None:
    approval = await decided(gateway)
    visitor = await auditor(browser, gateway)
    answer = await visitor.get("/console/audit/export")
    assert_safe(answer.headers)
    assert answer.headers["content-disposition"] == 'attachment; filename="audit.jsonl"'
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["object"] == "audit.checkpoint"
    assert lines[-1]["sequence"] == len(lines) - 1
    assert approval in answer.text


async def test_the_audit_is_for_auditors_each_of_their_own_tenant(
    browser: Open, gateway: Gateway
) -> None:
    approval = await decided(gateway)
    visitor, approver, admin = await auditor(browser, gateway), browser(gateway), browser(gateway)
    await approver.sign_in()
    await admin.sign_in("admin")
    ticket = ticket_in((await visitor.get("/console/audit")).text, "/console/audit/verify")
    assert approval in (await admin.get("/console/audit")).text
    assert "/console/audit" not in (await approver.get("/console")).text
    for path in ("/console/audit", "/console/audit/export"):
        assert (await approver.get(path)).status_code == 403
        answer = await browser(gateway).get(path)
        assert answer.headers["location"] == "/console/sign-in"
    for other in (approver, admin):
        answer = await other.post("/console/audit/verify", {"ticket": ticket})
        assert answer.status_code == 403
    assert (await visitor.post("/console/audit/verify", {"ticket": "x"})).status_code == 403
    assert (await visitor.get("/console/audit/verify")).status_code in (404, 405)


async def test_another_tenants_audit_is_not_there(
    browser: Open, gateway: Gateway, stack: Stack
) -> None:
    approval = await decided(gateway)
    with stack.gateway(**tenancy(stack)) as elsewhere:
        stranger = await auditor(browser, elsewhere)
        page = (await stranger.get(f"/console/audit?approval={approval}")).text
        assert "Nothing found" in page
        assert approval not in (await stranger.get("/console/audit/export")).text
