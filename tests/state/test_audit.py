"""The chain holds whoever crashes or races, and whoever touches it is found (APPR-11)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.metrics import PrometheusMeter
from gateway.adapters.redis import keys
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.audit import RedisAuditStore
from gateway.adapters.redis.client import Client, execute, open_clients
from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.domain.approvals import ApprovalStatus, BatchStatus
from gateway.domain.audit import Checkpoint, Verdict
from gateway.domain.rules import RuleSet
from gateway.services.audit import AuditTerms, Chainer, Verifier, signed_head

from .conftest import Stores
from .make import APPROVE, DENY, OTHER, TENANT, approval, everything, opened, vote

CHAIN, NEW = keys.audit(TENANT), keys.audit_new(TENANT)
HEAD = CHAIN + b":head"


def chainer(client: Client, ring: KeyRing, *, retention: float = 86400.0) -> Chainer:
    return Chainer(
        store=RedisAuditStore(client, ring),
        signer=ring,
        meter=PrometheusMeter(models=(), servers=()),
        tenants=[TENANT, OTHER],
        policy=RuleSet((), servers=()),
        terms=AuditTerms(retention=retention, checkpoint_interval=600, checkpoint_entries=1000),
    )


async def noted(client: Client, ring: KeyRing, count: int, *, first: int = 0) -> RedisAuditStore:
    store = RedisAuditStore(client, ring)
    for number in range(first, first + count):
        await store.note(TENANT, "test.noted", actor="gateway", subject=f"n{number}")
    return store


async def chained(client: Client, ring: KeyRing, count: int = 5) -> RedisAuditStore:
    store = await noted(client, ring, count)
    await chainer(client, ring).drain(TENANT)
    return store


async def verified(store: RedisAuditStore, ring: KeyRing, **options: Any) -> Verdict:
    return await Verifier(store, ring).verify(TENANT, **options)


async def subjects(store: RedisAuditStore) -> list[str]:
    found = await store.entries(TENANT, first=1, last=None, newest=False, limit=100_000)
    return [entry["subject"] for entry in found]


# What is told


@pytest.mark.covers("APPR-11")
async def test_every_transition_is_told_once_with_who_and_why(
    stores: Stores, client: Client, ring: KeyRing
) -> None:
    asked, denied = approval(quorum=2), approval()
    born = approval(
        status=ApprovalStatus.APPROVED, by="policy", decided_by="policy:reads", rule="reads"
    )
    late = approval(timeout=0, batch_id="resp_late")
    store = stores.approvals
    await opened(store, asked, denied, born)
    await opened(store, late)
    await vote(store, asked, "ann", APPROVE, reason="fine")
    await vote(store, asked, "ann", APPROVE)
    await vote(store, asked, "ben", APPROVE)
    await vote(store, denied, "ann", DENY, reason="no")
    await store.get(TENANT, late.id)
    for status in (BatchStatus.READY, BatchStatus.INDETERMINATE):
        batch = await store.claim(TENANT, "resp_leg", lease=30)
        assert batch is not None
        await store.dispatch(TENANT, "resp_leg", fence=batch.fence)
        await store.finish(
            TENANT, "resp_leg", fence=batch.fence, status=status, upstream_request="req_7"
        )
    await chainer(client, ring).drain(TENANT)
    audit = RedisAuditStore(client, ring)
    entries = await audit.entries(TENANT, first=1, last=None, newest=False, limit=100)
    told = [
        (one["event"], one.get("approval_id", "batch"), one.get("outcome"), one.get("actor"))
        for one in entries
    ]
    caller, ann, ben = "subject:svc:web", "subject:ann", "subject:ben"
    assert told == [
        ("approval.requested", asked.id, None, caller),
        ("approval.requested", denied.id, None, caller),
        ("approval.resolved", born.id, "approved", "policy:reads"),
        ("approval.requested", late.id, None, caller),
        ("approval.voted", asked.id, "approve", ann),
        ("approval.voted", asked.id, "approve", ben),
        ("approval.resolved", asked.id, "approved", ben),
        ("approval.voted", denied.id, "deny", ann),
        ("approval.resolved", denied.id, "denied", ann),
        ("approval.resolved", late.id, "expired", "timeout"),
        ("continuation.claimed", "batch", None, "gateway"),
        ("continuation.dispatched", "batch", None, "gateway"),
        ("continuation.released", "batch", None, "gateway"),
        ("continuation.claimed", "batch", None, "gateway"),
        ("continuation.dispatched", "batch", None, "gateway"),
        ("continuation.indeterminate", "batch", None, "gateway"),
    ]
    assert entries[4]["reason"] == "fine"
    assert entries[8]["reason"] == "no"
    assert entries[-1]["upstream_request_id"] == "req_7"
    assert entries[-1]["fence"] == 2
    assert set(entries[-1]["approval_ids"]) == {asked.id, denied.id, born.id}
    of_one = await audit.about(TENANT, [denied.id, "resp_leg"])
    assert [one["sequence"] for one in of_one] == [2, 8, 9, 11, 12, 13, 14, 15, 16]


async def test_what_is_noted_once_is_noted_when_it_changes(client: Client, ring: KeyRing) -> None:
    store = RedisAuditStore(client, ring)
    for state in ("v1", "v1", "v2", "v2", "v1"):
        await store.note(TENANT, "policy.loaded", actor=f"policy:{state}", once=state)
    newer = RedisAuditStore(client, KeyRing([("k2", b"\2" * 32), ("k1", b"\1" * 32)]))
    await newer.note(TENANT, "policy.loaded", actor="gateway", once="v1")
    await chainer(client, ring).drain(TENANT)
    found = await store.entries(TENANT, first=1, last=None, newest=False, limit=9)
    assert [one["actor"] for one in found] == ["policy:v1", "policy:v2", "policy:v1"]


# Whoever crashes or races

KILLED = """
import asyncio, sys
from tests.state.test_audit import chainer, KeyRing, TENANT
from gateway.adapters.redis.client import open_clients

async def main():
    async with open_clients(sys.argv[1]) as clients:
        one = chainer(clients.commands, KeyRing([("k1", bytes([1]) * 32)]))
        print("ready", flush=True)
        while True:
            await one.drain(TENANT)

asyncio.run(main())
"""


@pytest.mark.covers("APPR-11", "APPR-4")
async def test_a_killed_chainer_loses_and_doubles_nothing(
    valkey: EmbeddedValkey, client: Client, ring: KeyRing
) -> None:
    store = await noted(client, ring, 1)
    root = Path(__file__).parents[2]
    for round_ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, valkey.url],
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert process.stdout is not None
        with process.stdout:
            await asyncio.to_thread(process.stdout.readline)
            await noted(client, ring, 150, first=1 + round_ * 150)
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
    await noted(client, ring, 1, first=301)
    await chainer(client, ring).drain(TENANT)
    assert await subjects(store) == [f"n{number}" for number in range(302)]
    assert (await verified(store, ring)).ok
    assert await client.xlen(NEW) == 0


@pytest.mark.covers("APPR-11")
async def test_replicas_that_chain_at_once_make_one_chain(
    valkey: EmbeddedValkey, client: Client, ring: KeyRing
) -> None:
    async def replica() -> None:
        async with open_clients(valkey.url) as clients:
            one = chainer(clients.commands, ring)
            while (await store.state(TENANT)).head.sequence < 200:
                await one.drain(TENANT)

    store = RedisAuditStore(client, ring)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(replica())
        await noted(client, ring, 200)
    assert await subjects(store) == [f"n{number}" for number in range(200)]
    assert (await verified(store, ring)).ok


async def test_an_append_on_an_old_head_changes_nothing(client: Client, ring: KeyRing) -> None:
    store = await noted(client, ring, 2)
    head, waiting = await store.take(TENANT, limit=1)
    await chainer(client, ring).drain(TENANT)
    entries = [(waiting[0], {"sequence": 1, "hash": "x"})]
    assert not await store.append(TENANT, after=head, entries=entries, retention=60)
    assert (await verified(store, ring)).entries == 2


async def test_an_occurrence_that_does_not_open_is_told_as_such(
    stores: Stores, client: Client, ring: KeyRing
) -> None:
    asked = approval()
    await opened(stores.approvals, asked)
    await client.hset(keys.approval(TENANT, asked.id), "c", "garbage")
    store = await noted(client, ring, 1)
    await chainer(client, ring).drain(TENANT)
    first, second = await store.entries(TENANT, first=1, last=None, newest=False, limit=9)
    assert (first["event"], first["problem"]) == ("approval.requested", "its facts do not open")
    assert second["subject"] == "n0"


# Whoever touches it

Touch = Callable[[Client], Awaitable[object]]


async def swap(client: Client) -> None:
    found: Any = await client.xrange(CHAIN)
    (_, second), (_, third) = found[1:3]
    await client.xtrim(CHAIN, maxlen=0, approximate=False)
    await execute(client, "DEL", CHAIN)
    order = [found[0][1], third, second, found[3][1], found[4][1]]
    for number, fields in enumerate(order, 1):
        await client.xadd(CHAIN, fields, id=f"{number}-0")


async def change(client: Client) -> None:
    found: Any = await client.xrange(CHAIN)
    await execute(client, "DEL", CHAIN)
    for number, (_, fields) in enumerate(found, 1):
        sealed = bytearray(fields[b"c"])
        sealed[-1] ^= number == 3
        await client.xadd(CHAIN, {"c": bytes(sealed), "t": fields[b"t"]}, id=f"{number}-0")


@pytest.mark.covers("APPR-11")
@pytest.mark.parametrize(
    ("touch", "at"),
    [
        (change, 3),
        (swap, 2),
        (lambda client: client.xdel(CHAIN, "1-0"), 1),
        (lambda client: client.xdel(CHAIN, "4-0"), 4),
        (lambda client: client.xdel(CHAIN, "5-0"), 5),
        (lambda client: client.xtrim(CHAIN, maxlen=2, approximate=False), 1),
        (lambda client: client.delete(HEAD), 1),
    ],
)
async def test_what_was_touched_is_found_and_named(
    client: Client, ring: KeyRing, touch: Touch, at: int
) -> None:
    store = await chained(client, ring)
    assert (await verified(store, ring)).ok
    await touch(client)
    verdict = await verified(store, ring)
    assert not verdict.ok
    assert verdict.broken_at == at


async def checkpointed(
    client: Client, ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> Checkpoint:
    one = chainer(client, ring)
    stop = asyncio.Event()
    stop.set()
    logging.getLogger("gateway.audit").addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "gateway.audit")
    try:
        await one.run(stop)  # a replica that stops signs what it leaves
    finally:
        logging.getLogger("gateway.audit").removeHandler(caplog.handler)
    lines = [vars(one) for one in caplog.records if one.msg == "audit checkpoint"]
    found = [line["checkpoint"] for line in lines]
    (logged,) = {Checkpoint(**one) for one in found if one["tenant"] == TENANT}
    return logged


@pytest.mark.covers("APPR-11")
async def test_a_chain_that_was_cut_or_rewritten_as_a_whole_shows_against_a_logged_checkpoint(
    client: Client, ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    store = await chained(client, ring, 3)
    before: Any = await client.dump(CHAIN), await client.dump(HEAD)
    await noted(client, ring, 3, first=3)
    known = await checkpointed(client, ring, caplog)
    assert (await verified(store, ring, known=[known])).checkpoint == known
    for name, value in zip((CHAIN, HEAD), before, strict=True):
        await client.restore(name, 0, value, replace=True)
    await client.delete(CHAIN + b":checkpoints")
    assert (await verified(store, ring)).ok  # an old state, whole: nothing inside tells
    cut = await verified(store, ring, known=[known])
    assert (cut.ok, cut.broken_at) == (False, 4)
    assert not (await verified(store, ring, wanted=known.hash)).ok
    await client.flushall()  # and somebody who has the keys writes another one
    await chained(client, ring, known.sequence + 2)
    assert (await verified(store, ring)).ok
    rewritten = await verified(store, ring, known=[known])
    assert (rewritten.ok, rewritten.broken_at) == (False, known.sequence)


async def test_a_forged_checkpoint_is_no_checkpoint(client: Client, ring: KeyRing) -> None:
    store = await chained(client, ring)
    stranger = KeyRing([("k1", b"\7" * 32)])
    forged = signed_head(stranger, TENANT, await store.state(TENANT))
    assert not (await verified(store, ring, known=[forged])).ok


async def test_an_occurrence_that_nobody_chains_is_a_fault(client: Client, ring: KeyRing) -> None:
    store = await chained(client, ring)
    await client.xtrim(NEW, maxlen=0)
    await execute(client, "DEL", NEW)
    await client.xadd(NEW, {"e": "test.noted", "i": "note_1", "n": "x"}, id="1000-0")
    verdict = await verified(store, ring)
    assert not verdict.ok
    assert verdict.broken_at is None
    assert "waits to be chained" in str(verdict.problem)


# At rest, for long


@pytest.mark.covers("APPR-11", "STATE-4", "MCP-3")
async def test_a_dump_shows_nothing_of_what_is_told(
    stores: Stores, client: Client, ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisAuditStore(client, ring)
    texts = ("server", "tool", "rule", "requester", "end_user", "fingerprint", "arguments")
    asked = approval(**{name: f"canary-{name}" for name in texts})
    await opened(stores.approvals, asked)
    await vote(stores.approvals, asked, "canary-ann", DENY, reason="canary-reason")
    await store.note(
        TENANT, "test.noted", actor="canary", subject="canary", detail={"why": "canary"}, once="c"
    )
    waiting = await everything(client)
    await checkpointed(client, ring, caplog)
    entries = await store.entries(TENANT, first=1, last=None, newest=False, limit=9)
    assert [one["event"] for one in entries][-2:] == ["test.noted", "policy.loaded"]
    assert "canary-arguments" not in str(entries)
    chain = await everything(client)
    for found in (waiting, chain):
        assert b"test.noted" in waiting
        assert b"canary" not in found
        assert entries[-1]["hash"].encode() not in found
        assert entries[-1]["hash"].removeprefix("sha256:").encode() not in found


@pytest.mark.covers("APPR-11", "STATE-4")
async def test_a_chain_goes_on_over_a_rotation_of_keys(client: Client, ring: KeyRing) -> None:
    await chained(client, ring, 3)
    both = KeyRing([("k2", b"\2" * 32), ("k1", b"\1" * 32)])
    store = await noted(client, both, 3, first=3)
    await chainer(client, both).drain(TENANT)
    verdict = await verified(store, both)
    assert (verdict.ok, verdict.entries) == (True, 6)
    only_new = KeyRing([("k2", b"\2" * 32)])
    lost = await verified(RedisAuditStore(client, only_new), only_new)
    assert (lost.ok, lost.broken_at) == (False, 1)


@pytest.mark.covers("APPR-11")
async def test_retention_moves_the_base_and_the_chain_still_holds(
    client: Client, ring: KeyRing
) -> None:
    store = await chained(client, ring, 5)
    state = await store.state(TENANT)
    old: Any = await client.xrange(CHAIN, "1-0", "3-0")
    await execute(client, "DEL", CHAIN)
    rest = await chained_again(client, ring, old)
    assert await store.prune(TENANT, before=2000, state=state) == 3
    verdict = await verified(store, ring)
    assert (verdict.ok, verdict.first, verdict.entries) == (True, 4, len(rest))
    assert await chainer(client, ring, retention=-60).prune(TENANT) == len(rest)
    verdict = await verified(store, ring)
    assert (verdict.ok, verdict.entries, verdict.head.sequence) == (True, 0, 5)
    await noted(client, ring, 1, first=5)
    await chainer(client, ring).drain(TENANT)
    verdict = await verified(store, ring)
    assert (verdict.ok, verdict.first, verdict.entries) == (True, 6, 1)
    await client.hdel(HEAD, "b", "bn")
    assert (await verified(store, ring)).broken_at == 1


async def chained_again(client: Client, ring: KeyRing, old: Any) -> list[Any]:
    """Write the same five entries with the first three a long time ago, by their plain time."""
    await execute(client, "DEL", HEAD)
    await chained(client, ring, 5)
    found: Any = await client.xrange(CHAIN)
    await execute(client, "DEL", CHAIN)
    for number, (_, fields) in enumerate(found, 1):
        moment = b"1000" if number <= len(old) else fields[b"t"]
        await client.xadd(CHAIN, {"c": fields[b"c"], "t": moment}, id=f"{number}-0")
    return list(found[len(old) :])


async def test_a_time_is_found_among_the_entries(client: Client, ring: KeyRing) -> None:
    store = await chained(client, ring, 3)
    found: Any = await client.xrange(CHAIN)
    await execute(client, "DEL", CHAIN)
    for number, (_, fields) in enumerate(found, 1):
        at = str(number * 1000).encode()
        await client.xadd(CHAIN, {"c": fields[b"c"], "t": at}, id=f"{number}-0")
    moments = (0, 1000, 1001, 2000, 3000, 3001)
    assert [await store.since(TENANT, millis) for millis in moments] == [1, 1, 2, 2, 3, 4]


async def test_approvals_of_a_plain_store_share_nothing_with_another_tenants(
    stores: Stores, client: Client, ring: KeyRing
) -> None:
    store: RedisApprovalStore = stores.approvals
    await opened(store, approval())
    await opened(store, approval(tenant=OTHER, batch_id="resp_other"))
    one = chainer(client, ring)
    for tenant in (TENANT, OTHER):
        await one.drain(tenant)
        audit = RedisAuditStore(client, ring)
        (entry,) = await audit.entries(tenant, first=1, last=None, newest=False, limit=9)
        assert (entry["tenant"], entry["sequence"]) == (tenant, 1)
