"""Settle a leg: note what it made, check receipts, and put its approval requests to the rules.

Rules answer at once, or a person is asked; an unknown server is denied, and nothing that went
wrong ever allows (APPR-1).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from gateway.domain.approvals import (
    Approval,
    ApprovalStatus,
    Batch,
    new_approval_id,
)
from gateway.domain.documents import NULL, Raw, raw
from gateway.domain.errors import GatewayError, UpstreamDisconnected
from gateway.domain.history import Kept
from gateway.domain.identity import Tenant
from gateway.domain.loops import after_answers, check_requests
from gateway.domain.ports import ApprovalStore, Meter
from gateway.domain.rules import Effect
from gateway.domain.scrubbing import Scrubber
from gateway.domain.tools import Attachment, Tools
from gateway.domain.trace import summarize, transformations_of
from gateway.domain.turns import (
    ApprovalRequest,
    TurnState,
    View,
    add_usage,
    approval_requests,
    is_type,
)
from gateway.services.interception import LegResult
from gateway.services.judgement import Judge, fingerprint_of
from gateway.services.pins import Pinning

logger = logging.getLogger("gateway.approvals")


class ReceiptMismatch(GatewayError):
    """A tool ran that nobody approved, or not as it was approved (APPR-7).

    Attributes:
        server, tool: What ran, as the upstream says.
        approval_id: The approval that the call names, or "" where it names none of this batch.
    """

    status_code = 502
    type = "upstream_error"
    default_code = "receipt_mismatch"

    def __init__(self, *, server: str, tool: str, approval_id: str) -> None:
        super().__init__(f"The upstream ran a tool of '{server}' that was not approved.")
        self.server, self.tool, self.approval_id = server, tool, approval_id


@dataclass(slots=True, kw_only=True)
class Running:
    """A turn in the hands of one process.

    Attributes:
        base: The whole input of the first leg, where the upstream holds none of it.
        batch: The claimed batch that the current leg answers, or `None`.
        held: Whether the turn is on record as waiting, so that its end must be too.
        waits: Whether the turn now waits for a person, and goes on as a job.
        dispatched: Whether the answers of `batch` may have reached the upstream.
        recorded: Whether the turn has been written, so that its id is its own.
        upstream_request: The upstream's own id of the last request.
        leg_began: When it was sent, in seconds since the epoch.
        keeping: Keeps the conversation from other turns while this process runs the turn.
    """

    state: TurnState
    tools: Tools
    tenant: Tenant
    view: View
    scrubber: Scrubber = field(default_factory=lambda: Scrubber(()))
    base: Raw | None = None
    batch: Batch | None = None
    held: bool = False
    waits: bool = False
    dispatched: bool = False
    recorded: bool = False
    upstream_request: str = ""
    leg_began: float = 0.0
    keeping: asyncio.Future[None] | None = None


def id_reused(response_id: str) -> UpstreamDisconnected:
    """The error for a response id that is missing or not new: it would name two turns at once."""
    return UpstreamDisconnected(
        f"The upstream gave a response the id '{response_id}', which is not a new one.",
        code="upstream_malformed",
    )


class Settlement:
    """Decides what follows a leg."""

    def __init__(
        self, *, approvals: ApprovalStore, judge: Judge, pinning: Pinning, meter: Meter
    ) -> None:
        self._approvals = approvals
        self._judge = judge
        self._pinning = pinning
        self._meter = meter

    async def note(self, running: Running, result: LegResult) -> list[Approval]:
        """Take a finished leg into the turn, and make approvals of its requests.

        Raises:
            ReceiptMismatch: A call came back that was not approved like that.
            TooManyRounds, RepeatedDenial, ChainBudgetExceeded: The chain goes round and round.
            UpstreamDisconnected: An MCP item cannot be read, so nobody knows what it asks for.
        """
        try:
            return await self._note(running, result)
        except msgspec.DecodeError as exc:
            raise UpstreamDisconnected(
                "The upstream sent an MCP item that cannot be read.", code="upstream_malformed"
            ) from exc

    async def _note(self, running: Running, result: LegResult) -> list[Approval]:
        # A tool may repeat the credential it was sent: what is kept is what the caller sees.
        scrub = running.scrubber.scrub_raw
        result = replace(result, output=[scrub(item) for item in result.output])
        state = running.state
        if not result.id or (state.legs and result.id in (state.turn_id, state.last_leg)):
            raise id_reused(result.id)
        state.legs += 1
        state.last_leg = result.id
        state.turn_id = state.turn_id or result.id
        state.first = state.first or result.response
        if bytes(result.response.get("store", NULL)) == b"false":
            state.stored = False  # an organisation without data retention says so only here
        state.output_count += len(result.output)
        state.items.extend(Kept("out", item) for item in result.output)
        state.usage = add_usage(state.usage, result.response.get("usage"))
        self._check_receipts(running, result)
        _learn(running, result)
        await self._look(running, result)
        if result.status == "failed":
            return []
        requests = approval_requests(result.output)
        if requests:
            check_requests(state.facts, requests, running.tenant.limits, legs=state.legs)
        return [await self._approval(running, request, result.id) for request in requests]

    async def _look(self, running: Running, result: LegResult) -> None:
        """Compare listings with the pins before anything is decided about the leg (MCP-5)."""
        state = running.state
        seen = await self._pinning.seen(state.tenant, state.turn_id, running.tools, result.output)
        running.tools = seen.tools
        if seen.ran:  # it came with its listing, so nothing could have stopped it
            state.facts = msgspec.structs.replace(state.facts, saw_untrusted=True)
            self._pinning.ran(state.tenant, state.turn_id, seen.ran)

    def _check_receipts(self, running: Running, result: LegResult) -> None:
        answered = {
            approval.request_id: approval
            for approval in (running.batch.approvals if running.batch else ())
        }
        approved = dict(answered)
        for item in result.output:
            if not is_type(item, "mcp_call"):
                continue
            call = msgspec.json.decode(item, type=_Call)
            if not self._fits(running, call, approved):
                logger.critical(
                    "an MCP call does not fit its approval",
                    extra={"turn": running.state.turn_id, "server": call.server_label},
                )
                self._meter.approval(server=call.server_label, outcome="receipt_mismatch")
                named = answered.get(call.approval_request_id or "")
                raise ReceiptMismatch(
                    server=call.server_label,
                    tool=call.name,
                    approval_id=named.id if named else "",
                )

    def _fits(self, running: Running, call: _Call, approved: dict[str, Approval]) -> bool:
        """Compare a call with its approval, which it uses up: one approval is one call."""
        approval = approved.pop(call.approval_request_id or "", None)
        if approval is not None:
            scrub = running.scrubber.scrub_raw
            return approval.status is ApprovalStatus.APPROVED and (
                call.server_label,
                call.name,
                scrub(raw(call.arguments)),
            ) == (approval.server, approval.tool, scrub(raw(approval.arguments)))
        return self._judge.ran_freely(running.tools, call.server_label, call.name)

    async def _approval(
        self, running: Running, request: ApprovalRequest, response_id: str
    ) -> Approval:
        state = running.state
        call = await self._judge.call(state, running.tools, request)
        approval_id = new_approval_id()
        decision = await self._judge.decide(
            call, running.tools.attachment(call.server), approval_id
        )
        ruling, grant = decision.ruling, decision.grant
        terms = ruling.approval
        asks = ruling.effect is Effect.ASK and grant is None
        approval = Approval(
            id=approval_id,
            tenant=state.tenant,
            batch_id=response_id,
            turn_id=state.turn_id,
            response_id=response_id,
            request_id=request.id,
            upstream=state.upstream,
            server=request.server_label,
            server_identity=call.server_identity,
            tool=request.name,
            definition_hash=call.definition_hash,
            annotations=call.annotations,
            description=_described(running.tools.attachment(call.server), call.tool),
            trust=call.trust,
            chain_id=state.facts.id,
            arguments=request.arguments,
            fingerprint="",
            requester=state.subject,
            end_user=state.end_user,
            rule=ruling.rule,
            rule_version=ruling.version,
            rule_reason=ruling.reason,
            by=terms.by if asks else "policy",
            approvers=terms.approvers,
            quorum=terms.quorum,
            allow_self=terms.allow_self,
            on_timeout=terms.on_timeout,
            timeout=terms.timeout,
            escalate=terms.escalate,
            max_extensions=terms.max_extensions,
            reason_required=terms.reason_required,
            grants=terms.grants,
            redact=terms.redact,
            suggest_grant=decision.suggest_grant,
        )
        approval = replace(approval, fingerprint=fingerprint_of(call, approval))
        if asks:
            return approval
        if grant is not None:
            decided_by = f"grant:{grant.id}"
            return replace(approval, status=ApprovalStatus.APPROVED, decided_by=decided_by)
        allowed = ruling.effect is Effect.ALLOW
        return replace(
            approval,
            status=ApprovalStatus.APPROVED if allowed else ApprovalStatus.DENIED,
            decided_by=f"policy:{ruling.rule}",
            reason=None if allowed else ruling.reason or "The rules of the gateway deny this call.",
        )

    async def open(
        self, running: Running, approvals: Sequence[Approval], *, held: bytes, lease: float | None
    ) -> Batch:
        """Put the approvals of a leg on record, claimed at once where all are decided."""
        for approval in approvals:
            self._meter.approval(server=approval.server, outcome=_outcome(approval))
        batch = await self._approvals.open_batch(
            tenant=running.state.tenant,
            batch_id=running.state.last_leg,
            turn_id=running.state.turn_id,
            approvals=approvals,
            held=held,
            ttl=running.tenant.ttl,
            claim_lease=lease,
        )
        if {one.id for one in batch.approvals} != {one.id for one in approvals}:
            raise id_reused(running.state.last_leg)
        return batch

    async def revalidate(self, running: Running, batch: Batch) -> Batch:
        """Check again, just before sending, all that an approval is bound to (APPR-7).

        The tools, too, are written again under the rules as they are now.
        """
        tools = running.tools.recompiled(self._judge.rules, running.tenant)
        running.tools = await self._pinning.fresh(running.state.tenant, tools)
        return await self._judge.revalidated(batch, running.state, running.tools)


def _described(attachment: Attachment | None, tool: str) -> str | None:
    """Return what the pinned definition says that the tool does."""
    pin = attachment.pins.pins.get(tool) if attachment else None
    return pin.trusted.description if pin is not None and pin.trusted is not None else None


def _learn(running: Running, result: LegResult) -> None:
    """Carry on what is known of the chain: id, tokens, whose tools have run, what was answered."""
    state = running.state
    changed = transformations_of(result.response)
    state.transformations = [*state.transformations, *changed]
    summary = summarize(
        result.id,
        result.response.get("usage", NULL),
        request=running.upstream_request,
        began=running.leg_began,
        ended=time.time(),
        repaired=state.repaired,
        transformations=changed,
    )
    state.repaired = ""
    state.trace.append(summary)
    facts = msgspec.structs.replace(
        state.facts,
        id=state.facts.id or state.turn_id,
        tokens=state.facts.tokens + summary.tokens,
    )
    for item in result.output:
        if is_type(item, "mcp_call"):
            label = msgspec.json.decode(item, type=_Call).server_label
            attachment = running.tools.attachment(label)
            facts = facts.after(attachment.server if attachment else None)
    if running.batch is not None and running.batch.approvals:
        facts = after_answers(facts, running.batch.approvals)
    state.facts = facts


class _Call(msgspec.Struct):
    server_label: str = ""
    name: str = ""
    arguments: str = ""
    approval_request_id: str | None = None


def _outcome(approval: Approval) -> str:
    return "asked" if approval.status is ApprovalStatus.PENDING else approval.status.value
