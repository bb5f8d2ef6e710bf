"""Things that tests store, and ways to look at a server from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.client import Client, execute
from gateway.domain.approvals import Approval, Batch, Verdict, new_approval_id
from gateway.domain.ports import Turn, TurnHead, VoteResult

TENANT = "acme"
OTHER = "globex"
APPROVE, DENY = Verdict.APPROVE, Verdict.DENY


def turn(turn_id: str, parent: str | None = None, **changes: Any) -> Turn:
    head: dict[str, Any] = {
        "id": turn_id,
        "tenant": TENANT,
        "upstream": "sweden",
        "parent": parent,
        "last_leg": turn_id,
        "end_user": "user-7",
        "subject": "svc:web",
        "model": "gpt-4.1",
    }
    content = {"items", "response", "item_ids"}
    head |= {name: value for name, value in changes.items() if name not in content}
    body = {name: value for name, value in changes.items() if name in content}
    return Turn(head=TurnHead(**head), **({"items": f"[{turn_id}]".encode()} | body))


def approval(**changes: Any) -> Approval:
    approval_id = new_approval_id()
    plain = Approval(
        id=approval_id,
        tenant=TENANT,
        batch_id="resp_leg",
        turn_id="resp_turn",
        response_id="resp_leg",
        request_id="mcpr_" + approval_id[4:],
        upstream="sweden",
        server="github",
        server_identity="sha256:server",
        tool="create_issue",
        arguments='{"title":"Broken"}',
        fingerprint="sha256:print",
        requester="svc:web",
        end_user="user-7",
        approvers=("role:approver",),
    )
    return dataclasses.replace(plain, **changes)


async def opened(store: RedisApprovalStore, *approvals: Approval, **changes: Any) -> Batch:
    first = approvals[0]
    values: dict[str, Any] = {
        "tenant": first.tenant,
        "batch_id": first.batch_id,
        "turn_id": first.turn_id,
        "approvals": approvals,
        "held": b"what is held",
        "ttl": 600,
    }
    return await store.open_batch(**(values | changes))


async def vote(
    store: RedisApprovalStore, subject: Approval, actor: str, verdict: Verdict, **changes: Any
) -> VoteResult:
    values: dict[str, Any] = {"fingerprint": subject.fingerprint, "reason": None}
    return await store.vote(
        subject.tenant, subject.id, actor=actor, verdict=verdict, **(values | changes)
    )


_PASS = """
local ms = tonumber(ARGV[1])
local function back(key, field)
  local at = tonumber(redis.call('HGET', key, field))
  if at and at > 0 then redis.call('HSET', key, field, string.format('%.0f', at - ms)) end
end
for _, key in ipairs(redis.call('KEYS', '*:apr:*')) do
  for _, field in ipairs({'ca', 'ea', 'ra', 'da', 'wa'}) do back(key, field) end
  local times = string.gsub(redis.call('HGET', key, 'et'), '%d+',
    function(at) return string.format('%.0f', at - ms) end)
  redis.call('HSET', key, 'et', times)
end
for _, key in ipairs(redis.call('KEYS', '*:batch:*')) do back(key, 'l') end
for _, pattern in ipairs({'*:deadlines', '*:leases'}) do
  for _, key in ipairs(redis.call('KEYS', pattern)) do
    for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -ms, id) end
  end
end
"""


async def pass_time(client: Client, seconds: float) -> None:
    """Let time pass for approvals and leases, by moving all their times into the past."""
    await execute(client, "EVAL", _PASS, 0, round(seconds * 1000))


async def names(client: Client) -> AsyncIterator[bytes]:
    """Yield all keys of the server."""
    async for key in client.scan_iter(count=1000):
        assert isinstance(key, bytes)
        yield key


async def everything(client: Client) -> bytes:
    """Return all keys and values of the server, whatever their type."""
    parts: list[bytes] = []
    async for key in names(client):
        kind = bytes(await execute(client, "TYPE", key)).decode()
        parts += [key, *_flat(await _value(client, key, kind))]
    return b"\n".join(parts)


async def _value(client: Client, key: bytes, kind: str) -> object:
    match kind:
        case "hash":
            return await client.hgetall(key)
        case "zset":
            return await client.zrange(key, 0, -1)
        case "stream":
            return await client.xrange(key)
        case "set":
            return list(await client.smembers(key))
        case _:
            return await client.get(key)


def _flat(value: object) -> Sequence[bytes]:
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, dict):
        return [part for pair in value.items() for item in pair for part in _flat(item)]
    if isinstance(value, list | tuple):
        return [part for item in value for part in _flat(item)]
    return []


async def calls(client: Client, command: str) -> int:
    """Return how often a command came over a connection or from a script."""
    stats = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))
