"""The way in and out (AUTH-1)."""

from __future__ import annotations

import logging

from litestar import get, post
from litestar.handlers import HTTPRouteHandler

from gateway.console.desk import (
    SIGN_IN,
    Desk,
    Page,
    approval_id,
    place,
    sign_in_path,
)
from gateway.console.pages import redirect
from gateway.web.doors import AnyRequest

logger = logging.getLogger("gateway.console")


def entry(desk: Desk) -> list[HTTPRouteHandler]:
    """The doors to sign in and out."""

    @get("/sign-in", sync_to_thread=False)
    def ask_key(request: AnyRequest) -> Page:
        """Show the sign-in page, or go on where somebody is signed in."""
        approval = approval_id(request.query_params.get("approval", ""))
        if desk.visitor(request) is not None:
            return redirect(place(approval))
        problem = ""
        if "check" in request.query_params:
            problem = (
                "Your browser did not keep the session. It needs https, or a browser that treats "
                "this address as safe: Chromium and Firefox do for localhost."
            )
        return desk.sign_in_page(approval, problem, 401 if problem else 200)

    @post("/sign-in", status_code=200)
    async def sign_in(request: AnyRequest) -> Page:
        """Begin a session with an API key; its page never repeats what was typed."""
        form = await desk.form(request)
        approval = approval_id(form.get("approval", ""))
        cookie = desk.sessions.sign_in(form.get("key", "").strip())
        if cookie is None:
            logger.warning("a sign-in was refused")
            problem = "That key is not valid. Check that it was copied whole."
            return desk.sign_in_page(approval, problem, 401)
        # By way of the sign-in page, which notices when the browser did not keep the cookie.
        return redirect(sign_in_path(approval, check=True), {"set-cookie": cookie})

    @post("/sign-out", status_code=200)
    async def sign_out(request: AnyRequest) -> Page:
        """End the session."""
        visitor = desk.require(request)
        await desk.signed_form(request, visitor, "sign-out")
        return redirect(SIGN_IN, {"set-cookie": desk.sessions.sign_out()})

    return [ask_key, sign_in, sign_out]
