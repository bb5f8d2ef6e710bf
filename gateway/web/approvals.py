"""The approvals API (APPR-6)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Literal, TypeVar

import msgspec
from litestar import Router, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.domain.approvals import Approval, Transition, Verdict
from gateway.domain.documents import NULL, encode, parse_request, raw
from gateway.domain.errors import BadRequest, GatewayError, Unprocessable
from gateway.domain.events import write
from gateway.domain.lists import listing, natural, page_limit
from gateway.domain.ports import Once
from gateway.services.approvals import ApprovalService, Decision, News
from gateway.services.callers import Caller
from gateway.services.grants import Grants, Wanted
from gateway.services.records import EventStream
from gateway.web.answers import Pace, SSEAnswer, json_answer
from gateway.web.doors import AnyRequest, Doors
from gateway.web.errors import error_body
from gateway.web.grants import show_grant

_FIELD = re.compile(r"field `([^`]*)`|`\$\.([^`]*)`")
_STATUSES = ("pending", "approved", "denied", "expired", "canceled", "superseded", "all")
_FILTERS = ("status", "server", "tool", "assigned_to", "chain", "after", "limit")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_LONGEST = 366 * 86400

T = TypeVar("T")


class _Decision(msgspec.Struct, forbid_unknown_fields=True):
    decision: Literal["approve", "deny", "revise"]
    fingerprint: str
    reason: str | None = None
    arguments: msgspec.Raw = NULL
    grant: msgspec.Raw = NULL


class _One(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    decision: Literal["approve", "deny"]
    fingerprint: str
    reason: str | None = None


class _Decisions(msgspec.Struct, forbid_unknown_fields=True):
    decisions: Annotated[list[_One], msgspec.Meta(min_length=1, max_length=50)]


class _Extension(msgspec.Struct, forbid_unknown_fields=True):
    seconds: Annotated[float, msgspec.Meta(gt=0, le=_LONGEST)] | None = None


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Cancellation(msgspec.Struct, forbid_unknown_fields=True):
    reason: str | None = None


def approvals_router(
    doors: Doors, approvals: ApprovalService, grants: Grants, pace: Pace
) -> Router:
    """The doors to approvals."""
    return Router(
        path="/",
        route_handlers=[
            *_reading(doors, approvals, pace),
            *_deciding(doors, approvals, grants),
            *_changing(doors, approvals),
        ],
    )


def _reading(doors: Doors, approvals: ApprovalService, pace: Pace) -> Sequence[HTTPRouteHandler]:
    @get("/v1/approvals")
    async def list_approvals(request: AnyRequest) -> ASGIApp:
        """List approvals, newest first, by `_FILTERS`."""
        caller = doors.caller(request)
        query = _query(request)
        status = query.get("status", "pending")
        if status not in _STATUSES:
            raise BadRequest(
                f"'status' must be one of {', '.join(_STATUSES)}.",
                code="invalid_value",
                param="status",
            )
        if query.get("assigned_to", "me") != "me":
            raise BadRequest("'assigned_to' must be me.", code="invalid_value", param="assigned_to")
        found, more = await approvals.list(
            caller,
            status=None if status == "all" else status,
            server=query.get("server"),
            tool=query.get("tool"),
            chain=query.get("chain"),
            whose="mine" if "assigned_to" in query else "all",
            after=query.get("after"),
            limit=page_limit(query.get("limit", "20")),
        )
        return json_answer(caller, listing([_show(approvals, caller, one) for one in found], more))

    @get("/v1/approvals/events")
    async def follow_approvals(request: AnyRequest) -> ASGIApp:
        """Follow what happens to approvals, from `Last-Event-ID` on where it is given."""
        caller = doors.caller(request)
        news = await approvals.inbox(caller, after=request.headers.get("last-event-id", ""))
        return SSEAnswer(EventStream({}, _events(approvals, caller, news)), pace)

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
        return json_answer(caller, listing([_show(approvals, caller, one) for one in found], False))

    return (list_approvals, follow_approvals, retrieve_approval, list_response_approvals)


def _deciding(
    doors: Doors, approvals: ApprovalService, grants: Grants
) -> Sequence[HTTPRouteHandler]:
    @post("/v1/approvals/{approval_id:str}/decision", status_code=200)
    async def decide_approval(request: AnyRequest, approval_id: FromPath[str]) -> ASGIApp:
        """Decide an approval; the fingerprint says that you saw this very call."""
        caller = doors.caller(request)
        decision, body = await _document(doors, request, _Decision)
        key = _key(request)
        approval = await approvals.decide(
            caller,
            approval_id,
            verdict=Verdict.APPROVE if decision.decision == "approve" else Verdict.DENY,
            fingerprint=decision.fingerprint,
            reason=decision.reason,
            revision=_revision(decision),
            grant=_grant(decision),
            version=_version(request),
            once=None if key is None else Once(key, body),
        )
        if decision.grant == NULL and decision.decision != "revise":
            return _one(approvals, caller, approval)
        grant = await grants.given_with(caller, approval)
        return _one(approvals, caller, approval, grant=grant and show_grant(grant))

    @post("/v1/approvals/decisions", status_code=200)
    async def decide_approvals(request: AnyRequest) -> ASGIApp:
        """Decide up to 50 approvals, each by itself."""
        caller = doors.caller(request)
        wanted, _ = await _document(doors, request, _Decisions)
        decisions = [
            Decision(one.id, Verdict(one.decision), one.fingerprint, one.reason)
            for one in wanted.decisions
        ]
        results = await approvals.decide_together(caller, decisions, key=_key(request))
        shown = [_result(one.id, result) for one, result in zip(decisions, results, strict=True)]
        return json_answer(caller, {"object": "list", "data": shown})

    return (decide_approval, decide_approvals)


def _changing(doors: Doors, approvals: ApprovalService) -> Sequence[HTTPRouteHandler]:
    @post("/v1/approvals/{approval_id:str}/extend", status_code=200)
    async def extend_approval(request: AnyRequest, approval_id: FromPath[str]) -> ASGIApp:
        """Give an approval more time."""
        caller = doors.caller(request)
        wanted, _ = await _document(doors, request, _Extension)
        approval = await approvals.extend(
            caller, approval_id, seconds=wanted.seconds, version=_version(request)
        )
        return _one(approvals, caller, approval)

    @post("/v1/approvals/{approval_id:str}/escalate", status_code=200)
    async def escalate_approval(request: AnyRequest, approval_id: FromPath[str]) -> ASGIApp:
        """Ask the next approvers of the rule now."""
        caller = doors.caller(request)
        await _document(doors, request, _Nothing)
        approval = await approvals.escalate(caller, approval_id, version=_version(request))
        return _one(approvals, caller, approval)

    @post("/v1/approvals/{approval_id:str}/cancel", status_code=200)
    async def cancel_approval(request: AnyRequest, approval_id: FromPath[str]) -> ASGIApp:
        """Withdraw one's own request."""
        caller = doors.caller(request)
        wanted, _ = await _document(doors, request, _Cancellation)
        approval = await approvals.cancel(
            caller, approval_id, reason=wanted.reason, version=_version(request)
        )
        return _one(approvals, caller, approval)

    @post("/v1/approvals/{approval_id:str}/reveal", status_code=200)
    async def reveal_approval(request: AnyRequest, approval_id: FromPath[str]) -> ASGIApp:
        """Show an approval without masks; the audit tells who asked."""
        caller = doors.caller(request)
        await _document(doors, request, _Nothing)
        approval = await approvals.reveal(caller, approval_id)
        return _one(approvals, caller, approval, revealed=True)

    return (extend_approval, escalate_approval, cancel_approval, reveal_approval)


async def _document(doors: Doors, request: AnyRequest, kind: type[T]) -> tuple[T, bytes]:
    body = await doors.body(request)
    return _read(body or b"{}", kind, doors.max_depth), body


def _query(request: AnyRequest) -> dict[str, str]:
    query = request.query_params
    for name in query:
        if name not in _FILTERS:
            raise BadRequest(
                f"Unknown parameter: '{name}'. There are {', '.join(_FILTERS)}.",
                code="unknown_parameter",
                param=name,
            )
    return dict(query)


def _read(body: bytes, kind: type[T], max_depth: int) -> T:
    checked = encode(parse_request(body, max_depth=max_depth))
    try:
        return msgspec.json.decode(checked, type=kind)
    except msgspec.ValidationError as exc:
        named = _FIELD.search(str(exc))
        param = (named.group(1) or named.group(2)) if named else None
        raise BadRequest(f"Invalid body: {exc}.", code="invalid_value", param=param) from exc


def _revision(decision: _Decision) -> str | None:
    """Return the arguments that a person asks for instead, as JSON."""
    given = bytes(decision.arguments).strip()
    if decision.decision != "revise":
        if given != b"null":
            raise Unprocessable(
                "'arguments' go with 'revise' alone.", code="invalid_arguments", param="arguments"
            )
        return None
    if not given.startswith(b"{"):
        raise Unprocessable(
            "'revise' needs 'arguments': a JSON object, the arguments that would be approved.",
            code="invalid_arguments",
            param="arguments",
        )
    return given.decode()


def _grant(decision: _Decision) -> Wanted | None:
    """Return what a person asks to grant with the approval."""
    if bytes(decision.grant) == b"null":
        return None
    if decision.decision != "approve":
        raise Unprocessable("A grant goes with an approval.", code="invalid_grant", param="grant")
    try:
        return msgspec.json.decode(decision.grant, type=Wanted)
    except msgspec.ValidationError as exc:
        named = _FIELD.search(str(exc))
        inner = (named.group(1) or named.group(2)) if named else None
        param = f"grant.{inner}" if inner else "grant"
        raise Unprocessable(f"Invalid grant: {exc}.", code="invalid_grant", param=param) from exc


def _key(request: AnyRequest) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and _KEY.fullmatch(key) is None:
        raise BadRequest(
            "'Idempotency-Key' must be 1 to 255 visible ASCII characters.",
            code="invalid_value",
            param="Idempotency-Key",
        )
    return key


def _version(request: AnyRequest) -> int | None:
    if_match = request.headers.get("if-match")
    if if_match is None or if_match == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"').removeprefix("v")
    version = natural(text)
    if version is None:
        raise BadRequest(
            "'If-Match' must be the ETag of the approval.", code="invalid_value", param="If-Match"
        )
    return version


def _result(approval_id: str, result: Approval | GatewayError) -> dict[str, object]:
    if isinstance(result, Approval):
        return {"id": approval_id, "status": result.status.value}
    error = error_body(result.message, kind=result.type, code=result.code, param=result.param)
    return {"id": approval_id, **error}


async def _events(
    approvals: ApprovalService, caller: Caller, news: AsyncGenerator[News, None]
) -> AsyncGenerator[bytes, None]:
    """Write the inbox as events; the first only tells the reader's `Last-Event-ID`."""
    async with aclosing(news):
        async for one in news:
            place = f"id: {one.cursor}\n".encode()
            if one.lost:
                yield place + write("approval.lost", {"type": raw("approval.lost")})
            elif one.event is None or one.approval is None:
                yield place + b"\n"
            else:
                kind = f"approval.{one.event}"
                shown = _show(approvals, caller, one.approval)
                yield place + write(kind, {"type": raw(kind), "approval": raw(shown)})


def _show(
    approvals: ApprovalService, caller: Caller, approval: Approval, *, revealed: bool = False
) -> dict[str, object]:
    may = approvals.may_decide(caller, approval)
    ahead = approval.escalate[approval.level :]
    places: Sequence[str] = ()
    if not revealed:
        masked = approval.masked
        places, approval = masked.places, approval.shown(masked)
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
        "chain_id": approval.chain_id or None,
        "approval_request_id": approval.request_id,
        "requester": {"subject": approval.requester, "end_user": approval.end_user or None},
        "server_label": approval.server,
        "trust": approval.trust,
        "tool": {
            "name": approval.tool,
            "title": approval.annotations.title,
            "description": approval.description,
            "annotations": approval.annotations,
            "pin": approval.definition_hash or None,
        },
        "arguments": approval.arguments,
        "masked": places,
        "fingerprint": approval.fingerprint,
        "policy": {
            "rule": approval.rule,
            "version": approval.rule_version or None,
            "explain": approval.rule_reason,
            "mode": "enforce",
        },
        "by": approval.by,
        "approvers": list(approval.approvers),
        "quorum": {"need": approval.quorum, "have": len(approval.votes)},
        "suggest_grant": approval.suggest_grant,
        "grants": _grantable(approval),
        "votes": list(approval.votes),
        "reason_required": approval.reason_required,
        "escalation": {
            "level": approval.level,
            "levels": len(approval.escalate),
            "next_at": approval.created_at + ahead[0].after if ahead else None,
        },
        "extensions": {"have": approval.extensions, "most": approval.max_extensions},
        "allowed_decisions": ["approve", "deny", "revise"] if may else [],
        "decided_by": approval.decided_by,
        "decided_at": approval.decided_at,
        "reason": approval.reason,
        "revision": approval.revision,
        "history": [_line(line) for line in approval.history],
        "url": f"/v1/approvals/{approval.id}",
    }


def _line(line: Transition) -> dict[str, object]:
    return {
        "event": line.event,
        "at": line.at,
        "status": line.status.value,
        "actor": line.actor,
        "reason": line.reason,
    }


def _grantable(approval: Approval) -> dict[str, object]:
    """Tell what may be granted beside an approval."""
    terms = approval.grants
    alone = approval.quorum == 1 or terms.with_quorum
    widest = terms.widest(approval.annotations) if alone and approval.by == "approver" else None
    return {
        "max_scope": widest.value if widest else "none",
        "max_ttl": terms.max_ttl,
        "max_uses": terms.max_uses,
    }


def _one(
    approvals: ApprovalService,
    caller: Caller,
    approval: Approval,
    *,
    revealed: bool = False,
    **more: object,
) -> ASGIApp:
    shown = _show(approvals, caller, approval, revealed=revealed) | more
    return json_answer(caller, shown, extra={"etag": f'"v{approval.version}"'})
