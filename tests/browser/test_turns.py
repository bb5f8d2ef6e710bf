"""Turns in Chromium: a timeline of legs, calls and approvals, and the chain behind (APPR-10)."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Visit
from tests.support.approvals import create, decide, issue, marker, settled
from tests.support.stack import Gateway


@pytest.mark.covers("APPR-10", "STATE-1")
async def test_a_turn_is_a_timeline_and_its_words_are_for_whose_turn_it_is(
    visit: Visit, gateway: Gateway
) -> None:
    word = marker()
    answer = await create(gateway, f"secret {word}", tools=(), store=False)
    first = answer.json()["id"]
    answer = await create(gateway, issue(word), store=False, previous_response_id=first)
    second = answer.json()["id"]
    await decide(gateway, word)
    assert (await settled(gateway, second))["status"] == "completed"
    overseer = await visit("approver", viewport={"width": 1440, "height": 900})
    page = overseer.page
    await page.get_by_role("link", name="Turns", exact=True).click()
    await page.locator(f"#row-{second}").click()
    await page.get_by_text("Leg 2", exact=True).first.wait_for()
    text = await page.inner_text("main")
    assert "create_issue: approved" in text
    assert "kept by the gateway alone" in text
    assert "mcp_call github.create_issue" in text
    assert word not in text
    assert "not what was said" in text
    await overseer.shot("turn")
    await page.get_by_role("link", name=first).click()
    await page.get_by_text("it began the chain").wait_for()
    own = await visit("caller", viewport={"width": 375, "height": 812})
    await own.page.goto(f"{own.url}/console/turns?id={second}")
    assert word in await own.page.inner_text("main")
    await own.shot("turn-phone")
    stranger = await visit("other")
    answer = await stranger.page.goto(f"{stranger.url}/console/turns/{second}")
    assert answer.status == 404
