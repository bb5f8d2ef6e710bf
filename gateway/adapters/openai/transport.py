"""The wire to one upstream: the SDK writes a request once, aiohttp sends it ever after.

The SDK is good at URLs, headers and credentials, and spends half a millisecond of work on each
request and 15 µs on each streamed chunk. What it writes does not change from one request to the
next but for the credential and the body, so it is asked once per method and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import httpx2
import openai
from multidict import CIMultiDict
from typing_extensions import override
from yarl import URL

from gateway.domain.errors import (
    UpstreamDisconnected,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.domain.registry import Upstream

_MAX_CONNECTIONS = 10_000
_PROBE = "/probe"

# Set by the connection or per request. No compression: decoding would hold events back.
_NOT_KEPT = frozenset({"host", "content-length", "connection", "accept-encoding", "authorization"})


@dataclass(frozen=True, slots=True)
class Template:
    """What the SDK writes for every request of one method: where to, and with which headers."""

    prefix: str
    query: str
    headers: CIMultiDict[str]

    def url(self, path: str, query: Mapping[str, str] | None) -> URL:
        """Write the URL of a path, with the upstream's own query and this request's."""
        url = URL(self.prefix + path + (f"?{self.query}" if self.query else ""), encoded=True)
        return url.extend_query(query) if query else url


class _Recorder(httpx2.AsyncBaseTransport):
    """Keeps the request that the SDK would send."""

    request_seen: httpx2.Request | None = None

    @override
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.request_seen = request
        return httpx2.Response(200, json={})


async def write_template(upstream: Upstream, method: str) -> Template:
    """Have the SDK write a request to an upstream, credential aside."""
    recorder = _Recorder()
    async with httpx2.AsyncClient(transport=recorder, trust_env=False) as http_client:
        client = openai.AsyncOpenAI(
            base_url=upstream.base_url,
            api_key="replaced-by-the-credential",
            organization="",  # else the SDK reads its own environment variables
            project="",
            max_retries=0,
            default_headers=dict(upstream.headers),
            default_query=dict(upstream.query),
            http_client=http_client,
        )
        match method:
            case "GET":
                await client.get(_PROBE, cast_to=httpx2.Response)
            case "POST":
                await client.post(
                    _PROBE,
                    cast_to=httpx2.Response,
                    content=b"{}",
                    options={"headers": {"Content-Type": "application/json"}},
                )
            case "DELETE":
                await client.delete(_PROBE, cast_to=httpx2.Response)
            case _:
                raise ValueError(f"unknown method {method}")
    request = recorder.request_seen
    if request is None:
        raise RuntimeError("the SDK sent nothing")
    prefix, _, query = str(request.url).partition(_PROBE)
    headers = CIMultiDict(
        (name, value)
        for name, value in request.headers.multi_items()
        if name.lower() not in _NOT_KEPT and value
    )
    return Template(prefix, query.removeprefix("?"), headers)


class Wire:
    """One aiohttp session to one upstream; it follows nothing and repeats nothing."""

    def __init__(self, upstream: Upstream) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=upstream.connect_timeout, sock_read=upstream.timeout
        )
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Idle connections are dropped before providers drop them: a POST on a connection
            # that is being closed may or may not have arrived, and must then not be repeated.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, keepalive_timeout=15),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=False,
                read_bufsize=2**17,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
            )
        return self._session

    async def request(
        self, method: str, url: URL, headers: CIMultiDict[str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        """Send a request and return once the answer's head is there.

        Raises:
            UpstreamError: As `UpstreamClient` says.
        """
        try:
            return await self._open().request(
                method, url, data=body, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise to_error(exc) from exc

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()


def to_error(exc: BaseException) -> UpstreamError:
    """Choose our error for one of aiohttp's; only connect errors prove that nothing was sent."""
    match exc:
        case aiohttp.ConnectionTimeoutError() | aiohttp.ClientConnectorError():
            return UpstreamUnreachable("The upstream cannot be reached.")
        case TimeoutError():
            return UpstreamTimeout("The upstream did not answer in time.")
        case _:
            return UpstreamDisconnected("The upstream broke the connection.")
