"""The playground: a chat over the public API, with the approval in the middle (APPR-10)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio
import httpx2
import pytest

from tests.browser.conftest import Visit
from tests.support.stack import Gateway, Stack

SUGGESTIONS = [
    {"title": "Search", "text": '/call github.search_issues {"query": "login"}'},
    {"title": "Create", "text": '/call github.create_issue {"title": "from the playground"}'},
    {"title": "Remember", "text": "/recall"},
]


@pytest.fixture(scope="module")
def playground(stack: Stack) -> Iterator[Gateway]:
    """A gateway with a playground, whose rules let one person try both sides."""
    rules = [
        {"id": "reads", "match": {"server": "github", "tool": "search_*"}, "effect": "allow"},
        {
            "id": "writes",
            "match": {"server": "github", "tool": "create_*"},
            "effect": "ask",
            "approval": {"approvers": ["role:approver"], "allow_self": True},
        },
    ]
    keys = [stack.key("admin", tenant="played", subject="user:you", roles=["admin"])]
    with stack.gateway(
        tenants=[{"id": "played"}],
        api_keys=keys,
        rules=rules,
        console={"playground": True, "suggestions": SUGGESTIONS},
    ) as running:
        yield running


@pytest.mark.covers("APPR-10", "APPR-3")
async def test_a_whole_approval_on_one_screen(visit: Visit, playground: Gateway) -> None:
    window = await visit("admin", gateway=playground, viewport={"width": 1440, "height": 900})
    page = window.page
    await page.get_by_role("link", name="Playground", exact=True).click()
    await page.get_by_role("button", name="Search").click()
    await page.get_by_text("Ran github.search_issues").wait_for()
    await page.get_by_role("button", name="Send").wait_for()
    await page.get_by_label("Message").fill(SUGGESTIONS[1]["text"])
    await page.keyboard.press("Enter")
    card = page.locator(".approval-card")
    await card.get_by_text("The stream waits").wait_for()
    await window.shot("playground-waits")
    second = await page.context.new_page()
    await second.goto(f"{window.url}/console")
    await second.locator("a.row", has_text="from the playground").click()
    await second.get_by_role("button", name="Approve once").click()
    await second.locator(".verdict.approved").wait_for()
    await page.get_by_text("Ran github.create_issue").wait_for()
    await card.get_by_text("approved").wait_for()
    await page.get_by_role("button", name="Send").wait_for()
    await window.shot("playground-went-on")
    await page.get_by_label("Message").fill("/recall")
    await page.keyboard.press("Enter")
    await page.get_by_text("I see 2 user messages").wait_for()


@pytest.mark.covers("APPR-10", "STATE-1")
async def test_deciding_on_the_card_keeps_the_stateless_chat(
    visit: Visit, playground: Gateway
) -> None:
    window = await visit("admin", gateway=playground, viewport={"width": 375, "height": 812})
    page = window.page
    await page.goto(f"{window.url}/console/playground")
    await page.get_by_label("stateless").check()
    await page.get_by_label("Message").fill(
        '/call github.create_issue {"title": "<img src=x onerror=alert(1)>"}'
    )
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="Deny…").click()
    dialog = page.locator("#dialog")
    await dialog.get_by_label("Reason").fill("Not on a phone.")
    await window.shot("playground-phone-dialog")
    await dialog.get_by_role("button", name="Deny").click()
    await page.locator(".approval-card").get_by_text("denied").wait_for()
    await page.get_by_text("Not on a phone.").wait_for()
    assert await page.locator("#talk img").count() == 0
    await page.get_by_role("button", name="Send").wait_for()
    await page.get_by_label("Message").fill("/recall")
    await page.keyboard.press("Enter")
    await page.get_by_text("I see 1 user message").wait_for()
    await window.shot("playground-phone")


@pytest.fixture
async def http(playground: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=playground.url, trust_env=False) as client:
        yield client


@pytest.mark.covers("AUTH-1", "APPR-10")
async def test_a_pass_needs_the_pages_own_form_and_a_session(
    visit: Visit, playground: Gateway, http: httpx2.AsyncClient
) -> None:
    window = await visit("admin", gateway=playground)
    page = window.page
    await page.goto(f"{window.url}/console/playground")
    ticket = await page.get_attribute("#playground", "data-ticket")
    given = await page.evaluate(
        "ticket => fetch('/console/playground/pass', {method: 'POST',"
        " body: new URLSearchParams({ticket})}).then(a => a.json())",
        ticket,
    )
    own = {"authorization": f"Bearer {given['pass']}"}
    assert (await http.get("/v1/models", headers=own)).status_code == 200
    for forged in ("gwp_", "gwp_AAAA", given["pass"][:-4] + "AAAA", given["pass"] + "x"):
        answer = await http.get("/v1/models", headers={"authorization": f"Bearer {forged}"})
        assert answer.status_code == 401, forged
    stranger = await http.post("/console/playground/pass", data={"ticket": ticket})
    assert stranger.status_code in (401, 403)
    with anyio.fail_after(30):
        cookies = await page.context.cookies()
    assert all(cookie["httpOnly"] for cookie in cookies)


@pytest.mark.covers("APPR-10")
async def test_there_is_no_playground_unless_it_is_allowed(visit: Visit, gateway: Gateway) -> None:
    window = await visit("admin")
    assert await window.page.get_by_role("link", name="Playground", exact=True).count() == 0
    answer = await window.page.goto(f"{window.url}/console/playground")
    assert answer.status == 404
