"""Who calls, and what is theirs (CHAIN-1, AUTH-2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.domain.conversations import Conversation
from gateway.domain.errors import NotFound
from gateway.domain.identity import Principal, Tenant
from gateway.domain.ports import TurnHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated request: its principal, tenant, and what its headers say.

    Attributes:
        headers: Request headers, names in lower case.
        end_user: From the header `Gateway-End-User`, or "".
        request_id: The gateway's own id of the request.
    """

    principal: Principal
    tenant: Tenant
    headers: Mapping[str, str] = field(default_factory=dict)
    end_user: str = ""
    request_id: str = ""


def response_not_found(response_id: str) -> NotFound:
    """The error for a response that is unknown or somebody else's: they read the same."""
    return NotFound(
        f"Response with id '{response_id}' not found.", code="response_not_found", param="id"
    )


def previous_not_found(response_id: str) -> NotFound:
    """The same for a `previous_response_id` (CHAIN-1)."""
    return NotFound(
        f"Previous response with id '{response_id}' not found.",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def owned(
    head: TurnHead | Conversation | None, caller: Caller, end_user: str | None = None
) -> bool:
    """Tell whether something is the caller's: the tenant's, and the end user's where it has one.

    Args:
        end_user: The end user of this request; by default that of the header.
    """
    if head is None or head.tenant != caller.tenant.id:
        return False
    user = caller.end_user if end_user is None else end_user
    return head.end_user in ("", user)
