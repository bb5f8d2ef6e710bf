"""Lets no secret of the operator out beside the turn pipe (MCP-3).

The pipe scrubs what a turn streams or answers, with the secrets of that very turn. Errors, and
what the upstream stores and shows again later, come through here.
"""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import override

from gateway.domain.errors import SecretUnavailable, UpstreamRefused
from gateway.domain.ports import ByteStream, SecretSource, UpstreamAnswer, UpstreamClient
from gateway.domain.registry import ApiKeyAuth, McpServer, Upstream
from gateway.domain.scrubbing import Scrubber
from gateway.domain.secrets import SecretRef


class RedactingUpstreams(UpstreamClient):
    """An upstream client whose errors and stored responses hold no secret of the operator."""

    def __init__(
        self,
        client: UpstreamClient,
        *,
        secrets: SecretSource,
        upstreams: Mapping[str, Upstream],
        servers: Mapping[str, McpServer],
    ) -> None:
        self._client = client
        self._secrets = secrets
        self._upstreams = upstreams
        self._servers = servers

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
        try:
            answer = await self._client.send(
                upstream, method, path, body=body, query=query, headers=headers
            )
        except UpstreamRefused as exc:
            exc.body = (await self._scrubber(upstream)).scrub(exc.body)
            raise
        if method == "POST" and path == "/responses":
            return answer  # the pipe's
        scrubbed = (await self._scrubber(upstream)).scrub(answer.body)
        return UpstreamAnswer(answer.status, answer.headers, scrubbed)

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
        try:
            return await self._client.open(
                upstream, method, path, body=body, query=query, headers=headers
            )
        except UpstreamRefused as exc:
            exc.body = (await self._scrubber(upstream)).scrub(exc.body)
            raise

    async def _scrubber(self, upstream: str) -> Scrubber:
        """Know every secret as far as it can be read: one that cannot was not sent either."""
        refs = [ref for server in self._servers.values() for ref in server.headers.values()]
        auth = self._upstreams[upstream].auth
        if isinstance(auth, ApiKeyAuth):
            refs.append(auth.value)
        known = [await self._known(ref) for ref in refs]
        return Scrubber([secret for secret in known if secret is not None])

    async def _known(self, ref: SecretRef) -> str | None:
        try:
            return await self._secrets.resolve(ref)
        except SecretUnavailable:
            return None
