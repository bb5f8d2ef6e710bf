"""The inbox in Chromium: live, by keyboard, raced for, and without scripts (APPR-10)."""

from __future__ import annotations

import json
from collections.abc import Callable

import anyio
import pytest

from tests.browser.conftest import Visit, Window
from tests.console.conftest import Held

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
    with anyio.fail_after(10):
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
    with anyio.fail_after(10):
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
    with anyio.fail_after(20):
        while not await row.count():
            await window.page.goto(f"{window.url}/console")
    await row.click()
    await window.page.click("button.approve")
    await window.page.wait_for_selector(".verdict.approved")
    with anyio.fail_after(10):
        await held.done.wait()
