"""What every handler needs of a request: who calls, and its body (AUTH-1, LIMIT-3)."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection

from gateway.domain.documents import Document, parse_request
from gateway.domain.errors import BadRequest, Forbidden, Unauthenticated
from gateway.domain.identity import KeyRing, Principal, Role, Tenant
from gateway.services.callers import Caller

AnyRequest = Request[Any, Any, Any]
AnyConnection = ASGIConnection[Any, Any, Any, Any]
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,5})(?:$|[,;\s])", re.IGNORECASE)

BODY_DEADLINE = 60.0
"""Seconds that a client may take to send a body."""

LONGEST_WAIT = 600
"""Most seconds of `Prefer: wait=N`; clients give up then."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Lets requests in.

    Attributes:
        max_depth: Deepest nesting of a JSON body.
        holder: Finds whose a pass of the console is; it opens the doors of callers only.
    """

    keys: KeyRing
    tenants: Mapping[str, Tenant]
    max_depth: int
    holder: Callable[[str], Principal | None] = lambda _: None

    def caller(self, request: AnyConnection, *roles: Role) -> Caller:
        """Authenticate a request, or a WebSocket by the headers that opened it.

        Args:
            roles: Any of them suffices; none means that every principal may.

        Raises:
            Unauthenticated: No key, or not a valid one.
            Forbidden: The principal lacks the role.
        """
        headers = _headers(request)
        presented = _presented(headers)
        principal = self.keys.authenticate(presented) or self._holder(presented, roles)
        if principal is None:
            raise Unauthenticated(
                "Incorrect API key provided.", headers={"www-authenticate": "Bearer"}
            )
        if roles and not any(principal.has(role) for role in roles):
            raise Forbidden(f"This needs the role '{roles[0].value}'.", code="missing_role")
        tenant = self.tenants.get(principal.tenant)
        if tenant is None:
            raise Forbidden("The key's tenant is not configured.", code="unknown_tenant")
        return Caller(
            principal=principal,
            tenant=tenant,
            headers=headers,
            end_user=headers.get("gateway-end-user", ""),
            request_id="greq_" + secrets.token_hex(12),
        )

    def _holder(self, presented: str, roles: Sequence[Role]) -> Principal | None:
        principal = self.holder(presented)
        if principal is not None and Role.CALLER not in roles:
            raise Forbidden(
                "A pass of the console opens what callers may use, and nothing else.",
                code="missing_role",
            )
        return principal

    async def document(self, request: AnyRequest) -> Document:
        """Read and check a JSON body.

        Raises:
            BadRequest: It is not well-formed, too deep, compressed, or too slow.
            RequestEntityTooLarge: Litestar's own, above the configured size.
        """
        return parse_request(await self.body(request), max_depth=self.max_depth)

    async def body(self, request: AnyRequest) -> bytes:
        """Read a body within the deadline."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise BadRequest(
                f"The content encoding '{encoding}' is not supported.",
                code="unsupported_encoding",
                param="Content-Encoding",
            )
        try:
            async with asyncio.timeout(BODY_DEADLINE):
                return await request.body()
        except TimeoutError as exc:
            raise BadRequest("The body did not arrive in time.", code="body_timeout") from exc


_ONCE = frozenset({"authorization", "api-key", "gateway-end-user"})


def _headers(request: AnyConnection) -> dict[str, str]:
    """Read the headers; those that say who calls may come once, or a proxy saw another."""
    headers: dict[str, str] = {}
    for raw_name, value in request.scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in headers and name in _ONCE:
            raise BadRequest(
                f"The header '{name}' came twice.", code="duplicate_header", param=name
            )
        headers[name] = value.decode("latin-1")
    return headers


def _presented(headers: Mapping[str, str]) -> str:
    """Find the credential: `Authorization: Bearer`, or Azure's `api-key` (API-2)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return headers.get("api-key", "").strip()


def wait_of(request: AnyRequest) -> float:
    """Read `Prefer: wait=N` in seconds, 0 where absent (APPR-3)."""
    match = _WAIT.search(request.headers.get("prefer", ""))
    return float(min(int(match.group(1)), LONGEST_WAIT)) if match else 0.0
