"""Webhooks: who is told of what, what became of it, and secrets that are shown once (APPR-9)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.console import views
from gateway.console.desk import PATH, Desk, Page, refuse_form
from gateway.console.pages import redirect
from gateway.console.sessions import Ticket, Visitor
from gateway.domain.errors import (
    Forbidden,
    GatewayError,
    NotFound,
    PreconditionFailed,
    Unprocessable,
)
from gateway.domain.webhooks import EVENTS, FORMATS, Format, WebhookEndpoint
from gateway.services.webhook_endpoints import Changes, WebhookEndpoints
from gateway.web.doors import AnyRequest
from gateway.web.webhooks import origin

_WEBHOOKS = f"{PATH}/webhooks"
_LONGEST_DESCRIPTION = 500
_NEW = "webhook:new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One endpoint: what is shown of its address, and what is said of its state."""

    endpoint: WebhookEndpoint
    address: str
    state: str


class WebhookRoom:
    """Makes, changes, tries and removes endpoints."""

    def __init__(self, desk: Desk, webhooks: WebhookEndpoints) -> None:
        self._desk = desk
        self._webhooks = webhooks

    async def list(self, request: AnyRequest) -> Page:
        """List the endpoints, with the form that makes one."""
        return await self._listing(self._desk.enter(request, "webhooks"))

    async def create(self, request: AnyRequest) -> Page:
        """Make an endpoint; the answer alone shows its secret.

        A form makes one endpoint: sent again, the list is another than the form's page showed.
        """
        visitor = self._desk.enter(request, "webhooks")
        form = await self._desk.form(request)
        shown = self._desk.shown(visitor, _NEW, form)
        if shown is None:
            refuse_form()
        try:
            if shown.fingerprint != _fingerprint(await self._webhooks.list(visitor.caller)):
                raise PreconditionFailed(
                    "The endpoints have changed since you opened the form. Nothing was made; look "
                    "at the list, and send the form again if it is still wanted."
                )
            made = await self._webhooks.create(visitor.caller, _changes(form))
        except GatewayError as exc:
            return await self._listing(visitor, form, exc)
        return self._secret(visitor, made, "The endpoint was made")

    async def show(self, request: AnyRequest, id_: str) -> Page:
        """Show one endpoint with its deliveries."""
        visitor = self._desk.enter(request, "webhooks")
        return await self._one(visitor, id_, after=request.query_params.get("after") or None)

    async def act(self, request: AnyRequest, id_: str, what: str) -> Page:
        """Do what a button of the endpoint's page says."""
        visitor = self._desk.enter(request, "webhooks")
        form = await self._desk.form(request)
        endpoint = await self._webhooks.retrieve(visitor.caller, id_)
        shown = self._desk.shown(visitor, id_, form)
        if shown is None:
            refuse_form()
        try:
            if what == "rotate":
                return await self._rotate(visitor, endpoint, shown, form)
            if what == "test":
                return await self._test(visitor, id_)
            return redirect(await self._change(visitor, id_, what, form))
        except (NotFound, Forbidden):
            raise
        except GatewayError as exc:
            return await self._one(visitor, id_, problem=exc)

    async def _change(self, visitor: Visitor, id_: str, what: str, form: Mapping[str, str]) -> str:
        """Switch, send again or remove; return where to go on."""
        caller = visitor.caller
        if what in ("enable", "disable"):
            await self._webhooks.update(caller, id_, Changes(enabled=what == "enable"))
        elif what == "redeliver":
            await self._webhooks.redeliver(caller, id_, form.get("delivery", ""))
        elif what == "delete":
            await self._webhooks.delete(caller, id_)
            return _WEBHOOKS
        else:
            raise NotFound("This address does not exist.")
        return _place(id_)

    async def _rotate(
        self, visitor: Visitor, endpoint: WebhookEndpoint, shown: Ticket, form: Mapping[str, str]
    ) -> Page:
        # A page that is loaded again must not make the secret useless that it has just shown.
        if shown.version != endpoint.version:
            raise PreconditionFailed(
                "The endpoint has changed since you opened its page. Its secret was not rotated."
            )
        keep = form.get("keep") == "yes"
        rotated = await self._webhooks.rotate(visitor.caller, endpoint.id, keep_old=keep)
        return self._secret(visitor, rotated, "The secret was rotated")

    async def _test(self, visitor: Visitor, id_: str) -> Page:
        event, answer = await self._webhooks.test(visitor.caller, id_)
        return await self._one(visitor, id_, tested={"event": event, "answer": answer})

    def _secret(self, visitor: Visitor, endpoint: WebhookEndpoint, title: str) -> Page:
        values = {
            "room": "webhooks",
            "title": title,
            "line": _line(endpoint),
            "secret": endpoint.keys[0].secret,
            "old_until": max((key.until or 0.0 for key in endpoint.keys[1:]), default=0.0),
        }
        return self._desk.page(visitor, "secret.html", values)

    async def _listing(
        self,
        visitor: Visitor,
        form: Mapping[str, str] | None = None,
        problem: GatewayError | None = None,
    ) -> Page:
        found = await self._webhooks.list(visitor.caller)
        ticket = Ticket(0, _fingerprint(found))
        values = {
            "room": "webhooks",
            "lines": [_line(one) for one in found],
            "typed": {"events": "*", **(form or {})},
            "known": EVENTS,
            "formats": FORMATS,
            "ticket": self._desk.ticket(visitor, _NEW, ticket),
        }
        return self._desk.page(visitor, "webhooks.html", values, problem=problem)

    async def _one(
        self,
        visitor: Visitor,
        id_: str,
        *,
        after: str | None = None,
        problem: GatewayError | None = None,
        tested: Mapping[str, object] | None = None,
    ) -> Page:
        endpoint = await self._webhooks.retrieve(visitor.caller, id_)
        found, more = await self._webhooks.deliveries(
            visitor.caller, id_, after=after, limit=views.PAGE
        )
        older = f"{_place(id_)}?{urlencode({'after': found[-1].id})}" if more and found else ""
        values = {
            "room": "webhooks",
            "line": _line(endpoint),
            "deliveries": found,
            "older": older,
            "first": after is None,
            "tested": tested,
            "ticket": self._desk.ticket(visitor, id_, Ticket(endpoint.version, "")),
        }
        return self._desk.page(visitor, "webhook.html", values, problem=problem)


def _line(endpoint: WebhookEndpoint) -> Line:
    states = {None: "enabled", "user": "disabled", "gone": "gone"}
    return Line(
        endpoint=endpoint,
        # Addresses of chats, and all of the operator's, may hold what authenticates there.
        address=origin(endpoint.url),
        state=states.get(endpoint.off, "disabled"),
    )


def _place(id_: str) -> str:
    return f"{_WEBHOOKS}/{quote(id_, safe='')}"


def _fingerprint(endpoints: Sequence[WebhookEndpoint]) -> str:
    """Name a list of endpoints by which they are."""
    return hashlib.sha256(" ".join(sorted(one.id for one in endpoints)).encode()).hexdigest()


def _changes(form: Mapping[str, str]) -> Changes:
    """Read the form of a new endpoint; the service checks address and events.

    Raises:
        Unprocessable: A field has a value that it cannot have.
    """
    url = form.get("url", "").strip()
    if not url:
        raise Unprocessable("Give the URL that is to be told. Nothing was made.", param="url")
    events = tuple(dict.fromkeys(form.get("events", "").replace(",", " ").split()))
    if not 1 <= len(events) <= 32 or any(len(name) > 64 for name in events):
        raise Unprocessable(
            "Name 1 to 32 events, or * for all of them. Nothing was made.", param="events"
        )
    description = form.get("description", "").strip()
    if len(description) > _LONGEST_DESCRIPTION:
        raise Unprocessable(
            f"The description has more than {_LONGEST_DESCRIPTION} characters. Nothing was made.",
            param="description",
        )
    return Changes(url=url, events=events, format=_format(form), description=description)


def _format(form: Mapping[str, str]) -> Format:
    for name in FORMATS:
        if form.get("format", "standard") == name:
            return name
    raise Unprocessable("There is no such format. Nothing was made.", param="format")


def webhooks_room(desk: Desk, webhooks: WebhookEndpoints) -> Sequence[HTTPRouteHandler]:
    """The doors to webhooks."""
    room = WebhookRoom(desk, webhooks)

    @get("/webhooks")
    async def list_endpoints(request: AnyRequest) -> Page:
        """All endpoints."""
        return await room.list(request)

    @post("/webhooks", status_code=200)
    async def create_endpoint(request: AnyRequest) -> Page:
        """Make one."""
        return await room.create(request)

    @get("/webhooks/{endpoint_id:str}")
    async def show_endpoint(request: AnyRequest, endpoint_id: FromPath[str]) -> Page:
        """One endpoint."""
        return await room.show(request, endpoint_id)

    @post("/webhooks/{endpoint_id:str}/{what:str}", status_code=200)
    async def act_on_endpoint(
        request: AnyRequest, endpoint_id: FromPath[str], what: FromPath[str]
    ) -> Page:
        """Change it."""
        return await room.act(request, endpoint_id, what)

    return [list_endpoints, create_endpoint, show_endpoint, act_on_endpoint]
