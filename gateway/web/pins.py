"""The tool pins API: what is pinned, what has changed, and a person's word about it (MCP-5)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from litestar import Router, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.domain.documents import encode
from gateway.domain.errors import BadRequest
from gateway.domain.lists import listing, page_limit
from gateway.domain.pins import Definition, annotations_of, differences
from gateway.domain.visible import visible
from gateway.services.pins import PinService, ToolPin
from gateway.web.answers import json_answer
from gateway.web.doors import AnyRequest, Doors

_STATUSES = ("trusted", "quarantined")
_LONGEST_PAGE = 100


class _Word(msgspec.Struct, forbid_unknown_fields=True):
    definition_hash: str


def pins_router(doors: Doors, pins: PinService) -> Router:
    """The doors to tool pins."""

    @get("/v1/tools/pins")
    async def list_pins(request: AnyRequest) -> ASGIApp:
        """List pins in order of server and tool: `server`, `status`, `after`, `limit`."""
        caller = doors.caller(request)
        query = request.query_params
        status = query.get("status")
        if status not in (None, *_STATUSES):
            raise BadRequest(
                f"'status' must be one of {', '.join(_STATUSES)}.",
                code="invalid_value",
                param="status",
            )
        found = await pins.list(caller, server=query.get("server"), status=status)
        page, more = _page(
            found, query.get("after"), page_limit(query.get("limit", "20"), most=_LONGEST_PAGE)
        )
        return json_answer(caller, listing([_show(one) for one in page], more))

    @get("/v1/tools/pins/{pin_id:str}")
    async def retrieve_pin(request: AnyRequest, pin_id: FromPath[str]) -> ASGIApp:
        """Retrieve a pin with both definitions and their difference."""
        caller = doors.caller(request)
        return json_answer(caller, _show_whole(await pins.retrieve(caller, pin_id)))

    @post("/v1/tools/pins/{pin_id:str}/accept", status_code=200)
    async def accept_pin(request: AnyRequest, pin_id: FromPath[str]) -> ASGIApp:
        """Trust the candidate; its hash says that you read this very definition."""
        return await _decide(request, pin_id, accept=True)

    @post("/v1/tools/pins/{pin_id:str}/reject", status_code=200)
    async def reject_pin(request: AnyRequest, pin_id: FromPath[str]) -> ASGIApp:
        """Refuse the candidate: the tool stays in quarantine."""
        return await _decide(request, pin_id, accept=False)

    async def _decide(request: AnyRequest, pin_id: str, *, accept: bool) -> ASGIApp:
        caller = doors.caller(request)
        document = await doors.document(request)
        try:
            word = msgspec.json.decode(encode(document), type=_Word)
        except msgspec.ValidationError as exc:
            raise BadRequest(
                f"Invalid decision: {exc}.", code="invalid_value", param="definition_hash"
            ) from exc
        decided = await pins.decide(
            caller, pin_id, definition_hash=word.definition_hash, accept=accept
        )
        return json_answer(caller, _show_whole(decided))

    return Router(path="/", route_handlers=[list_pins, retrieve_pin, accept_pin, reject_pin])


def _page(
    found: Sequence[ToolPin], after: str | None, limit: int
) -> tuple[Sequence[ToolPin], bool]:
    ids = [one.id for one in found]
    start = ids.index(after) + 1 if after in ids else 0
    end = start + limit
    return found[start:end], end < len(found)


def _show(one: ToolPin) -> dict[str, object]:
    pin = one.pin
    definition = pin.trusted or pin.candidate
    return {
        "id": one.id,
        "object": "tool_pin",
        "server_label": one.server.label,
        "server_identity": one.identity,
        "tool": one.tool,
        "status": pin.status,
        "source": "server" if definition and definition.complete else "upstream",
        "definition_hash": pin.trusted.hash if pin.trusted else None,
        "candidate_hash": pin.candidate.hash if pin.candidate else None,
        "rejected": bool(pin.refused)
        and pin.candidate is not None
        and pin.candidate.hash == pin.refused,
        "accepted_by": pin.by or None,
        "annotations": msgspec.structs.asdict(annotations_of(one.server, one.tool, pin)),
        "seen_at": pin.seen_at,
        "changed_at": pin.changed_at,
        "url": f"/v1/tools/pins/{one.id}",
    }


def _show_whole(one: ToolPin) -> dict[str, object]:
    pin = one.pin
    candidate = pin.candidate
    changes = [] if candidate is None else differences(pin.trusted, candidate)
    return {
        **_show(one),
        "definition": _definition(pin.trusted),
        "candidate": _definition(candidate),
        "difference": [
            {
                "field": visible(change.field),
                "old": None if change.old is None else visible(change.old),
                "new": None if change.new is None else visible(change.new),
            }
            for change in changes
        ],
    }


def _definition(definition: Definition | None) -> dict[str, object] | None:
    if definition is None:
        return None
    return {
        "name": definition.name,
        "title": definition.title,
        "description": definition.description,
        "input_schema": definition.input_schema,
        "output_schema": definition.output_schema,
        "annotations": definition.annotations,
        "trimmed": definition.trimmed,
    }
