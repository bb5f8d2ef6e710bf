"""Refuse to steer a running response, by the event that is documented for it (API-6).

Steering adds input to a response while it runs. Upstreams are reached over HTTP, where nothing more
can be said to a request that was sent; so the input goes back to its sender, with the reason.
"""

from __future__ import annotations

from typing import Literal

from gateway.domain.documents import Document, encode, field, raw
from gateway.domain.errors import BadRequest

Code = Literal[
    "invalid_input", "response_not_found", "response_already_completed", "steering_not_supported"
]

_FIELDS = frozenset({"type", "previous_response_id", "input"})
_INSTEAD = "Send the input with 'response.create', and the response's id as 'previous_response_id'"
_WHY: dict[Code, str] = {
    "response_not_found": "No response with this id runs or has just ended on this WebSocket.",
    "response_already_completed": f"The response has ended. {_INSTEAD}.",
    "steering_not_supported": "The gateway reaches its upstreams over HTTP, where a response that "
    f"runs can be told nothing more. {_INSTEAD} when it has ended.",
}


def target(document: Document) -> str:
    """Read which response is to be steered.

    Raises:
        BadRequest: The message is not one that steers.
    """
    for name in document:
        if name not in _FIELDS:
            raise BadRequest(f"'{name}' is no field of 'response.steer'.", param=name)
    id_ = field(document, "previous_response_id", str)
    if not id_:
        raise BadRequest("Missing required parameter: 'previous_response_id'.")
    given = bytes(document.get("input", b"null")).strip()
    if given[:1] not in (b'"', b"[") or given[1:-1].strip() == b"":
        raise BadRequest("'input' must be text, or an array of messages that is not empty.")
    return id_


def failed(document: Document, code: Code, why: str = "") -> bytes:
    """Write the event that hands the input back.

    Args:
        why: The fault, where the code is `invalid_input`.
    """
    error = {"type": "invalid_request_error", "code": code, "message": why or _WHY[code]}
    steer = {key: document[key] for key in ("input", "previous_response_id") if key in document}
    event = {
        "type": raw("response.steer.failed"),
        "sequence_number": raw(0),
        "error": raw(error),
        "steer": raw(steer),
    }
    return encode(event)
