"""What services need of the world, in our own words. Adapters implement these.

Every store method is scoped by tenant; an id of another tenant is an unknown id (AUTH-2).
Store methods raise `errors.StoreUnavailable` when the store cannot answer, and
`errors.StorageFull` when it refuses to write. Nothing is half-written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

from gateway.domain.approvals import REVALIDATION, Approval, Batch, BatchStatus, Event, Verdict
from gateway.domain.audit import Checkpoint, Document, Link, Occurrence
from gateway.domain.calls import NEW_CHAIN, ChainFacts
from gateway.domain.conversations import Conversation, Entry, Progress
from gateway.domain.grants import Candidate, Grant
from gateway.domain.pins import PinSet
from gateway.domain.secrets import SecretRef
from gateway.domain.trace import LegSummary
from gateway.domain.webhooks import Delivery, WebhookEndpoint, WebhookEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnHead:
    """What is known of a turn without its content.

    Attributes:
        id: The response id that the caller sees: the upstream's id of the first leg (API-4).
        end_user: The end user that the chain belongs to, or "" (CHAIN-1).
        upstream: Name of the upstream that holds the chain (CHAIN-2).
        parent: The turn before it in the chain, or `None`.
        last_leg: The upstream id of the last leg; what upstream chaining uses.
        status: The response's `status`.
        stored: Whether the upstream stores the response, so that it can be asked for it.
        legs: How many upstream responses the turn has.
        subject: Subject of the principal that began the turn.
        model: The model name that the caller used.
        batch: Id of the open approval batch, or "".
        served: Whether the gateway's record is the response; else the upstream is asked for it.
        facts: What is known of the chain up to this turn.
        code: The code of the error that ended a held or locked turn, or "".
        began: When the caller's request came, in seconds since the epoch.
        trace: The finished legs.
        conversation: The conversation that the turn works on, where the gateway keeps it.
    """

    id: str
    tenant: str
    upstream: str
    end_user: str = ""
    parent: str | None = None
    last_leg: str = ""
    status: str = "completed"
    stored: bool = True
    legs: int = 1
    subject: str = ""
    model: str = ""
    batch: str = ""
    served: bool = False
    facts: ChainFacts = NEW_CHAIN
    code: str = ""
    began: float = 0.0
    trace: tuple[LegSummary, ...] = ()
    conversation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn with its content; the store encrypts `items` and `response` (STATE-4).

    Attributes:
        items: JSON array of the turn's own items, in order, each an object
            `{"o": "in" | "out" | "gw", "i": <item as it came>}`: sent by the caller, made by the
            upstream, or added by the gateway (approval responses). Not those of earlier turns.
            Empty bytes: nothing is kept.
        response: The response as the caller last saw it, JSON; empty where upstream is asked.
        item_ids: Ids of the items, for look-up by `item_reference`.
        contents: What its output items say (see `history.content_of`), for look-up by callers that
            replay them without their ids. Written only; a turn that is read has its index in
            `item_ids`.
    """

    head: TurnHead
    items: bytes = b""
    response: bytes = b""
    item_ids: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Where a chain ends, and the mark by which a change since is known."""

    link: Link
    mark: str


class TurnStore(Protocol):
    """Turns and their chains."""

    async def record(
        self, turn: Turn, *, ttl: int, new: bool = False, claim: tuple[str, int] | None = None
    ) -> bool:
        """Write a turn, replacing what was there under its id, in one round trip.

        Args:
            claim: A batch and the fence of a claim on it. False, and nothing is written, where
                the claim is no longer held.
            new: The turn was not written before. Then false when the id is that of a turn of
                somebody else, which stays as it is: upstream ids name one turn each.

        Raises:
            ResponseDeleted: The turn was deleted; it does not come back.
        """
        ...

    async def head(self, tenant: str, turn_id: str) -> TurnHead | None:
        """Read a turn without its content."""
        ...

    async def read(self, tenant: str, turn_id: str) -> Turn | None:
        """Read one turn with its content."""
        ...

    async def chain(self, tenant: str, turn_id: str, *, ttl: int) -> Sequence[Turn] | None:
        """Read a turn and all before it, the first turn first, in one round trip (STATE-6).

        Every turn read lives `ttl` seconds from now. `None` when the turn or one before it is
        unknown, deleted or expired: half a chain is no chain.
        """
        ...

    async def turns_of_items(self, tenant: str, item_ids: Sequence[str]) -> Mapping[str, str]:
        """Find the turn ids that hold the items; unknown ones are left out."""
        ...

    async def turns_of_contents(
        self, tenant: str, end_user: str, contents: Sequence[str]
    ) -> Mapping[str, str]:
        """Find the turn ids of an end user that said something, if only one turn did."""
        ...

    async def recent(
        self, tenant: str, *, before: str = "", limit: int = 25
    ) -> tuple[Sequence[TurnHead], str]:
        """Read the heads of the newest turns, newest first, and where the next page begins.

        The last few thousand of a tenant can be found so; "" says that there are no more.
        """
        ...

    async def kept_until(self, tenant: str, turn_id: str) -> float | None:
        """Tell until when a turn is kept, in seconds since the epoch; `None` if unknown."""
        ...

    async def delete(self, tenant: str, turn_id: str) -> bool:
        """Delete a turn and its index and event log at once; false when it was not there."""
        ...


class ConversationStore(Protocol):
    """Conversations that the gateway keeps; one turn at a time works on each.

    Raises:
        Conflict: `conversation_locked`, from `lock`, `append` and `remove`: another turn does.
    """

    async def create(
        self, conversation: Conversation, entries: Sequence[Entry], *, ttl: int
    ) -> None:
        """Keep a new conversation with its first items."""
        ...

    async def get(self, tenant: str, conversation_id: str) -> tuple[Conversation, Progress] | None:
        """Read a conversation without its items."""
        ...

    async def items(self, tenant: str, conversation_id: str, *, ttl: int) -> Sequence[Entry] | None:
        """Read the items in order, in one round trip; `None` without such a conversation."""
        ...

    async def change(self, conversation: Conversation, *, ttl: int) -> bool:
        """Write a conversation anew; false when it is no more."""
        ...

    async def lock(
        self,
        tenant: str,
        conversation_id: str,
        token: str,
        *,
        seconds: float,
        ttl: int,
        instead: str = "",
    ) -> bool:
        """Let the holder of a token work on it for `seconds`; false when it is no more.

        Args:
            instead: The token that is replaced by this one.
        """
        ...

    async def unlock(self, tenant: str, conversation_id: str, token: str) -> None:
        """End the work of the holder of a token, if it is that."""
        ...

    async def append(
        self,
        tenant: str,
        conversation_id: str,
        entries: Sequence[Entry],
        *,
        ttl: int,
        token: str = "",
        progress: Progress | None = None,
    ) -> bool:
        """Add items that are not there yet, and end the work; false when it is no more."""
        ...

    async def remove(self, tenant: str, conversation_id: str, item_id: str) -> bool:
        """Take an item out; false when it is not there."""
        ...

    async def delete(self, tenant: str, conversation_id: str) -> None:
        """Delete a conversation with its items at once."""
        ...


VoteProblem = Literal[
    "not_found",
    "already_decided",
    "vote_conflict",
    "fingerprint_mismatch",
    "version_mismatch",
    "expired",
    "idempotency_key_reused",
    "too_many_extensions",
    "beyond_retention",
    "no_escalation_left",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteResult:
    """What became of a vote or another change of an approval.

    Attributes:
        approval: As it is now; as it was then, where an `Idempotency-Key` is repeated.
        problem: Why nothing was changed, if so.
        counted: Whether this very call changed something; false for a repeat.
    """

    approval: Approval | None
    problem: VoteProblem | None = None
    counted: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Once:
    """An `Idempotency-Key`, and the body of the request that it came with."""

    key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """Something that happened to an approval; what it says is read from the approval itself."""

    cursor: str
    event: Event
    approval_id: str


@dataclass(frozen=True, slots=True)
class InboxPage:
    """A part of a tenant's inbox.

    Attributes:
        cursor: Where to go on.
        lost: Whether events before this page are kept no more.
    """

    entries: Sequence[InboxEntry]
    cursor: str
    lost: bool = False


class ApprovalStore(Protocol):
    """Approvals and batches; every transition is one atomic function by the store's clock."""

    async def open_batch(
        self,
        *,
        tenant: str,
        batch_id: str,
        turn_id: str,
        approvals: Sequence[Approval],
        held: bytes,
        ttl: int,
        claim_lease: float | None = None,
    ) -> Batch:
        """Create a batch with its approvals; `created_at` and `expires_at` are set here.

        Approvals that come with a final status are born decided. With none pending the batch is
        `ready` with one continuation job, or, with `claim_lease`, claimed by the caller at once
        with fence 1 and no job. A batch that exists is returned unchanged, so that a repeat
        does no harm. Every transition from here on puts an event into the outbox for approvals
        with `by == "approver"`, and into the inbox. The turn is kept as long as the batch.
        """
        ...

    async def get(self, tenant: str, approval_id: str) -> Approval | None:
        """Read an approval; one that is past its time is expired first."""
        ...

    async def list(
        self,
        tenant: str,
        *,
        status: str | None,
        server: str | None = None,
        tool: str | None = None,
        chain: str | None = None,
        turn_id: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[Sequence[Approval], bool]:
        """List approvals, newest first, and tell whether there are more.

        Args:
            chain: The id of the chain's first response.
        """
        ...

    async def counts(self, tenant: str) -> Mapping[str, int]:
        """Count approvals by status, in one round trip; those just expired may still count."""
        ...

    async def by_request(self, tenant: str, request_ids: Sequence[str]) -> Mapping[str, Approval]:
        """Find approvals by the upstream's request ids (`mcpr_…`)."""
        ...

    async def vote(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        verdict: Verdict,
        fingerprint: str,
        reason: str | None,
        version: int | None = None,
        revision: str | None = None,
        once: Once | None = None,
    ) -> VoteResult:
        """Count one vote; whether the actor may vote was checked before.

        One deny decides, approvals count up to the quorum. The same vote again by the same
        actor changes nothing and is no problem. The last pending approval that is decided makes
        the batch ready with exactly one continuation job. Approvals with `by == "caller"` make
        no job: the caller's next request continues.

        Args:
            version: The vote counts only for this version of the approval.
            revision: The arguments that the voter asks for instead, as JSON.
            once: The same key with the same body within 24 hours gets the same answer again.
        """
        ...

    async def extend(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        seconds: float,
        version: int | None = None,
    ) -> VoteResult:
        """Give a pending approval more time: as often as its rule says, within its retention."""
        ...

    async def escalate(
        self, tenant: str, approval_id: str, *, actor: str, version: int | None = None
    ) -> VoteResult:
        """Add the approvers of the next level now; time does the same by the rule's `after`."""
        ...

    async def cancel(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        reason: str,
        version: int | None = None,
    ) -> VoteResult:
        """Withdraw a pending approval for somebody who may; the model is told so."""
        ...

    async def supersede(
        self, tenant: str, approval_id: str, *, cause: str, by: str = REVALIDATION
    ) -> VoteResult:
        """Withdraw a pending approval whose ground has gone: a drifted tool, a new rule."""
        ...

    async def inbox(self, tenant: str, *, after: str = "", limit: int = 100) -> InboxPage:
        """Read what happened to approvals after a cursor; without one, only tell where now is."""
        ...

    async def expire_due(self, tenant: str) -> Sequence[str]:
        """Do what time has brought: expire, escalate, warn. Returns the ids that expired."""
        ...

    async def batch(self, tenant: str, batch_id: str) -> Batch | None:
        """Read a batch with its approvals and what it holds."""
        ...

    async def claim(self, tenant: str, batch_id: str, *, lease: float) -> Batch | None:
        """Claim a ready batch, or one whose lease lapsed before dispatch, for `lease` seconds.

        `None` when there is nothing to claim. A batch whose lease lapsed after dispatch becomes
        `indeterminate` and is not claimed: its request may have arrived (APPR-5).
        """
        ...

    async def renew(self, tenant: str, batch_id: str, *, fence: int, lease: float) -> bool:
        """Extend a claim; false when the fence is no longer ours."""
        ...

    async def dispatch(
        self,
        tenant: str,
        batch_id: str,
        *,
        fence: int,
        superseded: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Write `dispatched`, before the request is sent; false when it must not be sent.

        Args:
            superseded: Ids of approvals that were given and hold no more, each with the cause;
                they are put on record as `superseded` in the same step.
        """
        ...

    async def finish(
        self,
        tenant: str,
        batch_id: str,
        *,
        fence: int,
        status: BatchStatus,
        next_response_id: str | None = None,
        upstream_request: str = "",
        delay: float = 0.0,
    ) -> bool:
        """End a claim as `done`, `failed` or `indeterminate`, or give it back as `ready`.

        `ready` is for a continuation of which nothing ran: it may be claimed once more, and its
        job comes after `delay` seconds.
        `upstream_request` is the upstream's own id of the request that was sent, for the audit.
        """
        ...

    async def abandon(
        self, tenant: str, batch_id: str, *, reason: str, running: bool = False
    ) -> bool:
        """Cancel a waiting batch and its pending approvals; false when it is past waiting.

        For the turn's own caller, who ends the turn itself: no job is made.

        Args:
            running: Cancel it as well while it runs, for a turn in background: its worker is
                given a hint, and cannot renew its claim.
        """
        ...

    async def retry(self, tenant: str, batch_id: str, *, by: str, once: str = "") -> bool:
        """Send the answers of an `indeterminate` batch once more: `ready`, with a new job.

        Where the caller itself answered there is no job: it sends its answers again.

        What the first request ran may run again. So the gateway does this by itself only where
        every approved tool bears it, else for a person who was told (APPR-5).

        Args:
            by: `subject:…`, or `policy:…` where no person chose.
            once: An `Idempotency-Key`: the same one by the same person changes nothing more.

        Returns:
            False when the batch is not in doubt (any more).
        """
        ...

    async def rewind(
        self, tenant: str, batch_id: str, *, by: str, reason: str, once: str = ""
    ) -> bool:
        """Give up a `waiting` or `indeterminate` batch: `abandoned`, with `cause` "rewind".

        The chain goes on from the turn before. Pending approvals are canceled. As after a
        time-out with `on_timeout = "rewind"` (`cause` "timeout"), a continuation job is made, and
        whoever takes it finds the batch abandoned and ends the turn.

        Args:
            by: `subject:…`, or `timeout` where nobody chose in time.
            once: As for `retry`.

        Returns:
            False when the batch is past that.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call that a person would be asked about, put to the grants first (APPR-8).

    Attributes:
        id: Of the approval; the same question again has the same answer, and uses nothing.
        candidates: The grants that would answer it, the narrowest first.
        excluded: Subjects whose own grants do not count, since nobody approves for themselves.
        max_ttl, max_uses: What the rule says now; older grants are held to it.
        asker: Names who asks for which tool, to count what people are asked.
        most: Most questions of an asker within `window` seconds; `None` counts nothing.
    """

    tenant: str
    id: str
    candidates: Sequence[Candidate]
    excluded: Sequence[str]
    max_ttl: float
    max_uses: int | None
    asker: str
    most: int | None
    window: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantAnswer:
    """What the grants say.

    Attributes:
        grant: The one that answers, one use of it taken; `None` when a person must.
        dropped: Grants that ended, because what they were bound to has changed.
        tiring: Whether people were asked the like too often before.
    """

    grant: Grant | None = None
    dropped: Sequence[Grant] = ()
    tiring: bool = False


class GrantStore(Protocol):
    """Grants; every transition is one atomic function by the store's clock."""

    async def issue(self, grant: Grant) -> Grant:
        """Keep a grant, in force from now on; one that is there under its id is returned as is.

        One that `waits_for` a vote comes into force the moment that the vote of its maker counts
        and its approval ends by it; until then it may be issued anew, or withdrawn.
        """
        ...

    async def withdraw(self, tenant: str, grant_id: str) -> None:
        """Drop a grant that still waits for the vote that it came with; else do nothing."""
        ...

    async def ask(self, question: Question) -> GrantAnswer:
        """Take one use of the narrowest grant that answers, or count the question.

        One round trip. Concurrent questions never share a use.
        """
        ...

    async def stands(self, tenant: str, grant_id: str) -> bool:
        """Tell whether what a grant allowed may still run: it was not revoked or dropped."""
        ...

    async def get(self, tenant: str, grant_id: str) -> Grant | None:
        """Read a grant."""
        ...

    async def list(
        self, tenant: str, *, active: bool, after: str | None, limit: int
    ) -> tuple[Sequence[Grant], bool]:
        """List grants, newest first, and tell whether there are more."""
        ...

    async def revoke(self, tenant: str, grant_id: str, *, actor: str) -> Grant | None:
        """End a grant at once, also for what it allowed and is not sent yet; `None` if unknown."""
        ...

    async def end_chain(self, tenant: str, chain_id: str) -> Sequence[Grant]:
        """Drop the grants of a chain that is no more; returns those that were in force."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work that goes on without its caller; delivered at least once.

    Attributes:
        kind: "continue" (subject = batch id) or "webhook" (subject = approval id, unless
            the event was emitted).
        event: For webhooks, one of `webhooks.EVENTS`. For continuations, what to do with a batch
            that is in doubt: "retry" or "give_up", if `attempt` is its fence; or "look" at what
            has become of it. "" goes on with a decided one.
        event_id: Constant over repeats; the `webhook-id`.
        occurred_at: Seconds since the epoch, by the store's clock.
        target: For "look", the turn.
        attempt: 0 for the first try.
    """

    token: str
    tenant: str
    kind: Literal["continue", "webhook"]
    subject: str
    event: str = ""
    event_id: str = ""
    occurred_at: float = 0.0
    target: str = ""
    attempt: int = 0


class JobQueue(Protocol):
    """Jobs of all tenants, taken over from a worker that died."""

    async def take(self, tenants: Sequence[str], *, limit: int) -> Sequence[Job]:
        """Take new jobs, and those that a worker took longer than the lease ago; no waiting."""
        ...

    async def done(self, job: Job) -> None:
        """Remove a job."""
        ...

    async def extend(self, job: Job) -> bool:
        """Keep a job for another lease; false when another worker has it by now."""
        ...

    async def add(self, job: Job, *, delay: float = 0.0) -> None:
        """Add a job, now or after `delay` seconds."""
        ...


class Outbox(Protocol):
    """Events for webhooks that are about something else than an approval (APPR-9)."""

    async def emit(
        self,
        tenant: str,
        event: str,
        subject: str,
        data: Mapping[str, object],
        *,
        occurrence: str = "",
    ) -> bool:
        """Keep an event, to be told to every endpoint of the tenant that wants it.

        Returns as soon as the event is kept; from then on it survives every crash. To lose none,
        emit *before* the step that ends the work is recorded: a repeat of the work emits again,
        and the same event again is one event (false), with the same `webhook-id`.

            await outbox.emit(tenant, "continuation.failed", turn_id,
                              {"object": "response", "status": "failed"}, occurrence=batch_id)
            await outbox.emit(tenant, "tool.drifted", f"{server}.{tool}",
                              {"object": "tool_pin", "server": server, "tool": tool,
                               "url": "/console/tools"}, occurrence=new_hash)

        Args:
            event: One of `gateway.domain.webhooks.EVENTS`.
            subject: The id of what it is about; becomes `data.id`.
            data: The rest of the payload's `data`: ids, names and states, never arguments,
                results or secrets. A `url` that begins with `/` is led to `server.public_url`.
            occurrence: What tells this event from an earlier one of the same subject.

        Raises:
            ValueError: There is no such event.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A delivery that was taken to be sent, and what is needed for it.

    Attributes:
        endpoint: The endpoint, if it was made over the API.
        off: Why the endpoint is off, of the API or not; or `None`.
        now: Seconds since the epoch, by the store's clock.
    """

    delivery: Delivery
    event: WebhookEvent
    endpoint: WebhookEndpoint | None
    off: str | None
    now: float


Outcome = Literal["delivered", "retry", "failed", "gone", "expired", "canceled"]
Settled = Literal["", "delivered", "retry", "failed", "expired", "gone", "disabled", "canceled"]


class WebhookStore(Protocol):
    """Endpoints of webhooks, and what is to be delivered to them (APPR-9)."""

    async def event(self, tenant: str, event_id: str) -> WebhookEvent | None:
        """Read an event that was emitted or handed to endpoints."""
        ...

    async def spread(self, tenant: str, event: WebhookEvent, endpoint_ids: Sequence[str]) -> int:
        """Keep the event with a delivery for each endpoint; returns how many are new.

        An endpoint that has one already gets no second, however often this is repeated.
        """
        ...

    async def take(
        self,
        tenants: Sequence[str],
        *,
        lease: float,
        most: int,
        room: Mapping[tuple[str, str], int],
    ) -> Sequence[Due]:
        """Take deliveries that are due, for `lease` seconds; no waiting.

        Args:
            most: For each endpoint.
            room: The same for some, by tenant and endpoint id.
        """
        ...

    async def settle(
        self,
        delivery: Delivery,
        outcome: Outcome,
        *,
        status: int | None = None,
        error: str = "",
        delay: float = 0.0,
    ) -> Settled:
        """Note what became of a try, and tell what follows from it.

        `expired` and `canceled` were not sent. A retry beyond the event's end is `expired`.
        `gone` switches the endpoint off, which is `disabled` for whoever was first. "" when
        somebody else has taken the delivery since.
        """
        ...

    async def deliveries(
        self, tenant: str, endpoint_id: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[Delivery], bool]:
        """List deliveries of an endpoint, newest first, and tell whether there are more."""
        ...

    async def delivery(self, tenant: str, delivery_id: str) -> Delivery | None:
        """Read a delivery."""
        ...

    async def redeliver(self, tenant: str, delivery_id: str) -> Delivery | Literal["off"] | None:
        """Send a delivery for anew; "off" when its endpoint is, `None` when there is none."""
        ...

    async def endpoints(
        self, tenant: str
    ) -> tuple[float, Mapping[str, WebhookEndpoint], Mapping[str, str]]:
        """Read the time, the endpoints of the API by id, and why any endpoint is off."""
        ...

    async def put(self, tenant: str, endpoint: WebhookEndpoint, *, most: int) -> bool:
        """Write an endpoint whose `version` is the one that was read (0: a new one).

        Returns:
            False when it was changed or removed since.

        Raises:
            Conflict: The tenant has `most` endpoints already.
        """
        ...

    async def switch(self, tenant: str, endpoint_id: str, off: str | None) -> None:
        """Switch an endpoint off, with the reason, or on."""
        ...

    async def remove(self, tenant: str, endpoint_id: str) -> bool:
        """Remove an endpoint of the API and its deliveries."""


@dataclass(frozen=True, slots=True)
class PinnedServer:
    """A server whose pins are kept: its label, and which server that label stands for."""

    label: str
    identity: str


class PinStore(Protocol):
    """Tool pins, one record per tenant, server label and server identity (MCP-5)."""

    async def read(self, tenant: str, servers: Sequence[PinnedServer]) -> Sequence[PinSet]:
        """Read the pins of servers in one round trip, in their order; unknown ones are empty."""
        ...

    async def write(self, tenant: str, server: PinnedServer, pins: PinSet) -> bool:
        """Write pins back; false when another has written since they were read."""
        ...


class Fleet(Protocol):
    """Which versions of the rules and servers the live replicas have (APPR-4)."""

    async def announce(self, version: str) -> None:
        """Say that this replica lives and has the version; to be said again every few seconds."""
        ...

    async def has(self, version: str) -> bool:
        """Tell whether any live replica has the version."""
        ...

    async def leave(self) -> None:
        """Say that this replica takes no more work."""
        ...


class EventLog(Protocol):
    """The event stream of a turn that can be joined later (STREAM-3, APPR-4)."""

    async def append(
        self,
        tenant: str,
        turn_id: str,
        blocks: Sequence[tuple[int, bytes]],
        *,
        ttl: int,
        end: bool = False,
    ) -> None:
        """Append blocks of whole frames, each with the `sequence_number` of its last event.

        `end` says that no more will come. Wakes whoever waits for the turn.
        """
        ...

    async def read(
        self, tenant: str, turn_id: str, *, cursor: str, limit: int = 256
    ) -> LogPage | None:
        """Read blocks after `cursor` ("" = from the start); `None` when there is no log."""
        ...


@dataclass(frozen=True, slots=True)
class LogPage:
    """A part of an event log: blocks, where to go on, and whether the log has ended there."""

    blocks: Sequence[tuple[int, bytes]]
    cursor: str
    end: bool


class Hint(Protocol):
    """What a listener waits on."""

    async def wait(self, seconds: float) -> bool:
        """Wait for a hint since the last wait; false when `seconds` passed without one."""
        ...


class Wake(Protocol):
    """Hints between replicas. A hint may be lost: whoever waits also looks now and then."""

    def listen(self, key: str) -> AbstractContextManager[Hint]:
        """Listen for hints for the key: `turn:{tenant}:{turn_id}`, `jobs` or `hooks`."""
        ...


class SecretSource(Protocol):
    """Secrets by reference, read when they are needed."""

    async def resolve(self, ref: SecretRef) -> str:
        """Return the secret's value.

        Raises:
            SecretUnavailable: It is not there; the message names the reference only.
        """
        ...


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """An upstream's whole answer: status, headers (lower-case names) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ByteStream(Protocol):
    """An open upstream stream of bytes; `aclose` may be called twice."""

    headers: Mapping[str, str]

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Close the connection to the upstream."""
        ...


class UpstreamClient(Protocol):
    """Upstreams by name. Bodies and answers are bytes; nothing is retried here but a token.

    Every method raises `errors.UpstreamRefused` for an HTTP error of the upstream (with its
    status, headers and body), `errors.UpstreamUnreachable` when provably nothing was sent,
    `errors.UpstreamTimeout` and `errors.UpstreamDisconnected` when it may have been.
    """

    async def send(
        self,
        upstream: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> UpstreamAnswer:
        """Send a request and read the whole answer."""
        ...

    async def open(
        self,
        upstream: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ByteStream:
        """Send a request and return its open stream, once the status is known to be 2xx."""
        ...


class Cipher(Protocol):
    """Authenticated encryption under the key ring (STATE-4)."""

    def encrypt(self, plain: bytes, *, tenant: str, kind: str, id: str) -> bytes:
        """Seal under the first key, bound to tenant, record kind and id."""
        ...

    def decrypt(self, sealed: bytes, *, tenant: str, kind: str, id: str) -> bytes:
        """Open with whichever key sealed it.

        Raises:
            Undecipherable: Unknown key, altered bytes, or bound to something else.
        """
        ...


class Signer(Protocol):
    """Signatures under the key ring, for what is kept outside the store (APPR-11)."""

    def sign(self, data: bytes, *, tenant: str) -> tuple[str, str]:
        """Sign with the first key; returns its id and the signature."""
        ...

    def is_signed(self, data: bytes, *, tenant: str, key: str, signature: str) -> bool:
        """Tell whether the signature is that of the data, under the key with that id."""
        ...


class AuditLog(Protocol):
    """Where what happened is noted for the audit (APPR-11)."""

    async def note(
        self,
        tenant: str,
        event: str,
        *,
        actor: str,
        subject: str = "",
        detail: Mapping[str, object] | None = None,
        once: str | None = None,
    ) -> bool:
        """Note something that is no transition of an approval; those note themselves.

        Returns as soon as it is kept; from then on it gets into the chain once, whatever crashes.
        Note what was refused before the refusal is answered, and what was done right after it.

            await audit.note(tenant, "pin.accepted", actor=f"subject:{who}",
                             subject=f"{server}.{tool}", detail={"definition_hash": new})

        Args:
            event: `<thing>.<what happened>`, such as `grant.made`, `webhook.refused`.
            actor: `subject:…`, `policy:…`, or `gateway` for what it did by itself.
            subject: What it is about: an id, or a name from the configuration.
            detail: Plain JSON values: ids, names, states, reasons of people; never arguments,
                results or secrets.
            once: A state: noted only where it differs from the one noted last for this event and
                subject. Then false when it does not.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditState:
    """What is known of a chain beside its entries.

    Attributes:
        head: The last entry, as the last append left it.
        base: The last entry before the first that is kept; `START` when all are.
        last: Sequence number of the last entry that is there; 0 when none is.
        lag: Seconds that the oldest occurrence waits to be chained; `None` when none does.
        checkpoint: The last one.
        since_checkpoint: Seconds since it was made; `None` when there is none.
        now: Milliseconds since the epoch, by the store's clock.
    """

    head: Link
    base: Link
    last: int
    lag: float | None
    checkpoint: Checkpoint | None
    since_checkpoint: float | None
    now: int


class AuditStore(AuditLog, Protocol):
    """The chains of all tenants, and the outboxes before them; entries are sealed."""

    async def lags(self, tenants: Sequence[str]) -> Mapping[str, float]:
        """Tell where something waits to be chained, and for how many seconds."""
        ...

    async def take(self, tenant: str, *, limit: int) -> tuple[AuditHead, Sequence[Occurrence]]:
        """Read the head of the chain and what waits, oldest first; nothing is removed."""
        ...

    async def append(
        self,
        tenant: str,
        *,
        after: AuditHead,
        entries: Sequence[tuple[Occurrence, Document]],
        retention: float,
    ) -> bool:
        """Put entries into the chain and take their occurrences out of the outbox, in one step.

        False, and nothing is done, when the chain or the outbox is not as it was read.

        Raises:
            BrokenChain: Its head is not its last entry; nothing is done.
        """
        ...

    async def state(self, tenant: str) -> AuditState:
        """Read what is known of a chain beside its entries."""
        ...

    async def entries(
        self, tenant: str, *, first: int, last: int | None, newest: bool, limit: int
    ) -> Sequence[Document]:
        """Read entries by sequence number, both ends included.

        Raises:
            BrokenChain: One of them does not open: altered, or moved.
        """
        ...

    async def about(self, tenant: str, subjects: Sequence[str]) -> Sequence[Document]:
        """Read the entries about any of these approvals and batches, in order."""
        ...

    async def since(self, tenant: str, millis: int) -> int:
        """Find the sequence number of the first entry that is not older."""
        ...

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Keep a checkpoint; false when there is one of that entry or a later one."""
        ...

    async def checkpoints(self, tenant: str) -> Sequence[Checkpoint]:
        """Read all kept checkpoints, in order."""
        ...

    async def prune(self, tenant: str, *, before: int, state: AuditState) -> int:
        """Drop entries older than `before` (ms), as far as one call goes; returns how many."""
        ...


class Meter(Protocol):
    """What is counted; never a message, an argument or a secret (OPS-1)."""

    def turn(
        self, *, upstream: str, model: str, status: str, streamed: bool, legs: int, seconds: float
    ) -> None:
        """Count a turn that ended, with the seconds that it took."""
        ...

    def first_event(self, *, upstream: str, seconds: float) -> None:
        """Note how long the caller waited for the first event."""
        ...

    def tokens(self, *, upstream: str, model: str, input: int, output: int) -> None:
        """Count the tokens of a turn."""
        ...

    def approval(self, *, server: str, outcome: str) -> None:
        """Count an approval request by what became of it."""
        ...

    def decided(self, *, server: str, outcome: str, seconds: float) -> None:
        """Count a person's decision, with the seconds since it was asked for."""
        ...

    def grant(self, *, server: str, event: str) -> None:
        """Count what happens to grants: issued, used, revoked, dropped, tiring."""
        ...

    def ruling(self, *, rule: str, effect: str) -> None:
        """Count a call that the rules decided, by the rule that decided."""
        ...

    def rule_error(self, rule: str) -> None:
        """Count a rule, or an engine, that had no answer for a call."""
        ...

    def shadow_decision(self, *, rule: str, effective: str, shadow: str) -> None:
        """Count a call that rules in shadow mode would have decided otherwise."""
        ...

    def tool_pin(self, *, server: str, outcome: str) -> None:
        """Count a change of a tool pin by what happened (MCP-5)."""
        ...

    def repaired(self, upstream: str) -> None:
        """Count an input that was mended after a refusal (STATE-5)."""
        ...

    def withheld(self, upstream: str, count: int) -> None:
        """Count reasoning items that an upstream silently left out (STATE-5)."""
        ...

    def restored(self, upstream: str, count: int) -> None:
        """Count reasoning items that callers left out and were put back (STATE-3)."""
        ...

    def audited(self, event: str) -> None:
        """Count an entry of the audit by what happened."""
        ...

    def audit_lag(self, *, tenant: str, seconds: float) -> None:
        """Note how long the oldest occurrence of a tenant waits for its entry."""
        ...

    def webhook(self, *, event: str, outcome: str) -> None:
        """Count a try to deliver an event by what became of it."""
        ...

    def webhook_endpoint_disabled(self, reason: str) -> None:
        """Count a webhook endpoint that was switched off."""
        ...

    def websockets(self, tenant: str, change: int) -> None:
        """Note that a tenant's WebSocket was opened (1) or closed (-1)."""
        ...
