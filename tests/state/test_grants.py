"""Grants in a real store: repeats, and what a dump tells (APPR-8, STATE-4)."""

from __future__ import annotations

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.client import Client
from gateway.adapters.redis.grants import RedisGrantStore
from gateway.domain.calls import Call
from gateway.domain.grants import Grant, GrantTerms, Scope, args_hash, candidates
from gateway.domain.ports import Question

pytestmark = [pytest.mark.anyio, pytest.mark.covers("APPR-8")]

ARGUMENTS = '{"title":"plainly-readable"}'


def question(id_: str) -> Question:
    call = Call(
        tenant="t",
        subject="svc:readable",
        end_user="mia-readable",
        server="github",
        server_identity="sha256:1",
        tool="create_readable",
        arguments=ARGUMENTS,
    )
    return Question(
        tenant="t",
        id=id_,
        candidates=tuple(candidates(call, "all", GrantTerms())),
        excluded=("svc:readable", "mia-readable"),
        max_ttl=60,
        max_uses=None,
        asker="svc:readable",
        most=5,
        window=60,
    )


def once() -> Grant:
    return Grant(
        id="grt_1",
        tenant="t",
        scope=Scope.ONCE,
        bound_to="principal",
        rule="all",
        server="github",
        server_identity="sha256:1",
        made_by="user:readable",
        ttl=60,
        tool="create_readable",
        args_hash=args_hash(ARGUMENTS) or "",
        subject="svc:readable",
        end_user="mia-readable",
        reason="a readable reason",
        max_uses=1,
    )


async def test_a_question_that_is_repeated_is_answered_again_and_uses_nothing(
    client: Client, ring: KeyRing
) -> None:
    store = RedisGrantStore(client, ring)
    await store.issue(once())
    first = await store.ask(question("apr_1"))
    again = await store.ask(question("apr_1"))
    other = await store.ask(question("apr_2"))
    assert first.grant is not None
    assert again.grant == first.grant
    assert (first.grant.uses, other.grant) == (1, None)


@pytest.mark.covers("STATE-4")
async def test_nothing_of_a_grant_is_readable_in_a_dump(client: Client, ring: KeyRing) -> None:
    store = RedisGrantStore(client, ring)
    await store.issue(once())
    await store.ask(question("apr_1"))
    await store.revoke("t", "grt_1", actor="user:readable")
    names = [name async for name in client.scan_iter()]
    dumps = [bytes(await client.execute_command("DUMP", name) or b"") for name in names]  # type: ignore[no-untyped-call]
    assert len(names) >= 2
    assert not any(b"readable" in data or b"sha256" in data for data in [*names, *dumps])


async def test_a_key_that_is_rotated_still_finds_the_grants_of_the_old_one(
    client: Client, ring: KeyRing
) -> None:
    await RedisGrantStore(client, ring).issue(once())
    newer = KeyRing([("k2", b"\2" * 32), ("k1", b"\1" * 32)])
    found = await RedisGrantStore(client, newer).ask(question("apr_1"))
    assert found.grant is not None


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "[]",
        '{"a":1,"a":2}',
        '{"a":NaN}',
        '{"a":1e999}',
        '{"a":9007199254740993}',
        '{"a":"\\ud800"}',
    ],
)
def test_arguments_that_readers_disagree_about_equal_nothing(arguments: str) -> None:
    assert args_hash(arguments) is None
