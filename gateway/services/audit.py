"""The audit: chain what happened, sign its head now and then, list it, verify it (APPR-11).

A transition of an approval leaves its occurrence in the script that makes it. Any replica may put
occurrences into the chain: whoever appends first wins, the others look again. So an occurrence is
chained once, in the store's order, whatever crashes between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gateway.domain.audit import (
    BrokenChain,
    Checkpoint,
    Document,
    Link,
    Verdict,
    Walk,
    entry_after,
    link_of,
    parse_sequence,
    timestamp,
)
from gateway.domain.errors import BadRequest, GatewayError, Undecipherable
from gateway.domain.ports import AuditState, AuditStore, Meter, Signer
from gateway.domain.rules import RuleSet
from gateway.services.callers import Caller

logger = logging.getLogger("gateway.audit")

LOOK_EVERY = 1.0
"""Seconds after which a replica looks for what is not chained yet."""

LATE = 60.0
"""Seconds after which an occurrence that is not chained is a fault."""

_AT_ONCE = 100
"""Entries of one append."""

_PAGE = 500
_FURTHEST = 10_000
"""Entries that one listing looks at."""

_PRUNE_EVERY = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTerms:
    """How long entries are kept, and how often the head is signed; seconds and entries."""

    retention: float
    checkpoint_interval: float
    checkpoint_entries: int


class Chainer:
    """Puts what happened into the chains of all tenants."""

    def __init__(
        self,
        *,
        store: AuditStore,
        signer: Signer,
        meter: Meter,
        tenants: Collection[str],
        policy: RuleSet,
        terms: AuditTerms,
    ) -> None:
        self._policy = policy
        self._announced = False
        self._store = store
        self._signer = signer
        self._meter = meter
        self._tenants = list(tenants)
        self._terms = terms
        self._unsigned = dict.fromkeys(self._tenants, 0)
        self._next_round = 0.0
        self._next_prune = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Chain until `stop` is set; then what is left, and sign every changed head."""
        while not stop.is_set():
            await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_EVERY)
        await self._look(ending=True)

    async def _look(self, *, ending: bool = False) -> None:
        try:
            await self._announce()
            lags = await self._store.lags(self._tenants)
        except GatewayError as exc:
            logger.warning("the audit cannot be chained", extra={"code": exc.code})
            return
        for tenant in self._tenants:
            self._meter.audit_lag(tenant=tenant, seconds=lags.get(tenant, 0.0))
        for tenant in lags:
            await self._guarded(tenant, self.drain(tenant))
        now = asyncio.get_running_loop().time()
        if ending or now >= self._next_round:
            self._next_round = now + min(self._terms.checkpoint_interval, 60.0)
            for tenant in self._tenants:
                await self._guarded(tenant, self._sign_if_due(tenant, ending=ending))
        if now >= self._next_prune and not ending:
            self._next_prune = now + _PRUNE_EVERY
            for tenant in self._tenants:
                await self._guarded(tenant, self.prune(tenant))

    async def _announce(self) -> None:
        """Note the rules that this replica decides by, where they are not those noted last."""
        if self._announced:
            return
        version = self._policy.version
        modes = [
            {"rule": rule.id, "effect": rule.effect.value, "mode": rule.mode}
            for rule in self._policy.rules
        ]
        detail = {"version": version, "rules": modes}
        for tenant in self._tenants:
            await self._store.note(
                tenant, "policy.loaded", actor="gateway", detail=detail, once=version
            )
        self._announced = True

    async def _guarded(self, tenant: str, work: Any) -> None:
        try:
            await work
        except Exception:  # one tenant's chain must not stop the others'
            logger.exception("the audit cannot be chained", extra={"tenant": tenant})

    async def drain(self, tenant: str) -> None:
        """Chain all that has happened before this call."""
        while True:
            head, waiting = await self._store.take(tenant, limit=_AT_ONCE)
            if not waiting:
                return
            last, entries = head.link, []
            for happened in waiting:
                entry = entry_after(last, tenant, happened)
                entries.append((happened, entry))
                last = link_of(entry)
            done = await self._store.append(
                tenant, after=head, entries=entries, retention=self._terms.retention
            )
            if done:
                await self._count(tenant, entries)

    async def _count(self, tenant: str, entries: Sequence[tuple[object, Document]]) -> None:
        for _, entry in entries:
            self._meter.audited(entry["event"])
        self._unsigned[tenant] = self._unsigned.get(tenant, 0) + len(entries)
        if self._unsigned[tenant] >= self._terms.checkpoint_entries:
            await self._sign(tenant, await self._store.state(tenant))

    async def _sign_if_due(self, tenant: str, *, ending: bool) -> None:
        state = await self._store.state(tenant)
        signed = state.checkpoint.sequence if state.checkpoint else 0
        if state.head.sequence <= signed:
            return
        age = state.since_checkpoint
        if ending or age is None or age >= self._terms.checkpoint_interval:
            await self._sign(tenant, state)

    async def _sign(self, tenant: str, state: AuditState) -> None:
        """Sign the head, keep it, and log it: the log is what the store's keeper cannot change."""
        self._unsigned[tenant] = 0
        checkpoint = signed_head(self._signer, tenant, state)
        if await self._store.keep_checkpoint(checkpoint):
            logger.info("audit checkpoint", extra={"checkpoint": asdict(checkpoint)})

    async def prune(self, tenant: str) -> int:
        """Drop the entries that are older than the retention; returns how many."""
        dropped = 0
        while True:
            state = await self._store.state(tenant)
            before = state.now - round(self._terms.retention * 1000)
            found = await self._store.prune(tenant, before=before, state=state)
            dropped += found
            if not found:
                return dropped


def signed_head(signer: Signer, tenant: str, state: AuditState) -> Checkpoint:
    """Sign the head of a chain as it is now."""
    head = state.head
    plain = Checkpoint(
        tenant=tenant, sequence=head.sequence, hash=head.hash, time=timestamp(state.now)
    )
    key, signature = signer.sign(plain.signed_text, tenant=tenant)
    return replace(plain, key=key, signature=signature)


def verify_lines(lines: Iterable[Mapping[str, Any]], *, wanted: str | None = None) -> Verdict:
    """Verify an export without store or keys: every link and hash, and that its end is there."""
    export = _Export(wanted)
    try:
        for line in lines:
            export.step(line)
        export.end()
    except BrokenChain as broken:
        return _verdict(export.walk, export.closing, broken)
    return _verdict(export.walk, export.closing)


class _Export:
    """Follows an export; where it begins is what its first line says."""

    def __init__(self, wanted: str | None) -> None:
        self.walk: Walk | None = None
        self.closing: Checkpoint | None = None
        self._wanted = wanted

    def step(self, line: Mapping[str, Any]) -> None:
        at = self.walk.last.sequence + 1 if self.walk else 1
        try:
            if self.closing is not None:
                raise BrokenChain(at, "the export goes on after its closing checkpoint")
            if line.get("object") == "audit.checkpoint":
                self.closing = read_checkpoint(line)
                return
            if self.walk is None:
                before = Link(int(line["sequence"]) - 1, str(line["previous"]))
                self.walk = Walk(before, None, self._wanted)
        except (KeyError, TypeError, ValueError) as exc:
            raise BrokenChain(at, f"where entry {at} should be is no entry") from exc
        self.walk.step(line)

    def end(self) -> None:
        if self.closing is None:
            at = self.walk.last.sequence + 1 if self.walk else 1
            raise BrokenChain(at, "the export has no closing checkpoint: its end is missing")
        self.walk = self.walk or Walk(self.closing.link, None, self._wanted)
        if self.walk.last != self.closing.link:
            problem = f"the export does not end at its checkpoint {self.closing.sequence}"
            raise BrokenChain(self.walk.last.sequence + 1, problem)
        self.walk.end()


def read_checkpoint(line: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint out of an export or a log line.

    Raises:
        KeyError: A part is missing.
    """
    names = ("tenant", "hash", "time", "key", "signature")
    texts = {name: str(line[name]) for name in names}
    return Checkpoint(sequence=int(line["sequence"]), **texts)


def _verdict(
    walk: Walk | None, checkpoint: Checkpoint | None, broken: BrokenChain | None = None
) -> Verdict:
    return Verdict(
        entries=walk.count if walk else 0,
        first=walk.first if walk else None,
        head=walk.last if walk else Link(0, ""),
        checkpoint=checkpoint,
        problem=broken.problem if broken else None,
        broken_at=broken.sequence if broken else None,
    )


class Verifier:
    """Follows a whole chain in the store."""

    def __init__(self, store: AuditStore, signer: Signer) -> None:
        self._store = store
        self._signer = signer

    async def verify(
        self, tenant: str, *, known: Sequence[Checkpoint] = (), wanted: str | None = None
    ) -> Verdict:
        """Verify the chain against itself, its checkpoints, and those kept elsewhere.

        Entries that come while it runs are left for the next time.
        """
        while True:
            walk: Walk | None = None
            latest: Checkpoint | None = None
            try:
                state = await self._store.state(tenant)
                checkpoints = [*await self._store.checkpoints(tenant), *known]
                latest = max(checkpoints, key=lambda one: one.sequence, default=None)
                walk = Walk(state.base, self._hashes(checkpoints), wanted)
                await self._follow(tenant, walk, state)
            except BrokenChain as broken:
                if walk is not None and await self._was_pruned(tenant, walk):
                    continue
                return _verdict(walk, latest, broken)
            except Undecipherable as exc:
                return _verdict(walk, latest, BrokenChain(0, f"the chain's head: {exc}"))
            verdict = _verdict(walk, latest)
            if state.lag is not None and state.lag > LATE:
                problem = f"something that happened waits to be chained for {state.lag:.0f} s"
                return replace(verdict, problem=problem)
            return verdict

    def _hashes(self, checkpoints: Sequence[Checkpoint]) -> dict[int, str]:
        hashes: dict[int, str] = {}
        for one in checkpoints:
            signed = self._signer.is_signed(
                one.signed_text, tenant=one.tenant, key=one.key, signature=one.signature
            )
            if not signed:
                problem = f"the checkpoint of entry {one.sequence} is not signed by key {one.key!r}"
                raise BrokenChain(one.sequence, problem)
            if hashes.setdefault(one.sequence, one.hash) != one.hash:
                problem = f"two checkpoints of entry {one.sequence} differ: one chain was replaced"
                raise BrokenChain(one.sequence, problem)
        return hashes

    async def _follow(self, tenant: str, walk: Walk, state: AuditState) -> None:
        while walk.last.sequence < state.head.sequence:
            page = await self._store.entries(
                tenant,
                first=walk.last.sequence + 1,
                last=state.head.sequence,
                newest=False,
                limit=_PAGE,
            )
            for entry in page:
                walk.step(entry)
            if not page:
                break
        first = walk.last.sequence + 1
        if walk.last.sequence < state.head.sequence:
            problem = f"entries {first} to {state.head.sequence} are missing at the end"
            raise BrokenChain(first, problem)
        if walk.last != state.head or state.last > state.head.sequence:
            raise BrokenChain(first, f"the chain's head is not entry {walk.last.sequence}")
        walk.end()

    async def _was_pruned(self, tenant: str, walk: Walk) -> bool:
        """Tell whether entries went by retention while the chain was followed."""
        try:
            base = (await self._store.state(tenant)).base
        except (BrokenChain, Undecipherable):
            return False
        return base.sequence > walk.last.sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a listing wants; `None` admits everything.

    Attributes:
        event: A name, or its beginning with `*`: `approval.*`.
        actor: As in the entry: `subject:…`, `policy:…`, `timeout`, `gateway`.
        since, until: Milliseconds since the epoch; `until` is left out itself.
    """

    event: str | None = None
    actor: str | None = None
    approval: str | None = None
    since: int | None = None
    until: int | None = None

    def admits(self, entry: Mapping[str, Any]) -> bool:
        """Tell whether an entry is wanted, times and approval aside."""
        return (self.event is None or _named(entry["event"], self.event)) and self.actor in (
            None,
            entry.get("actor"),
        )


def _named(event: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return event.startswith(pattern[:-1])
    return event == pattern


@dataclass(frozen=True, slots=True)
class Listed:
    """A page: its entries, and the id to go on after, or `None`."""

    entries: Sequence[Document]
    last_id: str | None
    more: bool


class AuditService:
    """The audit as auditors read it; only their own tenant's. Who asks is checked at the door."""

    def __init__(self, *, store: AuditStore, signer: Signer, chainer: Chainer) -> None:
        self._store = store
        self._signer = signer
        self._chainer = chainer
        self._verifier = Verifier(store, signer)

    async def list(
        self, caller: Caller, wanted: Wanted, *, after: str | None, limit: int, newest: bool
    ) -> Listed:
        """List entries; what has happened before the call is among them.

        At most 10,000 entries are looked at; a page may then be short, or empty, and still say
        that there is more after its `last_id`.

        Raises:
            BadRequest: `after` is no id of an entry.
        """
        tenant = await self._up_to_now(caller)
        first, last = await self._range(tenant, wanted, after, newest)
        if wanted.approval is not None:
            about = [
                entry
                for entry in await self._about(tenant, wanted.approval)
                if first <= entry["sequence"] <= (last if last is not None else entry["sequence"])
                and wanted.admits(entry)
            ]
            kept = about[::-1][:limit] if newest else about[:limit]
            return Listed(kept, kept[-1]["id"] if kept else None, len(about) > limit)
        found: list[Document] = []
        end = 0
        for _ in range(0, _FURTHEST, _PAGE):
            page = await self._page(tenant, first, last, newest)
            for entry in page:
                if wanted.admits(entry):
                    if len(found) == limit:
                        return Listed(found, found[-1]["id"], True)
                    found.append(entry)
            if not page:
                return Listed(found, found[-1]["id"] if found else None, False)
            end = page[-1]["sequence"]
            first, last = (first, end - 1) if newest else (end + 1, last)
        return Listed(found, f"aud_{end}", True)

    async def _page(
        self, tenant: str, first: int, last: int | None, newest: bool
    ) -> Sequence[Document]:
        return await _readable(
            self._store.entries(tenant, first=first, last=last, newest=newest, limit=_PAGE)
        )

    async def _range(
        self, tenant: str, wanted: Wanted, after: str | None, newest: bool
    ) -> tuple[int, int | None]:
        first, last = 1, None
        if wanted.since is not None:
            first = await self._store.since(tenant, wanted.since)
        if wanted.until is not None:
            last = await self._store.since(tenant, wanted.until) - 1
        if after is not None:
            sequence = parse_sequence(after)
            if sequence is None:
                raise BadRequest(
                    "'after' must be the id of an entry.", code="invalid_value", param="after"
                )
            if newest:
                last = sequence - 1 if last is None else min(last, sequence - 1)
            else:
                first = max(first, sequence + 1)
        return first, last

    async def verify(self, caller: Caller) -> Verdict:
        """Verify the tenant's chain."""
        return await self._verifier.verify(await self._up_to_now(caller))

    async def export(self, caller: Caller) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """Give all entries, oldest first, and a signed checkpoint of the last as the end."""
        tenant = await self._up_to_now(caller)
        return self._pages(tenant, await self._store.state(tenant))

    async def _pages(
        self, tenant: str, state: AuditState
    ) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        last = state.base.sequence
        while last < state.head.sequence:
            page = await self._page(tenant, last + 1, state.head.sequence, newest=False)
            if not page:
                raise AuditBroken(f"The audit is broken: entry {last + 1} is missing.")
            yield page
            last = page[-1]["sequence"]
        checkpoint = signed_head(self._signer, tenant, state)
        yield [{"object": "audit.checkpoint", **asdict(checkpoint)}]

    async def of_approval(self, caller: Caller, approval_id: str) -> Sequence[Document]:
        """List all entries about an approval and its continuation, oldest first: its proof."""
        return await self._about(await self._up_to_now(caller), approval_id)

    async def _about(self, tenant: str, approval_id: str) -> Sequence[Document]:
        own = await _readable(self._store.about(tenant, [approval_id]))
        # Its batch has the id of the response that asked; the entries outlive the approval.
        batches = {entry.get("upstream_response_id") for entry in own} - {None}
        return await _readable(self._store.about(tenant, [approval_id, *map(str, batches)]))

    async def _up_to_now(self, caller: Caller) -> str:
        """Chain what has happened before the call; return the tenant."""
        with contextlib.suppress(BrokenChain, Undecipherable):  # what is there can still be read
            await self._chainer.drain(caller.tenant.id)
        return caller.tenant.id


class AuditBroken(GatewayError):
    """An entry of the audit does not open; `GET /v1/audit/verify` tells which."""

    status_code = 500
    default_code = "audit_broken"


async def _readable(work: Any) -> Sequence[Document]:
    try:
        found: Sequence[Document] = await work
    except BrokenChain as exc:
        raise AuditBroken(f"The audit is broken: {exc.problem}.") from exc
    return found
