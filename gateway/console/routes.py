"""The doors of the console (APPR-10).

A decision needs a session, a form of that session for that approval in that state, and a request
that the console's own page made. GET changes nothing.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, urlsplit

from litestar import Response, Router, get, post
from litestar.exceptions import HTTPException
from litestar.params import FromPath
from litestar.types import ExceptionHandlersMap, Message, Scope

from gateway.console import views
from gateway.console.pages import Pages, redirect
from gateway.console.sessions import COOKIE, Sessions, Ticket, Visitor
from gateway.domain.approvals import Approval, ApprovalStatus, Verdict
from gateway.domain.errors import BadRequest, Forbidden, GatewayError, NotFound, Unprocessable
from gateway.services.approvals import ApprovalService
from gateway.web.doors import AnyRequest, Doors

logger = logging.getLogger("gateway.console")

PATH = "/console"
_SIGN_IN = f"{PATH}/sign-in"
_LARGEST_FORM = 64 * 1024
_APPROVAL_ID = re.compile(r"apr_[0-9a-f]{32}")
_TITLES = {
    400: "That request makes no sense",
    401: "You are not signed in",
    403: "You may not do that",
    404: "There is nothing here",
    409: "Somebody was faster",
    410: "Too late",
    412: "It has changed since you opened it",
    413: "That is too much",
    422: "Please look at this again",
    503: "The gateway cannot reach its store",
}

Page = Response[bytes]


class SignedOut(Exception):
    """The request has no session."""


class Console:
    """Answers requests of browsers."""

    def __init__(self, doors: Doors, approvals: ApprovalService, sessions: Sessions) -> None:
        self._doors = doors
        self._approvals = approvals
        self._sessions = sessions
        self._pages = Pages()

    def ask_key(self, request: AnyRequest) -> Page:
        """Show the sign-in page, or go on where somebody is signed in."""
        approval_id = _approval_id(request.query_params.get("approval", ""))
        if self._visitor(request) is not None:
            return redirect(_place(approval_id))
        problem = ""
        if "check" in request.query_params:
            problem = (
                "Your browser did not keep the session. It needs https, or a browser that treats "
                "this address as safe: Chromium and Firefox do for localhost."
            )
        return self._sign_in_page(approval_id, problem, 401 if problem else 200)

    async def sign_in(self, request: AnyRequest) -> Page:
        """Begin a session with an API key; its page never repeats what was typed."""
        _require_own_page(request)
        form = await self._form(request)
        approval_id = _approval_id(form.get("approval", ""))
        cookie = self._sessions.sign_in(form.get("key", "").strip())
        if cookie is None:
            logger.warning("a sign-in was refused")
            problem = "That key is not valid. Check that it was copied whole."
            return self._sign_in_page(approval_id, problem, 401)
        # By way of the sign-in page, which notices when the browser did not keep the cookie.
        return redirect(_sign_in_path(approval_id, check=True), {"set-cookie": cookie})

    async def sign_out(self, request: AnyRequest) -> Page:
        """End the session."""
        visitor = self._require_visitor(request)
        _require_own_page(request)
        form = await self._form(request)
        if self._sessions.shown(visitor, "sign-out", form.get("ticket", "")) is None:
            _refuse_form()
        return redirect(_SIGN_IN, {"set-cookie": self._sessions.sign_out()})

    async def inbox(self, request: AnyRequest) -> Page:
        """List the approvals that the visitor may see."""
        visitor = self._require_visitor(request)
        query = request.query_params
        status = query.get("status", "pending")
        if status != "all" and status not in set(ApprovalStatus):
            raise BadRequest("There is no such filter.", param="status")
        after = query.get("after")
        found, more = await self._approvals.list(
            visitor.caller,
            status=None if status == "all" else status,
            server=None,
            tool=None,
            after=after,
            limit=views.PAGE,
        )
        now = time.time()
        return self._page(
            visitor,
            "inbox.html",
            {
                "status": status,
                "filters": views.FILTERS,
                "lines": [views.line(approval, now) for approval in found],
                "older": found[-1].id if found and more else "",
                "first": after is None,
                "live": after is None and query.get("refresh") != "off",
            },
        )

    async def approval(self, request: AnyRequest, approval_id: str) -> Page:
        """Show one approval, with the form that decides it where the visitor may."""
        visitor = self._require_visitor(request)
        approval = await self._approvals.retrieve(visitor.caller, approval_id)
        return self._approval_page(visitor, approval)

    async def decide(self, request: AnyRequest, approval_id: str) -> Page:
        """Count a decision, and go back to the approval's page."""
        visitor = self._require_visitor(request)
        _require_own_page(request)
        form = await self._form(request)
        shown = self._sessions.shown(visitor, approval_id, form.get("ticket", ""))
        if shown is None:
            # Who may not even see the approval learns nothing else of it.
            await self._approvals.retrieve(visitor.caller, approval_id)
            _refuse_form()
        try:
            await self._decide(visitor, approval_id, form, shown)
        except NotFound:
            raise
        except GatewayError as exc:
            approval = await self._approvals.retrieve(visitor.caller, approval_id)
            return self._approval_page(visitor, approval, exc, form)
        return redirect(_place(approval_id))

    async def _decide(
        self, visitor: Visitor, approval_id: str, form: Mapping[str, str], shown: Ticket
    ) -> None:
        decision = form.get("decision", "")
        if decision not in set(Verdict):
            raise Unprocessable("Choose to approve or to deny. Nothing was decided.")
        reason = views.reason_of(decision, form.get("preset", ""), form.get("reason", ""))
        await self._approvals.decide(
            visitor.caller,
            approval_id,
            verdict=Verdict(decision),
            fingerprint=shown.fingerprint,
            reason=reason,
            version=shown.version,
        )

    def asset(self, name: str) -> Page:
        """Give a static file."""
        found = self._pages.asset(name)
        if found is None:
            raise NotFound("There is no such file.")
        return found

    def signed_out(self, request: AnyRequest) -> Page:
        """Send who has no session to the sign-in page, and back to the approval afterwards.

        A link from elsewhere comes without the cookie, which is `SameSite=Strict`; a page that
        loads the same address again finds out whether there is a session.
        """
        found = re.fullmatch(rf"{PATH}/approvals/([^/]+)(?:/decision)?", request.url.path)
        approval_id = _approval_id(found.group(1)) if found else ""
        if request.method != "GET":
            problem = "Your session has ended. Nothing was decided; sign in and look again."
            return self._sign_in_page(approval_id, problem, 401)
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return self._pages.page("continue.html", {"place": _place(approval_id)})
        return redirect(_sign_in_path(approval_id))

    def failed(self, request: AnyRequest, exc: Exception) -> Page:
        """Answer with an error page."""
        status, message, headers = _described(exc)
        if status >= 500 and not isinstance(exc, GatewayError):
            logger.error("unexpected error", exc_info=exc)
        visitor = self._visitor(request)
        values = {
            "title": _TITLES.get(status, "Something went wrong"),
            "message": message,
            "status": status,
        }
        return self._page(visitor, "error.html", values, status=status, headers=headers)

    def _sign_in_page(self, approval_id: str, problem: str, status: int) -> Page:
        values = {"approval": approval_id, "problem": problem, "visitor": None}
        return self._pages.page("sign_in.html", values, status=status)

    def _approval_page(
        self,
        visitor: Visitor,
        approval: Approval,
        problem: GatewayError | None = None,
        form: Mapping[str, str] | None = None,
    ) -> Page:
        shown = Ticket(approval.version, approval.fingerprint)
        sheet = views.sheet(approval, time.time(), visitor.caller.principal.subject)
        may = self._approvals.may_decide(visitor.caller, approval) and not sheet.voted
        typed = form or {}
        values = {
            "sheet": sheet,
            "may_decide": may,
            "ticket": self._sessions.ticket(visitor, approval.id, shown),
            "denials": views.DENIALS,
            "approvals": views.APPROVALS,
            "preset": typed.get("preset", ""),
            "reason": typed.get("reason", ""),
            "problem": problem.message if problem else "",
            "problem_title": _TITLES.get(problem.status_code, "It failed") if problem else "",
        }
        status = problem.status_code if problem else 200
        return self._page(visitor, "approval.html", values, status=status)

    def _page(
        self,
        visitor: Visitor | None,
        template: str,
        values: dict[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Page:
        values["visitor"] = visitor
        if visitor is not None:
            values["sign_out"] = self._sessions.ticket(visitor, "sign-out", Ticket(0, ""))
        return self._pages.page(template, values, status=status, headers=headers)

    def _visitor(self, request: AnyRequest) -> Visitor | None:
        return self._sessions.visitor(request.cookies.get(COOKIE))

    def _require_visitor(self, request: AnyRequest) -> Visitor:
        visitor = self._visitor(request)
        if visitor is None:
            raise SignedOut
        return visitor

    async def _form(self, request: AnyRequest) -> dict[str, str]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise BadRequest("Only the console's own forms can be sent here.")
        body = await self._doors.body(request)
        try:
            return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=16))
        except ValueError as exc:
            raise BadRequest("The form cannot be read.") from exc


def console_router(doors: Doors, approvals: ApprovalService, sessions: Sessions) -> Router:
    """The doors to the console, under `/console`."""
    console = Console(doors, approvals, sessions)

    @get("/")
    async def inbox(request: AnyRequest) -> Page:
        """The inbox."""
        return await console.inbox(request)

    @get("/sign-in", sync_to_thread=False)
    def ask_key(request: AnyRequest) -> Page:
        """The sign-in page."""
        return console.ask_key(request)

    @post("/sign-in", status_code=200)
    async def sign_in(request: AnyRequest) -> Page:
        """Begin a session."""
        return await console.sign_in(request)

    @post("/sign-out", status_code=200)
    async def sign_out(request: AnyRequest) -> Page:
        """End the session."""
        return await console.sign_out(request)

    @get("/approvals/{approval_id:str}")
    async def approval(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """One approval."""
        return await console.approval(request, approval_id)

    @post("/approvals/{approval_id:str}/decision", status_code=200)
    async def decide(request: AnyRequest, approval_id: FromPath[str]) -> Page:
        """Decide it."""
        return await console.decide(request, approval_id)

    @get("/static/{name:str}", sync_to_thread=False)
    def asset(name: FromPath[str]) -> Page:
        """The stylesheet and the icon."""
        return console.asset(name)

    @get("/{rest:path}", sync_to_thread=False)
    def nothing(rest: FromPath[str]) -> Page:
        """Any other address."""
        raise NotFound("This address does not exist.")

    return Router(
        path=PATH,
        route_handlers=[inbox, ask_key, sign_in, sign_out, approval, decide, asset, nothing],
        request_max_body_size=_LARGEST_FORM,
        exception_handlers=_error_handlers(console),
    )


def _error_handlers(console: Console) -> ExceptionHandlersMap:
    """Make functions: Litestar copies a router deeply, and a method with what it is bound to."""

    def failed(request: AnyRequest, exc: Exception) -> Page:
        return console.failed(request, exc)

    def signed_out(request: AnyRequest, _: Exception) -> Page:
        return console.signed_out(request)

    return {
        SignedOut: signed_out,
        GatewayError: failed,
        HTTPException: failed,
        Exception: failed,
    }


async def take_back_cors(message: Message, scope: Scope) -> None:
    """Take from the console's answers what CORS allows other origins; it knows no paths."""
    if message["type"] == "http.response.start" and _is_ours(scope["path"]):
        message["headers"] = [
            (name, value)
            for name, value in message["headers"]
            if not name.lower().startswith(b"access-control-")
        ]


def _is_ours(path: str) -> bool:
    return path == PATH or path.startswith(PATH + "/")


def _approval_id(text: str) -> str:
    """Let through what is an approval's id, so that no address is ever taken from outside."""
    return text if _APPROVAL_ID.fullmatch(text) else ""


def _place(approval_id: str) -> str:
    return f"{PATH}/approvals/{quote(approval_id, safe='')}" if approval_id else PATH


def _sign_in_path(approval_id: str, *, check: bool = False) -> str:
    parts = [f"approval={approval_id}"] * bool(approval_id) + ["check=1"] * check
    return f"{_SIGN_IN}?{'&'.join(parts)}" if parts else _SIGN_IN


def _require_own_page(request: AnyRequest) -> None:
    """Refuse a form that another site sent.

    Browsers say so in `Sec-Fetch-Site`. One that does not must send the `Origin`, which is "null"
    under our referrer policy in some; that is refused, as is a request that has neither.

    Raises:
        Forbidden: It did not come from a page of the console.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "")
    if site is not None:
        own = site == "same-origin"
    else:
        own = origin != "" and urlsplit(origin).netloc == request.headers.get("host", "")
    if not own:
        raise Forbidden("The request did not come from this console. Nothing was done.")


def _refuse_form() -> NoReturn:
    raise Forbidden(
        "The form is not one of your session's for this approval. Nothing was done; open the page "
        "again."
    )


def _described(exc: Exception) -> tuple[int, str, Mapping[str, str]]:
    if isinstance(exc, GatewayError):
        return exc.status_code, exc.message, exc.headers
    if isinstance(exc, HTTPException) and exc.status_code < 500:
        return exc.status_code, "The request cannot be answered.", {}
    return 500, "The gateway made an error. It has been logged.", {}
