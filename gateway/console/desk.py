"""What every room of the console needs: who visits, what a form may do, how a page is written.

A decision needs a session, a form of that session for that purpose in that state, and a request
that the console's own page made. GET changes nothing (APPR-10).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, urlsplit

from litestar import Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from gateway.console.pages import Pages, redirect
from gateway.console.sessions import COOKIE, NOTHING_SHOWN, Sessions, Ticket, Visitor
from gateway.domain.errors import BadRequest, Forbidden, GatewayError
from gateway.domain.identity import Role
from gateway.web.doors import AnyRequest, Doors

logger = logging.getLogger("gateway.console")

PATH = "/console"
SIGN_IN = f"{PATH}/sign-in"
_APPROVAL_ID = re.compile(r"apr_[0-9a-f]{32}")
TITLES = {
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


@dataclass(frozen=True, slots=True)
class Room:
    """A place of the console that the navigation shows.

    Attributes:
        roles: Any of them lets a visitor in; none means that everybody may enter.
    """

    name: str
    path: str
    title: str
    roles: tuple[Role, ...] = ()

    def admits(self, visitor: Visitor) -> bool:
        """Tell whether the visitor may enter."""
        return has_any(visitor, self.roles)


def has_any(visitor: Visitor, roles: Sequence[Role]) -> bool:
    """Tell whether a visitor has one of the roles; where there are none, everybody does."""
    principal = visitor.caller.principal
    return not roles or any(principal.has(role) for role in roles)


class Desk:
    """Lets visitors in, opens their forms, and writes their pages.

    Attributes:
        doors: The doors of the API, which read bodies within their bounds.
        rooms: In the order of the navigation.
    """

    def __init__(self, doors: Doors, sessions: Sessions, rooms: Sequence[Room]) -> None:
        self.doors = doors
        self.sessions = sessions
        self.rooms = rooms
        self._pages = Pages()

    def visitor(self, request: AnyRequest) -> Visitor | None:
        """Return who is signed in."""
        return self.sessions.visitor(request.cookies.get(COOKIE))

    def require(self, request: AnyRequest) -> Visitor:
        """Return who is signed in.

        Raises:
            SignedOut: Nobody is.
        """
        visitor = self.visitor(request)
        if visitor is None:
            raise SignedOut
        return visitor

    def enter(self, request: AnyRequest, name: str, *roles: Role) -> Visitor:
        """Let a visitor into a room.

        Args:
            roles: Any of them suffices for what is to be done there, as at the API's door to it;
                by default whoever may enter may do it.

        Raises:
            SignedOut: Nobody is signed in.
            Forbidden: The visitor lacks the role.
        """
        visitor = self.require(request)
        room = next(room for room in self.rooms if room.name == name)
        for wanted in (room.roles, roles):
            if not has_any(visitor, wanted):
                named = " or ".join(f"'{role.value}'" for role in wanted)
                raise Forbidden(f"This needs the role {named}.", code="missing_role")
        return visitor

    async def form(self, request: AnyRequest) -> dict[str, str]:
        """Read a form that one of our own pages sent.

        Raises:
            Forbidden: Another site's page sent it.
            BadRequest: It is no form.
        """
        require_own_page(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise BadRequest("Only the console's own forms can be sent here.")
        body = await self.doors.body(request)
        try:
            return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=32))
        except ValueError as exc:
            raise BadRequest("The form cannot be read.") from exc

    def ticket(self, visitor: Visitor, purpose: str, shown: Ticket = NOTHING_SHOWN) -> str:
        """Seal into a form for what it is, and what the visitor was shown."""
        return self.sessions.ticket(visitor, purpose, shown)

    def shown(self, visitor: Visitor, purpose: str, form: Mapping[str, str]) -> Ticket | None:
        """Open a form's ticket; `None` when it is of another session or purpose, or forged."""
        return self.sessions.shown(visitor, purpose, form.get("ticket", ""))

    async def signed_form(
        self, request: AnyRequest, visitor: Visitor, purpose: str
    ) -> dict[str, str]:
        """Read a form that this session was given for a purpose.

        Raises:
            Forbidden: It is not one of this session's for this purpose.
        """
        form = await self.form(request)
        if self.shown(visitor, purpose, form) is None:
            refuse_form()
        return form

    def page(
        self,
        visitor: Visitor | None,
        template: str,
        values: dict[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        problem: GatewayError | None = None,
    ) -> Page:
        """Answer with a page.

        Args:
            values: What the template names; `room` marks the place in the navigation.
            problem: Why what the visitor wanted was not done: the page says it, and its status.
        """
        told = {"problem": "", "problem_title": ""}
        if problem is not None:
            title = TITLES.get(problem.status_code, "It failed")
            told = {"problem": problem.message, "problem_title": title}
            status = problem.status_code
        shown = {"room": "", **told, **values, "visitor": visitor, "rooms": []}
        if visitor is not None:
            shown["rooms"] = [room for room in self.rooms if room.admits(visitor)]
            shown["sign_out"] = self.ticket(visitor, "sign-out")
        return self._pages.page(template, shown, status=status, headers=headers)

    def asset(self, name: str) -> Page | None:
        """Give a static file, `None` when there is none."""
        return self._pages.asset(name)

    def sign_in_page(self, approval_id: str, problem: str, status: int) -> Page:
        """Answer with the page that asks for a key."""
        values = {"approval": approval_id, "problem": problem}
        return self.page(None, "sign_in.html", values, status=status)

    def signed_out(self, request: AnyRequest) -> Page:
        """Send who has no session to the sign-in page, and back to the approval afterwards.

        A link from elsewhere comes without the cookie, which is `SameSite=Strict`; a page that
        loads the same address again finds out whether there is a session.
        """
        found = re.fullmatch(rf"{PATH}/approvals/([^/]+)(?:/[a-z]+)?", request.url.path)
        approval = approval_id(found.group(1)) if found else ""
        if request.method != "GET":
            problem = "Your session has ended. Nothing was decided; sign in and look again."
            return self.sign_in_page(approval, problem, 401)
        if request.headers.get("hx-request"):
            # A part of a page cannot be replaced by the sign-in page: the whole one is.
            return redirect(sign_in_path(approval), {"hx-redirect": sign_in_path(approval)}, 401)
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return self._pages.page("continue.html", {"place": place(approval)})
        return redirect(sign_in_path(approval))

    def failed(self, request: AnyRequest, exc: Exception) -> Page:
        """Answer with an error page."""
        status, message, headers = _described(exc)
        if status >= 500 and not isinstance(exc, GatewayError):
            logger.error("unexpected error", exc_info=exc)
        values = {
            "title": TITLES.get(status, "Something went wrong"),
            "message": message,
            "status": status,
        }
        visitor = self.visitor(request)
        return self.page(visitor, "error.html", values, status=status, headers=headers)


def error_handlers(desk: Desk) -> ExceptionHandlersMap:
    """Make functions: Litestar copies a router deeply, and a method with what it is bound to."""

    def failed(request: AnyRequest, exc: Exception) -> Page:
        return desk.failed(request, exc)

    def signed_out(request: AnyRequest, _: Exception) -> Page:
        return desk.signed_out(request)

    return {
        SignedOut: signed_out,
        GatewayError: failed,
        HTTPException: failed,
        Exception: failed,
    }


def approval_id(text: str) -> str:
    """Let through what is an approval's id, so that no address is ever taken from outside."""
    return text if _APPROVAL_ID.fullmatch(text) else ""


def place(approval: str) -> str:
    """Name the page of an approval, or the inbox."""
    return f"{PATH}/approvals/{quote(approval, safe='')}" if approval else PATH


def sign_in_path(approval: str, *, check: bool = False) -> str:
    """Name the sign-in page that leads to an approval."""
    parts = [f"approval={approval}"] * bool(approval) + ["check=1"] * check
    return f"{SIGN_IN}?{'&'.join(parts)}" if parts else SIGN_IN


def require_own_page(request: AnyRequest) -> None:
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


def refuse_form() -> NoReturn:
    """Refuse a form that is not this session's.

    Raises:
        Forbidden: Always.
    """
    raise Forbidden(
        "The form is not one of your session's for this purpose. Nothing was done; open the page "
        "again."
    )


def _described(exc: Exception) -> tuple[int, str, Mapping[str, str]]:
    if isinstance(exc, GatewayError):
        return exc.status_code, exc.message, exc.headers
    if isinstance(exc, HTTPException) and exc.status_code < 500:
        return exc.status_code, "The request cannot be answered.", {}
    return 500, "The gateway made an error. It has been logged.", {}
