"""The room of rules over HTTP: what they say, what they did, what would become of a call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.console.conftest import Browser, Open, ticket_in
from tests.console.test_console import assert_safe, inline_scripts
from tests.support.approvals import create, tenancy
from tests.support.stack import Gateway, Stack

pytestmark = pytest.mark.covers("APPR-10", "APPR-13")

SIMULATOR = "/console/rules/simulator"


def rules(tenant: str) -> list[dict[str, Any]]:
    return [
        {
            "id": "reads",
            "match": {"server": "github", "tool": "search_*", "principal": {"tenants": [tenant]}},
            "effect": "allow",
        },
        {
            "id": "large",
            "match": {"tool": "send_payment", "args": {"/amount": {"ge": 100}}},
            "effect": "deny",
            "reason": "Large <payments> are made by people.",
        },
        {
            "id": "no-search",
            "match": {"tool": "search_issues", "args": {"/query": {"glob": "secret*"}}},
            "effect": "deny",
            "mode": "shadow",
        },
        {
            "id": "tainted",
            "match": {"tool": "send_*", "chain": {"saw_untrusted": True}},
            "effect": "deny",
        },
        {
            "id": "theirs",
            "match": {"principal": {"tenants": ["rival-" + tenant]}},
            "effect": "ask",
        },
    ]


@pytest.fixture
def gateway(stack: Stack) -> Iterator[Gateway]:
    sections = tenancy(stack)
    own = sections["tenants"][0]["id"]
    found = rules(own)
    found[0]["match"]["principal"]["tenants"].append("rival-" + own)
    with stack.gateway(rules=found, **sections) as running:
        yield running


async def tried(visitor: Browser, **form: str) -> str:
    ticket = ticket_in((await visitor.get(SIMULATOR)).text, SIMULATOR)
    answer = await visitor.post(SIMULATOR, {"ticket": ticket, **form})
    assert answer.status_code == 200, answer.text
    assert_safe(answer.headers)
    assert not inline_scripts(answer.text)
    return answer.text


def verdict(page: str) -> str:
    found = re.search(r'<p class="verdict \w+">(\w+)</p>', page)
    assert found
    return found.group(1)


def finding(page: str, rule: str) -> str:
    found = re.search(rf'<li class="(\w+)">(?:(?!</li>).)*<bdi>{rule}</bdi>', page, re.DOTALL)
    assert found, page
    return found.group(1)


async def test_rules_are_shown_with_what_they_did(browser: Open, gateway: Gateway) -> None:
    for query in ("secret plan", "docs"):
        text = f'/call github.search_issues {{"query": "{query}"}}'
        assert (await create(gateway, text)).json()["status"] == "completed"
    visitor = browser(gateway)
    await visitor.sign_in("auditor")
    answer = await visitor.get("/console/rules")
    assert_safe(answer.headers)
    page = answer.text
    row = page[page.index('id="rule-reads"') : page.index('id="rule-large"')]
    assert '<span class="hits">2</span>' in row
    row = page[page.index('id="rule-no-search"') : page.index('id="rule-tainted"')]
    assert '<span class="hits">1</span>' in row
    assert "In force it would have turned allow into deny, once." in row
    assert "Large &lt;payments&gt; are made by people." in page
    assert "args./amount ge" in page
    assert "sha256:" in page


@pytest.mark.covers("AUTH-2")
async def test_other_tenants_and_their_rules_are_not_named(browser: Open, gateway: Gateway) -> None:
    visitor = browser(gateway)
    await visitor.sign_in("auditor")
    pages = [
        (await visitor.get("/console/rules")).text,
        await tried(visitor, server="github", tool="search_issues"),
    ]
    for page in pages:
        assert "reads" in page
        assert "theirs" not in page
        assert "rival-" not in page


async def test_a_call_is_tried_with_all_that_rules_look_at(browser: Open, gateway: Gateway) -> None:
    visitor = browser(gateway)
    await visitor.sign_in("auditor")
    pay = {"server": "github", "tool": "send_payment"}
    page = await tried(visitor, **pay, arguments='{"amount": 250}')
    assert verdict(page) == "Deny"
    assert "rule <code>large</code>" in page
    assert "Large &lt;payments&gt; are made by people." in page
    assert (finding(page, "large"), finding(page, "reads")) == ("matched", "not_matched")
    assert "not: tool is search_*" in page
    page = await tried(visitor, **pay, arguments='{"amount": 5}')
    assert verdict(page) == "Ask"
    page = await tried(visitor, **pay, arguments='{"amount": 5}', saw_untrusted="yes")
    assert (verdict(page), finding(page, "tainted")) == ("Deny", "matched")
    page = await tried(visitor, **pay, arguments='{"amount": "many"}')
    assert finding(page, "large") == "error"
    assert verdict(page) == "Deny"
    page = await tried(visitor, server="github", tool="search_issues", arguments="{not json")
    assert verdict(page) == "Ask"
    page = await tried(
        visitor, server="github", tool="search_issues", arguments='{"query": "secret"}'
    )
    assert verdict(page) == "Allow"
    assert "<b>deny</b>, by rule <code>no-search</code>" in page
    page = await tried(visitor, server="nowhere", tool="x")
    assert verdict(page) == "Deny"
    assert "not offered this tool" in page
    # Nothing of it was counted, or is called.
    assert '<span class="hits">1' not in (await visitor.get("/console/rules")).text


async def test_a_form_that_makes_no_sense_is_shown_again(browser: Open, gateway: Gateway) -> None:
    visitor = browser(gateway)
    await visitor.sign_in("auditor")
    ticket = ticket_in((await visitor.get(SIMULATOR)).text, SIMULATOR)
    for form, said in (
        ({"tool": "x"}, "Say which server"),
        ({"server": "github", "tool": "x", "trust": "total"}, "no such choice"),
        ({"server": "github", "tool": "x", "read_only": "maybe"}, "no such choice"),
    ):
        typed = {"ticket": ticket, "subject": "<i>me</i>", **form}
        answer = await visitor.post(SIMULATOR, typed)
        assert answer.status_code == 422
        assert said in answer.text
        assert 'value="&lt;i&gt;me&lt;/i&gt;"' in answer.text


async def test_approvers_read_and_only_auditors_try(browser: Open, gateway: Gateway) -> None:
    auditor, approver, caller = (browser(gateway) for _ in range(3))
    await auditor.sign_in("auditor")
    await approver.sign_in()
    await caller.sign_in("caller")
    stolen = ticket_in((await auditor.get(SIMULATOR)).text, SIMULATOR)
    page = (await approver.get("/console/rules")).text
    assert "reads" in page
    assert SIMULATOR not in page
    form = {"ticket": stolen, "server": "github", "tool": "x"}
    assert (await approver.get(SIMULATOR)).status_code == 403
    assert (await approver.post(SIMULATOR, form)).status_code == 403
    assert (await caller.get("/console/rules")).status_code == 403
    assert "/console/rules" not in (await caller.get("/console")).text
    assert (await auditor.post(SIMULATOR, {**form, "ticket": "x"})).status_code == 403
    cross = {"sec-fetch-site": "cross-site"}
    assert (await auditor.post(SIMULATOR, form, cross)).status_code == 403
