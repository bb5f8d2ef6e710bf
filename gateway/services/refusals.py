"""Decisions that do not count are in the audit as well: who tried what, and why not (APPR-11)."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from gateway.domain.errors import Conflict, Forbidden, GatewayError, Gone, Unprocessable
from gateway.domain.ports import AuditLog
from gateway.services.callers import Caller

P = ParamSpec("P")
T = TypeVar("T")

_REFUSED = (Forbidden, Conflict, Gone, Unprocessable)


class Refusals:
    """Notes what people and callers were refused."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    @asynccontextmanager
    async def noted(
        self, caller: Caller, subject: str, *also: type[GatewayError], **detail: object
    ) -> AsyncGenerator[None]:
        """Note a refusal that leaves this block, before it is answered.

        Args:
            subject: The approval that was to be decided, or "".
            also: Errors that are refusals here, besides 403, 409, 410 and 422.
            detail: What was tried: ids and verdicts.
        """
        refused: tuple[type[GatewayError], ...] = (*_REFUSED, *also)
        try:
            yield
        except refused as exc:
            if exc.code != "approval_pending":  # the vote has counted; others are missing
                await self._audit.note(
                    caller.tenant.id,
                    "approval.refused",
                    actor=f"subject:{caller.principal.subject}",
                    subject=subject,
                    detail={"code": exc.code, "key": caller.principal.key_id, **detail},
                )
            raise


class Refusing(Protocol):
    """A service that notes what it refuses."""

    refusals: Refusals


S = TypeVar("S", bound=Refusing)
_Method = Callable[Concatenate[S, Caller, str, P], Coroutine[Any, Any, T]]


def refusals_noted(method: _Method[S, P, T]) -> _Method[S, P, T]:
    """Note what a method of the approvals API refuses, by its name, and the verdict if any."""

    @functools.wraps(method)
    async def call(
        self: S, caller: Caller, approval_id: str, /, *args: P.args, **options: P.kwargs
    ) -> T:
        tried: dict[str, object] = {"tried": method.__name__}
        if "verdict" in options:
            tried["verdict"] = str(options["verdict"])
        async with self.refusals.noted(caller, approval_id, **tried):
            return await method(self, caller, approval_id, *args, **options)

    return call
