"""What a caller asks: a create request, read as far as the gateway acts on it (API-1, LIMIT-3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.domain.documents import Document, Raw, parse_array, parse_document
from gateway.domain.documents import field as decode_field
from gateway.domain.errors import BadRequest

ENCRYPTED_REASONING = "reasoning.encrypted_content"


class ItemHead(msgspec.Struct, frozen=True):
    """The fields of an item that decide what the gateway does with it."""

    type: str | None = None
    id: str | None = None
    role: str | None = None
    approval_request_id: str | None = None

    @property
    def kind(self) -> str:
        """The item's type; the API lets messages and item references leave it out."""
        if self.type is not None:
            return self.type
        if self.approval_request_id is not None and self.role is None:
            return "mcp_approval_response"
        return "item_reference" if self.id is not None and self.role is None else "message"


class ApprovalResponse(msgspec.Struct, frozen=True):
    """An `mcp_approval_response` item."""

    approval_request_id: str
    approve: bool
    reason: str | None = None


_heads = msgspec.json.Decoder(list[ItemHead])
_approval_response = msgspec.json.Decoder(ApprovalResponse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One input item: its raw JSON, its type and its id."""

    raw: Raw
    type: str
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of one request (LIMIT-3)."""

    max_depth: int = 64
    max_tools: int = 512
    max_items: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A create request.

    Attributes:
        document: The whole body, values raw.
        items: `input` as items; a string has become one user message.
        tools: The tools as they came.
        store: `None` when the caller did not say.
        end_user: `safety_identifier`, else `user`, else "" (CHAIN-1; the header beats both).
    """

    document: Document
    model: str
    stream: bool
    background: bool
    store: bool | None
    previous_response_id: str | None
    conversation: str | None
    include: tuple[str, ...]
    items: tuple[Item, ...]
    tools: tuple[Raw, ...]
    end_user: str
    approval_responses: tuple[ApprovalResponse, ...] = field(default=())


def parse_create(document: Document, bounds: Bounds) -> CreateRequest:
    """Read a create request.

    Raises:
        BadRequest: A field that the gateway acts on has a wrong type or exceeds a bound.
    """
    previous = decode_field(document, "previous_response_id", str)
    conversation = conversation_of(document)
    if previous is not None and conversation is not None:
        raise BadRequest(
            "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. "
            "Ensure you are only providing one of them.",
            code="mutually_exclusive_parameters",
        )
    items = parse_input(document, bounds)
    user = decode_field(document, "safety_identifier", str) or decode_field(document, "user", str)
    return CreateRequest(
        document=document,
        model=decode_field(document, "model", str) or "",
        stream=decode_field(document, "stream", bool) or False,
        background=decode_field(document, "background", bool) or False,
        store=decode_field(document, "store", bool),
        previous_response_id=previous,
        conversation=conversation,
        include=tuple(decode_field(document, "include", list[str]) or ()),
        items=items,
        tools=_tools(document, bounds),
        end_user=user or "",
        approval_responses=tuple(
            _read_approval_response(item.raw, index)
            for index, item in enumerate(items)
            if item.type == "mcp_approval_response"
        ),
    )


def conversation_of(document: Document) -> str | None:
    """Read the conversation that a request continues: its id, or an object with it."""
    value: Any = decode_field(document, "conversation", str | Document)  # type: ignore[arg-type]
    if isinstance(value, dict):
        return decode_field(value, "id", str, param="conversation.id")
    return value  # type: ignore[no-any-return]


def _tools(document: Document, bounds: Bounds) -> tuple[Raw, ...]:
    tools = decode_field(document, "tools", list[Raw]) or []
    if len(tools) > bounds.max_tools:
        raise BadRequest(
            f"At most {bounds.max_tools} tools are allowed, {len(tools)} were sent.",
            code="array_above_max_length",
            param="tools",
        )
    return tuple(tools)


def parse_input(document: Document, bounds: Bounds, name: str = "input") -> tuple[Item, ...]:
    """Read `input`, or a field of another name, as items.

    Raises:
        BadRequest: It is neither a string nor a list of objects, or has too many items.
    """
    value = document.get(name)
    if value is None or bytes(value) == b"null":
        return ()
    data = bytes(value)
    if data[:1] == b'"':
        text = b'{"type":"message","role":"user","content":' + data + b"}"
        return (Item(raw=Raw(text), type="message"),)
    if data[:1] != b"[":
        raise BadRequest(
            f"Invalid type for '{name}': expected a string or an array of items.",
            code="invalid_type",
            param=name,
        )
    raws = parse_array(data)
    if len(raws) > bounds.max_items:
        raise BadRequest(
            f"At most {bounds.max_items} input items are allowed, {len(raws)} were sent.",
            code="array_above_max_length",
            param=name,
        )
    try:
        heads = _heads.decode(data)
    except msgspec.ValidationError as exc:
        where = str(exc).rpartition("`$")[2].rstrip("`") or ""
        raise BadRequest(
            f"Invalid input item: {exc}.", code="invalid_type", param=name + where
        ) from exc
    return tuple(
        Item(raw=item, type=head.kind, id=head.id) for item, head in zip(raws, heads, strict=True)
    )


def _read_approval_response(item: Raw, index: int) -> ApprovalResponse:
    try:
        return _approval_response.decode(item)
    except msgspec.ValidationError as exc:
        raise BadRequest(
            f"Invalid mcp_approval_response: {exc}.", code="invalid_type", param=f"input[{index}]"
        ) from exc


def item_of(value: Raw) -> Item:
    """Read the head of one stored item."""
    head = msgspec.json.decode(value, type=ItemHead)
    return Item(raw=value, type=head.kind, id=head.id)


def item_role(item: Item) -> str | None:
    """Read whose message an item is."""
    return msgspec.json.decode(item.raw, type=ItemHead).role


def without(document: Document, *keys: str) -> Document:
    """Copy a document without some keys."""
    return {key: value for key, value in document.items() if key not in keys}


def read(value: Raw) -> Document:
    """Decode one raw object."""
    return parse_document(value)
