"""A browser without a screen: cookies, redirects and the headers that Chromium sends."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from html import unescape
from typing import Any

import anyio
import httpx2
import pytest

from gateway.console.sessions import COOKIE
from tests.support.stack import OPEN_CLIENTS, Gateway

Open = Callable[..., "Browser"]
_OWN = {"sec-fetch-site": "same-origin", "origin": "null"}


class Browser:
    """Visits the console; `text` is the page that it shows."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._client = httpx2.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False)
        self.cookie = ""

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._kept(await self._client.get(path, headers={**self._cookies, **names}))

    async def post(
        self, path: str, form: dict[str, str], headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        sent = {**self._cookies, **(_OWN if headers is None else headers)}
        return self._kept(await self._client.post(path, data=form, headers=sent))

    async def sign_in(self, key: str = "approver", **form: str) -> httpx2.Response:
        """Sign in with one of the gateway's keys, and return where that leads."""
        answer = await self.post("/console/sign-in", {"key": self._gateway.keys[key], **form})
        assert answer.status_code == 303, answer.text
        answer = await self.get(answer.headers["location"])
        assert answer.status_code == 303, answer.text
        return answer

    async def waiting(self) -> str:
        """Wait until an approval is in the inbox, and return its path."""
        with anyio.fail_after(30):
            while True:
                found = paths((await self.get("/console")).text)
                if found:
                    return found[0]
                await anyio.sleep(0.02)

    async def decide(self, path: str, decision: str, **form: str) -> httpx2.Response:
        """Open an approval's page and press one of its buttons."""
        ticket = ticket_of((await self.get(path)).text)
        return await self.post(f"{path}/decision", {"ticket": ticket, "decision": decision, **form})

    async def aclose(self) -> None:
        await self._client.aclose()

    @property
    def _cookies(self) -> dict[str, str]:
        return {"cookie": f"{COOKIE}={self.cookie}"} if self.cookie else {}

    def _kept(self, answer: httpx2.Response) -> httpx2.Response:
        header = answer.headers.get("set-cookie")
        if header is not None:
            self.cookie = header.removeprefix(f"{COOKIE}=").partition(";")[0]
        return answer


def paths(page: str) -> list[str]:
    """The approvals that an inbox links to."""
    return re.findall(r'href="(/console/approvals/apr_\w+)"', page)


def ticket_of(page: str) -> str:
    """The ticket in the form that decides."""
    form = page[page.index('/decision"') :]
    found = re.search(r'name="ticket" value="([^"]+)"', form)
    assert found
    return unescape(found.group(1))


def ticket_in(page: str, action: str) -> str:
    """The ticket in the form that is sent there."""
    form = page[page.index(f'action="{action}') :]
    found = re.search(r'name="ticket" value="([^"]+)"', form)
    assert found
    return unescape(found.group(1))


@pytest.fixture
async def browser(gateway: Gateway) -> AsyncIterator[Open]:
    """Opens browsers on a gateway, the usual one by default."""
    opened: list[Browser] = []

    def open_(other: Gateway | None = None) -> Browser:
        opened.append(Browser(other or gateway))
        return opened[-1]

    yield open_
    for one in opened:
        await one.aclose()


class Held:
    """A turn of the official SDK whose stream waits for an approval."""

    def __init__(self, gateway: Gateway, arguments: str, key: str) -> None:
        self._gateway = gateway
        self._arguments = arguments
        self._key = key
        self.final: Any = None
        self.done = anyio.Event()

    async def run(self) -> None:
        client = self._gateway.client(self._key)
        OPEN_CLIENTS.remove(client)  # it is closed here, in the event loop that it lives in
        async with (
            client,
            client.responses.stream(
                model="gpt-4.1",
                input=f"/call github.create_issue {self._arguments}",
                tools=[{"type": "mcp", "server_label": "github"}],
            ) as stream,
        ):
            self.final = await stream.get_final_response()
        self.done.set()


@pytest.fixture
async def hold(gateway: Gateway) -> AsyncIterator[Callable[..., Held]]:
    """Starts held turns; what nobody decided is denied at the end, so that they end too."""
    started: list[Held] = []
    async with anyio.create_task_group() as group:

        def start(arguments: str = '{"title": "Hi"}', *, key: str = "caller") -> Held:
            started.append(Held(gateway, arguments, key))
            group.start_soon(started[-1].run)
            return started[-1]

        yield start
        with anyio.fail_after(30):
            while not all(held.done.is_set() for held in started):
                await deny_all(gateway)
                await anyio.sleep(0.02)


async def deny_all(gateway: Gateway) -> None:
    """Deny what is pending."""
    async with gateway.http("admin") as client:
        for one in (await client.get("/v1/approvals?limit=100")).json()["data"]:
            body = {"decision": "deny", "fingerprint": one["fingerprint"]}
            await client.post(f"/v1/approvals/{one['id']}/decision", json=body)
