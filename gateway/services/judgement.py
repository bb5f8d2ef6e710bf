"""Judge one call of a tool: everything that may allow, deny or ask, in one place and one order.

    not attached ─> deny      rules (and an engine beside them) ─> deny
    the caller's own ─> ask   in quarantine ─> deny (MCP-5)
                              not offered in this turn ─> deny
                              arguments not as the tool says ─> a person decides
                              tightened by the caller ─> the caller decides
                                                         a grant ─> allow

Nothing later in the order makes an earlier deny laxer, and a doubt is never an allow (APPR-1).
The same judge looks again just before an approved call is sent (APPR-7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.domain.approvals import Approval, ApprovalStatus, Batch, fingerprint
from gateway.domain.calls import UNANNOTATED, Call
from gateway.domain.pins import annotations_of
from gateway.domain.rules import Effect, RuleSet, Ruling
from gateway.domain.schemas import arguments_fault
from gateway.domain.tools import (
    BY_CALLER,
    NOT_OFFERED,
    OWN_SERVER,
    QUARANTINED,
    UNKNOWN,
    Attachment,
    Tools,
)
from gateway.domain.turns import ApprovalRequest, TurnState
from gateway.services.granted import Decision, Granted
from gateway.services.policy import Policy


class Judge:
    """Decides calls.

    Args:
        active: Whether the key with an id still exists: what a revoked caller asked for never runs.
    """

    def __init__(self, *, policy: Policy, active: Callable[[str], bool], granted: Granted) -> None:
        self._policy = policy
        self._active = active
        self._granted = granted

    @property
    def rules(self) -> RuleSet:
        """The rules, for what is compiled into a request."""
        return self._policy.rules

    async def call(self, state: TurnState, tools: Tools, request: ApprovalRequest) -> Call:
        """Gather what a call is decided by."""
        attachment = tools.attachment(request.server_label)
        server = attachment.server if attachment else None
        trust = server.trust if server else "untrusted"
        pin = attachment.pins.pins.get(request.name) if attachment else None
        return Call(
            tenant=state.tenant,
            subject=state.subject,
            roles=frozenset(state.roles),
            groups=frozenset(state.groups),
            end_user=state.end_user,
            server=request.server_label,
            server_identity=attachment.identity if attachment else "",
            tool=request.name,
            arguments=request.arguments,
            trust=trust,
            annotations=annotations_of(server, request.name, pin) if server else UNANNOTATED,
            pin=attachment.pin_status(request.name) if attachment else "unseen",
            definition_hash=pin.trusted.hash if pin and pin.trusted else "",
            chain=state.facts,
        )

    async def decide(self, call: Call, attachment: Attachment | None, approval_id: str) -> Decision:
        """Decide a call for good: what an approver would be asked, a grant may answer (APPR-8).

        The last step, once per approval, since it takes one use of the grant. A grant beats no
        deny, no question to the caller, no doubt, and no caller that wants each call asked for.
        """
        ruling = await self.judge(call, attachment)
        if ruling.effect is not Effect.ASK or ruling.approval.by != "approver":
            return Decision(ruling)
        tightened = attachment is not None and attachment.tightens(call.tool)
        return await self._granted.decide(call, ruling, approval_id, closed=tightened)

    async def judge(
        self, call: Call, attachment: Attachment | None, *, again: bool = False
    ) -> Ruling:
        """Judge a call by all but the grants; `again` where it was judged and counted before."""
        if attachment is None:
            return UNKNOWN
        if attachment.server is None:
            return OWN_SERVER
        ruling = await (self._policy.rejudge(call) if again else self._policy.judge(call))
        if ruling.effect is Effect.DENY:
            return ruling
        if call.pin == "quarantined":
            return QUARANTINED
        if attachment.offered is not None and call.tool not in attachment.offered:
            return NOT_OFFERED
        fault = _fault(call, attachment)
        if fault is not None:
            ruling = _doubted(ruling, fault)
            if not again:
                await self._policy.report(call, ruling, [f"pin: {fault}"])
        if ruling.effect is Effect.ALLOW and attachment.tightens(call.tool):
            return BY_CALLER
        return ruling

    def ran_freely(self, tools: Tools, server: str, tool: str) -> bool:
        """Tell whether a call that came back without any approval needed none.

        Only what the rules always allow was sent as free to run (MCP-4).
        """
        return tools.ruling(self.rules, server, tool).effect is Effect.ALLOW

    async def revalidated(self, batch: Batch, state: TurnState, tools: Tools) -> Batch:
        """Check again, just before sending, all that the approvals of a batch are bound to.

        What the rules deny now, or what has come to mean something else, is answered as
        superseded; a stored deny never becomes an allow.
        """
        approvals = [await self._still(approval, state, tools) for approval in batch.approvals]
        return replace(batch, approvals=tuple(approvals))

    async def _still(self, approval: Approval, state: TurnState, tools: Tools) -> Approval:
        if approval.status is not ApprovalStatus.APPROVED:
            return approval
        request = ApprovalRequest(
            approval.request_id, approval.server, approval.tool, approval.arguments
        )
        call = await self.call(state, tools, request)
        attachment = tools.attachment(approval.server)
        bound = approval.fingerprint == fingerprint_of(call, approval)
        if not bound or attachment is None or not self._active(state.key_id):
            return superseded(approval)
        grant = granted_by(approval)
        if grant and not await self._granted.stands(approval.tenant, grant):
            return superseded(approval)
        ruling = await self.judge(call, attachment, again=True)
        return approval if _still_answered(approval, ruling) else superseded(approval)


def _still_answered(approval: Approval, ruling: Ruling) -> bool:
    """Tell whether what answered an approval still may, by the rules as they are now.

    An approver's word stands while the rules do not deny. A rule's stands while it allows, a
    caller's while no approver is asked, and a grant's while the very rule asks that it is for.
    """
    if ruling.effect is not Effect.ASK:
        return ruling.effect is Effect.ALLOW
    match approval.by:
        case "approver":
            return True
        case "caller":
            return ruling.approval.by == "caller"
        case "policy":
            same = ruling.rule == approval.rule and ruling.approval.by == "approver"
            return bool(granted_by(approval)) and same and not ruling.errors


def _fault(call: Call, attachment: Attachment) -> str | None:
    """Hold a call against the pinned input schema."""
    pin = attachment.pins.pins.get(call.tool)
    if pin is None or pin.trusted is None:
        return None
    return arguments_fault(call.arguments, pin.trusted.input_schema)


def _doubted(ruling: Ruling, fault: str) -> Ruling:
    """Show a fault to a person: what has one is never allowed unseen."""
    return replace(
        ruling,
        effect=Effect.ASK,
        reason=f"{ruling.reason} {fault}" if ruling.reason else fault,
        errors=(*ruling.errors, f"pin: {fault}"),
    )


def fingerprint_of(call: Call, approval: Approval) -> str:
    """Compute the fingerprint of a call as the answer to the approval's request (APPR-7).

    What may have changed since comes from the call, what names the request from the approval.
    """
    return fingerprint(
        tenant=call.tenant,
        principal=call.subject,
        chain_id=approval.chain_id,
        response_id=approval.response_id,
        request_id=approval.request_id,
        server=call.server,
        server_identity=call.server_identity,
        tool=call.tool,
        definition_hash=call.definition_hash,
        arguments=call.arguments,
    )


def granted_by(approval: Approval) -> str:
    """Name the grant that answered an approval; "" where none did."""
    kind, _, name = (approval.decided_by or "").partition(":")
    return name if kind == "grant" else ""


def superseded(approval: Approval) -> Approval:
    """Withdraw an approval whose ground has gone; its reason was that of the approver."""
    return replace(approval, status=ApprovalStatus.SUPERSEDED, reason=None)
