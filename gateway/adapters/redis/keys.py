"""Every key name of the gateway, and nowhere else (AUTH-2, OPS-2).

    gw:{tenant}:turn:<response id>        HASH    a turn
    gw:{tenant}:window:<turn id>:<token>  STRING  what stands for a chain up to the turn
    gw:{tenant}:windows:<chain id>        SET     the chain's windows
    gw:{tenant}:turns                     STREAM  the newest turns' ids, at most some thousands
    gw:{tenant}:item:<item id>            STRING  the turn that holds the item
    gw:{tenant}:conv:<conversation id>    HASH    a conversation; `:items`, `:order` beside it
    gw:{tenant}:convitem:<item id>        STRING  the conversation that had the item first
    gw:{tenant}:log:<response id>         STREAM  the turn's event log
    gw:{tenant}:gone:<response id>        STRING  the mark of a turn that was deleted
    gw:{tenant}:apr:<approval id>         HASH    an approval
    gw:{tenant}:batch:<response id>       HASH    a batch of approvals
    gw:{tenant}:mcpr:<request id>         STRING  the approval that answers the request
    gw:{tenant}:aprs                      ZSET    approvals by creation
    gw:{tenant}:aprs:status:<status>      ZSET    the same, of one status
    gw:{tenant}:aprs:turn:<response id>   ZSET    the same, of one turn
    gw:{tenant}:deadlines                 ZSET    pending approvals by when time next changes them
    gw:{tenant}:idem:<approval id>:<key>  STRING  how a request with a key of its own was answered
    gw:{tenant}:inbox                     STREAM  what happened to approvals, the newest 10,000
    gw:{tenant}:leases                    ZSET    claimed batches by the end of their lease
    gw:{tenant}:jobs                      STREAM  jobs to do now, with the group `workers`
    gw:{tenant}:jobs:background           STREAM  likewise, first legs of background turns
    gw:{tenant}:jobs:later                ZSET    jobs to do later, by their time; so for the other
    gw:{tenant}:grant:<grant id>          HASH    a grant
    gw:{tenant}:grants                    ZSET    grants by creation
    gw:{tenant}:grants:for:<token>        ZSET    grants that answer the same calls, by their end
    gw:{tenant}:grants:of:<token>         SET     grants of one chain
    gw:{tenant}:grants:use:<approval id>  STRING  the grant that answered a question
    gw:{tenant}:asks:<token>              ZSET    what people were asked of late, by asker and tool
    gw:{tenant}:evt:<event id>            HASH    an event for webhooks
    gw:{tenant}:audit                     STREAM  the audit's chain of entries
    gw:{tenant}:audit:new                 STREAM  what happened and is not in the chain yet
    gw:{tenant}:audit:head                HASH    where the chain ends and begins
    gw:{tenant}:audit:checkpoints         STREAM  signed heads of the chain
    gw:{tenant}:audit:of:<id>             ZSET    entries about an approval or a batch
    gw:{tenant}:audit:once                HASH    what was noted last of what is noted on change
    gw:{tenant}:audit:noted:<note>        STRING  a note that is in the outbox already
    gw:{tenant}:dlv:<delivery id>         HASH    one event for one endpoint
    gw:{tenant}:hooks                     HASH    webhook endpoints
    gw:{tenant}:hooks:off                 HASH    why endpoints are off
    gw:{tenant}:hooks:due                 ZSET    endpoints by their earliest delivery
    gw:{tenant}:hook:<endpoint id>:due    ZSET    an endpoint's deliveries by when they are due
    gw:{tenant}:hook:<endpoint id>:log    ZSET    the same by creation
    gw:{tenant}:pins:<hash>               HASH    the pins of one MCP server

The braces are the hash tag: everything of a tenant lies in one slot of a Cluster, so that a
script may touch any of it. Scripts get the tenant's prefix and append what is known only inside
them (the parent of a turn, the approvals of a batch), by the names above; the server is told one
key for routing.
"""

from __future__ import annotations

from gateway.adapters.redis.wire import raw
from gateway.domain.ports import Lane

FLEET = b"gw:fleet"
"""The live replicas, by the end of their sign of life; no tenant's."""

WAKE_CHANNEL = "gw:wake"
"""The one channel of hints between replicas; `domain/hints.py` names what it carries."""


def prefix(tenant: str) -> bytes:
    """Return what all keys of a tenant begin with.

    Braces would end the hash tag early and let two tenants meet, so they are escaped; an empty
    tag would spread a tenant over all slots.
    """
    if not tenant:
        raise ValueError("a tenant has an id")
    safe = tenant.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return raw(f"gw:{{{safe}}}:")


def turn(tenant: str, turn_id: str) -> bytes:
    """Name a turn's hash."""
    return prefix(tenant) + raw("turn:" + turn_id)


def window(tenant: str, turn_id: str, token: str) -> bytes:
    """Name what takes the place of a chain up to a turn, for the model of a token."""
    return prefix(tenant) + raw(f"window:{turn_id}:{token}")


def turns(tenant: str) -> bytes:
    """Name the list of the newest turns."""
    return prefix(tenant) + b"turns"


def item(tenant: str, item_id: str) -> bytes:
    """Name the index entry of an item."""
    return prefix(tenant) + raw("item:" + item_id)


def log(tenant: str, turn_id: str) -> bytes:
    """Name a turn's event log."""
    return prefix(tenant) + raw("log:" + turn_id)


def conversation(tenant: str, conversation_id: str) -> bytes:
    """Name the hash of a conversation; `:items` and `:order` are beside it."""
    return prefix(tenant) + raw("conv:" + conversation_id)


def conversation_item(tenant: str, item_id: str) -> bytes:
    """Name the entry of an item of a conversation."""
    return prefix(tenant) + raw("convitem:" + item_id)


def gone(tenant: str, turn_id: str) -> bytes:
    """Name the mark of a turn that was deleted."""
    return prefix(tenant) + raw("gone:" + turn_id)


def approval(tenant: str, approval_id: str) -> bytes:
    """Name an approval's hash."""
    return prefix(tenant) + raw("apr:" + approval_id)


def batch(tenant: str, batch_id: str) -> bytes:
    """Name a batch's hash."""
    return prefix(tenant) + raw("batch:" + batch_id)


def approvals(tenant: str) -> bytes:
    """Name the index of all approvals."""
    return prefix(tenant) + b"aprs"


def grants(tenant: str) -> bytes:
    """Name the index of all grants."""
    return prefix(tenant) + b"grants"


def jobs(tenant: str, lane: Lane = "main") -> bytes:
    """Name the job stream of a lane; the script puts those that are due later beside it."""
    return prefix(tenant) + (b"jobs" if lane == "main" else b"jobs:background")


def event(tenant: str, event_id: str) -> bytes:
    """Name the hash of an event for webhooks."""
    return prefix(tenant) + raw("evt:" + event_id)


def audit(tenant: str) -> bytes:
    """Name the audit's chain."""
    return prefix(tenant) + b"audit"


def audit_new(tenant: str) -> bytes:
    """Name the audit's outbox."""
    return prefix(tenant) + b"audit:new"


def hooks(tenant: str) -> bytes:
    """Name the hash of webhook endpoints."""
    return prefix(tenant) + b"hooks"


def pins(tenant: str, name: str) -> bytes:
    """Name the hash of a server's pins."""
    return prefix(tenant) + raw("pins:" + name)
