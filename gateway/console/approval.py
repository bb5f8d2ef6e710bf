"""One approval: what is asked, and the form that decides it (APPR-6, APPR-10)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.console import views
from gateway.console.desk import TITLES, Desk, Page, place, refuse_form
from gateway.console.pages import redirect
from gateway.console.sessions import Ticket, Visitor
from gateway.domain.approvals import Approval, Verdict
from gateway.domain.errors import BadRequest, GatewayError, NotFound, Unprocessable
from gateway.services.approvals import ApprovalService
from gateway.web.doors import AnyRequest


class ApprovalRoom:
    """Shows and decides approvals."""

    def __init__(self, desk: Desk, approvals: ApprovalService) -> None:
        self._desk = desk
        self._approvals = approvals

    async def show(self, request: AnyRequest, approval_id: str) -> Page:
        """Show one approval, with the form that decides it where the visitor may."""
        visitor = self._desk.require(request)
        approval = await self._approvals.retrieve(visitor.caller, approval_id)
        return self._page(visitor, approval)

    async def confirm(self, request: AnyRequest, approval_id: str) -> Page:
        """Ask once more before a decision: a page, or a dialog on another one."""
        visitor = self._desk.require(request)
        decision = request.query_params.get("decision", "")
        if decision not in set(Verdict):
            raise BadRequest("There is no such decision.", param="decision")
        approval = await self._approvals.retrieve(visitor.caller, approval_id)
        return self._page(visitor, approval, template="confirm.html", decision=decision)

    async def decide(self, request: AnyRequest, approval_id: str) -> Page:
        """Count a decision, and go back to the approval's page."""
        visitor = self._desk.require(request)
        form = await self._desk.form(request)
        shown = self._desk.shown(visitor, approval_id, form)
        if shown is None:
            # Who may not even see the approval learns nothing else of it.
            await self._approvals.retrieve(visitor.caller, approval_id)
            refuse_form()
        try:
            await self._decide(visitor, approval_id, form, shown)
        except NotFound:
            raise
        except GatewayError as exc:
            approval = await self._approvals.retrieve(visitor.caller, approval_id)
            return self._page(visitor, approval, exc, form)
        return redirect(place(approval_id))

    async def _decide(
        self, visitor: Visitor, approval_id: str, form: Mapping[str, str], shown: Ticket
    ) -> None:
        decision = form.get("decision", "")
        if decision not in set(Verdict):
            raise Unprocessable("Choose to approve or to deny. Nothing was decided.")
        if decision == "approve":
            _check_typed(form, await self._approvals.retrieve(visitor.caller, approval_id))
        reason = views.reason_of(decision, form.get("preset", ""), form.get("reason", ""))
        await self._approvals.decide(
            visitor.caller,
            approval_id,
            verdict=Verdict(decision),
            fingerprint=shown.fingerprint,
            reason=reason,
            version=shown.version,
        )

    def _page(
        self,
        visitor: Visitor,
        approval: Approval,
        problem: GatewayError | None = None,
        form: Mapping[str, str] | None = None,
        *,
        template: str = "approval.html",
        decision: str = "",
    ) -> Page:
        now = time.time()
        shown = Ticket(approval.version, approval.fingerprint)
        sheet = views.sheet(approval, now, visitor.caller.principal.subject)
        may = self._approvals.may_decide(visitor.caller, approval) and not sheet.voted
        typed = form or {}
        values = {
            "room": "inbox",
            "now": now,
            "decision": decision,
            "sheet": sheet,
            "may_decide": may,
            "ticket": self._desk.ticket(visitor, approval.id, shown),
            "denials": views.DENIALS,
            "approvals": views.APPROVALS,
            "preset": typed.get("preset", ""),
            "reason": typed.get("reason", ""),
            "problem": problem.message if problem else "",
            "problem_title": TITLES.get(problem.status_code, "It failed") if problem else "",
        }
        status = problem.status_code if problem else 200
        return self._desk.page(visitor, template, values, status=status)


def _check_typed(form: Mapping[str, str], approval: Approval) -> None:
    """Approve what destroys only for somebody who typed its name."""
    if views.is_destructive(approval) and form.get("typed", "").strip() != approval.tool:
        raise Unprocessable(f"Type the tool's name, “{approval.tool}”. Nothing was decided.")


def approval_room(desk: Desk, approvals: ApprovalService) -> list[HTTPRouteHandler]:
    """The doors to one approval."""
    room = ApprovalRoom(desk, approvals)

    @get("/approvals/{approval_id:str}")
    async def show(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """One approval."""
        return await room.show(request, approval_id)

    @get("/approvals/{approval_id:str}/confirm")
    async def confirm(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """Ask once more."""
        return await room.confirm(request, approval_id)

    @post("/approvals/{approval_id:str}/decision", status_code=200)
    async def decide(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """Decide it."""
        return await room.decide(request, approval_id)

    return [show, confirm, decide]
