"""The approvals API (APPR-6)."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from litestar import Router, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.domain.approvals import Approval, Verdict
from gateway.domain.documents import encode
from gateway.domain.errors import BadRequest, Unprocessable
from gateway.services.approvals import ApprovalService
from gateway.services.callers import Caller
from gateway.services.records import Answer
from gateway.web.answers import JSONAnswer
from gateway.web.doors import AnyRequest, Doors

_FIELD = re.compile(r"field `([^`]*)`|`\$\.([^`]*)`")
_STATUSES = ("pending", "approved", "denied", "expired", "canceled", "superseded", "all")


class _Decision(msgspec.Struct, forbid_unknown_fields=True):
    decision: Literal["approve", "deny", "revise"]
    fingerprint: str
    reason: str | None = None
    arguments: Any = None
    grant: Any = None


def approvals_router(doors: Doors, approvals: ApprovalService) -> Router:
    """The doors to approvals."""

    @get("/v1/approvals")
    async def list_approvals(request: AnyRequest) -> ASGIApp:
        """List approvals, newest first: `status`, `server`, `tool`, `after`, `limit`."""
        caller = doors.caller(request)
        query = request.query_params
        status = query.get("status", "pending")
        if status not in _STATUSES:
            raise BadRequest(
                f"'status' must be one of {', '.join(_STATUSES)}.",
                code="invalid_value",
                param="status",
            )
        found, more = await approvals.list(
            caller,
            status=None if status == "all" else status,
            server=query.get("server"),
            tool=query.get("tool"),
            after=query.get("after"),
            limit=_limit(query.get("limit", "20")),
        )
        return _json(caller, _listing([_show(approvals, caller, one) for one in found], more))

    @get("/v1/approvals/{approval_id:str}")
    async def retrieve_approval(request: AnyRequest, approval_id: FromPath[str]) -> ASGIApp:
        """Retrieve an approval: what is asked, why, by whom, and until when."""
        caller = doors.caller(request)
        approval = await approvals.retrieve(caller, approval_id)
        return _one(approvals, caller, approval)

    @get("/v1/responses/{response_id:str}/approvals")
    async def list_response_approvals(request: AnyRequest, response_id: FromPath[str]) -> ASGIApp:
        """List the approvals of a response."""
        caller = doors.caller(request)
        found = await approvals.of_turn(caller, response_id)
        return _json(caller, _listing([_show(approvals, caller, one) for one in found], False))

    @post("/v1/approvals/{approval_id:str}/decision", status_code=200)
    async def decide_approval(request: AnyRequest, approval_id: FromPath[str]) -> ASGIApp:
        """Decide an approval; the fingerprint says that you saw this very call."""
        caller = doors.caller(request)
        decision = _decision(await doors.document(request))
        approval = await approvals.decide(
            caller,
            approval_id,
            verdict=Verdict(decision.decision),
            fingerprint=decision.fingerprint,
            reason=decision.reason,
            version=_version(request.headers.get("if-match")),
        )
        return _one(approvals, caller, approval)

    return Router(
        path="/",
        route_handlers=[
            list_approvals,
            retrieve_approval,
            list_response_approvals,
            decide_approval,
        ],
    )


def _decision(document: object) -> _Decision:
    try:
        decision = msgspec.json.decode(encode(document), type=_Decision)
    except msgspec.ValidationError as exc:
        named = _FIELD.search(str(exc))
        param = (named.group(1) or named.group(2)) if named else None
        raise BadRequest(f"Invalid decision: {exc}.", code="invalid_value", param=param) from exc
    if decision.decision == "revise" or decision.arguments is not None:
        raise Unprocessable(
            "'revise' is not available yet: deny with a reason that asks for the change.",
            code="unsupported_decision",
            param="decision",
        )
    if decision.grant is not None:
        raise Unprocessable(
            "'grant' is not available yet: decide each call.",
            code="unsupported_grant",
            param="grant",
        )
    return decision


def _version(if_match: str | None) -> int | None:
    if if_match is None or if_match == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"').removeprefix("v")
    if not text.isdigit():
        raise BadRequest(
            "'If-Match' must be the ETag of the approval.", code="invalid_value", param="If-Match"
        )
    return int(text)


def _limit(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise BadRequest("'limit' must be from 1 to 100.", code="invalid_value", param="limit")
    return int(text)


def _listing(shown: list[dict[str, object]], more: bool) -> dict[str, object]:
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": more,
    }


def _show(approvals: ApprovalService, caller: Caller, approval: Approval) -> dict[str, object]:
    may = approvals.may_decide(caller, approval)
    return {
        "id": approval.id,
        "object": "approval",
        "kind": "mcp_call",
        "status": approval.status.value,
        "version": approval.version,
        "created_at": approval.created_at,
        "expires_at": approval.expires_at,
        "on_timeout": approval.on_timeout,
        "response_id": approval.turn_id,
        "approval_request_id": approval.request_id,
        "requester": {"subject": approval.requester, "end_user": approval.end_user or None},
        "server_label": approval.server,
        "tool": {"name": approval.tool},
        "arguments": approval.arguments,
        "fingerprint": approval.fingerprint,
        "policy": {"rule": approval.rule, "explain": approval.rule_reason},
        "by": approval.by,
        "approvers": list(approval.approvers),
        "quorum": {"need": approval.quorum, "have": len(approval.votes)},
        "allowed_decisions": ["approve", "deny"] if may else [],
        "decided_by": approval.decided_by,
        "decided_at": approval.decided_at,
        "reason": approval.reason,
        "url": f"/v1/approvals/{approval.id}",
    }


def _one(approvals: ApprovalService, caller: Caller, approval: Approval) -> ASGIApp:
    headers = {"etag": f'"v{approval.version}"', "gateway-request-id": caller.request_id}
    return JSONAnswer(Answer(body=encode(_show(approvals, caller, approval))), headers)


def _json(caller: Caller, body: object) -> ASGIApp:
    return JSONAnswer(Answer(body=encode(body)), {"gateway-request-id": caller.request_id})
