"""`UpstreamClient` over the openai package: `client.post(content=<bytes>)`, read raw.

`create(**body)` and its wrappers walk every input item (88 ms for 200) and drop nothing but time;
the plain `post` keeps credentials, URLs and error classes and costs the same for every body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import aiohttp
import httpx2
import openai
from typing_extensions import override

from gateway.adapters.openai.credentials import (
    Credential,
    CredentialFactory,
    EntraCredential,
    KeyCredential,
    default_azure_credential,
)
from gateway.adapters.openai.transport import RESPONSE, AiohttpClient
from gateway.domain.errors import (
    UpstreamDisconnected,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.domain.ports import ByteStream, SecretSource, UpstreamAnswer, UpstreamClient
from gateway.domain.registry import EntraAuth, Upstream

_MAX_CONNECTIONS = 10_000


class OpenAIUpstreams(UpstreamClient):
    """All configured upstreams, one SDK client each, over one kind of connection pool."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        secrets: SecretSource,
        *,
        azure_credential: CredentialFactory = default_azure_credential,
    ) -> None:
        self._upstreams = {
            upstream.name: _OneUpstream(upstream, secrets, azure_credential)
            for upstream in upstreams
        }

    @override
    async def send(
        self,
        upstream: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> UpstreamAnswer:
        response = await self._upstreams[upstream].request(
            method, path, body, query, headers, stream=False
        )
        return UpstreamAnswer(response.status_code, _plain(response), response.content)

    @override
    async def open(
        self,
        upstream: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ByteStream:
        response = await self._upstreams[upstream].request(
            method, path, body, query, headers, stream=True
        )
        return _Stream(response.extensions[RESPONSE], _plain(response))

    async def aclose(self) -> None:
        """Close every connection."""
        for upstream in self._upstreams.values():
            await upstream.aclose()


class _OneUpstream:
    def __init__(
        self, upstream: Upstream, secrets: SecretSource, azure_credential: CredentialFactory
    ) -> None:
        self._credential: Credential
        if isinstance(upstream.auth, EntraAuth):
            self._credential = EntraCredential(azure_credential, upstream.auth.scope)
        else:
            self._credential = KeyCredential(secrets, upstream.auth.value)
        self._client = openai.AsyncOpenAI(
            base_url=upstream.base_url,
            api_key=self._credential.get,
            organization="",  # the SDK would otherwise read its own environment variables
            project="",
            max_retries=0,  # retries are ours: a repeated POST may run a tool twice (APPR-5)
            default_headers=dict(upstream.headers),
            default_query=dict(upstream.query),
            http_client=AiohttpClient(
                limit=_MAX_CONNECTIONS,
                connect_timeout=upstream.connect_timeout,
                read_timeout=upstream.timeout,
            ),
        )

        self._methods: dict[str, Callable[..., Awaitable[object]]] = {
            "GET": self._client.get,
            "POST": self._client.post,
            "DELETE": self._client.delete,
        }

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        *,
        stream: bool,
    ) -> httpx2.Response:
        try:
            return await self._once(method, path, body, query, headers, stream)
        except UpstreamRefused as exc:
            # A 401 ran nothing, so one try with a fresh token is safe.
            if exc.status_code != 401 or not await self._credential.renew():
                raise
        return await self._once(method, path, body, query, headers, stream)

    async def _once(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        stream: bool,
    ) -> httpx2.Response:
        options: dict[str, Any] = {"params": dict(query or {}), "headers": dict(headers or {})}
        if body is not None:
            options["headers"]["Content-Type"] = "application/json"
        call: dict[str, Any] = {"cast_to": httpx2.Response, "options": options}
        if method == "POST":
            call["content"] = body
        if method != "DELETE":
            call |= {"stream": stream, "stream_cls": openai.AsyncStream[object]}
        try:
            return cast("httpx2.Response", await self._methods[method](path, **call))
        except openai.APIStatusError as exc:
            raise UpstreamRefused(
                exc.status_code, _plain(exc.response), exc.response.content
            ) from exc
        except openai.APIConnectionError as exc:
            raise _connection_error(exc.__cause__) from exc

    async def aclose(self) -> None:
        await self._client.close()
        await self._credential.aclose()


def _plain(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _connection_error(cause: BaseException | None) -> UpstreamError:
    match cause:
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return UpstreamUnreachable("The upstream cannot be reached.")
        case httpx2.TimeoutException():
            return UpstreamTimeout("The upstream did not answer in time.")
        case _:
            return UpstreamDisconnected("The upstream closed the connection before it answered.")


class _Stream(ByteStream):
    """The body of an open upstream response, in whatever pieces it comes."""

    def __init__(self, response: aiohttp.ClientResponse, headers: Mapping[str, str]) -> None:
        self._response = response
        self.headers = headers

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except TimeoutError as exc:
            raise UpstreamTimeout("The upstream stopped sending.") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise UpstreamDisconnected("The upstream broke the stream.") from exc

    @override
    async def aclose(self) -> None:
        # `close`, not `release`: an unread rest must end at the upstream, at once (STREAM-2).
        self._response.close()
