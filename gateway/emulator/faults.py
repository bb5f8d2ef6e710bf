"""Faults on request: `/fault KIND` in the user's text, or the header `x-emulator-fault: KIND`.

    429[:seconds]  500  503  401  content_filter   the answer is that refusal
    reset_before                                   the connection is reset before any header
    silence:SECONDS                                nothing at all, then the normal answer
    stall:SECONDS                                  a pause after some deltas
    slow[:SECONDS]                                 a pause before each delta
    reset                                          a TCP reset after some deltas
    malformed                                      a broken frame after some deltas
    no_terminal                                    the stream ends in good order, but too early
    failed                                         an `error` event, then `response.failed`

The header wins over the text, and works on every endpoint for the faults before the first byte.
`KIND times=N` happens only to the first N requests with the same header or the same text, so that
a retry can succeed. `KIND on=approval` in the text happens only to requests that answer approvals,
also where the text itself is in the chain and not in the request.
"""

import re
from collections import Counter
from dataclasses import dataclass
from enum import Enum

from gateway.emulator import errors
from gateway.emulator.errors import ApiError
from gateway.emulator.script import Kind, parse_commands

HEADER = "x-emulator-fault"
_SPEC = re.compile(
    r"(?P<kind>\w+)(?::(?P<amount>[\d.]+))?(?:[ ;]+on=(?P<on>approval))?"
    r"(?:[ ;]+times=(?P<times>\d+))?"
)


class FaultKind(Enum):
    """The faults."""

    RATE_LIMIT = "429"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    UNAUTHORIZED = "401"
    CONTENT_FILTER = "content_filter"
    RESET_BEFORE = "reset_before"
    SILENCE = "silence"
    STALL = "stall"
    SLOW = "slow"
    RESET = "reset"
    MALFORMED = "malformed"
    NO_TERMINAL = "no_terminal"
    FAILED = "failed"


_DEFAULTS = {FaultKind.SILENCE: 30.0, FaultKind.STALL: 30.0, FaultKind.SLOW: 0.25}


@dataclass(frozen=True)
class Fault:
    """One fault that will happen to one request."""

    kind: FaultKind
    seconds: float = 0.0


class FaultDesk:
    """Reads faults and counts those that happen only so many times."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def from_header(self, value: str | None) -> Fault | None:
        """Return the fault that the header asks for."""
        return self._read(value or "", key=value or "")

    def from_text(self, text: str, *, answered: bool = False) -> Fault | None:
        """Return the fault that a user's message asks for.

        Args:
            answered: The message is an earlier one, and the request answers approvals of its turn.
        """
        for command in parse_commands(text):
            if command.kind is Kind.FAULT:
                return self._read(command.text, key=text, answered=answered)
        return None

    def _read(self, spec: str, *, key: str, answered: bool = False) -> Fault | None:
        match = _SPEC.match(spec.strip())
        if match is None or bool(match["on"]) is not answered:
            return None
        if match["kind"] not in {kind.value for kind in FaultKind}:
            raise errors.bad_request(f"Unknown fault '{match['kind']}'.", code="unknown_fault")
        if match["times"]:
            self._seen[key] += 1
            if self._seen[key] > int(match["times"]):
                return None
        kind = FaultKind(match["kind"])
        amount = match["amount"]
        return Fault(kind, float(amount) if amount else _DEFAULTS.get(kind, 0.0))


def refusal(fault: Fault, *, azure: bool) -> ApiError | None:
    """Return the error with which a fault answers at once, or None."""
    match fault.kind:
        case FaultKind.RATE_LIMIT:
            return _rate_limit(fault.seconds)
        case FaultKind.SERVER_ERROR:
            return ApiError(
                500,
                "The server had an error while processing your request. Sorry about that!",
                type="server_error",
            )
        case FaultKind.UNAVAILABLE:
            return ApiError(
                503,
                "The engine is currently overloaded, please try again later.",
                type="server_error",
                code="service_unavailable",
            )
        case FaultKind.UNAUTHORIZED:
            return errors.unauthorized(azure=azure, missing=False)
        case FaultKind.CONTENT_FILTER:
            return _content_filter()
        case _:
            return None


def _rate_limit(seconds: float) -> ApiError:
    wait = seconds or 0.1
    return ApiError(
        429,
        f"Rate limit reached for requests. Please try again in {wait:g}s.",
        type="requests",
        code="rate_limit_exceeded",
        headers={
            "retry-after-ms": str(int(wait * 1000)),
            "retry-after": str(max(1, round(wait))),
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": f"{wait:g}s",
        },
    )


def _content_filter() -> ApiError:
    """Return Azure's refusal of a prompt."""
    harms = {
        name: {"filtered": name == "violence", "severity": "high" if name == "violence" else "safe"}
        for name in ("hate", "self_harm", "sexual", "violence")
    }
    return ApiError(
        400,
        "The response was filtered due to the prompt triggering Azure OpenAI's content management "
        "policy. Please modify your prompt and retry.",
        param="prompt",
        code="content_filter",
        extra={
            "status": 400,
            "innererror": {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {
                    **harms,
                    "jailbreak": {"detected": False, "filtered": False},
                },
            },
        },
    )
