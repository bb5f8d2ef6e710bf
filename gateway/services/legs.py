"""Send one leg of a turn: join secrets, write the body, open the upstream, repair once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from gateway.domain.documents import Raw, encode, parse_array, raw
from gateway.domain.errors import UpstreamRefused, UpstreamUnreachable
from gateway.domain.ports import ByteStream, Meter, SecretSource, UpstreamAnswer, UpstreamClient
from gateway.domain.registry import ApiKeyAuth, Upstream, upstream_named
from gateway.domain.repair import LeftOut, cause_of, leave_out, refuses_ciphertext
from gateway.domain.requests import ENCRYPTED_REASONING
from gateway.domain.scrubbing import Scrubber, scrubber_of
from gateway.domain.tools import Tools, join
from gateway.domain.turns import TurnState

T = TypeVar("T")

logger = logging.getLogger("gateway.legs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """What one leg sends.

    Attributes:
        input: The upstream input, or `None`.
        previous: The upstream id that it chains on, or `None`.
        first: Whether it is the first leg; only that one may be sent again.
        whole: Writes the input again without what was compacted, should the upstream refuse it.
    """

    state: TurnState
    tools: Tools
    input: Raw | None
    previous: str | None
    first: bool = True
    whole: Callable[[], Awaitable[Raw]] | None = None


class Legs:
    """Sends legs to upstreams."""

    def __init__(
        self,
        *,
        upstream: UpstreamClient,
        secrets: SecretSource,
        upstreams: Mapping[str, Upstream],
        meter: Meter,
    ) -> None:
        self._upstream = upstream
        self._secrets = secrets
        self._upstreams = upstreams
        self._meter = meter

    async def join(self, tools: Tools, upstream: str) -> tuple[Raw | None, Scrubber]:
        """Write `tools` with fresh secrets, and a scrubber that knows them (MCP-2, MCP-3)."""
        auth = upstream_named(self._upstreams, upstream).auth
        known = [await self._secrets.resolve(auth.value)] if isinstance(auth, ApiKeyAuth) else []
        if not tools.parts:
            return None, scrubber_of(tuple(known))
        secrets: dict[str, dict[str, str]] = {}
        for attachment in tools.attachments:
            if attachment.server is not None:
                headers = {
                    name: await self._secrets.resolve(ref)
                    for name, ref in attachment.server.headers.items()
                }
                secrets[attachment.label] = headers
                known += [*headers.values(), *attachment.forwarded.values()]
        return join(tools, secrets), scrubber_of(tuple(known))

    async def open(self, leg: Leg, tools: Raw | None) -> ByteStream:
        """Open the leg's stream. Raises the errors of `UpstreamClient`."""

        async def call(body: bytes) -> ByteStream:
            return await self._upstream.open(
                leg.state.upstream, "POST", "/responses", body=body, headers=leg.state.headers
            )

        return await self._repaired(leg, tools, call, stream=True)

    async def send(self, leg: Leg, tools: Raw | None, path: str = "/responses") -> UpstreamAnswer:
        """Send the leg and read its whole answer. Raises the errors of `UpstreamClient`."""

        async def call(body: bytes) -> UpstreamAnswer:
            return await self._upstream.send(
                leg.state.upstream, "POST", path, body=body, headers=leg.state.headers
            )

        return await self._repaired(leg, tools, call, stream=False)

    async def _repaired(
        self,
        leg: Leg,
        tools: Raw | None,
        call: Callable[[bytes], Awaitable[T]],
        *,
        stream: bool,
    ) -> T:
        """Send, and send once more where that is safe: nothing arrived, or it was refused.

        A refusal of the input (STATE-5) ran nothing, so it may be mended on any leg.
        """
        body = write_body(leg, tools, stream=stream)
        try:
            return await call(body)
        except UpstreamUnreachable:
            if not leg.first:
                raise
            return await call(body)
        except UpstreamRefused as exc:
            found = await self._mend(leg, exc)
            if found is None:
                raise
            mended, left_out = found
            self._note(leg.state, left_out)
            return await call(write_body(mended, tools, stream=stream))

    async def _mend(self, leg: Leg, error: UpstreamRefused) -> tuple[Leg, LeftOut] | None:
        how = self._upstreams[leg.state.upstream].repair
        if error.status_code not in (400, 404) or how == "off":
            return None
        asks = leg.state.stateless and "include" in leg.state.body
        if asks and refuses_ciphertext(error.body):
            return replace(leg, state=_without_include(leg.state)), "include"
        if leg.input is None or bytes(leg.input)[:1] != b"[":
            return None
        items = parse_array(leg.input)
        cause = cause_of(items, error.body)
        if cause is None:
            return None
        if leg.whole is not None:
            whole = parse_array(await leg.whole())
            return replace(leg, input=raw(leave_out(whole, cause, how))), "compaction"
        kept = leave_out(items, cause, how)
        return (replace(leg, input=raw(kept)), cause) if kept != items else None

    def _note(self, state: TurnState, left_out: LeftOut) -> None:
        state.repaired = left_out
        self._meter.repaired(state.upstream, left_out)
        logger.warning(
            "an input was refused, and sent once more without what was refused",
            extra={
                "request": state.request_id,
                "after": state.parent,
                "upstream": state.upstream,
                "tenant": state.tenant,
                "left_out": left_out,
            },
        )


def request_id(headers: Mapping[str, str]) -> str:
    """Find the upstream's own id of a request; Azure has another name for it."""
    return headers.get("x-request-id") or headers.get("apim-request-id") or ""


def _without_include(state: TurnState) -> TurnState:
    wanted = msgspec.json.decode(state.body["include"], type=list[str])
    include = [name for name in wanted if name != ENCRYPTED_REASONING]
    return msgspec.structs.replace(state, body={**state.body, "include": raw(include)})


def write_body(leg: Leg, tools: Raw | None, *, stream: bool) -> bytes:
    """Write the upstream body: the caller's fields as they came, ours beside them."""
    body = dict(leg.state.body)
    if leg.input is not None:
        body["input"] = leg.input
    if tools is not None:
        body["tools"] = tools
    if leg.previous is not None:
        body["previous_response_id"] = raw(leg.previous)
    if stream:
        body["stream"] = raw(True)
    return encode(body)
