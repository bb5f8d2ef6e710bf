"""Reading streams in tests."""

from __future__ import annotations

import json
from typing import Any


def read_events(stream: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream; comments and `[DONE]` are none."""
    found = []
    for block in stream.decode().replace("\r\n", "\n").split("\n\n"):
        data = [line[5:].strip() for line in block.split("\n") if line.startswith("data:")]
        if data and data != ["[DONE]"]:
            event = json.loads("\n".join(data))
            names = [line[6:].strip() for line in block.split("\n") if line.startswith("event:")]
            assert names in ([], [event["type"]]), "an event's name is its type"
            found.append(event)
    return found


def numbers(events: list[dict[str, Any]]) -> list[int]:
    """Return the sequence numbers of events."""
    return [event["sequence_number"] for event in events]
