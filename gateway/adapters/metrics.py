"""Prometheus metrics, instrumented once in the pipe (OPS-1).

Labels are names from the configuration; a model or server name from outside is counted as
`other`, so that no caller can make series without end.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from typing_extensions import override

from gateway.domain.ports import Meter

_HASTY = 1.0
"""Seconds below which nobody has read what was asked."""

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class PrometheusMeter(Meter):
    """Counts turns, tokens and approvals.

    Args:
        models: Known model names; empty means that none is configured, and all count as `other`.
        servers: Known MCP server labels.
    """

    def __init__(self, *, models: Collection[str], servers: Collection[str]) -> None:
        self._models = frozenset(models)
        self._servers = frozenset(servers)
        self._registry = CollectorRegistry()
        self._children: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self._turns = Counter(
            "gateway_turns",
            "Turns by how they ended.",
            ("upstream", "model", "status", "mode"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "gateway_turn_duration_seconds",
            "Seconds from the request to the end of the turn, holds included.",
            ("upstream", "mode"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "gateway_time_to_first_event_seconds",
            "Seconds from the request to the first event.",
            ("upstream",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._legs = Counter(
            "gateway_legs", "Upstream responses.", ("upstream",), registry=self._registry
        )
        self._tokens = Counter(
            "gateway_tokens",
            "Tokens by direction.",
            ("upstream", "model", "direction"),
            registry=self._registry,
        )
        self._approvals = Counter(
            "gateway_approvals",
            "Approval requests by what became of them.",
            ("server", "outcome"),
            registry=self._registry,
        )
        self._dwell = Histogram(
            "gateway_approval_dwell_seconds",
            "Seconds from the question to a person's decision.",
            ("server", "outcome"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._hasty = Counter(
            "gateway_approval_hasty",
            "Decisions of people within a second.",
            ("server",),
            registry=self._registry,
        )
        self._grants = Counter(
            "gateway_grants",
            "What happened to grants.",
            ("server", "event"),
            registry=self._registry,
        )
        self._rulings = Counter(
            "gateway_policy_rulings",
            "Calls by the rule that decided them.",
            ("rule", "effect"),
            registry=self._registry,
        )
        self._rule_errors = Counter(
            "gateway_policy_errors",
            "Rules and engines that had no answer for a call.",
            ("rule",),
            registry=self._registry,
        )
        self._shadow = Counter(
            "gateway_policy_shadow_decisions",
            "Calls that rules in shadow mode would have decided otherwise.",
            ("rule", "effective", "shadow"),
            registry=self._registry,
        )
        self._tool_pins = Counter(
            "gateway_tool_pins",
            "Changes of tool pins by what happened.",
            ("server", "outcome"),
            registry=self._registry,
        )
        self._repairs = Counter(
            "gateway_repairs",
            "Inputs mended once after an upstream refused them.",
            ("upstream", "left_out"),
            registry=self._registry,
        )
        self._restored = Counter(
            "gateway_reasoning_restored",
            "Reasoning items that callers left out and the gateway put back.",
            ["upstream"],
            registry=self._registry,
        )
        self._compactions = Counter(
            "gateway_compactions",
            "Compactions of chains by what became of them.",
            ("upstream", "outcome"),
            registry=self._registry,
        )
        self._withheld = Counter(
            "gateway_reasoning_withheld",
            "Items that an upstream left out of the input (input_transformations).",
            ("upstream", "reason"),
            registry=self._registry,
        )

        self._audited = Counter(
            "gateway_audit_entries",
            "Entries put into the audit's chain by this replica.",
            ("event",),
            registry=self._registry,
        )
        self._audit_lag = Gauge(
            "gateway_audit_lag_seconds",
            "Seconds that the oldest occurrence waits for its entry in the audit.",
            ("tenant",),
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._webhooks = Counter(
            "gateway_webhook_deliveries",
            "Tries to deliver a webhook by what became of them.",
            ("event", "outcome"),
            registry=self._registry,
        )
        self._webhook_endpoints_off = Counter(
            "gateway_webhook_endpoints_disabled",
            "Webhook endpoints that were switched off.",
            ("reason",),
            registry=self._registry,
        )
        self._jobs = Gauge(
            "gateway_jobs_running",
            "Jobs that run: background turns, and all others.",
            ("lane",),
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._websockets = Gauge(
            "gateway_websockets_open",
            "WebSockets that are open.",
            ("tenant",),
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def _child(self, metric: Any, *labels: str) -> Any:
        """Find a metric's series; looking it up in the metric itself costs 5 µs each time."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _model(self, model: str) -> str:
        return model if model in self._models else "other"

    def _server(self, server: str) -> str:
        return server if server in self._servers else "other"

    @override
    def turn(
        self, *, upstream: str, model: str, status: str, streamed: bool, legs: int, seconds: float
    ) -> None:
        mode = "stream" if streamed else "json"
        self._child(self._turns, upstream, self._model(model), status, mode).inc()
        self._child(self._duration, upstream, mode).observe(max(seconds, 0.0))
        self._child(self._legs, upstream).inc(legs)

    @override
    def first_event(self, *, upstream: str, seconds: float) -> None:
        self._child(self._first, upstream).observe(max(seconds, 0.0))

    @override
    def tokens(self, *, upstream: str, model: str, input: int, output: int) -> None:
        name = self._model(model)
        self._child(self._tokens, upstream, name, "input").inc(max(input, 0))
        self._child(self._tokens, upstream, name, "output").inc(max(output, 0))

    @override
    def approval(self, *, server: str, outcome: str) -> None:
        self._child(self._approvals, self._server(server), outcome).inc()

    @override
    def decided(self, *, server: str, outcome: str, seconds: float) -> None:
        label = self._server(server)
        self._child(self._dwell, label, outcome).observe(max(seconds, 0.0))
        if seconds < _HASTY:
            self._child(self._hasty, label).inc()

    @override
    def grant(self, *, server: str, event: str) -> None:
        self._child(self._grants, self._server(server), event).inc()

    @override
    def ruling(self, *, rule: str, effect: str) -> None:
        self._child(self._rulings, rule, effect).inc()

    @override
    def rule_error(self, rule: str) -> None:
        self._child(self._rule_errors, rule).inc()

    @override
    def shadow_decision(self, *, rule: str, effective: str, shadow: str) -> None:
        self._child(self._shadow, rule, effective, shadow).inc()

    @override
    def tool_pin(self, *, server: str, outcome: str) -> None:
        self._child(self._tool_pins, self._server(server), outcome).inc()

    @override
    def repaired(self, upstream: str, left_out: str) -> None:
        self._child(self._repairs, upstream, left_out).inc()

    @override
    def withheld(self, upstream: str, reason: str, count: int) -> None:
        self._child(self._withheld, upstream, reason).inc(count)

    @override
    def restored(self, upstream: str, count: int) -> None:
        self._child(self._restored, upstream).inc(count)

    @override
    def compaction(self, upstream: str, outcome: str) -> None:
        self._child(self._compactions, upstream, outcome).inc()

    @override
    def audited(self, event: str) -> None:
        self._child(self._audited, event).inc()

    @override
    def audit_lag(self, *, tenant: str, seconds: float) -> None:
        self._child(self._audit_lag, tenant).set(seconds)

    @override
    def webhook(self, *, event: str, outcome: str) -> None:
        self._child(self._webhooks, event, outcome).inc()

    @override
    def webhook_endpoint_disabled(self, reason: str) -> None:
        self._child(self._webhook_endpoints_off, reason).inc()

    @override
    def jobs(self, lane: str, change: int) -> None:
        self._child(self._jobs, lane).inc(change)

    @override
    def websockets(self, tenant: str, change: int) -> None:
        self._child(self._websockets, tenant).inc(change)

    def expose(self) -> tuple[bytes, str]:
        """Write the metrics of all workers of this replica, and their media type."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
