"""A conversation that the gateway keeps for a stateless tenant (CHAIN-5)."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

import msgspec

from gateway.domain.calls import NEW_CHAIN, ChainFacts
from gateway.domain.documents import Document, Raw, encode, parse_document, raw
from gateway.domain.history import Kept, hide_ciphertext
from gateway.domain.requests import item_of

_ITEM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

LOCK = 12.0
"""Seconds that a conversation stays a turn's own after its replica's last sign of life."""

RENEW = LOCK / 4
"""Seconds between two signs of life for a conversation."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation without its items.

    Attributes:
        upstream: Where all of its turns go (CHAIN-2).
        created_at: Seconds since the epoch.
        metadata: The caller's, a JSON object.
    """

    id: str
    tenant: str
    upstream: str
    subject: str
    end_user: str
    created_at: int
    metadata: str = "{}"

    def show(self) -> dict[str, object]:
        """Show it as the API does."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": Raw(self.metadata.encode()),
        }


class Progress(msgspec.Struct, frozen=True):
    """What the turns of a conversation have come to.

    Attributes:
        code: Why no turn may go on with it, or "".
    """

    facts: ChainFacts = NEW_CHAIN
    code: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An item of a conversation: its id there, and the encoded `Kept`."""

    id: str
    data: bytes

    @property
    def kept(self) -> Kept:
        """The item, and who made it."""
        return msgspec.json.decode(self.data, type=Kept)

    def show(self, *, ciphertext: bool) -> Document:
        """Show it as the API lists it, each item with an id and a type."""
        item = self.kept.i
        document = parse_document(item if ciphertext else hide_ciphertext(item))
        document.setdefault("type", raw("message"))
        if document["type"] == raw("message"):
            document.setdefault("status", raw("completed"))
        return {**document, "id": raw(self.id)}


def new_conversation_id() -> str:
    """Make an id."""
    return "conv_" + secrets.token_hex(24)


def entry_of(kept: Kept) -> Entry:
    """Make an entry, with an id of its own where the item has none that can be one.

    That id is the conversation's: upstreams are sent the item as it came.
    """
    item = item_of(kept.i)
    if item.id is not None and is_item_id(item.id):
        return Entry(item.id, encode(kept))
    prefix = "msg_" if item.type == "message" else "item_"
    return Entry(prefix + secrets.token_hex(24), encode(kept))


def is_item_id(text: str) -> bool:
    """Tell whether a text can be an item's id: it names keys of the store, and stands in paths."""
    return _ITEM_ID.fullmatch(text) is not None
