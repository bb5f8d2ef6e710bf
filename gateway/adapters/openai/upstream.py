"""`UpstreamClient` for Azure OpenAI, OpenAI and compatible providers, bytes in and bytes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import aiohttp
from typing_extensions import override

from gateway.adapters.openai.credentials import (
    Credential,
    CredentialFactory,
    EntraCredential,
    KeyCredential,
    default_azure_credential,
)
from gateway.adapters.openai.transport import Template, Wire, to_error, write_template
from gateway.domain.errors import UpstreamRefused
from gateway.domain.ports import ByteStream, SecretSource, UpstreamAnswer, UpstreamClient
from gateway.domain.registry import EntraAuth, Upstream, upstream_named


class OpenAIUpstreams(UpstreamClient):
    """All configured upstreams."""

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
        response = await self._one(upstream).request(method, path, body, query, headers)
        content = await _read(response)
        return UpstreamAnswer(response.status, _plain(response), content)

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
        response = await self._one(upstream).request(method, path, body, query, headers)
        return _Stream(response)

    def _one(self, name: str) -> _OneUpstream:
        return upstream_named(self._upstreams, name)

    async def warm(self) -> None:
        """Do at the start what the first turns would wait for; nothing is sent."""
        for upstream in self._upstreams.values():
            await upstream.template("POST")

    async def aclose(self) -> None:
        """Close every connection."""
        for upstream in self._upstreams.values():
            await upstream.aclose()


class _OneUpstream:
    def __init__(
        self, upstream: Upstream, secrets: SecretSource, azure_credential: CredentialFactory
    ) -> None:
        self._upstream = upstream
        self._credential: Credential
        if isinstance(upstream.auth, EntraAuth):
            self._credential = EntraCredential(azure_credential, upstream.auth.scope)
        else:
            self._credential = KeyCredential(secrets, upstream.auth.value)
        self._wire = Wire(upstream)
        self._templates: dict[str, Template] = {}

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        try:
            return await self._once(method, path, body, query, headers)
        except UpstreamRefused as exc:
            # A 401 ran nothing, so one try with a fresh token is safe (API-8).
            if exc.status_code != 401 or not await self._credential.renew():
                raise
        return await self._once(method, path, body, query, headers)

    async def _once(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        template = await self.template(method)
        sent = template.headers.copy()
        sent["Authorization"] = f"Bearer {await self._credential.get()}"
        if headers:
            sent.update(headers)
        response = await self._wire.request(method, template.url(path, query), sent, body)
        if response.status >= 300:
            raise UpstreamRefused(response.status, _plain(response), await _read(response))
        return response

    async def template(self, method: str) -> Template:
        template = self._templates.get(method)
        if template is None:
            template = self._templates[method] = await write_template(self._upstream, method)
        return template

    async def aclose(self) -> None:
        await self._wire.aclose()
        await self._credential.aclose()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise to_error(exc) from exc
    finally:
        response.release()


def _plain(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return {name: value for name, value in headers.items() if not name.startswith("gateway-")}


class _Stream(ByteStream):
    """The body of an open upstream response, in whatever pieces it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.headers = _plain(response)

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while not content.at_eof():
                yield await content.readany()  # nothing of it stays here while the next is awaited
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise to_error(exc) from exc

    @override
    async def aclose(self) -> None:
        # `close`, not `release`: an unread rest must end at the upstream, at once (STREAM-2).
        self._response.close()
