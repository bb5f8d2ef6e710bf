"""Conversations: passed through to upstreams that have them, owned here (API-1, CHAIN-5).

Those of stateless tenants are kept here whole: their items are the input of each of their turns.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.domain.conversations import (
    Conversation,
    Entry,
    entry_of,
    is_item_id,
    new_conversation_id,
)
from gateway.domain.documents import NULL, Document, Raw, encode, field, parse_document
from gateway.domain.errors import BadRequest, Conflict, Forbidden, NotFound
from gateway.domain.history import Kept
from gateway.domain.lists import page_of
from gateway.domain.ports import ConversationStore, Turn, TurnHead, TurnStore, UpstreamClient
from gateway.domain.requests import ENCRYPTED_REASONING, Bounds, Item, parse_input
from gateway.domain.smuggling import refuse_acknowledgements, refuse_smuggled_items
from gateway.domain.turns import text_field
from gateway.services.callers import Caller, owned
from gateway.services.preparation import Catalog
from gateway.services.records import Answer
from gateway.services.refusals import Refusals

_MCP = frozenset({"mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools"})
_MOST_ITEMS, _MOST_PAIRS, _LONGEST_KEY, _LONGEST = 20, 16, 64, 512
"""What the API allows: items added at once; pairs of metadata, and their characters."""

_MESSAGE: Mapping[str, Any] = {"role": str, "content": str | list[dict[str, Raw]]}
"""What a message cannot do without."""

_ID = re.compile(r"[\w-]{1,128}")


class ConversationService:
    """The Conversations API, for conversations that the caller began."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        conversations: ConversationStore,
        upstream: UpstreamClient,
        catalog: Catalog,
        bounds: Bounds,
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self._turns = turns
        self._kept = conversations
        self._upstream = upstream
        self._catalog = catalog
        self._bounds = bounds

    async def create(self, caller: Caller, document: Document) -> Answer:
        """Create a conversation and note whose it is."""
        if caller.tenant.stateless:
            return await self._create_kept(caller, document)
        await self._check(caller, document)
        upstream = self._catalog.default_upstream
        answer = await self._upstream.send(
            upstream, "POST", "/conversations", body=encode(document)
        )
        head = TurnHead(
            id=text_field(parse_document(answer.body), "id"),
            tenant=caller.tenant.id,
            upstream=upstream,
            end_user=caller.end_user,
            status="conversation",
            subject=caller.principal.subject,
        )
        await self._turns.record(Turn(head=head), ttl=caller.tenant.ttl)
        return Answer(headers=answer.headers, body=answer.body)

    async def pass_on(
        self,
        caller: Caller,
        method: str,
        conversation_id: str,
        rest: str,
        document: Document | None,
        query: Mapping[str, str],
    ) -> Answer:
        """Pass on a call about one conversation, if it is the caller's.

        Raises:
            NotFound: It is unknown, or somebody else's.
        """
        if caller.tenant.stateless:
            return await self._call_kept(caller, method, conversation_id, rest, document, query)
        head = await self._turns.head(caller.tenant.id, conversation_id)
        if head is None or not owned(head, caller) or head.status != "conversation":
            raise _not_found(conversation_id)
        if any(not _ID.fullmatch(part) for part in rest.split("/") if part):
            raise NotFound("There is no such item.", param="item_id")
        if document is not None:
            await self._check(caller, document)
        if method == "DELETE" and rest:
            path = f"/conversations/{head.id}{rest}"
            item = await self._upstream.send(head.upstream, "GET", path)
            _refuse_approved(parse_document(item.body))
        answer = await self._upstream.send(
            head.upstream,
            method,
            f"/conversations/{head.id}{rest}",
            body=encode(document) if document is not None else None,
            query=query,
        )
        if method == "DELETE" and not rest:
            await self._turns.delete(caller.tenant.id, head.id)
        return Answer(headers=answer.headers, body=answer.body)

    async def _create_kept(self, caller: Caller, document: Document) -> Answer:
        """Keep a conversation here: the upstream of a stateless tenant stores none."""
        tenant = caller.tenant
        if tenant.cache == "off":
            raise BadRequest(
                "A conversation needs something to be kept, and this tenant keeps nothing.",
                code="conversation_not_supported",
            )
        await self._check(caller, document)
        conversation = Conversation(
            id=new_conversation_id(),
            tenant=tenant.id,
            upstream=self._catalog.default_upstream,
            subject=caller.principal.subject,
            end_user=caller.end_user,
            created_at=int(time.time()),
            metadata=_metadata(document),
        )
        entries = _entries(document, self._bounds)
        await self._kept.create(conversation, entries, ttl=tenant.ttl)
        return Answer(body=encode(conversation.show()))

    async def _call_kept(
        self,
        caller: Caller,
        method: str,
        conversation_id: str,
        rest: str,
        document: Document | None,
        query: Mapping[str, str],
    ) -> Answer:
        conversation = await self._own(caller, conversation_id)
        match method, rest.strip("/").split("/"):
            case "GET", [""]:
                shown: object = conversation.show()
            case "POST", [""]:
                shown = await self._change(caller, conversation, document or {})
            case "DELETE", [""]:
                await self._kept.delete(caller.tenant.id, conversation_id)
                shown = {
                    "id": conversation_id,
                    "object": "conversation.deleted",
                    "deleted": True,
                }
            case "GET", ["items"]:
                shown = page_of(await self._items(caller, conversation, query), query)
            case "POST", ["items"]:
                shown = await self._add(caller, conversation, document or {}, query)
            case "GET", ["items", item_id]:
                shown = await self._item(caller, conversation, item_id, query)
            case "DELETE", ["items", item_id]:
                _refuse_approved(await self._item(caller, conversation, item_id, query))
                if not await self._kept.remove(caller.tenant.id, conversation_id, item_id):
                    raise _no_item(item_id)
                shown = conversation.show()
            case _:
                raise NotFound("There is no such item.", param="item_id")
        return Answer(body=encode(shown))

    async def _own(self, caller: Caller, conversation_id: str) -> Conversation:
        found = await self._kept.get(caller.tenant.id, conversation_id)
        if found is None or not owned(found[0], caller):
            raise _not_found(conversation_id)
        return found[0]

    async def _change(
        self, caller: Caller, conversation: Conversation, document: Document
    ) -> dict[str, object]:
        if "metadata" not in document:
            raise BadRequest(
                "Missing required parameter: 'metadata'.",
                code="missing_required_parameter",
                param="metadata",
            )
        changed = msgspec.structs.replace(conversation, metadata=_metadata(document))
        if not await self._kept.change(changed, ttl=caller.tenant.ttl):
            raise _not_found(conversation.id)
        return changed.show()

    async def _items(
        self, caller: Caller, conversation: Conversation, query: Mapping[str, str]
    ) -> list[Document]:
        entries = await self._kept.items(caller.tenant.id, conversation.id, ttl=caller.tenant.ttl)
        ciphertext = _wants_ciphertext(query)
        return [entry.show(ciphertext=ciphertext) for entry in entries or ()]

    async def _item(
        self, caller: Caller, conversation: Conversation, item_id: str, query: Mapping[str, str]
    ) -> Document:
        for item in await self._items(caller, conversation, query):
            if text_field(item, "id") == item_id:
                return item
        raise _no_item(item_id)

    async def _add(
        self,
        caller: Caller,
        conversation: Conversation,
        document: Document,
        query: Mapping[str, str],
    ) -> dict[str, object]:
        if "items" not in document:
            raise BadRequest(
                "Missing required parameter: 'items'.",
                code="missing_required_parameter",
                param="items",
            )
        await self._check(caller, document)
        entries = _entries(document, self._bounds)
        tenant = caller.tenant
        if not await self._kept.append(tenant.id, conversation.id, entries, ttl=tenant.ttl):
            raise _not_found(conversation.id)
        ciphertext = _wants_ciphertext(query)
        shown = [entry.show(ciphertext=ciphertext) for entry in entries]
        return page_of(shown, {"order": "asc", "limit": "100"})

    async def _check(self, caller: Caller, document: Document) -> None:
        """Refuse items that could authorize a tool: those come from upstreams only."""
        items = parse_input(document, self._bounds, "items")
        refuse_smuggled_items(items)
        async with self._refusals.noted(caller, "", tried="send"):
            refuse_acknowledgements(items, name="items")
            for index, item in enumerate(items):
                if item.type in _MCP:
                    raise Forbidden(
                        f"An {item.type} item cannot be added to a conversation.",
                        code="forged_item",
                        param=f"items[{index}]",
                    )


def _refuse_approved(item: Document) -> None:
    """Refuse to take a call away from the approval that it used: the upstream would use it again.

    Raises:
        Conflict: The item is such a call.
    """
    if text_field(item, "type") == "mcp_call" and text_field(item, "approval_request_id"):
        raise Conflict(
            "An mcp_call that somebody approved cannot be deleted alone: what was approved would "
            "run again. Delete the conversation.",
            code="approved_call",
            param="item_id",
        )


def _not_found(conversation_id: str) -> NotFound:
    return NotFound(
        f"Conversation with id '{conversation_id}' not found.",
        code="conversation_not_found",
        param="conversation_id",
    )


def _no_item(item_id: str) -> NotFound:
    return NotFound(f"Item with id '{item_id}' not found.", code="item_not_found", param="item_id")


def _metadata(document: Document) -> str:
    """Read the metadata that a caller sets, as JSON."""
    metadata = field(document, "metadata", dict[str, str]) or {}
    long = any(len(key) > _LONGEST_KEY or len(text) > _LONGEST for key, text in metadata.items())
    if len(metadata) > _MOST_PAIRS or long:
        raise BadRequest(
            f"'metadata' has at most {_MOST_PAIRS} pairs, with keys of {_LONGEST_KEY} and "
            f"values of {_LONGEST} characters.",
            code="invalid_value",
            param="metadata",
        )
    return encode(metadata).decode()


def _entries(document: Document, bounds: Bounds) -> list[Entry]:
    """Read the items that a caller adds."""
    given = document.get("items", NULL)
    if bytes(given)[:1] not in (b"[", b"n"):
        raise BadRequest("'items' must be an array.", code="invalid_type", param="items")
    items = parse_input(document, bounds, "items")
    if len(items) > _MOST_ITEMS:
        raise BadRequest(
            f"At most {_MOST_ITEMS} items are added at once.",
            code="array_above_max_length",
            param="items",
        )
    seen: set[str] = set()
    for index, item in enumerate(items):
        _check_item(item, f"items[{index}]", seen)
    return [entry_of(Kept("in", item.raw)) for item in items]


def _check_item(item: Item, param: str, seen: set[str]) -> None:
    """Refuse what would be lost, or what each later turn would be refused for."""
    if item.type == "item_reference":
        raise BadRequest(
            "A conversation holds items, and no references to them.",
            code="invalid_value",
            param=param,
        )
    if item.id is not None and (not is_item_id(item.id) or item.id in seen):
        raise BadRequest(
            "An item's id has 1 to 64 letters, digits, '_' and '-', and comes once.",
            code="invalid_value",
            param=f"{param}.id",
        )
    seen.add(item.id or "")
    if item.type == "message":
        document = parse_document(item.raw)
        for name, kind in _MESSAGE.items():
            if field(document, name, kind, param=f"{param}.{name}") is None:
                raise BadRequest(
                    f"Missing required parameter: '{param}.{name}'.",
                    code="missing_required_parameter",
                    param=f"{param}.{name}",
                )


def _wants_ciphertext(query: Mapping[str, str]) -> bool:
    asked = [value for name, value in query.items() if name.rstrip("[]") == "include"]
    return ENCRYPTED_REASONING in asked
