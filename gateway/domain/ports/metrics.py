"""What is counted (OPS-1)."""

from __future__ import annotations

from typing import Protocol


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

    def repaired(self, upstream: str, left_out: str) -> None:
        """Count an input that was mended after a refusal, by what was left out (STATE-5)."""
        ...

    def withheld(self, upstream: str, reason: str, count: int) -> None:
        """Count reasoning items that an upstream left out, by its reason (STATE-5)."""
        ...

    def restored(self, upstream: str, count: int) -> None:
        """Count reasoning items that callers left out and were put back (STATE-3)."""
        ...

    def compaction(self, upstream: str, outcome: str) -> None:
        """Count a compaction of a chain: done or failed (STATE-6)."""
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

    def jobs(self, lane: str, change: int) -> None:
        """Note that a job of a lane was begun (1) or is over (-1) in this process."""
        ...

    def websockets(self, tenant: str, change: int) -> None:
        """Note that a tenant's WebSocket was opened (1) or closed (-1)."""
        ...
