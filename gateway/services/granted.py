"""Put a question that is meant for a person to the grants first (APPR-8)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.domain.calls import Call
from gateway.domain.grants import Candidate, Fatigue, Grant, Scope, candidates
from gateway.domain.ports import AuditLog, GrantStore, Meter, Question
from gateway.domain.rules import Effect, Ruling


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a call.

    Attributes:
        ruling: An ask stays one where a grant answers it: its terms are those of the approval.
        grant: The grant that answers in a person's place.
        suggest_grant: Whether the approver should be shown that a grant would be better.
    """

    ruling: Ruling
    grant: Grant | None = None
    suggest_grant: bool = False


class Granted:
    """Asks the grants."""

    def __init__(
        self, *, store: GrantStore, audit: AuditLog, meter: Meter, fatigue: Fatigue
    ) -> None:
        self._store = store
        self._audit = audit
        self._meter = meter
        self._fatigue = fatigue

    async def decide(
        self, call: Call, ruling: Ruling, approval_id: str, *, closed: bool = False
    ) -> Decision:
        """Decide a call that the rules would ask an approver about; takes one use of a grant.

        Args:
            closed: No grant may answer this call.
        """
        terms = ruling.approval
        answer = await self._store.ask(
            Question(
                tenant=call.tenant,
                id=approval_id,
                candidates=() if closed else _candidates(call, ruling),
                excluded=() if terms.allow_self else _themselves(call),
                max_ttl=terms.grants.max_ttl,
                max_uses=1 if terms.grants.max_scope is Scope.ONCE else terms.grants.max_uses,
                asker=json.dumps([call.subject, call.end_user, call.server, call.tool]),
                most=self._fatigue.asks,
                window=self._fatigue.window,
            )
        )
        for dropped in answer.dropped:
            self._meter.grant(server=dropped.server, event="dropped")
            await self._audit.note(
                call.tenant,
                "grant.dropped",
                actor="gateway",
                subject=dropped.id,
                detail={"cause": dropped.ended},
            )
        if answer.grant is not None:
            self._meter.grant(server=call.server, event="used")
            await self._audit.note(
                call.tenant,
                "grant.used",
                actor=f"subject:{call.subject}",
                subject=answer.grant.id,
                detail={"approval_id": approval_id, "uses": answer.grant.uses},
            )
            return Decision(ruling, grant=answer.grant)
        if answer.tiring:
            self._meter.grant(server=call.server, event="tiring")
            if self._fatigue.action == "deny":
                return Decision(Ruling(Effect.DENY, "fatigue", reason=self._fatigue.reason))
        return Decision(ruling, suggest_grant=answer.tiring)

    async def stands(self, tenant: str, grant_id: str) -> bool:
        """Tell whether what a grant allowed may still run."""
        return await self._store.stands(tenant, grant_id)


def _candidates(call: Call, ruling: Ruling) -> Sequence[Candidate]:
    """Name the grants that may answer: none where there is a doubt, or where many must agree."""
    terms = ruling.approval
    many = terms.quorum > 1 and not terms.grants.with_quorum
    if ruling.errors or call.pin == "quarantined" or many:
        return ()
    return tuple(candidates(call, ruling.rule, terms.grants))


def _themselves(call: Call) -> Sequence[str]:
    return (call.subject, call.end_user) if call.end_user else (call.subject,)
