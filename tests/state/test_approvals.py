"""Approvals and batches are one state machine, whoever comes when (APPR-1, APPR-4 to APPR-6)."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import Any

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis import keys
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.client import Client
from gateway.domain.approvals import ApprovalStatus, BatchStatus, answer
from gateway.domain.ports import Job, Once
from gateway.domain.terms import Escalation

from .conftest import Stores
from .make import APPROVE, DENY, OTHER, TENANT, approval, names, opened, pass_time, turn, vote

EXPIRED = (
    "No approver answered within {}. This is not a human refusal. "
    "Do not retry the call; tell the user that it was not approved in time."
)

RACES = 500 if os.environ.get("GATEWAY_RELIABILITY", "") == "long" else 50

LATE = 0.002
"""A time-out or lease that is over at once."""


async def jobs_of(stores: Stores, kind: str) -> list[Job]:
    jobs = await stores.jobs.take([TENANT], limit=10_000)
    return [job for job in jobs if job.kind == kind]


async def over() -> None:
    await asyncio.sleep(0.005)


# Opening


async def test_an_approval_comes_back_as_it_was_opened(stores: Stores) -> None:
    asked = approval(
        arguments='{"emoji":"🙂","odd":"\ud800"}',
        quorum=2,
        allow_self=True,
        rule="writes",
        rule_reason="writing needs a person",
        timeout=60.0,
    )
    await opened(stores.approvals, asked)
    got = await stores.approvals.get(TENANT, asked.id)
    assert got is not None
    assert got.expires_at == pytest.approx(got.created_at + 60)
    (line,) = got.history
    assert (line.event, line.actor, line.at) == ("requested", "subject:svc:web", got.created_at)
    assert got == dataclasses.replace(
        asked, created_at=got.created_at, expires_at=got.expires_at, history=got.history
    )


async def test_a_batch_waits_while_one_of_it_is_pending(stores: Stores) -> None:
    first, second = approval(), approval(status=ApprovalStatus.APPROVED, by="policy")
    batch = await opened(stores.approvals, first, second)
    assert (batch.status, batch.open, batch.fence) == (BatchStatus.WAITING, 1, 0)
    assert batch.held == b"what is held"
    assert [one.id for one in batch.approvals] == [first.id, second.id]
    assert await jobs_of(stores, "continue") == []


async def test_a_batch_born_decided_is_ready_with_one_job(stores: Stores) -> None:
    born = approval(
        status=ApprovalStatus.DENIED, by="policy", decided_by="policy:no", reason="Never."
    )
    batch = await opened(stores.approvals, born)
    assert batch.status is BatchStatus.READY
    (got,) = batch.approvals
    assert (got.decided_by, got.reason) == ("policy:no", "Never.")
    assert got.decided_at is not None
    assert [job.subject for job in await jobs_of(stores, "continue")] == [batch.id]


async def test_a_batch_born_decided_can_be_born_claimed_without_a_job(stores: Stores) -> None:
    batch = await opened(
        stores.approvals,
        approval(status=ApprovalStatus.APPROVED, by="policy"),
        claim_lease=30.0,
    )
    assert (batch.status, batch.fence) == (BatchStatus.CLAIMED, 1)
    assert await stores.jobs.take([TENANT], limit=10) == []
    assert await stores.approvals.claim(TENANT, batch.id, lease=30) is None
    assert await stores.approvals.dispatch(TENANT, batch.id, fence=1)


async def test_a_pending_batch_is_never_born_claimed(stores: Stores) -> None:
    batch = await opened(stores.approvals, approval(), claim_lease=30.0)
    assert (batch.status, batch.fence) == (BatchStatus.WAITING, 0)


async def test_opening_again_changes_nothing(stores: Stores) -> None:
    first = approval()
    await opened(stores.approvals, first)
    await vote(stores.approvals, first, "ann", DENY)
    again = await opened(stores.approvals, approval(), held=b"something else")
    assert again.held == b"what is held"
    assert [(one.id, one.status) for one in again.approvals] == [(first.id, "denied")]
    assert len(await jobs_of(stores, "continue")) == 1


# Voting


async def test_one_approval_decides_at_a_quorum_of_one(stores: Stores) -> None:
    asked = approval()
    await opened(stores.approvals, asked)
    result = await vote(stores.approvals, asked, "ann", APPROVE, reason="fine")
    assert result.problem is None
    got = result.approval
    assert got is not None
    assert (got.status, got.decided_by, got.reason) == ("approved", "subject:ann", "fine")
    assert (got.votes, got.version) == (("ann",), 2)
    assert got.decided_at is not None


@pytest.mark.covers("APPR-6")
async def test_a_quorum_of_two_needs_two_people(stores: Stores) -> None:
    asked = approval(quorum=2)
    await opened(stores.approvals, asked)
    first = await vote(stores.approvals, asked, "ann", APPROVE)
    assert first.approval is not None
    assert (first.approval.status, first.approval.votes) == ("pending", ("ann",))
    assert first.approval.version == 2
    second = await vote(stores.approvals, asked, "ben", APPROVE)
    assert second.approval is not None
    assert (second.approval.status, second.approval.votes) == ("approved", ("ann", "ben"))


async def test_the_same_vote_again_is_no_second_vote(stores: Stores) -> None:
    asked = approval(quorum=2)
    await opened(stores.approvals, asked)
    first = await vote(stores.approvals, asked, "ann", APPROVE, version=1)
    again = await vote(stores.approvals, asked, "ann", APPROVE, version=1)
    assert again == first
    assert again.problem is None


async def test_the_same_vote_after_the_decision_is_no_problem(stores: Stores) -> None:
    asked = approval()
    await opened(stores.approvals, asked)
    first = await vote(stores.approvals, asked, "ann", DENY, reason="no")
    assert await vote(stores.approvals, asked, "ann", DENY, reason="no") == first


@pytest.mark.parametrize("quorum", [1, 2])
async def test_nobody_votes_both_ways(stores: Stores, quorum: int) -> None:
    asked = approval(quorum=quorum)
    await opened(stores.approvals, asked)
    await vote(stores.approvals, asked, "ann", APPROVE)
    assert (await vote(stores.approvals, asked, "ann", DENY)).problem == "vote_conflict"


@pytest.mark.covers("APPR-6")
async def test_one_deny_wins_over_approvals_below_the_quorum(stores: Stores) -> None:
    asked = approval(quorum=3)
    await opened(stores.approvals, asked)
    await vote(stores.approvals, asked, "ann", APPROVE)
    await vote(stores.approvals, asked, "ben", APPROVE)
    result = await vote(stores.approvals, asked, "eve", DENY, reason="too risky")
    assert result.approval is not None
    assert (result.approval.status, result.approval.reason) == ("denied", "too risky")
    assert result.approval.decided_by == "subject:eve"
    assert result.approval.votes == ("ann", "ben")


async def test_a_decision_is_final(stores: Stores) -> None:
    asked = approval()
    await opened(stores.approvals, asked)
    await vote(stores.approvals, asked, "ann", DENY)
    late = await vote(stores.approvals, asked, "ben", APPROVE)
    assert late.problem == "already_decided"
    assert late.approval is not None
    assert late.approval.status == "denied"


@pytest.mark.covers("APPR-6", "APPR-7")
async def test_a_vote_on_another_call_does_not_count(stores: Stores) -> None:
    asked = approval()
    await opened(stores.approvals, asked)
    wrong = await vote(stores.approvals, asked, "ann", APPROVE, fingerprint="sha256:other")
    assert wrong.problem == "fingerprint_mismatch"
    assert wrong.approval is not None
    assert (wrong.approval.status, wrong.approval.version) == ("pending", 1)


async def test_a_vote_on_another_version_does_not_count(stores: Stores) -> None:
    asked = approval(quorum=3)
    await opened(stores.approvals, asked)
    await vote(stores.approvals, asked, "ann", APPROVE)
    stale = await vote(stores.approvals, asked, "ben", APPROVE, version=1)
    assert stale.problem == "version_mismatch"
    assert (await vote(stores.approvals, asked, "ben", APPROVE, version=2)).problem is None


async def test_a_vote_on_an_unknown_approval_is_told_so(stores: Stores) -> None:
    result = await vote(stores.approvals, approval(), "ann", APPROVE)
    assert (result.problem, result.approval) == ("not_found", None)


# Expiry


@pytest.mark.covers("APPR-6")
async def test_a_late_vote_does_not_count_although_nobody_swept(stores: Stores) -> None:
    asked = approval(timeout=LATE)
    await opened(stores.approvals, asked)
    await over()
    late = await vote(stores.approvals, asked, "ann", APPROVE)
    assert late.problem == "expired"
    assert late.approval is not None
    assert (late.approval.status, late.approval.decided_by) == ("expired", "timeout")
    assert len(await jobs_of(stores, "continue")) == 1


async def test_every_look_expires_what_is_due(stores: Stores) -> None:
    asked = [approval(timeout=LATE, batch_id=f"resp_{n}") for n in range(4)]
    for one in asked:
        await opened(stores.approvals, one)
    await over()
    store = stores.approvals
    got = await store.get(TENANT, asked[0].id)
    found = await store.by_request(TENANT, [asked[1].request_id])
    batch = await store.batch(TENANT, asked[2].batch_id)
    listed, _ = await store.list(TENANT, status="expired")
    assert got is not None
    assert batch is not None
    assert got.status == found[asked[1].request_id].status == "expired"
    assert (batch.status, batch.open) == (BatchStatus.READY, 0)
    assert {one.id for one in listed} == {one.id for one in asked}
    assert await store.list(TENANT, status="pending") == ([], False)


async def test_the_sweeper_expires_each_approval_once(stores: Stores) -> None:
    due = [approval(timeout=LATE) for _ in range(3)]
    await opened(stores.approvals, *due, approval(timeout=60))
    await over()
    assert set(await stores.approvals.expire_due(TENANT)) == {one.id for one in due}
    assert await stores.approvals.expire_due(TENANT) == []
    batch = await stores.approvals.batch(TENANT, due[0].batch_id)
    assert batch is not None
    assert (batch.status, batch.open) == (BatchStatus.WAITING, 1)


async def test_a_sweep_has_no_upper_bound(stores: Stores) -> None:
    due = [approval(timeout=LATE) for _ in range(230)]
    await opened(stores.approvals, *due)
    await over()
    assert len(await stores.approvals.expire_due(TENANT)) == 230


async def test_a_held_approval_stays_open_past_its_time(stores: Stores) -> None:
    asked = approval(timeout=LATE, on_timeout="hold")
    await opened(stores.approvals, asked)
    await over()
    assert await stores.approvals.expire_due(TENANT) == []
    held = await stores.approvals.get(TENANT, asked.id)
    assert held is not None
    assert held.expires_at == pytest.approx(held.created_at + 600)
    result = await vote(stores.approvals, asked, "ann", APPROVE)
    assert result.approval is not None
    assert result.approval.status == "approved"


@pytest.mark.covers("APPR-6")
async def test_a_held_approval_expires_when_its_turn_is_kept_no_longer(stores: Stores) -> None:
    asked = approval(timeout=60.0, on_timeout="hold")
    await opened(stores.approvals, asked, ttl=600)
    await pass_time(stores.client, 599)
    assert await stores.approvals.expire_due(TENANT) == []
    await pass_time(stores.client, 1)
    assert await stores.approvals.expire_due(TENANT) == [asked.id]
    got = await stores.approvals.get(TENANT, asked.id)
    assert got is not None
    assert (got.status, got.decided_by) == ("expired", "timeout")
    assert answer(got) == (False, EXPIRED.format("10 min"))
    assert len(await jobs_of(stores, "continue")) == 1


async def test_a_turn_that_waits_is_kept_as_long_as_what_it_waits_for(stores: Stores) -> None:
    await stores.turns.record(turn("resp_turn"), ttl=60)
    await opened(stores.approvals, approval(timeout=7200.0), ttl=60)
    left = await stores.client.ttl(keys.turn(TENANT, "resp_turn"))
    assert left > 7200


@pytest.mark.covers("APPR-6")
async def test_rewind_on_timeout_gives_the_whole_batch_up_with_true_causes(stores: Stores) -> None:
    given, asked, other = (
        approval(),
        approval(timeout=60.0, on_timeout="rewind"),
        approval(timeout=600.0, on_timeout="hold"),
    )
    batch = await opened(stores.approvals, given, asked, other)
    await vote(stores.approvals, given, "ann", APPROVE)
    await pass_time(stores.client, 60)
    assert await stores.approvals.expire_due(TENANT) == [asked.id]
    got = await stores.approvals.batch(TENANT, batch.id)
    assert got is not None
    assert (got.status, got.open, got.cause) == ("abandoned", 0, "timeout")
    assert [one.status for one in got.approvals] == ["approved", "expired", "canceled"]
    assert got.approvals[2].decided_by == "timeout"
    assert "not decided in time" in answer(got.approvals[2])[1]  # type: ignore[operator]
    assert (await vote(stores.approvals, other, "ann", APPROVE)).problem == "already_decided"
    assert await stores.approvals.claim(TENANT, batch.id, lease=30) is None
    assert [job.subject for job in await jobs_of(stores, "continue")] == [batch.id]


async def test_a_rewind_of_the_callers_own_flow_makes_no_job(stores: Stores) -> None:
    asked = approval(by="caller", timeout=60.0, on_timeout="rewind")
    batch = await opened(stores.approvals, asked)
    await pass_time(stores.client, 60)
    got = await stores.approvals.batch(TENANT, batch.id)
    assert got is not None
    assert (got.status, got.cause) == ("abandoned", "timeout")
    assert await jobs_of(stores, "continue") == []


# The continuation


@pytest.mark.covers("APPR-4")
async def test_the_last_decision_makes_exactly_one_job(stores: Stores) -> None:
    asked = [approval() for _ in range(3)]
    batch = await opened(stores.approvals, *asked)
    votes = [
        vote(stores.approvals, one, actor, APPROVE) for one in asked for actor in ("ann", "ben")
    ]
    await asyncio.gather(*votes)
    (job,) = await jobs_of(stores, "continue")
    assert (job.subject, job.tenant) == (batch.id, TENANT)


async def test_the_callers_own_answer_makes_no_job(stores: Stores) -> None:
    native, asked = approval(by="caller"), approval()
    batch = await opened(stores.approvals, native, asked)
    await vote(stores.approvals, asked, "ann", APPROVE)
    await vote(stores.approvals, native, "svc:web", APPROVE)
    assert await jobs_of(stores, "continue") == []
    claimed = await stores.approvals.claim(TENANT, batch.id, lease=30)
    assert claimed is not None
    assert claimed.fence == 1


@pytest.mark.covers("APPR-6")
async def test_opposite_decisions_at_once_have_one_winner(stores: Stores) -> None:
    for round_ in range(RACES):
        asked = approval(batch_id=f"resp_{round_}")
        await opened(stores.approvals, asked)
        results = await asyncio.gather(
            *(
                vote(stores.approvals, asked, f"actor-{n}", APPROVE if n % 2 else DENY)
                for n in range(20)
            )
        )
        won = [result for result in results if result.problem is None]
        assert len(won) == 1
        final = await stores.approvals.get(TENANT, asked.id)
        assert won[0].approval == final
        assert {r.problem for r in results if r.problem} == {"already_decided"}
    assert len(await jobs_of(stores, "continue")) == RACES


@pytest.mark.covers("APPR-4", "APPR-5")
async def test_one_of_many_workers_claims(stores: Stores) -> None:
    for round_ in range(20):
        asked = approval(batch_id=f"resp_{round_}")
        batch = await opened(stores.approvals, asked)
        await vote(stores.approvals, asked, "ann", APPROVE)
        claims = await asyncio.gather(
            *(stores.approvals.claim(TENANT, batch.id, lease=30) for _ in range(10))
        )
        assert [claim.fence for claim in claims if claim is not None] == [1]


async def ready(store: RedisApprovalStore) -> str:
    asked = approval()
    batch = await opened(store, asked)
    await vote(store, asked, "ann", APPROVE)
    return batch.id


async def test_a_waiting_batch_is_not_claimed(stores: Stores) -> None:
    batch = await opened(stores.approvals, approval())
    assert await stores.approvals.claim(TENANT, batch.id, lease=30) is None


async def test_the_whole_way_of_a_batch(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    claimed = await store.claim(TENANT, batch_id, lease=30)
    assert claimed is not None
    assert (claimed.status, claimed.fence, claimed.held) == ("claimed", 1, b"what is held")
    assert await store.renew(TENANT, batch_id, fence=1, lease=30)
    assert await store.dispatch(TENANT, batch_id, fence=1)
    assert await store.renew(TENANT, batch_id, fence=1, lease=30)
    for _ in range(2):
        assert await store.finish(
            TENANT, batch_id, fence=1, status=BatchStatus.DONE, next_response_id="resp_next"
        )
    done = await store.batch(TENANT, batch_id)
    assert done is not None
    assert (done.status, done.next_response_id) == (BatchStatus.DONE, "resp_next")
    assert not await store.finish(TENANT, batch_id, fence=1, status=BatchStatus.FAILED)
    assert await store.claim(TENANT, batch_id, lease=30) is None


@pytest.mark.covers("APPR-5")
async def test_a_request_is_dispatched_once(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    await store.claim(TENANT, batch_id, lease=30)
    sent = await asyncio.gather(*(store.dispatch(TENANT, batch_id, fence=1) for _ in range(10)))
    assert sent.count(True) == 1


@pytest.mark.covers("APPR-4")
async def test_a_lease_that_lapsed_before_dispatch_can_be_claimed_anew(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    await store.claim(TENANT, batch_id, lease=LATE)
    await over()
    assert not await store.dispatch(TENANT, batch_id, fence=1)
    again = await store.claim(TENANT, batch_id, lease=30)
    assert again is not None
    assert again.fence == 2


@pytest.mark.covers("APPR-5")
async def test_the_holder_of_an_old_fence_can_do_nothing(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    await store.claim(TENANT, batch_id, lease=LATE)
    await over()
    await store.claim(TENANT, batch_id, lease=30)
    assert not await store.renew(TENANT, batch_id, fence=1, lease=30)
    assert not await store.dispatch(TENANT, batch_id, fence=1)
    assert not await store.finish(TENANT, batch_id, fence=1, status=BatchStatus.DONE)
    assert await store.dispatch(TENANT, batch_id, fence=2)


@pytest.mark.covers("APPR-5")
async def test_a_lease_that_lapsed_after_dispatch_is_never_sent_again(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    await store.claim(TENANT, batch_id, lease=30)
    assert await store.dispatch(TENANT, batch_id, fence=1)
    await store.renew(TENANT, batch_id, fence=1, lease=LATE)
    await over()
    assert await store.claim(TENANT, batch_id, lease=30) is None
    batch = await store.batch(TENANT, batch_id)
    assert batch is not None
    assert batch.status is BatchStatus.INDETERMINATE
    assert not await store.finish(TENANT, batch_id, fence=1, status=BatchStatus.DONE)


async def test_the_sweeper_gives_a_lapsed_claim_a_new_job(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    for job in await jobs_of(stores, "continue"):
        await stores.jobs.done(job)
    await store.claim(TENANT, batch_id, lease=LATE)
    await over()
    await store.expire_due(TENANT)
    await store.expire_due(TENANT)
    assert [job.subject for job in await jobs_of(stores, "continue")] == [batch_id]
    again = await store.claim(TENANT, batch_id, lease=30)
    assert again is not None
    assert again.fence == 2


@pytest.mark.parametrize("by", ["policy", "caller"])
async def test_a_lapsed_claim_that_no_job_made_gets_none(stores: Stores, by: Any) -> None:
    store = stores.approvals
    born = approval(by=by, status=ApprovalStatus.APPROVED)
    lease = LATE if by == "policy" else None
    batch = await opened(store, born, claim_lease=lease)
    if by == "caller":
        await store.claim(TENANT, batch.id, lease=LATE)
    await over()
    await store.expire_due(TENANT)
    assert await jobs_of(stores, "continue") == []
    again = await store.claim(TENANT, batch.id, lease=30)
    assert again is not None
    assert again.fence == 2


async def test_the_sweeper_marks_a_lapsed_dispatch_indeterminate(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    await store.claim(TENANT, batch_id, lease=30)
    await store.dispatch(TENANT, batch_id, fence=1)
    await store.renew(TENANT, batch_id, fence=1, lease=LATE)
    await over()
    await store.expire_due(TENANT)
    batch = await store.batch(TENANT, batch_id)
    assert batch is not None
    assert batch.status is BatchStatus.INDETERMINATE


async def test_a_batch_ends_only_as_something_final(stores: Stores) -> None:
    with pytest.raises(ValueError, match="waiting"):
        await stores.approvals.finish(TENANT, "resp", fence=1, status=BatchStatus.WAITING)


async def test_abandoning_cancels_what_is_pending(stores: Stores) -> None:
    store, first, second = stores.approvals, approval(), approval()
    batch = await opened(store, first, second)
    await vote(store, first, "ann", APPROVE)
    assert await store.abandon(TENANT, batch.id, reason="The caller left.")
    assert not await store.abandon(TENANT, batch.id, reason="Again.")
    got = await store.batch(TENANT, batch.id)
    assert got is not None
    assert (got.status, got.open) == (BatchStatus.ABANDONED, 0)
    assert [one.status for one in got.approvals] == ["approved", "canceled"]
    assert got.approvals[1].reason == "The caller left."
    assert (await vote(store, second, "ann", APPROVE)).problem == "already_decided"
    assert await jobs_of(stores, "continue") == []


async def test_a_batch_past_waiting_is_not_abandoned(stores: Stores) -> None:
    batch_id = await ready(stores.approvals)
    assert not await stores.approvals.abandon(TENANT, batch_id, reason="Late.")


# A person's way out of doubt


async def in_doubt(stores: Stores) -> str:
    batch_id = await ready(stores.approvals)
    await stores.approvals.claim(TENANT, batch_id, lease=30)
    await stores.approvals.dispatch(TENANT, batch_id, fence=1)
    await stores.approvals.finish(TENANT, batch_id, fence=1, status=BatchStatus.INDETERMINATE)
    for job in await jobs_of(stores, "continue"):
        await stores.jobs.done(job)
    return batch_id


@pytest.mark.covers("APPR-5")
async def test_a_retry_makes_one_job_and_may_be_sent_once_more(stores: Stores) -> None:
    store, batch_id = stores.approvals, await in_doubt(stores)
    tried = await asyncio.gather(*(store.retry(TENANT, batch_id, by="subject:ann") for _ in "123"))
    assert sorted(tried) == [False, False, True]
    assert [job.subject for job in await jobs_of(stores, "continue")] == [batch_id]
    claimed = await store.claim(TENANT, batch_id, lease=30)
    assert claimed is not None
    assert claimed.fence == 2
    assert not await store.dispatch(TENANT, batch_id, fence=1)
    assert await store.dispatch(TENANT, batch_id, fence=2)
    last = claimed.approvals[0].history[-1]
    assert (last.event, last.actor, last.status) == ("retried", "subject:ann", "approved")


@pytest.mark.covers("APPR-5")
async def test_a_batch_that_is_not_in_doubt_is_not_retried(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    assert not await store.retry(TENANT, batch_id, by="subject:ann")
    await store.claim(TENANT, batch_id, lease=30)
    assert not await store.retry(TENANT, batch_id, by="subject:ann")
    await store.dispatch(TENANT, batch_id, fence=1)
    assert not await store.retry(TENANT, batch_id, by="subject:ann")
    assert not await store.rewind(TENANT, batch_id, by="subject:ann", reason="x")
    assert not await store.retry(OTHER, batch_id, by="subject:ann")


@pytest.mark.covers("APPR-5")
async def test_a_rewind_of_what_is_in_doubt_is_final_and_names_its_actor(stores: Stores) -> None:
    store, batch_id = stores.approvals, await in_doubt(stores)
    assert await store.rewind(TENANT, batch_id, by="subject:ann", reason="It may have run.")
    assert not await store.rewind(TENANT, batch_id, by="subject:ben", reason="Again.")
    assert not await store.retry(TENANT, batch_id, by="subject:ann")
    got = await store.batch(TENANT, batch_id)
    assert got is not None
    assert (got.status, got.cause) == ("abandoned", "rewind")
    assert got.approvals[0].status == "approved"
    last = got.approvals[0].history[-1]
    assert (last.event, last.actor, last.reason) == ("rewound", "subject:ann", "It may have run.")
    assert [job.subject for job in await jobs_of(stores, "continue")] == [batch_id]


async def test_a_rewind_of_what_waits_cancels_it_with_its_cause(stores: Stores) -> None:
    store, asked = stores.approvals, approval()
    batch = await opened(store, asked)
    assert await store.rewind(TENANT, batch.id, by="subject:ann", reason="Another way.")
    got = await store.get(TENANT, asked.id)
    assert got is not None
    assert (got.status, got.decided_by, got.reason) == ("canceled", "subject:ann", "Another way.")
    assert [job.subject for job in await jobs_of(stores, "continue")] == [batch.id]


# The outbox


async def test_an_approvers_approval_is_told_when_asked_and_when_resolved(stores: Stores) -> None:
    asked = approval()
    await opened(stores.approvals, asked)
    (requested,) = await jobs_of(stores, "webhook")
    await vote(stores.approvals, asked, "ann", APPROVE)
    (resolved,) = await jobs_of(stores, "webhook")
    assert (requested.event, requested.subject) == ("approval.requested", asked.id)
    assert (resolved.event, resolved.subject) == ("approval.resolved", asked.id)
    assert requested.event_id != resolved.event_id
    assert resolved.occurred_at >= requested.occurred_at > 1.7e9


@pytest.mark.parametrize("by", ["caller", "policy"])
async def test_other_approvals_are_nobody_elses_business(stores: Stores, by: str) -> None:
    status = "approved" if by == "policy" else "pending"
    asked = approval(by=by, status=ApprovalStatus(status))
    await opened(stores.approvals, asked)
    await vote(stores.approvals, asked, "svc:web", APPROVE)
    assert await jobs_of(stores, "webhook") == []


# Lists


async def test_a_list_is_newest_first_and_pages(stores: Stores) -> None:
    asked = [approval(batch_id=f"resp_{n // 3}") for n in range(7)]
    for n in range(0, 7, 3):
        await opened(stores.approvals, *asked[n : n + 3])
    newest = [one.id for one in reversed(asked)]
    seen: list[str] = []
    more, after = True, None
    while more:
        page, more = await stores.approvals.list(TENANT, status="pending", after=after, limit=2)
        seen += [one.id for one in page]
        after = seen[-1]
    assert seen == newest


async def test_a_page_goes_on_after_what_was_decided_meanwhile(stores: Stores) -> None:
    asked = [approval() for _ in range(4)]
    await opened(stores.approvals, *asked)
    page, more = await stores.approvals.list(TENANT, status="pending", limit=2)
    assert more
    await vote(stores.approvals, page[-1], "ann", DENY)
    rest, more = await stores.approvals.list(TENANT, status="pending", after=page[-1].id)
    assert [one.id for one in rest] == [asked[1].id, asked[0].id]
    assert not more


async def test_a_list_filters(stores: Stores) -> None:
    store = stores.approvals
    mail = approval(server="mail", tool="send", turn_id="resp_a", batch_id="resp_1")
    issue = approval(turn_id="resp_b", batch_id="resp_2")
    await opened(store, mail)
    await opened(store, issue)
    await vote(store, mail, "ann", DENY)

    async def ids(**query: Any) -> list[str]:
        page, _ = await store.list(TENANT, **({"status": None} | query))
        return [one.id for one in page]

    assert await ids() == [issue.id, mail.id]
    assert await ids(status="denied") == [mail.id]
    assert await ids(status="pending") == [issue.id]
    assert await ids(server="mail") == [mail.id]
    assert await ids(tool="create_issue") == [issue.id]
    assert await ids(server="mail", tool="create_issue") == []
    assert await ids(turn_id="resp_b") == [issue.id]
    assert await ids(turn_id="resp_b", status="denied") == []
    assert await ids(after="apr_unknown") == []


async def test_a_list_leaves_out_what_is_past_its_life(stores: Stores, client: Client) -> None:
    gone, kept = approval(), approval()
    await opened(stores.approvals, gone, kept)
    await client.delete(f"gw:{{{TENANT}}}:apr:{gone.id}")
    for status in (None, "pending"):
        page, _ = await stores.approvals.list(TENANT, status=status)
        assert [one.id for one in page] == [kept.id]


async def test_requests_are_found_by_the_upstreams_id(stores: Stores) -> None:
    asked = approval()
    await opened(stores.approvals, asked)
    found = await stores.approvals.by_request(TENANT, ["mcpr_unknown", asked.request_id])
    assert {request: one.id for request, one in found.items()} == {asked.request_id: asked.id}
    assert await stores.approvals.by_request(TENANT, []) == {}


# Tenants


@pytest.mark.covers("AUTH-2")
async def test_another_tenants_ids_are_unknown_everywhere(stores: Stores) -> None:
    store, asked = stores.approvals, approval()
    batch = await opened(store, asked)
    foreign = dataclasses.replace(asked, tenant=OTHER)
    assert await store.get(OTHER, asked.id) is None
    assert await store.by_request(OTHER, [asked.request_id]) == {}
    assert await store.list(OTHER, status=None) == ([], False)
    assert await store.list(OTHER, status=None, turn_id=asked.turn_id) == ([], False)
    assert await store.list(OTHER, status=None, after=asked.id) == ([], False)
    assert (await vote(store, foreign, "ann", DENY)).problem == "not_found"
    assert await store.batch(OTHER, batch.id) is None
    assert not await store.abandon(OTHER, batch.id, reason="x")
    await vote(store, asked, "ann", APPROVE)
    assert await store.claim(OTHER, batch.id, lease=30) is None
    await store.claim(TENANT, batch.id, lease=LATE)
    await over()
    assert await store.expire_due(OTHER) == []
    assert not await store.renew(OTHER, batch.id, fence=1, lease=30)
    assert not await store.dispatch(OTHER, batch.id, fence=1)
    assert not await store.finish(OTHER, batch.id, fence=1, status=BatchStatus.DONE)
    assert await stores.jobs.take([OTHER], limit=10) == []
    assert await store.claim(TENANT, batch.id, lease=30) is not None


# Requests with a key of their own


@pytest.mark.covers("APPR-6")
async def test_a_remembered_answer_ends_after_a_day_and_survives_a_new_key(
    stores: Stores, client: Client
) -> None:
    asked = approval(quorum=3)
    await opened(stores.approvals, asked)
    once = Once("k", b"body")
    first = await vote(stores.approvals, asked, "ann", APPROVE, once=once)
    await vote(stores.approvals, asked, "ben", APPROVE)
    rotated = RedisApprovalStore(client, KeyRing([("k2", b"\2" * 32), ("k1", b"\1" * 32)]))
    again = await vote(rotated, asked, "ann", APPROVE, once=once)
    assert (again, again.counted, first.counted) == (first, False, True)
    other = await vote(rotated, asked, "ann", APPROVE, once=Once("k", b"other"))
    assert other.problem == "idempotency_key_reused"
    kept = [name async for name in names(client) if b":idem:" in name]
    assert len(kept) == 1
    assert 86_000_000 < await client.pttl(kept[0]) <= 86_400_000


# Time


@pytest.mark.covers("APPR-6")
async def test_time_warns_once_and_escalates_in_order_although_nobody_looks(
    stores: Stores,
) -> None:
    levels = (Escalation(100.0, ("group:cfo",)), Escalation(200.0, ("group:ceo", "role:approver")))
    asked = approval(timeout=1000.0, escalate=levels)
    await opened(stores.approvals, asked)
    await pass_time(stores.client, 250)
    got = await stores.approvals.get(TENANT, asked.id)
    assert got is not None
    assert (got.level, got.version) == (2, 3)
    assert got.approvers == ("role:approver", "group:cfo", "group:ceo")
    await pass_time(stores.client, 551)
    for _ in range(2):
        assert await stores.approvals.expire_due(TENANT) == []
    told = [job.event for job in await jobs_of(stores, "webhook")]
    assert told == [
        "approval.requested",
        *["approval.escalated"] * 2,
        "approval.expiring",
    ]
    page = await stores.approvals.inbox(TENANT, after="0-0")
    assert [f"approval.{entry.event}" for entry in page.entries] == told


async def test_more_time_warns_again(stores: Stores) -> None:
    asked = approval(timeout=100.0)
    await opened(stores.approvals, asked)
    await pass_time(stores.client, 90)
    await stores.approvals.expire_due(TENANT)
    await stores.approvals.extend(TENANT, asked.id, actor="ann", seconds=100)
    await pass_time(stores.client, 100)
    await stores.approvals.expire_due(TENANT)
    got = await stores.approvals.get(TENANT, asked.id)
    assert got is not None
    assert [line.event for line in got.history] == [
        "requested",
        "expiring",
        "extended",
        "expiring",
    ]


@pytest.mark.covers("APPR-5")
async def test_what_comes_later_waits_and_is_done_once(stores: Stores) -> None:
    store, batch_id = stores.approvals, await ready(stores.approvals)
    await store.claim(TENANT, batch_id, lease=30)
    for job in await jobs_of(stores, "continue"):
        await stores.jobs.done(job)
    assert await store.finish(TENANT, batch_id, fence=1, status=BatchStatus.READY, delay=3600.0)
    assert await jobs_of(stores, "continue") == []
    assert await stores.client.zcard(f"gw:{{{TENANT}}}:jobs:later") == 1
