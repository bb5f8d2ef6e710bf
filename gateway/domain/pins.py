"""Tool pins: a changed definition puts a tool into quarantine until a person accepts it (MCP-5).

    unseen ──first listing──> trusted ──another definition──> quarantined ──accepted──> trusted
    unseen ──first listing, strict──────────────────────────> quarantined

A definition is known from two sources. The gateway's own `tools/list` (`gateway mcp probe`) gives
all of it; an upstream's `mcp_list_tools` item gives name, description, input schema and whether
the tool says that it only reads. Both are hashed by one function, and two definitions of which
one is a listing are compared by what a listing shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any, Literal

import msgspec
import rfc8785

from gateway.domain.calls import UNANNOTATED, Annotations, PinStatus
from gateway.domain.documents import NULL, Raw, depth_exceeds, encode, raw
from gateway.domain.errors import Conflict
from gateway.domain.pointers import pointer_to
from gateway.domain.registry import McpServer, PinMode

MOST_TOOLS = 1000
"""Most tools of a server that are pinned; from there on every other tool is in quarantine."""

LARGEST = 64 * 1024
"""Largest definition, in bytes, that is kept whole; of a larger one the hashes are kept."""

DEEPEST = 64
"""Deepest nesting of a definition that is read."""

_SHOWN = 4000


class Definition(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a tool says that it is.

    Attributes:
        hash: Over all that is known of the definition.
        listed_hash: Over what an upstream's listing shows of it.
        input_schema, output_schema: JSON Schema as it came, or null.
        complete: Known from the server's own `tools/list`, not from an upstream's listing.
        trimmed: Too large or too deep to be kept: the schemas are left out, the hashes hold.
    """

    name: str
    hash: str
    listed_hash: str
    title: str | None = None
    description: str | None = None
    input_schema: Raw = NULL
    output_schema: Raw = NULL
    annotations: dict[str, Any] | None = None
    complete: bool = False
    trimmed: bool = False

    def same_as(self, other: Definition) -> bool:
        """Compare by all that both sources show."""
        if self.complete and other.complete:
            return self.hash == other.hash
        return self.listed_hash == other.listed_hash


class _Tool(msgspec.Struct):
    name: str
    title: str | None = None
    description: str | None = None
    input_schema: Any = None
    output_schema: Any = None
    annotations: dict[str, Any] | None = None


def define(tool: bytes | Raw, *, complete: bool = False) -> Definition:
    """Read a tool of a listing.

    Args:
        tool: A JSON object with name, title, description, input_schema, output_schema and
            annotations; what is left out is null, and anything else is not looked at.
        complete: It comes from the server's own `tools/list`.

    Raises:
        msgspec.DecodeError: It is not such an object.
    """
    if depth_exceeds(bytes(tool), DEEPEST):
        name = msgspec.json.decode(tool, type=_Named).name
        digest = _digest(bytes(tool))
        return Definition(name, digest, digest, complete=complete, trimmed=True)
    found = msgspec.json.decode(tool, type=_Tool)
    listed = _Tool(
        name=found.name,
        description=found.description,
        input_schema=found.input_schema,
        annotations={"read_only": hint(found.annotations, "read_only") is True},
    )
    listed_hash = _hash(listed)
    definition = Definition(
        name=found.name,
        hash=_hash(found) if complete else listed_hash,
        listed_hash=listed_hash,
        title=found.title if complete else None,
        description=found.description,
        input_schema=raw(found.input_schema),
        output_schema=raw(found.output_schema) if complete else NULL,
        annotations=found.annotations,
        complete=complete,
    )
    if len(encode(definition)) <= LARGEST:
        return definition
    return msgspec.structs.replace(
        definition,
        title=(definition.title or "")[:_SHOWN] or None,
        description=(definition.description or "")[:_SHOWN] or None,
        input_schema=NULL,
        output_schema=NULL,
        annotations=None,
        trimmed=True,
    )


class _Named(msgspec.Struct):
    name: str


def _hash(tool: _Tool) -> str:
    return definition_hash(msgspec.structs.asdict(tool))


def definition_hash(tool: Mapping[str, Any]) -> str:
    """Hash a tool's definition: SHA-256 of its RFC 8785 canonical JSON.

    Neither the order of tools nor that of keys matters; every character does.

    Args:
        tool: name, title, description, input_schema, output_schema and annotations; what the
            server left out is null.
    """
    try:
        return _digest(rfc8785.dumps(dict(tool)))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        # Integers beyond 2^53 (an int64's bound, say) have no such form. Another one will do:
        # it only has to be the same for the same definition.
        return _digest(b"sorted:" + json.dumps(tool, sort_keys=True).encode())


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


_MCP_HINTS = {
    "read_only": "readOnlyHint",
    "destructive": "destructiveHint",
    "idempotent": "idempotentHint",
    "open_world": "openWorldHint",
}


def hint(annotations: Mapping[str, Any] | None, name: str) -> bool | None:
    """Read one annotation in the upstreams' spelling (`read_only`) or MCP's (`readOnlyHint`)."""
    for spelling in (name, _MCP_HINTS[name]):
        value = (annotations or {}).get(spelling)
        if isinstance(value, bool):
            return value
    return None


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one tool of one server.

    Attributes:
        trusted: The definition that may run, or `None` where none was ever accepted.
        candidate: The definition seen last, where it is not the trusted one: quarantine.
        refused: Hash of a candidate that a person rejected.
        by: Who accepted the trusted one; "" where it was the first one seen.
        seen_at, changed_at: Seconds since the epoch: first seen, and last change of this pin.
    """

    trusted: Definition | None = None
    candidate: Definition | None = None
    refused: str = ""
    by: str = ""
    seen_at: float = 0.0
    changed_at: float = 0.0

    @property
    def status(self) -> PinStatus:
        """Whether the tool may run."""
        return "trusted" if self.trusted is not None and self.candidate is None else "quarantined"


Kind = Literal["pinned", "new", "drifted"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a listing changed about one tool.

    Attributes:
        kind: "pinned" is the first listing of a server, "new" a tool that came later.
    """

    kind: Kind
    tool: str
    pin: Pin

    @property
    def definition(self) -> Definition | None:
        """The definition that was seen."""
        return self.pin.candidate or self.pin.trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class PinSet:
    """All pins of one server, as they were read.

    Attributes:
        version: Of the record, for writing it back; 0 when there is none.
        read_at: When it was read, by the store's clock.
    """

    pins: Mapping[str, Pin] = field(default_factory=dict)
    version: int = 0
    read_at: float = 0.0

    def status(self, tool: str, mode: PinMode) -> PinStatus:
        """Tell whether a tool may run; what was never accepted may not where pins are strict."""
        pin = self.pins.get(tool)
        if pin is not None:
            return pin.status
        return "quarantined" if mode == "strict" or len(self.pins) >= MOST_TOOLS else "unseen"

    def holds_back(self, mode: PinMode) -> bool:
        """Tell whether any tool may have to leave a request."""
        return (
            mode == "strict"
            or len(self.pins) >= MOST_TOOLS
            or any(pin.status == "quarantined" for pin in self.pins.values())
        )

    @property
    def trusted(self) -> list[str]:
        """The tools that may run, in order of their names."""
        return sorted(tool for tool, pin in self.pins.items() if pin.status == "trusted")

    def after(self, seen: Iterable[Definition], mode: PinMode) -> tuple[PinSet, tuple[Change, ...]]:
        """Take a listing in; a tool that it does not hold stays as it is."""
        pins = dict(self.pins)
        changes: list[Change] = []
        for definition in seen:
            known = pins.get(definition.name)
            if known is None and len(pins) >= MOST_TOOLS:
                continue
            pin = self._sighted(known, definition, mode)
            if pin is known:
                continue
            pins[definition.name] = pin
            kind: Kind = "drifted" if known else "new" if self.pins else "pinned"
            changes.append(Change(kind, definition.name, pin))
        return changed(self, pins=pins), tuple(changes)

    def _sighted(self, pin: Pin | None, seen: Definition, mode: PinMode) -> Pin:
        if pin is None:
            first = Pin(seen_at=self.read_at, changed_at=self.read_at)
            part = "candidate" if mode == "strict" else "trusted"
            return msgspec.structs.replace(first, **{part: seen})
        expected = pin.candidate or pin.trusted
        if expected is not None and expected.same_as(seen):
            return pin
        # Also where the trusted definition comes back: who changed it twice is asked about it.
        return msgspec.structs.replace(pin, candidate=seen, changed_at=self.read_at)

    def accepted(self, seen: Iterable[Definition], by: str) -> PinSet:
        """Trust definitions as they are, on a person's word."""
        pins = dict(self.pins)
        for definition in seen:
            known = pins.get(definition.name)
            if known and known.status == "trusted" and known.trusted == definition:
                continue
            pins[definition.name] = Pin(
                trusted=definition,
                by=by,
                seen_at=known.seen_at if known else self.read_at,
                changed_at=self.read_at,
            )
        return changed(self, pins=pins)

    def decided(self, tool: str, definition_hash: str, *, accept: bool, by: str) -> PinSet:
        """Accept or reject a candidate that a person has looked at.

        Raises:
            Conflict: The tool is not in quarantine, or its definition is not the one shown.
        """
        candidate = self.pins[tool].candidate
        if candidate is None:
            raise Conflict(f"The tool '{tool}' is not in quarantine.", code="not_quarantined")
        if candidate.hash != definition_hash:
            raise Conflict(
                f"The definition of '{tool}' is not the one that you read; read it again.",
                code="definition_changed",
                param="definition_hash",
            )
        if accept:
            return self.accepted([candidate], by)
        pin = msgspec.structs.replace(
            self.pins[tool], refused=candidate.hash, changed_at=self.read_at
        )
        return changed(self, pins={**self.pins, tool: pin})


NO_PINS = PinSet()
"""Of a server that nobody has listed, or whose pins are off."""


def pin_id(tenant: str, server: str, identity: str, tool: str) -> str:
    """Name a pin by what it is about; another server under the same label has other pins."""
    digest = hashlib.sha256(encode([tenant, server, identity, tool])).hexdigest()
    return "pin_" + digest[:32]


def annotations_of(server: McpServer, tool: str, pin: Pin | None) -> Annotations:
    """Say what is known of a tool: the operator's word, else what the tool says of itself.

    Claims count as verified only where the operator vouches for the server and the definition is
    the pinned one. Beside the operator's word, those of an untrusted server are left out.
    """
    word = server.tools.get(tool)
    trusted = pin.trusted if pin is not None and pin.status == "trusted" else None
    vouched = trusted is not None and server.trust != "untrusted"
    shown = trusted or (pin.candidate if pin is not None else None)
    if word is None and shown is None:
        return UNANNOTATED
    claims: Mapping[str, Any] | None = shown.annotations if shown else None
    if word is not None and not vouched:
        claims = None
    said = {name: hint(claims, name) for name in _MCP_HINTS}
    if word is not None:
        said |= {name: value for name in said if (value := getattr(word, name)) is not None}
    return Annotations(
        **said, title=shown.title if shown else None, verified=vouched or word is not None
    )


# Differences


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not what it was.

    Attributes:
        field: A JSON pointer such as `/description` or `/input_schema/properties/to`.
        old, new: The value as JSON text; `None` where there is none.
    """

    field: str
    old: str | None
    new: str | None


def differences(old: Definition | None, new: Definition) -> list[Difference]:
    """Compare two definitions field by field, by what both sources show."""
    known = old is None or (old.complete and new.complete)
    before = {} if old is None else _fields(old, complete=known)
    return list(_compare("", before, _fields(new, complete=known and new.complete)))


def _fields(definition: Definition, *, complete: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": definition.name,
        "description": definition.description,
        "input_schema": msgspec.json.decode(definition.input_schema),
    }
    if complete:
        shown["title"] = definition.title
        shown["output_schema"] = msgspec.json.decode(definition.output_schema)
        shown["annotations"] = definition.annotations
    else:
        read_only = hint(definition.annotations, "read_only") is True
        shown["annotations"] = {"read_only": read_only}
    if definition.trimmed:
        shown["hash"] = definition.listed_hash
    return shown


_ABSENT = object()


def _compare(path: str, old: Any, new: Any) -> Iterable[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            inner = path + pointer_to([key])
            yield from _compare(inner, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif _text(old) != _text(new):
        yield Difference(path, _text(old), _text(new))


def _text(value: Any) -> str | None:
    return None if value is _ABSENT else json.dumps(value, ensure_ascii=False)
