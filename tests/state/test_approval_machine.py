"""Whatever people, time and workers do in whatever order: the store does what a small model says.

The model knows the states and guards and nothing of Redis. Time is moved, never waited for: all
steps are multiples of 25 s and all deadlines lie 10 s beyond one, so that a slow machine changes
nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.client import execute, open_clients
from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.domain.approvals import Approval, BatchStatus, Verdict
from gateway.domain.terms import Escalation

from .make import APPROVE, TENANT, approval, opened, pass_time, vote

T = TypeVar("T")

LONG_MODE = os.environ.get("GATEWAY_RELIABILITY", "") == "long"
KEPT = 1010
LEASE = 40
LEVELS = (Escalation(35, ("group:cfo",)), Escalation(85, ("group:ceo",)))
ACTORS = st.sampled_from(["ann", "ben", "eve"])
OVER = st.sampled_from(
    [BatchStatus.DONE, BatchStatus.FAILED, BatchStatus.INDETERMINATE, BatchStatus.READY]
)


@dataclass(eq=False)
class One:
    """An approval of the model."""

    asked: Approval
    created: int
    expires: int
    retained: int
    status: str = "pending"
    votes: dict[str, Verdict] = field(default_factory=dict)
    level: int = 0
    extensions: int = 0
    version: int = 1
    history: list[tuple[str, str]] = field(default_factory=lambda: [("requested", "pending")])


@dataclass(eq=False)
class All:
    """A batch of the model."""

    id: str
    members: list[One]
    by_job: bool
    status: str = "waiting"
    fence: int = 0
    lease: int = 0
    cause: str = ""


class Model:
    """What should happen."""

    def __init__(self) -> None:
        self.now = 0
        self.batches: list[All] = []
        self.jobs = 0

    def advance(self, batch: All) -> None:
        for one in batch.members:
            if one.status != "pending":
                continue
            if self.now >= one.expires:
                if one.asked.on_timeout == "rewind":
                    self.give_up(batch, "timeout")
                else:
                    self.resolve(batch, one, "expired")
                continue
            for level in one.asked.escalate[one.level :]:
                if self.now >= one.created + level.after:
                    self.escalate(one)

    def escalate(self, one: One) -> None:
        one.level += 1
        one.version += 1
        one.history.append(("escalated", "pending"))

    def resolve(self, batch: All, one: One, status: str) -> None:
        was_pending = one.status == "pending"
        one.status = status
        one.version += 1
        one.history.append(("resolved", status))
        if was_pending and batch.status == "waiting" and not self.open(batch):
            self.ready(batch)

    def open(self, batch: All) -> int:
        return sum(one.status == "pending" for one in batch.members)

    def ready(self, batch: All) -> None:
        batch.status = "ready"
        self.jobs += batch.by_job

    def doubt(self, batch: All) -> None:
        batch.status = "indeterminate"
        self.jobs += batch.by_job

    def give_up(self, batch: All, cause: str) -> None:
        batch.status, batch.cause = "abandoned", cause
        for one in batch.members:
            if one.status == "pending":
                self.resolve(batch, one, "expired" if self.now >= one.expires else "canceled")
        self.jobs += batch.by_job and cause != "caller"

    def refused(self, one: One, version: int | None) -> str | None:
        if one.status == "expired":
            return "expired"
        if one.status != "pending":
            return "already_decided"
        return "version_mismatch" if version not in (None, one.version) else None


class Machine(RuleBasedStateMachine):
    """The store beside the model."""

    valkey: EmbeddedValkey
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        clients = self.run(self.stack.enter_async_context(open_clients(self.valkey.url)))
        self.client = clients.commands
        self.run(self.client.flushall())
        self.store = RedisApprovalStore(self.client, KeyRing([("k1", b"\1" * 32)]))

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    @override
    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()

    @precondition(lambda self: len(self.model.batches) < 2)
    @rule(
        target=batches,
        terms=st.lists(
            st.fixed_dictionaries(
                {
                    "timeout": st.sampled_from([60.0, 610.0]),
                    "on_timeout": st.sampled_from(["deny", "hold", "rewind"]),
                    "quorum": st.integers(1, 2),
                    "escalate": st.sampled_from([(), LEVELS[:1], LEVELS]),
                    "max_extensions": st.integers(0, 2),
                }
            ),
            min_size=1,
            max_size=3,
        ),
        by=st.sampled_from(["approver", "approver", "caller"]),
    )
    def open(self, terms: list[dict[str, Any]], by: str) -> All:
        name = f"resp_{len(self.model.batches)}"
        asked = [approval(batch_id=name, by=by, **one) for one in terms]
        self.run(opened(self.store, *asked, ttl=KEPT))
        now = self.model.now
        members = [
            One(
                one,
                now,
                now + (KEPT if one.on_timeout == "hold" else int(one.timeout)),
                now + KEPT,
            )
            for one in asked
        ]
        batch = All(name, members, by_job=by == "approver")
        self.model.batches.append(batch)
        return batch

    @rule(
        batch=batches,
        at=st.integers(0, 2),
        actor=ACTORS,
        verdict=st.sampled_from(list(Verdict)),
        stale=st.booleans(),
        other=st.sampled_from([False, False, False, True]),
    )
    def vote(
        self, batch: All, at: int, actor: str, verdict: Verdict, stale: bool, other: bool
    ) -> None:
        one = batch.members[at % len(batch.members)]
        self.model.advance(batch)
        changes: dict[str, Any] = {"version": one.version + 1 if stale else one.version}
        if other:
            changes["fingerprint"] = "sha256:other"
        result = self.run(vote(self.store, one.asked, actor, verdict, **changes))
        assert (result.problem, result.counted) == self._voted(
            batch, one, actor, verdict, changes["version"], other
        )

    def _voted(
        self, batch: All, one: One, actor: str, verdict: Verdict, version: int, other: bool
    ) -> tuple[str | None, bool]:
        if other:
            return "fingerprint_mismatch", False
        if actor in one.votes:
            return (None if one.votes[actor] is verdict else "vote_conflict"), False
        problem = self.model.refused(one, version)
        if problem is not None:
            return problem, False
        one.votes[actor] = verdict
        approvals = sum(given is APPROVE for given in one.votes.values())
        if verdict is Verdict.DENY:
            self.model.resolve(batch, one, "denied")
        elif approvals >= one.asked.quorum:
            self.model.resolve(batch, one, "approved")
        else:
            one.version += 1
            one.history.append(("voted", "pending"))
        return None, True

    @rule(batch=batches, at=st.integers(0, 2), more=st.sampled_from([50, 500]))
    def extend(self, batch: All, at: int, more: int) -> None:
        one = batch.members[at % len(batch.members)]
        self.model.advance(batch)
        problem = self.model.refused(one, None)
        if problem is None and one.extensions >= one.asked.max_extensions:
            problem = "too_many_extensions"
        if problem is None and one.expires + more > one.retained:
            problem = "beyond_retention"
        work = self.store.extend(TENANT, one.asked.id, actor="ann", seconds=more)
        assert self.run(work).problem == problem
        if problem is None:
            one.expires += more
            one.extensions += 1
            one.version += 1
            one.history.append(("extended", "pending"))

    @rule(batch=batches, at=st.integers(0, 2))
    def escalate(self, batch: All, at: int) -> None:
        one = batch.members[at % len(batch.members)]
        self.model.advance(batch)
        problem = self.model.refused(one, None)
        if problem is None and one.level >= len(one.asked.escalate):
            problem = "no_escalation_left"
        assert self.run(self.store.escalate(TENANT, one.asked.id, actor="a")).problem == problem
        if problem is None:
            self.model.escalate(one)

    @rule(batch=batches, at=st.integers(0, 2), by_person=st.booleans(), stale=st.booleans())
    def withdraw(self, batch: All, at: int, by_person: bool, stale: bool) -> None:
        one = batch.members[at % len(batch.members)]
        self.model.advance(batch)
        id_ = one.asked.id
        if by_person:
            version = one.version + stale
            work = self.store.cancel(TENANT, id_, actor="a", reason="x", version=version)
            problem = self.model.refused(one, version)
        else:
            work = self.store.supersede(TENANT, id_, cause="x")
            problem = self.model.refused(one, None)
        assert self.run(work).problem == problem
        if problem is None:
            self.model.resolve(batch, one, "canceled" if by_person else "superseded")

    @rule(steps=st.sampled_from([1, 1, 2, 3, 20]), swept=st.booleans())
    def pass_time(self, steps: int, swept: bool) -> None:
        self.model.now += 25 * steps
        self.run(pass_time(self.client, 25 * steps))
        if swept:
            self.run(self.store.expire_due(TENANT))
            for batch in self.model.batches:
                self.model.advance(batch)
                self._settle_lease(batch)

    def _settle_lease(self, batch: All) -> None:
        if self.model.now < batch.lease:
            return
        if batch.status == "dispatched":
            self.model.doubt(batch)
        elif batch.status == "claimed" and batch.by_job:
            self.model.ready(batch)

    @rule(batch=batches)
    def claim(self, batch: All) -> None:
        self.model.advance(batch)
        lapsed = self.model.now >= batch.lease
        got = self.run(self.store.claim(TENANT, batch.id, lease=LEASE))
        if batch.status == "dispatched" and lapsed:
            self.model.doubt(batch)
        if batch.status == "ready" or (batch.status == "claimed" and lapsed):
            batch.status, batch.lease = "claimed", self.model.now + LEASE
            batch.fence += 1
            assert got is not None
            assert got.fence == batch.fence
        else:
            assert got is None

    @rule(batch=batches, first=st.sampled_from(list(Verdict)))
    def decide(self, batch: All, first: Verdict) -> None:
        """Go the usual way, so that what lies behind it is tried as well."""
        for at, one in enumerate(batch.members):
            for actor in ("ann", "ben"):
                if one.status == "pending" and actor not in one.votes:
                    verdict = first if at == 0 else APPROVE
                    self.vote(batch, at, actor, verdict, stale=False, other=False)

    @rule(batch=batches, withdrawn=st.booleans())
    def send(self, batch: All, withdrawn: bool) -> None:
        """Claim and dispatch at once, as a worker does."""
        self.claim(batch)
        self.dispatch(batch, 0, withdrawn)

    @rule(batch=batches, old=st.sampled_from([0, 0, 1]), withdrawn=st.booleans())
    def dispatch(self, batch: All, old: int, withdrawn: bool) -> None:
        causes = {one.asked.id: "x" for one in batch.members} if withdrawn else {}
        fence = batch.fence - old
        work = self.store.dispatch(TENANT, batch.id, fence=fence, superseded=causes)
        may = batch.status == "claimed" and not old and self.model.now < batch.lease
        assert self.run(work) is may
        if may:
            batch.status = "dispatched"
            for one in batch.members:
                if withdrawn and one.status == "approved":
                    self.model.resolve(batch, one, "superseded")

    @rule(batch=batches, old=st.sampled_from([0, 0, 1]), status=OVER)
    def finish(self, batch: All, old: int, status: BatchStatus) -> None:
        fence = batch.fence - old
        work = self.store.finish(TENANT, batch.id, fence=fence, status=status)
        again = not old and batch.status == status and batch.fence > 0
        may = not old and batch.status in ("claimed", "dispatched")
        found = self.run(work)
        if batch.fence > 0:
            assert found is (may or again)
        if may and status is BatchStatus.READY:
            self.model.ready(batch)
        elif may:
            batch.status = status.value

    @rule(batch=batches, by_person=st.booleans())
    def give_up(self, batch: All, by_person: bool) -> None:
        self.model.advance(batch)
        if by_person:
            work = self.store.rewind(TENANT, batch.id, by="subject:ann", reason="x")
            may = batch.status in ("waiting", "indeterminate")
        else:
            work = self.store.abandon(TENANT, batch.id, reason="x")
            may = batch.status == "waiting"
        assert self.run(work) is may
        if may:
            self.model.give_up(batch, "rewind" if by_person else "caller")
        if may and by_person:
            for one in batch.members:
                one.history.append(("rewound", one.status))

    @rule(batch=batches)
    def retry(self, batch: All) -> None:
        may = batch.status == "indeterminate"
        assert self.run(self.store.retry(TENANT, batch.id, by="subject:ann")) is may
        if may:
            self.model.ready(batch)
            for one in batch.members:
                one.history.append(("retried", one.status))

    @precondition(lambda self: self.model.batches)
    @invariant()
    def is_as_the_model_says(self) -> None:
        for batch in self.model.batches:
            if batch.status == "waiting":
                self.model.advance(batch)
            found = self.run(self.store.batch(TENANT, batch.id))
            assert found is not None
            assert (found.status, found.cause) == (batch.status, batch.cause)
            assert found.open == (self.model.open(batch) if batch.status == "waiting" else 0)
            for one, got in zip(batch.members, found.approvals, strict=True):
                events = [
                    (line.event, line.status) for line in got.history if line.event != "expiring"
                ]
                assert events == one.history
                assert (got.status, got.version) == (one.status, one.version)
                assert (got.level, got.extensions) == (one.level, one.extensions)
        assert self._continuations() == self.model.jobs

    def _continuations(self) -> int:
        entries = self.run(execute(self.client, "XRANGE", f"gw:{{{TENANT}}}:jobs", "-", "+"))
        return sum(fields[b"k"] == b"continue" for _, fields in entries)


@pytest.mark.covers("APPR-5", "APPR-6")
def test_the_store_does_what_the_model_says(valkey: EmbeddedValkey) -> None:
    Machine.valkey = valkey
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=1000 if LONG_MODE else 60,
            stateful_step_count=40,
            derandomize=not LONG_MODE,
            database=None,
            phases=[Phase.generate],
            print_blob=False,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
