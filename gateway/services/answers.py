"""Approval answers that arrive as input items: decisions of that principal (APPR-6).

An `mcp_approval_response` is never passed on as it came. It is a vote under the same rules as one
at the decision endpoint, and what the upstream is told is written from the decided approvals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import msgspec

from gateway.domain.approvals import (
    Approval,
    ApprovalStatus,
    Batch,
    BatchStatus,
    Verdict,
    answer,
    may_decide,
    reason_missing,
)
from gateway.domain.documents import Raw
from gateway.domain.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GatewayError,
    Gone,
    NotFound,
    PreconditionFailed,
    Unprocessable,
)
from gateway.domain.history import approval_request, approval_response
from gateway.domain.ports import ApprovalStore, TurnHead, VoteProblem
from gateway.domain.requests import ApprovalResponse, Item
from gateway.services.callers import Caller
from gateway.services.refusals import Refusals

LEASE = 10.0
"""Seconds that a claim on a continuation holds without being renewed."""

HISTORY = "answered"
"""Type given to an `mcp_approval_response` that was carried out in an earlier turn."""

_CHAINED = frozenset({"mcp_approval_request", "mcp_call", "mcp_list_tools", HISTORY})
_ANSWERED = _CHAINED | {"item_reference", "reasoning"}
_ASKING = frozenset({"mcp_approval_request", "item_reference"})
"""Types of items that may be, or stand for, a request."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A decided batch that this request continues, or (`join`) one that goes on by itself."""

    batch: Batch
    join: str | None = None

    @property
    def turn_id(self) -> str:
        """The turn whose upstream response asked."""
        return self.batch.turn_id

    def complete(self, items: Sequence[Item]) -> list[Item]:
        """Put the answers of the whole batch where the caller's first answer stands."""
        completed: list[Item] = []
        placed = False
        mine = {approval.request_id for approval in self.batch.approvals}
        for item in items:
            if answered_request(item) not in mine:
                completed.append(item)
            elif not placed:
                placed = True
                completed.extend(
                    Item(raw=part, type="mcp_approval_response") for part in responses(self.batch)
                )
        return completed


def answered_request(item: Item) -> str | None:
    """Name the request that an item answers; `None` when it is no answer."""
    if item.type != "mcp_approval_response":
        return None
    return msgspec.json.decode(item.raw, type=ApprovalResponse).approval_request_id


def not_repeated(items: Sequence[Item], *, answered: bool) -> list[Item]:
    """Leave out what the upstream's chain holds already; it refuses duplicates."""
    repeated = _ANSWERED if answered else _CHAINED
    return [item for item in items if item.type not in repeated]


def responses(batch: Batch) -> list[Raw]:
    """Write the upstream's answers to a decided batch, each with its true cause."""
    return [_response(approval) for approval in batch.approvals]


def _response(approval: Approval) -> Raw:
    approve, reason = answer(approval)
    return approval_response(approval.request_id, approve=approve, reason=reason)


def _history(approval: Approval, id_: str | None = None) -> Item:
    return Item(raw=_response(approval), type=HISTORY, id=id_)


def vote_error(problem: VoteProblem, approval: Approval | None) -> GatewayError:
    """Choose the error for a vote that did not count."""
    status = approval.status.value if approval else ""
    match problem:
        case "not_found":
            return NotFound("There is no such approval.", code="approval_not_found")
        case "already_decided":
            return Conflict(f"The approval is already {status}.", code="already_decided")
        case "vote_conflict":
            return Conflict("You have already decided otherwise.", code="vote_conflict")
        case "fingerprint_mismatch":
            return Conflict(
                "The fingerprint is not that of the approval; read it again before deciding.",
                code="fingerprint_mismatch",
                param="fingerprint",
            )
        case "version_mismatch":
            return PreconditionFailed("The approval has changed since; read it again.")
        case "expired":
            return Gone("The approval has expired.", code="expired")
        case _:
            return _change_error(problem)


def _change_error(
    problem: Literal[
        "idempotency_key_reused", "too_many_extensions", "beyond_retention", "no_escalation_left"
    ],
) -> GatewayError:
    match problem:
        case "idempotency_key_reused":
            return Conflict(
                "This Idempotency-Key came with another body before.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        case "too_many_extensions":
            return Conflict(
                "The rule allows no more extensions of this approval.", code="too_many_extensions"
            )
        case "beyond_retention":
            return Unprocessable(
                "The turn is not kept for that long.", code="beyond_retention", param="seconds"
            )
        case "no_escalation_left":
            return Conflict("The rule names nobody further to decide.", code="no_escalation_left")


def reason_required() -> Unprocessable:
    """The error for a decision without the reason that its rule wants."""
    return Unprocessable(
        "The rule wants a reason for this decision.", code="reason_required", param="reason"
    )


def refusal(cause: str) -> Forbidden:
    """Say why a principal may not decide."""
    if cause == "self_approval":
        return Forbidden("You may not decide your own request.", code="self_approval")
    return Forbidden("You are not an approver of this request.", code="not_an_approver")


def pending_conflict(batch: Batch) -> Conflict:
    """The error for new input on a chain with an open approval (APPR-3)."""
    names = ", ".join(
        approval.id for approval in batch.approvals if approval.status is ApprovalStatus.PENDING
    )
    return Conflict(
        f"The response '{batch.turn_id}' waits for approvals ({names or 'decided, not continued'}"
        "). Decide them before you send new input.",
        code="approval_pending",
        param="previous_response_id",
    )


Pair = tuple[ApprovalResponse, Approval]


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """Take each answer once; two that contradict each other are none."""
    found: dict[str, Pair] = {}
    for response, approval in pairs:
        before = found.setdefault(approval.id, (response, approval))[0]
        if before.approve != response.approve:
            raise Conflict(
                f"'{response.approval_request_id}' is both approved and denied.",
                code="vote_conflict",
                param="input",
            )
    return list(found.values())


def _refuse_stranger(caller: Caller, response: ApprovalResponse, approval: Approval) -> None:
    """Refuse an answer of somebody who may not give it.

    Clients answer every request that they see, also those that the rules have answered; there
    the rules' answer stands. Only a deny of what the rules allow is not passed over in silence.
    """
    if approval.by == "policy" and caller.principal.subject == approval.requester:
        if answer(approval)[0] and not response.approve:
            raise vote_error("already_decided", approval)
        return
    cause = may_decide(approval, caller.principal)
    if cause is not None:
        raise refusal(cause)
    verdict = Verdict.APPROVE if response.approve else Verdict.DENY
    if reason_missing(approval, verdict, response.reason):
        raise reason_required()


class _Called(msgspec.Struct):
    type: str | None = None
    approval_request_id: str | None = None


def called_request(item: Item, known: Mapping[str, Raw] = MappingProxyType({})) -> str | None:
    """Name the request whose approval an `mcp_call`, or what a reference stands for, used.

    No other item stands for what is known by its id.
    """
    stands = known.get(item.id or "") if item.type == "item_reference" else None
    call = msgspec.json.decode(stands or item.raw, type=_Called)
    return call.approval_request_id if call.type == "mcp_call" else None


class NativeAnswers:
    """Reads the answers in a request's input."""

    def __init__(
        self, approvals: ApprovalStore, *, refusals: Refusals, lease: float = LEASE
    ) -> None:
        self._refusals = refusals
        self._approvals = approvals
        self._lease = lease

    async def take(
        self,
        caller: Caller,
        given: Sequence[ApprovalResponse],
        parent: TurnHead | None,
        end_user: str,
    ) -> Answers | None:
        """Count the answers as votes, and claim the batch that they decide.

        Raises:
            NotFound: An answer is to a request that this caller was not given.
            Forbidden: The caller may not decide it.
            Conflict: It was decided otherwise, was continued already, or others are pending.
        """
        tenant = caller.tenant.id
        if not given:
            if parent is not None and parent.batch:
                await self._refuse_open(tenant, parent.batch)
            return None
        asked = [response.approval_request_id[:100] for response in given[:10]]
        async with self._refusals.noted(
            caller, "", NotFound, BadRequest, approval_request_ids=asked
        ):
            return await self._take(caller, given, parent, end_user)

    async def _take(
        self,
        caller: Caller,
        given: Sequence[ApprovalResponse],
        parent: TurnHead | None,
        end_user: str,
    ) -> Answers:
        tenant = caller.tenant.id
        known = await self._approvals.by_request(
            tenant, [response.approval_request_id for response in given]
        )
        pairs = _distinct([(response, self._own(known, response, end_user)) for response in given])
        batch_ids = {approval.batch_id for _, approval in pairs}
        chain = None if parent is None or parent.status == "conversation" else parent
        if len(batch_ids) > 1 or (chain is not None and chain.batch not in batch_ids):
            raise BadRequest(
                "The approval responses do not answer the response that is continued.",
                code="approval_mismatch",
                param="input",
            )
        for response, approval in pairs:  # all of them are looked at before any counts
            _refuse_stranger(caller, response, approval)
        for response, approval in pairs:
            if approval.by != "policy":
                await self._vote(caller, response, approval)
        return await self._claim(tenant, batch_ids.pop())

    async def history(
        self,
        caller: Caller,
        items: Sequence[Item],
        known: Mapping[str, Raw],
        *,
        end_user: str,
        parent: TurnHead | None,
    ) -> list[Item]:
        """Settle requests and answers that a caller repeats from turns that are over.

        A client that keeps the conversation itself sends them again each time. Such an answer
        decides nothing: it leaves as it was given, and an approved one only beside the call that
        it allowed, so that nothing runs a second time. A request that somebody else decided was
        answered out of the caller's sight: its answer is put beside it.

        Args:
            known: Items that the caller refers to, by id.
            parent: The turn that is continued; an answer to that one is none of earlier turns.

        Returns:
            The items, those answers written anew and of the type `HISTORY`.
        """
        answers = {name for item in items if (name := answered_request(item)) is not None}
        names = answers | {item.id for item in items if item.type in _ASKING and item.id}
        if not names:
            return list(items)
        called = {called_request(item, known) for item in items}
        over = {
            name: approval
            for name, approval in (
                await self._approvals.by_request(caller.tenant.id, sorted(names))
            ).items()
            if approval.end_user in ("", end_user)
            and (parent is None or parent.batch != approval.batch_id)
            and await self._is_over(approval)
            and (not answer(approval)[0] or name in called)
        }
        settled: list[Item] = []
        for item in items:
            name = answered_request(item)
            settled.append(item if name not in over else _history(over[name], item.id))
            if item.type in _ASKING and item.id in over and item.id not in answers:
                settled.append(_history(over[item.id]))
        return settled

    async def _is_over(self, approval: Approval) -> bool:
        batch = await self._approvals.batch(approval.tenant, approval.batch_id)
        return batch is not None and batch.status is BatchStatus.DONE

    async def requests(self, caller: Caller, ids: Sequence[str], end_user: str) -> dict[str, Raw]:
        """Write the approval requests that the caller was given, from the approvals."""
        known = await self._approvals.by_request(caller.tenant.id, ids) if ids else {}
        return {
            id_: approval_request(
                id_, server=approval.server, tool=approval.tool, arguments=approval.arguments
            )
            for id_, approval in known.items()
            if approval.end_user in ("", end_user)
        }

    async def carried_out(
        self, caller: Caller, names: Sequence[str], end_user: str
    ) -> dict[str, tuple[str, ...]]:
        """Name the turns that may hold the calls of requests that were approved and carried out."""
        known = await self._approvals.by_request(caller.tenant.id, names) if names else {}
        places: dict[str, tuple[str, ...]] = {}
        for name, approval in known.items():
            if approval.end_user not in ("", end_user) or not answer(approval)[0]:
                continue
            batch = await self._approvals.batch(approval.tenant, approval.batch_id)
            if batch is not None and batch.status is BatchStatus.DONE:
                places[name] = (batch.next_response_id or "", batch.turn_id)
        return places

    async def _refuse_open(self, tenant: str, batch_id: str) -> None:
        batch = await self._approvals.batch(tenant, batch_id)
        if batch is not None and batch.status in (
            BatchStatus.WAITING,
            BatchStatus.READY,
            BatchStatus.CLAIMED,
            BatchStatus.DISPATCHED,
        ):
            raise pending_conflict(batch)
        if batch is not None and batch.status is BatchStatus.ABANDONED:
            raise Conflict(
                f"The response '{batch.turn_id}' was given up while it waited for approvals; "
                "go on from the one before it.",
                code="response_cancelled",
                param="previous_response_id",
            )

    def _own(
        self, known: Mapping[str, Approval], response: ApprovalResponse, end_user: str
    ) -> Approval:
        approval = known.get(response.approval_request_id)
        if approval is None or approval.end_user not in ("", end_user):
            raise NotFound(
                f"There is no approval request '{response.approval_request_id}'.",
                code="approval_request_not_found",
                param="input",
            )
        return approval

    async def _vote(self, caller: Caller, response: ApprovalResponse, approval: Approval) -> None:
        result = await self._approvals.vote(
            caller.tenant.id,
            approval.id,
            actor=caller.principal.subject,
            verdict=Verdict.APPROVE if response.approve else Verdict.DENY,
            fingerprint=approval.fingerprint,
            reason=response.reason,
        )
        if result.problem == "expired" and approval.by == "caller":
            return  # too late to count; the model is told so, or the chain could never go on
        if result.problem is not None:
            raise vote_error(result.problem, result.approval)

    async def _claim(self, tenant: str, batch_id: str) -> Answers:
        batch = await self._approvals.batch(tenant, batch_id)
        if batch is None:
            raise NotFound("There is no such approval.", code="approval_not_found")
        if batch.open:
            raise pending_conflict(batch)
        if not any(approval.by == "caller" for approval in batch.approvals):
            return Answers(batch, join=batch.turn_id)
        claimed = await self._approvals.claim(tenant, batch_id, lease=self._lease)
        if claimed is None:
            raise Conflict(
                "These approvals have been answered and continued already.",
                code="already_continued",
                param="input",
            )
        return Answers(claimed)
