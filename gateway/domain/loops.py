"""Stop chains that go round and round with nobody looking (APPR-8, LIMIT-1).

A model that calls, is answered by a rule or a grant, and calls again can spend without end. Three
bounds stop it with an error: answers in a row that no person gave, tokens of the whole chain, and
a call that is asked for again although it was denied twice.

What counts as nobody looking is read narrowly. A row ends only when an approver has decided, or a
message of the user has come. Neither the outputs of functions nor the caller's own answers to
approval requests end it: a program may be giving them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import msgspec

from gateway.domain.approvals import Approval, ApprovalStatus
from gateway.domain.calls import ChainFacts
from gateway.domain.errors import BadRequest, GatewayError
from gateway.domain.grants import args_hash
from gateway.domain.identity import Limits
from gateway.domain.turns import ApprovalRequest

MAX_LEGS = 32
"""Most upstream responses in one turn, whoever decides."""

_DENIED_KEPT = 32
_DENIALS = 2


class GoesRound(GatewayError):
    """The model goes round and round. Its answer is known, so nothing of the turn is in doubt."""

    status_code = 502
    type = "upstream_error"


class TooManyRounds(GoesRound):
    """The model asked again and again, and nobody looked."""

    default_code = "too_many_approval_rounds"


class RepeatedDenial(GoesRound):
    """The model asked once more for what was denied twice."""

    default_code = "repeated_denial"


class ChainBudgetExceeded(BadRequest):
    """The chain has used its tokens; only a new chain goes on."""

    default_code = "chain_budget_exceeded"


def call_name(server: str, tool: str, arguments: str) -> str:
    """Name a call, the same for arguments that are the same JSON; raw where they are none."""
    parts = [server, tool, args_hash(arguments) or arguments]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def after_answers(facts: ChainFacts, approvals: Iterable[Approval]) -> ChainFacts:
    """Return the facts of a chain once the answers to some approvals were sent."""
    looked, denied = False, list(facts.denied)
    for approval in approvals:
        by_person = (approval.decided_by or "").startswith("subject:")
        looked = looked or (by_person and approval.by == "approver")
        if approval.status is ApprovalStatus.DENIED:
            denied.append(call_name(approval.server, approval.tool, approval.arguments))
    rounds = 0 if looked else facts.rounds + 1
    return msgspec.structs.replace(facts, rounds=rounds, denied=tuple(denied[-_DENIED_KEPT:]))


def check_budget(facts: ChainFacts, limits: Limits) -> None:
    """Refuse to go on with a chain that has used its tokens.

    Raises:
        ChainBudgetExceeded: It names what was used, and what is allowed.
    """
    budget = limits.chain_token_budget
    if budget is not None and facts.tokens >= budget:
        raise ChainBudgetExceeded(
            f"This chain has used {facts.tokens} tokens of the {budget} that it may use. "
            "Begin a new one.",
            param="previous_response_id",
        )


def check_requests(
    facts: ChainFacts, requests: Iterable[ApprovalRequest], limits: Limits, *, legs: int
) -> None:
    """Refuse to answer, or to ask about, the requests of a chain that goes round and round.

    Raises:
        ChainBudgetExceeded, TooManyRounds, RepeatedDenial.
    """
    check_budget(facts, limits)
    if facts.rounds >= limits.max_auto_rounds:
        raise TooManyRounds(
            f"{facts.rounds} times in a row the model called tools and no person decided; "
            "a message of the user lets it go on."
        )
    if legs >= MAX_LEGS:
        raise TooManyRounds(f"The turn asked for approvals in {MAX_LEGS} responses.")
    for request in requests:
        name = call_name(request.server_label, request.name, request.arguments)
        if facts.denied.count(name) >= _DENIALS:
            raise RepeatedDenial(
                f"The model asked again for '{request.server_label}.{request.name}' with "
                f"arguments that were denied {_DENIALS} times."
            )
