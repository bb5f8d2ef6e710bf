"""`gateway keys new`."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from gateway.domain.identity import hash_key, new_key
from gateway.settings import ApiKeySettings


def new_entry(
    key_id: str, tenant: str, subject: str, roles: tuple[str, ...], groups: tuple[str, ...]
) -> tuple[str, ApiKeySettings]:
    """Make a key and its configuration entry.

    Raises:
        ValueError: A part is not valid; the message names it.
    """
    key = new_key(key_id)
    entry: dict[str, Any] = {
        "id": key_id,
        "tenant": tenant,
        "subject": subject,
        "roles": list(dict.fromkeys(roles)),
        "hash": hash_key(key),
        "groups": list(groups),
    }
    try:
        return key, ApiKeySettings.model_validate(entry)
    except ValidationError as exc:
        error = exc.errors(include_input=False)[0]
        raise ValueError(f"--{error['loc'][0]}: {error['msg']}") from None


def render(key: str, entry: ApiKeySettings, *, as_json: bool) -> str:
    """Write key and entry for people, or as JSON."""
    values = entry.model_dump(mode="json")
    if not entry.groups:
        del values["groups"]
    if as_json:
        return json.dumps({"key": key, "entry": values}, indent=2)
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join([key, "", "[[api_keys]]", *lines])
