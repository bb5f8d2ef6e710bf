"""Lists as OpenAI's API writes them, and pages cut out of them (API-1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gateway.domain.documents import Document
from gateway.domain.errors import BadRequest, NotFound
from gateway.domain.turns import text_field

_NATURAL = re.compile(r"[0-9]{1,18}")


def listing(shown: Sequence[Mapping[str, object]], more: bool) -> dict[str, object]:
    """Write a page of a list; each entry has an `id`."""
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": more,
    }


def page_of(items: list[Document], query: Mapping[str, str]) -> dict[str, object]:
    """Cut a page out of a list as the API does: newest first unless `order` is `asc`.

    Raises:
        BadRequest: A parameter is out of range.
        NotFound: There is no item `after`.
    """
    limit = page_limit(query.get("limit", "20"))
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("'order' must be 'asc' or 'desc'.", code="invalid_value", param="order")
    if order == "desc":
        items = items[::-1]
    after = query.get("after")
    if after is not None:
        ids = [text_field(item, "id") for item in items]
        if after not in ids:
            raise NotFound(f"Item with id '{after}' not found.", param="after")
        items = items[ids.index(after) + 1 :]
    return listing(items[:limit], len(items) > limit)


def page_limit(text: str, *, most: int = 100) -> int:
    """Read how many entries a page may have.

    Raises:
        BadRequest: Not a number from 1 to `most`.
    """
    limit = natural(text)
    if limit is None or not 1 <= limit <= most:
        raise BadRequest(f"'limit' must be from 1 to {most}.", code="invalid_value", param="limit")
    return limit


def natural(text: str) -> int | None:
    """Read a number without a sign; `None` for other digits than 0 to 9, or too many."""
    return int(text) if _NATURAL.fullmatch(text) else None
