"""The inbox in Chromium: live, by keyboard, raced for, and without scripts (APPR-10)."""

from __future__ import annotations

import json
from collections.abc import Callable

import anyio
import pytest

from tests.browser.conftest import Visit, Window
from tests.clients.conftest import Npm
from tests.console.conftest import Held
from tests.support.approvals import create, issue, tenancy
from tests.support.stack import Stack

Hold = Callable[..., Held]
HOSTILE = {
    "title": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "body": "gnp\u202eexe zero\u200bwidth \u0440aypal {{ 7*7 }} [x](javascript:alert(3))",
}


async def _row(window: Window, text: str) -> str:
    row = window.page.locator("a.row", has_text=text)
    await row.wait_for()
    return str(await row.get_attribute("id"))


@pytest.mark.covers("APPR-10")
async def test_an_approval_appears_without_reload_and_leaves_when_decided(
    visit: Visit, hold: Hold
) -> None:
    window = await visit()
    await window.live()
    held = hold('{"title": "appears by itself"}')
    row = await _row(window, "appears by itself")
    other = await visit(viewport={"width": 375, "height": 800})
    await other.page.click(f"#{row}")
    await other.page.click("button.approve")
    await other.page.wait_for_selector(".verdict.approved")
    with anyio.fail_after(30):
        await held.done.wait()
    await window.page.wait_for_selector(f"#{row}", state="detached")
    assert held.final.output[-1].type == "message"


@pytest.mark.covers("APPR-10")
async def test_the_keyboard_moves_asks_and_decides(visit: Visit, hold: Hold) -> None:
    window = await visit()
    await window.live()
    held = hold('{"title": "by keyboard"}')
    row = await _row(window, "by keyboard")
    while await window.page.evaluate("document.activeElement.id") != row:
        await window.page.keyboard.press("j")
    await window.shot("inbox-keyboard")
    await window.page.keyboard.press("d")
    dialog = window.page.locator("#dialog")
    await dialog.get_by_role("heading", name="Deny create_issue on github?").wait_for()
    await window.shot("confirm-deny")
    assert not held.done.is_set()
    await dialog.get_by_label("Reason").fill("Not today.")
    await dialog.get_by_role("button", name="Deny").click()
    await window.page.wait_for_selector(".verdict.denied")
    with anyio.fail_after(30):
        await held.done.wait()
    assert "Not today." in held.final.output_text
    await window.page.keyboard.press("?")
    await window.page.get_by_role("heading", name="Keys").wait_for()
    await window.page.keyboard.press("Escape")
    await window.page.wait_for_selector("#dialog[open]", state="detached")


@pytest.mark.covers("APPR-10", "APPR-6")
async def test_of_two_browsers_one_decides_and_the_other_is_told(visit: Visit, hold: Hold) -> None:
    one, two = await visit(), await visit("second")
    hold('{"title": "raced for"}')
    await one.live()
    row = await _row(one, "raced for")
    path = f"{one.url}/console/approvals/{row.removeprefix('row-')}"
    for window in (one, two):
        await window.page.goto(path)
    await one.page.click("button.approve")
    await one.page.wait_for_selector(".verdict.approved")
    await two.page.click("button.deny")
    await two.page.get_by_role("heading", name="Somebody was faster").wait_for()
    await two.page.wait_for_selector(".verdict.approved")


@pytest.mark.covers("APPR-10")
async def test_arguments_full_of_tricks_run_nothing_and_hide_nothing(
    visit: Visit, hold: Hold
) -> None:
    window = await visit()
    asked: list[str] = []
    window.page.on("dialog", lambda dialog: asked.append(dialog.message))
    await window.live()
    hold(json.dumps(HOSTILE, ensure_ascii=False))
    row = await _row(window, "<script>alert(1)</script>")
    await window.page.click(f"#{row}")
    text = await window.page.inner_text("main")
    assert HOSTILE["title"] in text
    assert "gnp⟦U+202E⟧exe zero⟦U+200B⟧width" in text
    assert "letters of different scripts in one word" in text
    assert not asked
    assert await window.page.locator("main img, main script").count() == 0
    await window.shot("approval-tricks")


@pytest.mark.covers("APPR-10")
async def test_without_scripts_one_signs_in_reads_and_decides(visit: Visit, hold: Hold) -> None:
    window = await visit(java_script_enabled=False)
    held = hold('{"title": "no scripts"}')
    row = window.page.locator("a.row", has_text="no scripts")
    with anyio.fail_after(30):
        while not await row.count():
            await window.page.goto(f"{window.url}/console")
    await row.click()
    await window.page.click("button.approve")
    await window.page.wait_for_selector(".verdict.approved")
    with anyio.fail_after(30):
        await held.done.wait()


@pytest.mark.covers("APPR-10")
async def test_a_thousand_approvals_are_pages_with_a_count_and_stay_live(
    visit: Visit, stack: Stack
) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        for turn in range(25):
            lines = [issue(f"waiting {turn}-{line}") for line in range(40)]
            await create(gateway, "\n".join(lines))
        window = await visit("approver", gateway=gateway, viewport={"width": 1440, "height": 900})
        await window.live()
        await window.page.get_by_role("link", name="Pending 1,000").wait_for()
        assert await window.page.locator("a.row").count() == 25
        await window.shot("inbox-thousand")
        await create(gateway, issue("the last one"))
        await _row(window, "the last one")
        await window.page.get_by_role("link", name="Older").click()
        await window.page.get_by_role("link", name="Back to the newest").wait_for()
        assert await window.page.locator("a.row").count() == 25


@pytest.mark.covers("APPR-10")
async def test_views_and_filters_narrow_the_inbox(visit: Visit, stack: Stack) -> None:
    rules = [
        {
            "id": "board",
            "match": {"server": "github", "tool": "send_payment"},
            "effect": "ask",
            "approval": {"approvers": ["subject:user:bob"]},
        }
    ]
    with stack.gateway(**tenancy(stack), rules=rules) as gateway:
        await create(gateway, issue("for every approver"))
        await create(gateway, '/call github.send_payment {"to": "bob alone", "amount": 1}')
        window = await visit("approver", gateway=gateway)
        await _row(window, "bob alone")
        await window.page.get_by_role("link", name="For me").click()
        await _row(window, "for every approver")
        assert await window.page.locator("a.row", has_text="bob alone").count() == 0
        await window.page.goto(f"{window.url}/console?tool=send_payment")
        await _row(window, "bob alone")
        assert await window.page.locator("a.row", has_text="for every approver").count() == 0
        await window.page.get_by_role("link", name="tool send_payment").click()
        await _row(window, "for every approver")


@pytest.mark.covers("AUTH-1", "APPR-10")
async def test_a_session_that_ends_while_one_decides_decides_nothing(
    visit: Visit, hold: Hold
) -> None:
    window = await visit()
    await window.live()
    held = hold('{"title": "session ends"}')
    row = await _row(window, "session ends")
    await window.page.click(f"#{row}")
    await window.page.context.clear_cookies()
    await window.page.click("button.approve")
    await window.page.get_by_text("Nothing was decided; sign in and look again.").wait_for()
    assert not held.done.is_set()
    await window.page.fill("#key", window.keys["approver"])
    await window.page.click("button[type=submit]")
    await window.page.get_by_role("button", name="Approve once").click()
    await window.page.wait_for_selector(".verdict.approved")
    with anyio.fail_after(30):
        await held.done.wait()


@pytest.mark.covers("APPR-10")
async def test_a_screen_reader_finds_its_way(visit: Visit, hold: Hold, npm: Npm) -> None:
    axe = (npm.install("axe-core", "4.14.1") / "axe-core" / "axe.min.js").read_text()
    held = hold('{"title": "read aloud", "nested": {"a": [1, 2]}}')
    for options in ({}, {"color_scheme": "dark"}, {"viewport": {"width": 375, "height": 812}}):
        window = await visit(**options)
        row = await _row(window, "read aloud")
        paths = ["", "/turns", f"/approvals/{row.removeprefix('row-')}"]
        paths.append(f"/approvals/{row.removeprefix('row-')}/confirm?decision=deny")
        for path in paths:
            await window.page.goto(f"{window.url}/console{path}")
            # By the debugger, which the content security policy does not bind.
            found = await window.page.evaluate(f"{axe}; axe.run().then(r => r.violations)")
            serious = [
                (one["id"], [node["html"] for node in one["nodes"]])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert not serious, (path, options, serious)
    assert not held.done.is_set()
