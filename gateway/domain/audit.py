"""The audit: what happened, as one hash chain per tenant (APPR-11).

An entry is a flat JSON object. Its `hash` is the SHA-256 of its canonical JSON without `hash`
(keys sorted, no spaces, UTF-8), and that JSON holds the hash of the entry before it as
`previous`. So an entry that is changed, left out or moved is found, and named, by whoever follows
the chain; one that is cut off at the end is found by whoever kept a later checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Document = dict[str, Any]
"""An entry, as it is hashed, stored and shown."""

NOTHING = "sha256:" + "0" * 64
"""The hash before the first entry."""


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: an entry's sequence number, and its hash."""

    sequence: int
    hash: str


START = Link(0, NOTHING)
"""Where every chain begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """Something that happened and is not in the chain yet.

    Attributes:
        token: Its place in the outbox.
        millis: When, by the store's clock, in milliseconds since the epoch.
        subject: Id of the approval or batch that it is about, else "".
        facts: What else the entry says: plain JSON values; `None` is left out.
    """

    token: str
    millis: int
    event: str
    subject: str
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The head of a chain at some time, signed: for logs that the store's keeper cannot reach.

    Attributes:
        key: Id of the ring's key that the signature is made with.
        signature: HMAC-SHA-256 of `signed_text`, in hex.
    """

    tenant: str
    sequence: int
    hash: str
    time: str
    key: str = ""
    signature: str = ""

    @property
    def link(self) -> Link:
        """The entry that it speaks of."""
        return Link(self.sequence, self.hash)

    @property
    def signed_text(self) -> bytes:
        """What the signature covers; a JSON array is injective."""
        parts = ["gw-audit-checkpoint-v1", self.tenant, self.sequence, self.hash, self.time]
        return canonical(parts)


class BrokenChain(Exception):
    """The chain does not hold.

    Attributes:
        sequence: The first entry that is wrong or missing.
    """

    def __init__(self, sequence: int, problem: str) -> None:
        super().__init__(problem)
        self.sequence = sequence
        self.problem = problem


def canonical(value: object) -> bytes:
    """Write JSON in the one form that is hashed: keys sorted, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # What is no character cannot be said in UTF-8, nor read back by an auditor's tools.
    return text.encode("utf-8", "replace")


def digest(data: bytes) -> str:
    """Hash bytes: `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def timestamp(millis: int) -> str:
    """Write a time as RFC 3339 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(millis / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry_after(last: Link, tenant: str, happened: Occurrence) -> Document:
    """Write the entry that follows the last one."""
    sequence = last.sequence + 1
    facts = {name: value for name, value in happened.facts.items() if value not in (None, "")}
    entry = facts | {
        "id": f"aud_{sequence}",
        "object": "audit.entry",
        "sequence": sequence,
        "tenant": tenant,
        "time": timestamp(happened.millis),
        "event": happened.event,
        "previous": last.hash,
    }
    # Once to text and back: what is hashed is what a reader of the stored text hashes again.
    entry = dict(json.loads(canonical(entry)))
    entry["hash"] = digest(canonical(entry))
    return entry


def link_of(entry: Mapping[str, Any]) -> Link:
    """Return an entry's place, as it says itself."""
    return Link(entry["sequence"], entry["hash"])


def follow(last: Link, entry: Mapping[str, Any]) -> Link:
    """Check that an entry is whole and follows the last one; return its place.

    Raises:
        BrokenChain: It does not.
    """
    sequence = entry.get("sequence")
    expected = last.sequence + 1
    if sequence != expected:
        raise BrokenChain(expected, f"entry {expected} is missing or moved: found {sequence!r}")
    content = {name: value for name, value in entry.items() if name != "hash"}
    if digest(canonical(content)) != entry.get("hash"):
        raise BrokenChain(expected, f"entry {expected} was altered: its hash is another")
    if entry.get("previous") != last.hash:
        before = f"entry {last.sequence}" if last.sequence else "the beginning of the chain"
        raise BrokenChain(expected, f"entry {expected} does not follow {before}")
    return Link(expected, entry["hash"])


class Walk:
    """Follows a chain from its base to its end, past all that is known of it from elsewhere.

    Args:
        base: What the first entry follows.
        known: Hashes that entries had when a checkpoint was made, by sequence number.
        wanted: A hash that some entry must have.
    """

    def __init__(
        self, base: Link, known: Mapping[int, str] | None = None, wanted: str | None = None
    ) -> None:
        self.last = base
        self.first: int | None = None
        self.count = 0
        self._known = dict(known or {})
        self._wanted = wanted
        self._pass()

    def step(self, entry: Mapping[str, Any]) -> None:
        """Go on to the next entry.

        Raises:
            BrokenChain: It does not follow, or is another than it was.
        """
        self.last = follow(self.last, entry)
        self.first = self.first or self.last.sequence
        self.count += 1
        self._pass()

    def _pass(self) -> None:
        sequence, hash_ = self.last.sequence, self.last.hash
        if self._known.pop(sequence, hash_) != hash_:
            problem = f"entry {sequence} is another than at its checkpoint: the chain was rewritten"
            raise BrokenChain(sequence, problem)
        if self._wanted == hash_:
            self._wanted = None

    def end(self) -> None:
        """Say that there are no more entries.

        Raises:
            BrokenChain: There were more once.
        """
        beyond = [sequence for sequence in self._known if sequence > self.last.sequence]
        if beyond:
            first, latest = self.last.sequence + 1, max(beyond)
            raise BrokenChain(first, f"entries {first} to {latest} are missing at the end")
        if self._wanted is not None:
            problem = f"no entry has the hash {self._wanted}: the chain was cut or rewritten"
            raise BrokenChain(self.last.sequence + 1, problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What verifying a chain found.

    Attributes:
        entries: How many were followed, from `first` to `last`.
        head: The place of the last good entry.
        checkpoint: The newest one that the chain was held against.
        problem: What is wrong with the first bad entry, in one line; `None` when all is well.
        broken_at: That entry's sequence number; `None` where the chain itself holds.
    """

    entries: int
    first: int | None
    head: Link
    checkpoint: Checkpoint | None = None
    problem: str | None = None
    broken_at: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None


def parse_sequence(entry_id: str) -> int | None:
    """Read the sequence number out of an entry's id."""
    name, _, number = entry_id.partition("_")
    known = name == "aud" and number.isascii() and number.isdigit() and len(number) < 16
    return int(number) if known else None
