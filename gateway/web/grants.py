"""The grants API (APPR-8)."""

from __future__ import annotations

import re

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.domain.documents import Document, encode
from gateway.domain.errors import BadRequest, Unprocessable
from gateway.domain.grants import Grant
from gateway.domain.identity import Role
from gateway.domain.lists import listing, page_limit
from gateway.services.grants import Grants, WantedStanding
from gateway.web.answers import json_answer
from gateway.web.doors import AnyRequest, Doors

_FIELD = re.compile(r"field `([^`]*)`|`\$\.([^`]*)`")


def grants_router(doors: Doors, grants: Grants) -> Router:
    """The doors to grants."""

    @get("/v1/grants")
    async def list_grants(request: AnyRequest) -> ASGIApp:
        """List grants, newest first: `status`, `server`, `tool`, `subject`, `after`, `limit`."""
        caller = doors.caller(request)
        query = request.query_params
        status = query.get("status", "active")
        if status not in ("active", "all"):
            raise BadRequest(
                "'status' must be one of active, all.", code="invalid_value", param="status"
            )
        found, more = await grants.list(
            caller,
            active=status == "active",
            server=query.get("server"),
            tool=query.get("tool"),
            subject=query.get("subject"),
            after=query.get("after"),
            limit=page_limit(query.get("limit", "20")),
        )
        shown = [show_grant(grant) for grant in found]
        return json_answer(caller, listing(shown, more))

    @get("/v1/grants/{grant_id:str}")
    async def retrieve_grant(request: AnyRequest, grant_id: FromPath[str]) -> ASGIApp:
        """Retrieve a grant: what it covers, who made it, and how it ended."""
        caller = doors.caller(request)
        return json_answer(caller, show_grant(await grants.retrieve(caller, grant_id)))

    @post("/v1/grants", status_code=200)
    async def make_grant(request: AnyRequest) -> ASGIApp:
        """Make a standing grant, as an approver of the rule that would ask."""
        caller = doors.caller(request)
        wanted = _wanted(await doors.document(request))
        return json_answer(caller, show_grant(await grants.make(caller, wanted)))

    @delete("/v1/grants/{grant_id:str}", status_code=200)
    async def revoke_grant(request: AnyRequest, grant_id: FromPath[str]) -> ASGIApp:
        """Revoke a grant at once."""
        caller = doors.caller(request, Role.CALLER, Role.APPROVER)
        return json_answer(caller, show_grant(await grants.revoke(caller, grant_id)))

    return Router(path="/", route_handlers=[list_grants, retrieve_grant, make_grant, revoke_grant])


def _wanted(document: Document) -> WantedStanding:
    try:
        return msgspec.json.decode(encode(document), type=WantedStanding)
    except msgspec.ValidationError as exc:
        named = _FIELD.search(str(exc))
        param = (named.group(1) or named.group(2)) if named else None
        raise Unprocessable(f"Invalid grant: {exc}.", code="invalid_grant", param=param) from exc


def show_grant(grant: Grant) -> dict[str, object]:
    """Show a grant; of the arguments only their hash, which tells equal ones and no more."""
    return {
        "id": grant.id,
        "object": "grant",
        "status": grant.status,
        "scope": grant.scope.value,
        "bound_to": grant.bound_to,
        "rule": grant.rule,
        "server_label": grant.server,
        "server_identity": grant.server_identity,
        "tool": {"name": grant.tool, "definition_hash": grant.definition_hash or None}
        if grant.tool
        else None,
        "arguments_hash": grant.args_hash or None,
        "subject": grant.subject or None,
        "end_user": grant.end_user or None,
        "chain_id": grant.chain_id or None,
        "created_by": {"subject": grant.made_by, "approval": grant.approval_id or None},
        "reason": grant.reason,
        "created_at": grant.created_at,
        "expires_at": grant.expires_at,
        "uses": {"most": grant.max_uses, "used": grant.uses},
        "ended": {"cause": grant.ended or None, "by": grant.ended_by or None},
        "url": f"/v1/grants/{grant.id}",
    }
