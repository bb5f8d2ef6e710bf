"""Sends webhooks over HTTP (APPR-9)."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import aiohttp
from typing_extensions import override

from gateway.services.webhooks import WebhookSender

_TIMEOUT = 15.0


class HttpWebhookSender(WebhookSender):
    """Posts messages; redirects are not followed and answers are not read.

    Opened as a context manager. Proxies of the environment are not used: they would see what
    the operator did not send there.
    """

    def __init__(self, *, timeout: float = _TIMEOUT) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "mcp-conversation-gateway"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @override
    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int | None:
        if self._session is None:
            raise RuntimeError("the sender is not open")
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                # Its body is nothing to us; closing drops what was not read.
                status = response.status
                response.close()
                return status
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
