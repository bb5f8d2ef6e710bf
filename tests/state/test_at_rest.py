"""What lies in the server: nothing readable, nothing for ever (STATE-4, AUTH-2)."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis import keys
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.client import Client, execute
from gateway.domain.approvals import ApprovalStatus, BatchStatus
from gateway.domain.errors import Undecipherable
from gateway.domain.ports import Job, Window

from .conftest import Stores
from .make import APPROVE, DENY, TENANT, approval, everything, names, opened, turn, vote

CANARY = "canary"


def canary(name: str) -> str:
    return f"{CANARY}-{name}"


def secret_approval(**changes: Any) -> Any:
    texts = (
        *("upstream", "server", "server_identity", "tool", "arguments", "fingerprint"),
        *("requester", "end_user", "rule", "rule_reason"),
    )
    values = {name: canary(name) for name in texts}
    return approval(**(values | {"approvers": (canary("approvers"),)} | changes))


async def fill(stores: Stores) -> None:
    """Bring every kind of record into the server, each with canaries in all its texts."""
    texts = ("upstream", "end_user", "subject", "model")
    whole = turn(
        "resp_1",
        items=canary("items").encode(),
        response=canary("response").encode(),
        item_ids=("msg_1",),
        **{name: canary(name) for name in texts},
    )
    await stores.turns.record(whole, ttl=600)
    window = Window(turn_id="resp_1", model=canary("model"), items=canary("window").encode())
    await stores.turns.keep_window(TENANT, window, ttl=600, chain_id="resp_1")
    await stores.log.append(TENANT, "resp_1", [(4, canary("event").encode())], ttl=600, end=True)
    voted, denied, late = secret_approval(quorum=2), secret_approval(), secret_approval(timeout=0)
    born = secret_approval(
        status=ApprovalStatus.DENIED, decided_by=canary("by"), reason=canary("why"), by="policy"
    )
    held = canary("held").encode()
    await opened(stores.approvals, voted, denied, late, born, held=held)
    await vote(stores.approvals, voted, canary("ann"), APPROVE, reason=canary("reason"))
    await vote(stores.approvals, denied, canary("ben"), DENY, reason=canary("reason"))
    await stores.approvals.abandon(TENANT, voted.batch_id, reason=canary("note"))
    gone = secret_approval(batch_id="resp_2")
    await opened(stores.approvals, gone, held=held)
    await vote(stores.approvals, gone, canary("ann"), APPROVE)
    await stores.approvals.claim(TENANT, "resp_2", lease=30)
    await stores.jobs.add(Job(token="", tenant=TENANT, kind="continue", subject="b"), delay=60)


@pytest.mark.covers("STATE-4", "MCP-3")
async def test_a_dump_shows_no_content(stores: Stores, client: Client) -> None:
    await fill(stores)
    found = await everything(client)
    assert b"resp_1" in found
    assert CANARY.encode() not in found


@pytest.mark.covers("STATE-4")
async def test_every_key_ends_some_day(stores: Stores, client: Client) -> None:
    await fill(stores)
    found = [name async for name in names(client)]
    kinds = {name.split(b":")[2] for name in found}
    assert kinds == {
        *(b"turn", b"item", b"log", b"apr", b"batch", b"mcpr", b"aprs", b"leases", b"jobs"),
        *(b"audit", b"inbox", b"turns", b"window", b"windows"),
    }
    for name in found:
        if name.split(b":")[2] == b"audit":
            continue  # what happened goes by `audit.retention`, and never before it is chained
        assert await client.pttl(name) > 0, name


async def test_a_batch_lives_longer_than_its_approvals_may_wait(
    stores: Stores, client: Client
) -> None:
    asked = approval(timeout=7200.0)
    await opened(stores.approvals, asked, ttl=60)
    for name in (
        keys.approval(TENANT, asked.id),
        keys.batch(TENANT, asked.batch_id),
        keys.approvals(TENANT),
    ):
        assert await client.pttl(name) > 7_200_000


@pytest.mark.covers("OPS-2")
async def test_every_key_of_a_tenant_is_in_one_slot(stores: Stores, client: Client) -> None:
    await fill(stores)
    async for name in names(client):
        assert name.startswith(b"gw:{acme}:")


async def test_a_sealed_core_of_another_approval_does_not_open(
    stores: Stores, client: Client
) -> None:
    mine, other = approval(), approval(arguments='{"amount":1}')
    await opened(stores.approvals, mine, other)
    foreign = await client.hget(keys.approval(TENANT, other.id), "c")
    assert foreign is not None
    await client.hset(keys.approval(TENANT, mine.id), "c", foreign)
    with pytest.raises(Undecipherable):
        await stores.approvals.get(TENANT, mine.id)


async def test_a_vote_of_another_person_does_not_open(stores: Stores, client: Client) -> None:
    asked = approval(quorum=3)
    await opened(stores.approvals, asked)
    await vote(stores.approvals, asked, "ann", APPROVE)
    await vote(stores.approvals, asked, "ben", APPROVE)
    name = keys.approval(TENANT, asked.id)
    stored: dict[bytes, bytes] = await execute(client, "HGETALL", name)
    ann, ben = (field for field in stored if field.startswith(b"v:"))
    await client.hset(name, ann, stored[ben])
    with pytest.raises(Undecipherable):
        await stores.approvals.get(TENANT, asked.id)


async def test_what_a_batch_holds_belongs_to_it(stores: Stores, client: Client) -> None:
    for batch_id in ("resp_1", "resp_2"):
        await opened(stores.approvals, approval(batch_id=batch_id))
    foreign = await client.hget(keys.batch(TENANT, "resp_2"), "h")
    assert foreign is not None
    await client.hset(keys.batch(TENANT, "resp_1"), "h", foreign)
    with pytest.raises(Undecipherable):
        await stores.approvals.batch(TENANT, "resp_1")


@pytest.mark.covers("STATE-4", "APPR-6")
async def test_a_rotation_of_keys_loses_no_approval_and_gives_nobody_two_votes(
    client: Client,
) -> None:
    old, new = ("k1", b"\1" * 32), ("k2", b"\2" * 32)
    before = RedisApprovalStore(client, KeyRing([old]))
    after = RedisApprovalStore(client, KeyRing([new, old]))
    asked = approval(quorum=2)
    await opened(before, asked)
    await vote(before, asked, "ann", APPROVE)
    again = await vote(after, asked, "ann", APPROVE)
    assert again.problem is None
    assert again.approval is not None
    assert (again.approval.status, again.approval.votes) == ("pending", ("ann",))
    assert (await vote(after, asked, "ann", DENY)).problem == "vote_conflict"
    last = await vote(after, asked, "ben", APPROVE)
    assert last.approval is not None
    assert (last.approval.status, last.approval.votes) == ("approved", ("ann", "ben"))
    batch = await after.claim(TENANT, asked.batch_id, lease=30)
    assert batch is not None
    assert (batch.status, batch.held) == (BatchStatus.CLAIMED, b"what is held")


async def test_indexes_forget_approvals_whose_life_is_over(stores: Stores, client: Client) -> None:
    old = [approval(batch_id="resp_old") for _ in range(5)]
    await opened(stores.approvals, *old)
    for one in old:
        await client.delete(keys.approval(TENANT, one.id))
    await opened(stores.approvals, approval(batch_id="resp_new"))
    assert await client.zcard(keys.approvals(TENANT)) == 1
    assert await client.zcard(keys.approvals(TENANT) + b":status:pending") == 1
