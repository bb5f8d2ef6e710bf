"""A turn while it runs, and the one response that its legs make (APPR-2, API-4).

A turn is one caller request and its final response; a leg is one upstream response inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.domain.calls import NEW_CHAIN, ChainFacts
from gateway.domain.documents import NULL, Document, Raw, parse_array, raw
from gateway.domain.history import Kept, hide_ciphertext
from gateway.domain.tools import public_tools
from gateway.domain.trace import LegSummary

FIRST_RUN = "run_"
"""How the id of the batch begins that is the first leg of a background turn."""


class HeldServer(msgspec.Struct, frozen=True):
    """An MCP server of a held turn: what is needed to attach it again, fresh, on the next leg."""

    label: str
    tool: Document
    registered: bool
    identity: str
    forwarded: dict[str, str]
    tightened: list[str] | None


class HeldTool(msgspec.Struct, frozen=True):
    """One tool of a held turn: raw as it came, or an MCP server."""

    plain: Raw = NULL
    server: HeldServer | None = None


class TurnState(msgspec.Struct):
    """Everything a turn needs to go on, on any replica; kept encrypted while it is held.

    Attributes:
        tenant, subject, end_user, key_id: Who the turn is for.
        roles, groups: Of the principal that began the turn; rules look at them.
        facts: What is known of the chain so far.
        turn_id: The response id that the caller sees: that of the first leg; "" before it.
        upstream: The upstream of the whole chain (CHAIN-2).
        parent: The turn before, as the caller named it.
        stateless: The gateway keeps the chain, the upstream nothing (STATE-1).
        keep: Whether the turn's items may be kept (STATE-4).
        shows_ciphertext: Whether the caller asked for `reasoning.encrypted_content`.
        streamed: Whether the caller reads a stream.
        body: The upstream body without `input`, `tools`, `stream` and `previous_response_id`.
        tools: Raw tools and MCP servers, in the caller's order.
        items: The turn's own items so far.
        last_leg: The upstream id of the last leg.
        legs: Legs finished; `trace` sums them up.
        sequence: The next free `sequence_number` of the caller's stream.
        output_count: Output items so far; the offset of the next leg's `output_index`.
        first: The response object of the first leg's opening event.
        usage: The usage of all finished legs together.
        started_at: Seconds since the epoch.
        headers: The caller's headers that go to the upstream.
        request_id: The gateway's own id of the caller's request.
        version: Of the rules and servers under which the turn was held, or "".
        background: The gateway runs the turn as a job, under an id of its own (STREAM-3).
        conversation_id: The conversation that the gateway keeps and the turn works on, or "".
        lock: The token by which it does.
        asked: The input of a background turn's first leg, where the upstream holds the chain.
        repaired: What was left out of the running leg's input after a refusal, or "" (STATE-5).
        transformations: What the upstream changed in the inputs of all finished legs.
        window: The turn whose window begins the input, or "" (STATE-6).
        compacted: The compaction that this turn made.
    """

    tenant: str
    subject: str
    key_id: str
    end_user: str
    upstream: str
    model: str
    body: Document
    tools: list[HeldTool] = []
    roles: list[str] = []
    groups: list[str] = []
    facts: ChainFacts = NEW_CHAIN
    turn_id: str = ""
    parent: str | None = None
    parent_leg: str | None = None
    conversation: bool = False
    stateless: bool = False
    keep: bool = True
    stored: bool = True
    shows_ciphertext: bool = False
    streamed: bool = False
    items: list[Kept] = []
    last_leg: str = ""
    legs: int = 0
    trace: list[LegSummary] = []
    sequence: int = 0
    output_count: int = 0
    first: Document = {}
    usage: dict[str, Any] = {}
    started_at: float = 0.0
    headers: dict[str, str] = {}
    request_id: str = ""
    version: str = ""
    background: bool = False
    conversation_id: str = ""
    lock: str = ""
    asked: Raw = NULL
    repaired: str = ""
    transformations: list[Raw] = []
    window: str = ""
    compacted: LegSummary | None = None

    @property
    def output(self) -> list[Raw]:
        """The upstream's items of all legs so far, in order."""
        return [item.i for item in self.items if item.o in ("out", "lost")]


class View:
    """How a caller sees the responses of a turn: one id, one output, no secrets.

    Args:
        state: The turn; read each time, since it grows.
        has_mcp: Whether the `tools` echo must be rewritten (MCP-3).
    """

    def __init__(self, state: TurnState, *, has_mcp: bool) -> None:
        self._state = state
        self._has_mcp = has_mcp
        self._hide = state.stateless and not state.shows_ciphertext
        self._first_changes = (
            has_mcp
            or state.background
            or state.conversation_id != ""
            or (state.stateless and state.parent is not None)
        )

    @property
    def hides_ciphertext(self) -> bool:
        """Whether reasoning items are shown without `encrypted_content`."""
        return self._hide

    @property
    def changes_opening(self) -> bool:
        """Whether even the first leg's opening events must be rewritten."""
        return self._first_changes

    def changes_final(self, response: Document) -> bool:
        """Whether a final response must be rewritten, or may leave as the bytes that came."""
        hidden = self._hide and b'"encrypted_content"' in bytes(response.get("output", NULL))
        return self._first_changes or hidden or self._state.legs > 1

    def response(self, response: Document) -> Document:
        """Show one leg's response object."""
        shown = dict(response)
        if "tools" in shown and self._has_mcp:
            shown["tools"] = public_tools(shown["tools"])
        if self._state.stateless and self._state.parent is not None:
            shown["previous_response_id"] = raw(self._state.parent)
        if self._state.conversation_id:
            shown["conversation"] = raw({"id": self._state.conversation_id})
        if self._state.background:
            shown |= _in_background(self._state)
        if "output" in shown and self._hide:
            shown["output"] = raw([hide_ciphertext(item) for item in parse_array(shown["output"])])
        return shown

    def final(self, response: Document) -> Document:
        """Show the last leg's response as that of the whole turn (APPR-2)."""
        state = self._state
        shown = self.response(response)
        if state.legs > 1:
            shown["id"] = raw(state.turn_id)
            shown["output"] = raw(
                [hide_ciphertext(item) for item in state.output] if self._hide else state.output
            )
            if state.usage:
                shown["usage"] = raw(state.usage)
            if state.transformations:
                shown["input_transformations"] = raw(state.transformations)
            for key in ("created_at", "previous_response_id"):
                if key in state.first and not (state.stateless and key != "created_at"):
                    shown[key] = state.first[key]
        return shown

    def item(self, item: Raw) -> Raw:
        """Show one output item."""
        return hide_ciphertext(item) if self._hide else item


def _in_background(state: TurnState) -> Document:
    """What the gateway says of a response in background, and not the upstream."""
    return {
        "id": raw(state.turn_id),
        "created_at": raw(int(state.started_at)),
        "background": raw(True),
        "previous_response_id": raw(state.parent),
    }


def add_usage(total: dict[str, Any], usage: Raw | None) -> dict[str, Any]:
    """Add one leg's usage to the turn's, number by number, at every depth."""
    if usage is None or bytes(usage) == b"null":
        return total
    added: dict[str, Any] = _sum(total, msgspec.json.decode(usage, type=dict[str, Any]))
    return added


def _sum(left: Any, right: Any) -> Any:
    if isinstance(left, dict) and isinstance(right, dict):
        return left | {key: _sum(left.get(key), value) for key, value in right.items()}
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    return left + right if numbers and not isinstance(right, bool) else right


class ApprovalRequest(msgspec.Struct, frozen=True):
    """An `mcp_approval_request` item of an upstream."""

    id: str
    server_label: str
    name: str
    arguments: str


_request = msgspec.json.Decoder(ApprovalRequest)


class _Typed(msgspec.Struct):
    type: str | None = None


def approval_requests(output: Sequence[Raw]) -> list[ApprovalRequest]:
    """Find the approval requests of a leg's output, by type and never by status (APPR-1)."""
    return [_request.decode(item) for item in output if is_type(item, "mcp_approval_request")]


def is_type(item: Raw, kind: str) -> bool:
    """Tell whether an item has a type, however its JSON spells it."""
    data = bytes(item)
    if kind.encode() not in data and b"\\u" not in data:
        return False
    return msgspec.json.decode(item, type=_Typed).type == kind


def text_field(document: Document, key: str) -> str:
    """Read a string field of an upstream's document, "" when it is not one."""
    try:
        return msgspec.json.decode(document.get(key, Raw(b'""')), type=str)
    except msgspec.DecodeError:
        return ""


def output_of(response: Document) -> list[Raw]:
    """The `output` of a response, empty when there is none."""
    value = response.get("output", NULL)
    return parse_array(value) if bytes(value)[:1] == b"[" else []


def read_state(data: bytes) -> TurnState:
    """Decode a held turn."""
    return msgspec.json.decode(data, type=TurnState)
