"""The service behind `/conversations`."""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.emulator import errors
from gateway.emulator.items import Item, normalise_input, with_id
from gateway.emulator.paging import listing
from gateway.emulator.store import Conversation, Store


class Conversations:
    """Conversations and their items."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a conversation, with metadata and first items.

        Raises:
            ApiError: 400 for an unusable body.
        """
        items = _items(body) if body.get("items") else []
        conversation = Conversation(metadata=_metadata(body), items=items)
        self._store.add_conversation(conversation)
        return conversation.to_json()

    def retrieve(self, conversation_id: str) -> dict[str, Any]:
        """Return a conversation.

        Raises:
            ApiError: 404.
        """
        return self._store.conversation(conversation_id).to_json()

    def update(self, conversation_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the metadata.

        Raises:
            ApiError: 404, or 400 without metadata.
        """
        conversation = self._store.conversation(conversation_id)
        if "metadata" not in body:
            raise errors.missing_parameter("metadata")
        conversation.metadata = _metadata(body)
        return conversation.to_json()

    def delete(self, conversation_id: str) -> dict[str, Any]:
        """Forget a conversation.

        Raises:
            ApiError: 404.
        """
        self._store.delete_conversation(conversation_id)
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    def items(self, conversation_id: str) -> Sequence[Item]:
        """Return all items.

        Raises:
            ApiError: 404.
        """
        return self._store.conversation(conversation_id).items

    def add_items(self, conversation_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Append items and return them.

        Raises:
            ApiError: 404, or 400 without items.
        """
        conversation = self._store.conversation(conversation_id)
        added = _items(body)
        conversation.items += added
        return listing(added)

    def item(self, conversation_id: str, item_id: str) -> Item:
        """Return one item.

        Raises:
            ApiError: 404.
        """
        for item in self.items(conversation_id):
            if item["id"] == item_id:
                return item
        raise errors.conversation_item_not_found(item_id)

    def delete_item(self, conversation_id: str, item_id: str) -> dict[str, Any]:
        """Take one item away and return the conversation.

        Raises:
            ApiError: 404.
        """
        conversation = self._store.conversation(conversation_id)
        conversation.items.remove(self.item(conversation_id, item_id))
        return conversation.to_json()


def _items(body: Mapping[str, Any]) -> list[Item]:
    items = body.get("items")
    if items is None:
        raise errors.missing_parameter("items")
    if not isinstance(items, list):
        raise errors.invalid_type("items", "an array", items)
    for index, item in enumerate(items):
        if item.get("type", "message") == "message" and not item.get("role"):
            raise errors.missing_parameter(f"items[{index}].role")
    return [with_id(item) for item in normalise_input(items)]


def _metadata(body: Mapping[str, Any]) -> dict[str, str]:
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise errors.invalid_type("metadata", "an object", metadata)
    return metadata
