"""The Open Responses specification as a judge: responses and events, against its own models.

The models come from PyPI (`openresponses-types`), made from the specification's OpenAPI document
by people who have nothing to do with us. They know no MCP.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import openresponses_types
import pydantic
from openresponses_types import types as models

SPECIFICATION = openresponses_types.__spec_version__


def _events() -> dict[str, type[pydantic.BaseModel]]:
    found = {}
    for name, model in inspect.getmembers(models, inspect.isclass):
        if name.endswith("StreamingEvent") and issubclass(model, pydantic.BaseModel):
            kinds: Any = model.model_fields["type"].annotation
            (kind,) = kinds
            found[str(kind.value)] = model
    return found


EVENTS = _events()
"""The event types of the specification, and their models."""


def check_response(document: Any) -> None:
    """Fail unless a response is one by the specification: every required field, of its type."""
    _check(models.ResponseResource, document)


def check_compaction(document: Any) -> None:
    """Fail unless a compacted window is one by the specification."""
    _check(models.CompactResource, document)


def check_event(event: Any, *, socket: bool = False) -> None:
    """Fail unless an event is one by the specification.

    Args:
        socket: Whether it was a WebSocket message, where a refused request is an event too.
    """
    if socket and event["type"] == "error" and "status" in event:
        return _check(models.WebSocketErrorEvent, event)
    assert event["type"] in EVENTS, f"the specification has no event {event['type']}"
    return _check(EVENTS[event["type"]], event)


def _check(model: type[pydantic.BaseModel], document: Any) -> None:
    # As JSON, strictly: a number in quotes is no number, but a date or an enum may be written.
    model.model_validate_json(json.dumps(document), strict=True)
