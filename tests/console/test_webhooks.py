"""The room of webhooks over HTTP: endpoints, deliveries, and secrets shown once (APPR-9)."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from tests.console.conftest import Browser, Open, ticket_in
from tests.console.test_console import assert_safe, inline_scripts
from tests.support.approvals import create, issue, marker, tenancy
from tests.support.provider import Call, Provider, provider
from tests.support.stack import CANARY, UPSTREAM_KEY, Gateway, Stack

pytestmark = pytest.mark.covers("APPR-10", "APPR-9")

PLACE = "/console/webhooks"
SECRET = "whsec_" + base64.b64encode(b"w" * 32).decode()


class Receiver:
    """A receiver whose answers the test chooses."""

    def __init__(self) -> None:
        self.status = 200

    async def __call__(self, call: Call) -> None:
        await call.document(b"{}", status=self.status)


@pytest.fixture
def answers() -> Receiver:
    return Receiver()


@pytest.fixture
async def receiver(answers: Receiver) -> AsyncIterator[Provider]:
    async with provider(answers) as running:
        yield running


@pytest.fixture
def gateway(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setenv("TEST_HOOK", SECRET)
    hook = {
        "url": "https://hooks.example.com/services/T0/path-secret",
        "secret": "env:TEST_HOOK",
        "events": ["tool.*"],
    }
    delivery = {"allow_networks": ["127.0.0.0/8"]}
    sections = tenancy(stack)
    with stack.gateway(webhooks=[hook], webhook_delivery=delivery, **sections) as running:
        yield running


async def admin(browser: Open, gateway: Gateway) -> Browser:
    visitor = browser(gateway)
    await visitor.sign_in("admin")
    return visitor


async def made(visitor: Browser, url: str, **form: str) -> tuple[str, str]:
    """Make an endpoint; return its path and its secret."""
    ticket = ticket_in((await visitor.get(PLACE)).text, PLACE)
    answer = await visitor.post(PLACE, {"ticket": ticket, "url": url, "events": "*", **form})
    assert answer.status_code == 200, answer.text
    assert_safe(answer.headers)
    path = re.search(rf'href="({PLACE}/we_\w+)"', answer.text)
    assert path
    return path.group(1), secret_of(answer.text)


def secret_of(page: str) -> str:
    found = re.search(r'id="secret"[^>]*>(whsec_[^<]+)<', page)
    assert found, page
    return found.group(1)


async def press(visitor: Browser, path: str, what: str, **form: str) -> tuple[int, str]:
    """Press a button of an endpoint's page; return the status and the page that follows."""
    ticket = ticket_in((await visitor.get(path)).text, path)
    answer = await visitor.post(f"{path}/{what}", {"ticket": ticket, **form})
    if answer.status_code != 303:
        return answer.status_code, answer.text
    return 303, (await visitor.get(answer.headers["location"])).text


@pytest.mark.covers("MCP-3")
async def test_an_endpoint_is_made_and_its_secret_is_shown_once(
    browser: Open, gateway: Gateway, receiver: Provider
) -> None:
    visitor = await admin(browser, gateway)
    url = receiver.url + "/hook?token=query-secret"
    path, secret = await made(visitor, url, description="On <call>", events="approval.* tool.new")
    for place in (PLACE, path):
        answer = await visitor.get(place)
        assert_safe(answer.headers)
        assert not inline_scripts(answer.text)
        assert "On &lt;call&gt;" in answer.text
        assert "<code>approval.*</code> <code>tool.new</code>" in answer.text
        hidden = (secret, SECRET, "query-secret", "path-secret", CANARY, UPSTREAM_KEY)
        assert not [one for one in (*hidden, *gateway.keys.values()) if one in answer.text]
    page = (await visitor.get(PLACE)).text
    assert "https://hooks.example.com/…" in page
    assert "from the configuration" in page


async def test_a_form_sent_again_makes_no_second_endpoint_and_no_second_secret(
    browser: Open, gateway: Gateway, receiver: Provider
) -> None:
    visitor = await admin(browser, gateway)
    form = {"ticket": ticket_in((await visitor.get(PLACE)).text, PLACE)}
    form |= {"url": receiver.url + "/hook", "events": "*"}
    assert (await visitor.post(PLACE, form)).status_code == 200
    again = await visitor.post(PLACE, form)
    assert again.status_code == 412
    assert "Nothing was made" in again.text
    assert again.text.count('id="endpoint-we_') == 2
    path, _ = await made(visitor, receiver.url + "/two")
    form = {"ticket": ticket_in((await visitor.get(path)).text, path), "keep": "yes"}
    first = await visitor.post(f"{path}/rotate", form)
    assert first.status_code == 200
    assert "The old secret goes on signing" in first.text
    again = await visitor.post(f"{path}/rotate", form)
    assert again.status_code == 412
    assert "was not rotated" in again.text
    assert "whsec_" not in again.text
    status, page = await press(visitor, path, "rotate")
    assert status == 200
    assert secret_of(page) != secret_of(first.text)
    assert "goes on signing" not in page


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({"url": ""}, 422, "Give the URL"),
        ({"url": "ftp://x.example"}, 400, "must be an https:// URL"),
        ({"url": "http://169.254.169.254/x"}, 400, "&#39;url&#39;"),
        ({"events": "nothing.*"}, 400, "matches no event"),
        ({"events": " , "}, 422, "Name 1 to 32 events"),
        ({"format": "fax"}, 422, "no such format"),
    ],
)
async def test_what_cannot_be_is_said_with_the_form_as_it_was(
    browser: Open, gateway: Gateway, form: dict[str, str], status: int, said: str
) -> None:
    visitor = await admin(browser, gateway)
    typed = {"url": "https://example.com/", "events": "*", "description": "<mine>", **form}
    typed["ticket"] = ticket_in((await visitor.get(PLACE)).text, PLACE)
    answer = await visitor.post(PLACE, typed)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
    assert 'value="&lt;mine&gt;"' in answer.text
    assert "whsec_" not in answer.text


async def test_deliveries_are_seen_and_sent_again(
    browser: Open, gateway: Gateway, receiver: Provider
) -> None:
    visitor = await admin(browser, gateway)
    path, _ = await made(visitor, receiver.url + "/hook", events="approval.requested")
    assert "Nothing was sent yet" in (await visitor.get(path)).text
    await create(gateway, issue(marker()))
    with anyio.fail_after(30):
        while ">delivered</span>" not in (page := (await visitor.get(path)).text):
            await anyio.sleep(0.02)
    assert "answered 200" in page
    delivery = re.search(r'name="delivery" value="(\w+)"', page)
    assert delivery
    status, _ = await press(visitor, path, "redeliver", delivery=delivery.group(1))
    assert status == 303
    with anyio.fail_after(30):
        while len(receiver.calls) < 2:
            await anyio.sleep(0.02)
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 1
    assert (await press(visitor, path, "redeliver", delivery="whd_none"))[0] == 404


async def test_an_endpoint_is_tried_switched_and_removed(
    browser: Open, gateway: Gateway, receiver: Provider, answers: Receiver
) -> None:
    visitor = await admin(browser, gateway)
    path, _ = await made(visitor, receiver.url + "/hook")
    status, page = await press(visitor, path, "test")
    assert (status, "The receiver answered 200" in page) == (200, True)
    answers.status = 500
    assert "The receiver answered 500" in (await press(visitor, path, "test"))[1]
    assert len(receiver.calls) == 2
    assert ">disabled</span>" in (await press(visitor, path, "disable"))[1]
    assert ">enabled</span>" in (await press(visitor, path, "enable"))[1]
    assert (await press(visitor, path, "explode"))[0] == 404
    status, page = await press(visitor, path, "delete")
    assert (status, path in page) == (303, False)
    assert (await visitor.get(path)).status_code == 404


async def test_the_configurations_endpoints_are_only_switched(
    browser: Open, gateway: Gateway
) -> None:
    visitor = await admin(browser, gateway)
    found = re.search(rf'href="({PLACE}/we_cfg_\w+)"', (await visitor.get(PLACE)).text)
    assert found
    path = found.group(1)
    page = (await visitor.get(path)).text
    assert "/rotate" not in page
    assert "/delete" not in page
    for what in ("rotate", "delete"):
        status, page = await press(visitor, path, what)
        assert (status, "part of the configuration" in page) == (409, True)
    assert ">disabled</span>" in (await press(visitor, path, "disable"))[1]


@pytest.mark.covers("AUTH-2")
async def test_webhooks_are_for_admins_each_of_their_own_tenant(
    browser: Open, gateway: Gateway, stack: Stack, receiver: Provider
) -> None:
    visitor = await admin(browser, gateway)
    path, _ = await made(visitor, receiver.url + "/hook")
    other, _ = await made(visitor, receiver.url + "/other")
    stolen = {"ticket": ticket_in((await visitor.get(path)).text, path)}
    for key in ("approver", "auditor", "caller"):
        thief = browser(gateway)
        await thief.sign_in(key)
        assert PLACE not in (await thief.get("/console")).text
        for place in (PLACE, path):
            assert (await thief.get(place)).status_code == 403
            assert (await thief.post(place, stolen)).status_code in (403, 405)
        assert (await thief.post(f"{path}/delete", stolen)).status_code == 403
    with stack.gateway(**tenancy(stack)) as elsewhere:
        stranger = await admin(browser, elsewhere)
        assert (await stranger.get(path)).status_code == 404
        assert (await stranger.post(f"{path}/delete", stolen)).status_code == 404
        assert "Nobody is told" in (await stranger.get(PLACE)).text
    for form in ({"url": "x"}, {"ticket": "x"}):
        assert (await visitor.post(f"{path}/delete", form)).status_code == 403
        assert (await visitor.post(PLACE, form)).status_code == 403
    assert (await visitor.post(f"{other}/delete", stolen)).status_code == 403
    cross = {"sec-fetch-site": "cross-site"}
    assert (await visitor.post(f"{path}/delete", stolen, cross)).status_code == 403
    assert (await visitor.get(path)).status_code == 200
    assert not receiver.calls
