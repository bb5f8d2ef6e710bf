"""One approval's page in Chromium: what a person is told, and each way to answer (APPR-10)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anyio
import pytest

from tests.browser.conftest import Visit, Window
from tests.support.approvals import create, decide, issue, marker, pending, settled, tenancy
from tests.support.stack import Gateway, Stack

RULES = [
    {
        "id": "writes",
        "match": {"server": "github", "tool": "create_*"},
        "effect": "ask",
        "reason": "It changes what others see.",
        "approval": {
            "approvers": ["role:approver"],
            "escalate": [{"after": "10m", "to": ["group:board"]}],
            "grants": {"max_scope": "tool", "max_scope_destructive": "tool", "max_ttl": "2h"},
        },
    },
    {
        "id": "payments",
        "match": {"server": "github", "tool": "send_payment"},
        "effect": "ask",
        "reason": "It sends money.",
    },
]


@pytest.fixture(scope="module")
def desk(stack: Stack) -> Iterator[Gateway]:
    with stack.gateway(**{**tenancy(stack), "rules": RULES}) as running:
        yield running


async def _open(visit: Visit, gateway: Gateway, word: str, **options: object) -> Window:
    (approval,) = await pending(gateway, word)
    window = await visit("approver", gateway=gateway, **options)
    await window.page.goto(f"{window.url}/console/approvals/{approval['id']}")
    return window


@pytest.mark.covers("APPR-10")
async def test_the_page_tells_why_what_differs_and_what_was_said(
    visit: Visit, desk: Gateway
) -> None:
    word = marker()
    await create(desk, issue(f"{word} first"))
    await decide(desk, f"{word} first")
    await create(desk, issue(f"{word} second"))
    window = await _open(visit, desk, f"{word} second", viewport={"width": 1440, "height": 900})
    text = await window.page.inner_text("main")
    for told in (
        "It changes what others see.",
        "reviewed",
        "Compared with the last approved call",
        f"{word} first",
        "What the user wrote last",
        "in the server's words",
        "Create an issue and return its number",
        "definition pinned",
    ):
        assert told in text, told
    await window.shot("approval")
    phone = await _open(visit, desk, f"{word} second", viewport={"width": 375, "height": 812})
    wide = await phone.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 375
    await phone.shot("approval-phone")
    dark = await _open(visit, desk, f"{word} second", color_scheme="dark")
    await dark.shot("approval-dark")
    await decide(desk, f"{word} second", "deny")


@pytest.mark.covers("APPR-6", "APPR-8", "APPR-10")
async def test_a_change_is_asked_for_and_runs_once(visit: Visit, desk: Gateway) -> None:
    word = marker()
    held = (await create(desk, issue(word))).json()["id"]
    window = await _open(visit, desk, word)
    await window.page.get_by_text("Ask for a change").click()
    box = window.page.get_by_label("Arguments that you would approve")
    await box.fill("[1]")
    await window.page.get_by_role("button", name="Deny, and ask for this change").click()
    await window.page.get_by_text("must be a JSON object").wait_for()
    await box.fill(f'{{"title": "{word} changed"}}')
    await window.page.get_by_role("button", name="Deny, and ask for this change").click()
    await window.page.get_by_text("It was asked for instead").wait_for()
    assert (await settled(desk, held))["status"] in ("completed", "in_progress")


@pytest.mark.covers("APPR-8", "APPR-10")
async def test_a_grant_says_what_it_allows_and_holds(visit: Visit, desk: Gateway) -> None:
    word = marker()
    held = (await create(desk, issue(word))).json()["id"]
    window = await _open(visit, desk, word)
    await window.page.get_by_text("Approve, and allow more").click()
    await window.page.get_by_label("every call of this tool, whatever its arguments").check()
    await window.shot("approval-grant")
    await window.page.get_by_role("button", name="Approve and allow this").click()
    await window.page.locator(".verdict.approved").wait_for()
    assert (await settled(desk, held))["status"] == "completed"
    answer = await create(desk, issue(f"{word} again"), previous_response_id=held)
    assert answer.json()["status"] == "completed"


@pytest.mark.covers("APPR-6", "APPR-10", "APPR-11")
async def test_more_time_passing_on_and_the_audits_proof(visit: Visit, desk: Gateway) -> None:
    word = marker()
    await create(desk, issue(word))
    window = await _open(visit, desk, word)
    page = window.page
    await page.get_by_role("button", name="More time").click()
    await page.get_by_text("59 min left").or_(page.get_by_text("1 h left")).first.wait_for()
    await page.get_by_role("button", name="Pass it on to group:board").click()
    await page.get_by_text("passed on 1").wait_for()
    await decide(desk, word, "deny")
    admin = await visit("admin", gateway=desk)
    await admin.page.goto(page.url)
    await admin.page.get_by_role("link", name="See the audit's proof").click()
    with anyio.fail_after(30):
        await admin.page.get_by_text("approval.resolved").wait_for()
    text = await admin.page.inner_text("main")
    assert all(f"approval.{event}" in text for event in ("requested", "extended", "escalated"))
    await admin.shot("proof")


@pytest.mark.covers("APPR-10", "APPR-11")
async def test_masked_values_are_shown_once_to_who_may_see_them(visit: Visit, stack: Stack) -> None:
    sections = tenancy(stack)
    tenant = sections["tenants"][0]["id"]
    roles = ["approver", "revealer"]
    sections["api_keys"].append(
        stack.key("trusted", tenant=tenant, subject="user:tia", roles=roles)
    )
    rules = [{**RULES[0], "approval": {"redact": ["/body"]}}]
    word = marker()
    with stack.gateway(**sections, rules=rules) as gateway:
        said = {"title": word, "body": f"behind the door: {word[::-1]}"}
        await create(gateway, f"/call github.create_issue {json.dumps(said)}")
        plain = await _open(visit, gateway, word)
        text = await plain.page.inner_text("main")
        assert "Masked for you: /body" in text
        assert said["body"] not in await plain.page.content()
        assert await plain.page.get_by_text("Approve, and allow more").count() == 0
        assert await plain.page.get_by_role("button", name="Show them once").count() == 0
        await plain.shot("approval-masked")
        (approval,) = await pending(gateway, word)
        trusted = await visit("trusted", gateway=gateway)
        await trusted.page.goto(f"{trusted.url}/console/approvals/{approval['id']}")
        await trusted.page.get_by_role("button", name="Show them once").click()
        await trusted.page.get_by_text(said["body"]).first.wait_for()
        assert "Masked for you" not in await trusted.page.inner_text("main")
        await trusted.page.get_by_role("button", name="Approve once").click()
        await trusted.page.locator(".verdict.approved").wait_for()
        assert said["body"] not in await trusted.page.content()
        await settled(gateway, approval["response_id"])
