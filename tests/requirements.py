"""The contract's ids and where they stand; `test_requirements.py` holds tests against it.

A test names the ids that it proves with `@pytest.mark.covers("RUN-1", ...)`. Every id that is
`done` has a test, and no test names an id that is not here. `part` says what is there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Requirement:
    """One line of the contract.

    Attributes:
        state: "done", "part" (tests cover what `note` says) or "later" (no test yet).
    """

    text: str
    state: Literal["done", "part", "later"] = "done"
    note: str = ""


REQUIREMENTS: dict[str, Requirement] = {
    "RUN-1": Requirement("one line starts everything on loopback"),
    "RUN-2": Requirement("gateway dev takes a real provider and a real Redis when they are set"),
    "RUN-3": Requirement("one line runs all tests on a bare machine"),
    "RUN-4": Requirement("serve and check refuse an unsafe or incomplete configuration"),
    "RUN-5": Requirement(
        "keys new, policy simulate, mcp probe, audit verify, emulator; help explains them"
    ),
    "RUN-6": Requirement("environment over file over defaults; secrets are references"),
    "API-1": Requirement("the whole Responses surface"),
    "API-2": Requirement("Azure's paths and credentials"),
    "API-3": Requirement("unknown fields, events and headers pass; bytes pass untouched"),
    "API-4": Requirement("the caller sees the upstream's own id of the first leg"),
    "API-5": Requirement("errors in OpenAI's shape, upstream errors kept, none silent in a stream"),
    "API-6": Requirement("WebSocket mode, but for steering, which upstreams over HTTP lack"),
    "API-7": Requirement("images and files", "later"),
    "API-8": Requirement("Azure OpenAI upstream with Entra ID or key"),
    "CHAIN-1": Requirement("a chain continues for its owner only; all else is 404"),
    "CHAIN-2": Requirement("a chain stays with its upstream"),
    "CHAIN-3": Requirement("servers and secrets are attached again on each leg"),
    "CHAIN-4": Requirement("state is written before the terminal event leaves; forks work"),
    "CHAIN-5": Requirement("conversations, passed through or kept by the gateway"),
    "STATE-1": Requirement("stateless mode"),
    "STATE-2": Requirement("replayed is exactly what was produced"),
    "STATE-3": Requirement("left-out reasoning is put back"),
    "STATE-4": Requirement("encrypted at rest, TTL, deletion, cache off"),
    "STATE-5": Requirement(
        "one bounded repair by what was refused; what upstreams leave out is counted and shown"
    ),
    "STATE-6": Requirement("long chains, one round trip, compaction at a threshold"),
    "STATE-7": Requirement("stateless responses are retrieved, listed, deleted, in background"),
    "MCP-1": Requirement("servers by label; narrow and tighten, never widen"),
    "MCP-2": Requirement(
        "headers from secrets and from the request", "part", "none minted per user yet"
    ),
    "MCP-3": Requirement("secrets appear nowhere"),
    "MCP-4": Requirement("rules are compiled into the request"),
    "MCP-5": Requirement(
        "tool definitions are pinned; a change is quarantine until it is accepted"
    ),
    "MCP-6": Requirement("gateway-run MCP", "later"),
    "APPR-1": Requirement("every approval request is intercepted and decided"),
    "APPR-2": Requirement("one response to the caller, whatever the legs"),
    "APPR-3": Requirement("the stream stays open with comments; JSON is pending"),
    "APPR-4": Requirement("durable holds"),
    "APPR-5": Requirement("at most once; what is lost is retried or rewound"),
    "APPR-6": Requirement("the approvals API"),
    "APPR-7": Requirement("fingerprint and receipt"),
    "APPR-8": Requirement("grants, revisions, loop cap, budget per chain, fatigue guard"),
    "APPR-9": Requirement("webhooks out"),
    "APPR-10": Requirement("the console: inbox, approval, turns, operators' rooms, playground"),
    "APPR-11": Requirement("every decision in a hash chain; read, verify, export"),
    "APPR-12": Requirement(
        "computer use", "part", "no check is passed on as acknowledged; none can be approved"
    ),
    "APPR-13": Requirement("rules in full"),
    "STREAM-1": Requirement("one path, bounded memory, back-pressure"),
    "STREAM-2": Requirement("leaving a plain turn cancels the upstream call at once"),
    "STREAM-3": Requirement("background and resume, native or kept by the gateway"),
    "STREAM-4": Requirement("graceful stop; held turns go on at other replicas"),
    "AUTH-1": Requirement("API keys", "part", "no JWT yet"),
    "AUTH-2": Requirement("tenants are isolated"),
    "LIMIT-1": Requirement("rate limits", "part", "token budget per chain"),
    "LIMIT-2": Requirement("Azure admission", "later"),
    "LIMIT-3": Requirement("bodies, headers, depth, tools and items are bounded"),
    "OPS-1": Requirement("health, metrics, JSON logs", "part", "no tracing yet"),
    "OPS-2": Requirement(
        "replicas share nothing but Redis",
        "part",
        "standalone and Sentinel, no Cluster; no Entra ID",
    ),
    "OPS-3": Requirement("deployment files", "part", "Dockerfile and compose"),
    "OPS-4": Requirement("what fails open and what closed is written down and tested"),
}
