"""The console in real Chromium, with scripts, cookies and the content security policy."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import npm as npm
from tests.conftest import require
from tests.console.conftest import hold as hold
from tests.support.stack import Gateway

Visit = Callable[..., Awaitable["Window"]]

SHOTS = os.environ.get("GATEWAY_TEST_SCREENSHOTS")
"""A folder for screenshots, for people who look at them."""


class Window:
    """One browser with its own cookies, signed in, at one page of the console."""

    def __init__(self, page: Any, gateway: Gateway) -> None:
        self.page = page
        self.url = gateway.url.replace("127.0.0.1", "localhost")
        self.keys = gateway.keys
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    async def sign_in(self, key: str = "approver") -> None:
        await self.page.goto(f"{self.url}/console")
        await self.page.fill("#key", self.keys[key])
        await self.page.click("button[type=submit]")
        await self.page.wait_for_url(f"{self.url}/console")

    async def live(self) -> None:
        """Wait until the page hears of changes."""
        await self.page.wait_for_selector("#live:not(.off)")

    async def shot(self, name: str) -> None:
        if SHOTS:
            await self.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    return require("chromium")


@pytest.fixture
async def visit(gateway: Gateway, chromium: str) -> AsyncIterator[Visit]:
    """Opens windows, each a browser of its own; no script of ours may fail in any."""
    playwright = pytest.importorskip("playwright.async_api", reason="uv sync --group browser")
    windows: list[Window] = []
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        async def open_(key: str | None = "approver", **options: Any) -> Window:
            other = options.pop("gateway", gateway)
            context = await browser.new_context(**options)
            window = Window(await context.new_page(), other)
            windows.append(window)
            if key is not None:
                await window.sign_in(key)
            return window

        yield open_
        await browser.close()
    faults = [fault for window in windows for fault in window.faults]
    assert not faults, faults
