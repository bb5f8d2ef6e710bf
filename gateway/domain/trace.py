"""What is remembered of a turn's course: times and counts, never content (OPS-1, APPR-10)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.domain.documents import NULL, Document, Raw, parse_array

REASONS = frozenset(
    {
        "organization_mismatch",
        "end_user_mismatch",
        "model_mismatch",
        "prefix_mismatch",
        "turn_boundary",
    }
)
"""Why a provider leaves reasoning out, in its own words."""


class LegSummary(msgspec.Struct, frozen=True, array_like=True):
    """One leg of a turn.

    Attributes:
        id: The upstream's response id.
        request: The upstream's own id of the request, for its support; "" where it gives none.
        began, ended: Seconds since the epoch, by the clock of the replica that ran it.
        input_tokens, cached_tokens, output_tokens, reasoning_tokens: As the upstream counts them.
        repaired: What was left out after the upstream had refused the input, or "" (STATE-5).
        withheld: How many items of the input the upstream left out itself, by its reason.
    """

    id: str
    request: str = ""
    began: float = 0.0
    ended: float = 0.0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    repaired: str = ""
    withheld: dict[str, int] = {}

    @property
    def tokens(self) -> int:
        """Tokens in and out."""
        return self.input_tokens + self.output_tokens


def summarize(
    leg_id: str,
    usage: Raw,
    *,
    request: str = "",
    began: float = 0.0,
    ended: float = 0.0,
    repaired: str = "",
    transformations: Sequence[Raw] = (),
) -> LegSummary:
    """Sum up a finished leg; what the upstream counts in a strange way counts as nothing."""
    counted = _numbers(usage)
    return LegSummary(
        id=leg_id,
        request=request,
        began=began,
        ended=ended,
        input_tokens=counted.get("input_tokens", 0),
        output_tokens=counted.get("output_tokens", 0),
        cached_tokens=counted.get("input_tokens_details.cached_tokens", 0),
        reasoning_tokens=counted.get("output_tokens_details.reasoning_tokens", 0),
        repaired=repaired,
        withheld=dict(Counter(_reason(one) for one in transformations)),
    )


def transformations_of(response: Document) -> list[Raw]:
    """Return what a response says of the input that the upstream changed (STATE-5)."""
    told = response.get("input_transformations", NULL)
    return parse_array(told) if bytes(told)[:1] == b"[" else []


class _Transformation(msgspec.Struct):
    reason: str = ""


def _reason(transformation: Raw) -> str:
    """Return a reason that is known, else "other": it becomes a label of a metric."""
    try:
        reason = msgspec.json.decode(transformation, type=_Transformation).reason
    except msgspec.DecodeError:
        return "other"
    return reason if reason in REASONS else "other"


def _numbers(usage: Raw) -> dict[str, int]:
    try:
        document = msgspec.json.decode(usage, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
    flat = dict(document)
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": number for inner, number in value.items()}
    return {key: value for key, value in flat.items() if type(value) is int and value >= 0}
