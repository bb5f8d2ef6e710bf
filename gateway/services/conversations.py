"""Conversations: passed through to upstreams that have them, owned here (API-1, CHAIN-5)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gateway.domain.documents import Document, encode, parse_document
from gateway.domain.errors import BadRequest, Forbidden, NotFound
from gateway.domain.ports import Turn, TurnHead, TurnStore, UpstreamClient
from gateway.domain.requests import Bounds, parse_input
from gateway.domain.tools import refuse_acknowledgements, refuse_smuggled_items
from gateway.domain.turns import text_field
from gateway.services.callers import Caller, owned
from gateway.services.preparation import Catalog
from gateway.services.records import Answer
from gateway.services.refusals import Refusals

_MCP = frozenset({"mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools"})
_ID = re.compile(r"[\w-]{1,128}")


class ConversationService:
    """The Conversations API of the upstream, for conversations that the caller began."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        upstream: UpstreamClient,
        catalog: Catalog,
        bounds: Bounds,
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self._turns = turns
        self._upstream = upstream
        self._catalog = catalog
        self._bounds = bounds

    async def create(self, caller: Caller, document: Document) -> Answer:
        """Create a conversation and note whose it is."""
        if caller.tenant.stateless:
            raise BadRequest(
                "Conversations are not available to a stateless tenant.",
                code="conversation_not_supported",
            )
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
        head = await self._turns.head(caller.tenant.id, conversation_id)
        if head is None or not owned(head, caller) or head.status != "conversation":
            raise NotFound(
                f"Conversation with id '{conversation_id}' not found.",
                code="conversation_not_found",
                param="conversation_id",
            )
        if any(not _ID.fullmatch(part) for part in rest.split("/") if part):
            raise NotFound("There is no such item.", param="item_id")
        if document is not None:
            await self._check(caller, document)
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

    async def _check(self, caller: Caller, document: Document) -> None:
        """Refuse items that could authorize a tool: those come from upstreams only."""
        items = parse_input(
            {"input": document["items"]} if "items" in document else {}, self._bounds
        )
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
