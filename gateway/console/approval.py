"""One approval: what is asked, why, what is odd about it, and the forms that decide it.

Every form is sealed to this session, this approval, and the version that was shown (APPR-6,
APPR-10).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.console import views
from gateway.console.desk import Desk, Page, place, refuse_form
from gateway.console.pages import redirect
from gateway.console.sessions import Ticket, Visitor
from gateway.domain.approvals import Approval, Verdict
from gateway.domain.errors import BadRequest, Forbidden, GatewayError, NotFound, Unprocessable
from gateway.domain.grants import BoundTo, Scope
from gateway.domain.identity import Role
from gateway.domain.lists import natural
from gateway.domain.masking import Masked, mask_prose
from gateway.services.approvals import ApprovalService
from gateway.services.audit import AuditService
from gateway.services.grants import Wanted
from gateway.services.overview import Overview
from gateway.web.doors import AnyRequest

_DECISIONS = (*Verdict, "revise")
_BOUND = ("chain", "principal")
_Act = Callable[[Visitor, str, Mapping[str, str], Ticket], Awaitable[object]]


class ApprovalRoom:
    """Shows and decides approvals."""

    def __init__(
        self, desk: Desk, approvals: ApprovalService, overview: Overview, audit: AuditService
    ) -> None:
        self._desk = desk
        self._approvals = approvals
        self._overview = overview
        self._audit = audit

    async def show(self, request: AnyRequest, approval_id: str) -> Page:
        """Show one approval, with the form that decides it where the visitor may."""
        visitor = self._desk.require(request)
        approval = await self._approvals.retrieve(visitor.caller, approval_id)
        return await self._page(visitor, approval)

    async def confirm(self, request: AnyRequest, approval_id: str) -> Page:
        """Ask once more before a decision: a page, or a dialog on another one."""
        visitor = self._desk.require(request)
        decision = request.query_params.get("decision", "")
        if decision not in set(Verdict):
            raise BadRequest("There is no such decision.", param="decision")
        approval = await self._approvals.retrieve(visitor.caller, approval_id)
        values = {**self._values(visitor, approval, approval.masked), "decision": decision}
        return self._desk.page(visitor, "confirm.html", values)

    async def decide(self, request: AnyRequest, approval_id: str) -> Page:
        """Count a decision, and go back to the approval's page."""
        return await self._act(request, approval_id, self._decide)

    async def change(self, request: AnyRequest, approval_id: str, what: str) -> Page:
        """Give more time, pass the question on, or withdraw it."""
        acts: dict[str, _Act] = {
            "extend": self._extend,
            "escalate": self._escalate,
            "cancel": self._cancel,
        }
        if what not in acts:
            raise NotFound("This address does not exist.")
        return await self._act(request, approval_id, acts[what])

    async def reveal(self, request: AnyRequest, approval_id: str) -> Page:
        """Show the page once without masks."""
        visitor = self._desk.require(request)
        form = await self._desk.form(request)
        if self._desk.shown(visitor, approval_id, form) is None:
            await self._approvals.retrieve(visitor.caller, approval_id)
            refuse_form()
        approval = await self._approvals.reveal(visitor.caller, approval_id)
        return await self._page(visitor, approval, revealed=True)

    async def proof(self, request: AnyRequest, approval_id: str) -> Page:
        """Show what the audit says of an approval, entry by entry with its hash."""
        visitor = self._desk.require(request)
        approval = await self._approvals.retrieve(visitor.caller, approval_id)
        if not views.may_audit(visitor):
            raise Forbidden("This needs the role 'auditor'.", code="missing_role")
        entries = await self._audit.of_approval(visitor.caller, approval_id)
        values = {"room": "inbox", "approval": approval, "entries": views.proof(entries)}
        return self._desk.page(visitor, "proof.html", values)

    async def _act(self, request: AnyRequest, approval_id: str, act: _Act) -> Page:
        visitor = self._desk.require(request)
        form = await self._desk.form(request)
        shown = self._desk.shown(visitor, approval_id, form)
        if shown is None:
            # Who may not even see the approval learns nothing else of it.
            await self._approvals.retrieve(visitor.caller, approval_id)
            refuse_form()
        try:
            await act(visitor, approval_id, form, shown)
        except NotFound:
            raise
        except GatewayError as exc:
            approval = await self._approvals.retrieve(visitor.caller, approval_id)
            return await self._page(visitor, approval, exc, form)
        return redirect(place(approval_id))

    async def _decide(
        self, visitor: Visitor, approval_id: str, form: Mapping[str, str], shown: Ticket
    ) -> None:
        decision = form.get("decision", "")
        if decision not in _DECISIONS:
            raise Unprocessable("Choose to approve or to deny. Nothing was decided.")
        if decision == "approve":
            _check_typed(form, await self._approvals.retrieve(visitor.caller, approval_id))
        said = "deny" if decision == "revise" else decision
        await self._approvals.decide(
            visitor.caller,
            approval_id,
            verdict=Verdict(said),
            fingerprint=shown.fingerprint,
            reason=views.reason_of(said, form.get("preset", ""), form.get("reason", "")),
            version=shown.version,
            revision=views.revision_of(form.get("revision", "")) if decision == "revise" else None,
            grant=_grant(form) if decision == "approve" else None,
        )

    async def _extend(
        self, visitor: Visitor, approval_id: str, form: Mapping[str, str], shown: Ticket
    ) -> None:
        await self._approvals.extend(
            visitor.caller, approval_id, seconds=None, version=shown.version
        )

    async def _escalate(
        self, visitor: Visitor, approval_id: str, form: Mapping[str, str], shown: Ticket
    ) -> None:
        await self._approvals.escalate(visitor.caller, approval_id, version=shown.version)

    async def _cancel(
        self, visitor: Visitor, approval_id: str, form: Mapping[str, str], shown: Ticket
    ) -> None:
        reason = form.get("reason", "").strip() or None
        await self._approvals.cancel(
            visitor.caller, approval_id, reason=reason, version=shown.version
        )

    async def _page(
        self,
        visitor: Visitor,
        approval: Approval,
        problem: GatewayError | None = None,
        form: Mapping[str, str] | None = None,
        *,
        revealed: bool = False,
    ) -> Page:
        typed = form or {}
        said = await self._overview.asked(visitor.caller, approval)
        masked = None if revealed else approval.masked
        whole = masked is None or not masked.places
        values = {
            **self._values(visitor, approval, masked),
            "before": await self._before(visitor, approval),
            "said": said and (said if masked is None else mask_prose(said, masked)),
            "audits": views.may_audit(visitor),
            "offers": views.offers(approval) if whole else [],
            "lives": views.lives(approval),
            "denials": views.DENIALS,
            "approvals": views.APPROVALS,
            "preset": typed.get("preset", ""),
            "reason": typed.get("reason", ""),
            "revision": typed.get("revision", ""),
            "draft": views.draft(approval) if whole else "",
        }
        return self._desk.page(visitor, "approval.html", values, problem=problem)

    def _values(
        self, visitor: Visitor, approval: Approval, masked: Masked | None
    ) -> dict[str, object]:
        now = time.time()
        shown = Ticket(approval.version, approval.fingerprint)
        subject = visitor.caller.principal.subject
        sheet = views.sheet(approval, now, subject, masked)
        may = self._approvals.may_decide(visitor.caller, approval) and not sheet.voted
        return {
            "room": "inbox",
            "now": now,
            "sheet": sheet,
            "may_decide": may,
            "may_cancel": approval.status == "pending" and views.may_cancel(visitor, approval),
            "may_reveal": visitor.caller.principal.has(Role.REVEALER),
            "ticket": self._desk.ticket(visitor, approval.id, shown),
        }

    async def _before(self, visitor: Visitor, approval: Approval) -> views.Before | None:
        """Compare with the last approved call of the same tool."""
        found, _ = await self._approvals.list(
            visitor.caller,
            status="approved",
            server=approval.server,
            tool=approval.tool,
            after=None,
            limit=2,
        )
        earlier = next((one for one in found if one.id != approval.id), None)
        return None if earlier is None else views.compare(earlier, approval, time.time())


def approval_room(
    desk: Desk, approvals: ApprovalService, overview: Overview, audit: AuditService
) -> list[HTTPRouteHandler]:
    """The doors to one approval."""
    room = ApprovalRoom(desk, approvals, overview, audit)

    @get("/approvals/{approval_id:str}")
    async def show(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """One approval."""
        return await room.show(request, approval_id)

    @get("/approvals/{approval_id:str}/confirm")
    async def confirm(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """Ask once more."""
        return await room.confirm(request, approval_id)

    @get("/approvals/{approval_id:str}/audit")
    async def proof(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """What the audit says of it."""
        return await room.proof(request, approval_id)

    @post("/approvals/{approval_id:str}/decision", status_code=200)
    async def decide(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """Decide it."""
        return await room.decide(request, approval_id)

    @post("/approvals/{approval_id:str}/reveal", status_code=200)
    async def reveal(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """Show it without masks."""
        return await room.reveal(request, approval_id)

    @post("/approvals/{approval_id:str}/{what:str}", status_code=200)
    async def change(request: AnyRequest, approval_id: FromPath[str], what: FromPath[str]) -> Page:
        """Change when or by whom it is decided."""
        return await room.change(request, approval_id, what)

    return [show, confirm, proof, decide, reveal, change]


def _check_typed(form: Mapping[str, str], approval: Approval) -> None:
    """Approve what destroys only for somebody who typed its name."""
    if views.is_destructive(approval) and form.get("typed", "").strip() != approval.tool:
        raise Unprocessable(f"Type the tool's name, “{approval.tool}”. Nothing was decided.")


def _grant(form: Mapping[str, str]) -> Wanted | None:
    """Read what is granted beside an approval.

    Raises:
        Unprocessable: It is none of what the page offers.
    """
    scope = form.get("scope", "")
    if not scope:
        return None
    bound, ttl = form.get("bound_to", "chain"), form.get("ttl", "")
    seconds = natural(ttl) if len(ttl) < 9 else None
    if scope not in set(Scope) or bound not in _BOUND or seconds is None:
        raise Unprocessable("There is no such grant. Nothing was decided.", param="scope")
    return Wanted(scope=Scope(scope), bound_to=cast("BoundTo", bound), ttl=float(seconds))
