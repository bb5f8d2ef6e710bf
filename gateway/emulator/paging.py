"""Lists, as the API pages through them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.emulator import errors
from gateway.emulator.items import Item
from gateway.emulator.turn_request import check_range

_MAX = 100


def page(items: Sequence[Item], query: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of items, by `limit` (20), `order` (desc) and `after`.

    Raises:
        ApiError: for a parameter out of range.
    """
    limit = read_int(query, "limit", 20)
    check_range("limit", limit, kind="integer", low=1, high=_MAX)
    order = query.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise errors.bad_request(
            f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'.",
            param="order",
            code="invalid_value",
        )
    ordered = list(items) if order == "asc" else list(reversed(items))
    rest = ordered[_position(ordered, query.get("after")) :]
    return listing(rest[:limit], has_more=len(rest) > limit)


def listing(items: Sequence[Item], *, has_more: bool = False) -> dict[str, Any]:
    """Return a list object."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "has_more": has_more,
        "last_id": items[-1]["id"] if items else None,
    }


def read_int(query: Mapping[str, str], name: str, default: int) -> int:
    """Return a whole number of the query string.

    Raises:
        ApiError: when it is none.
    """
    value = query.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise errors.invalid_type(name, "an integer", value) from None


def _position(items: Sequence[Item], after: str | None) -> int:
    if not after:
        return 0
    for index, item in enumerate(items):
        if item["id"] == after:
            return index + 1
    raise errors.ApiError(404, f"Item with id '{after}' not found.", param="after")
