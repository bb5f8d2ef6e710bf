"""When the past of a turn is compacted (STATE-6).

A chain whose last response came near to what its model can read is told in fewer tokens by the
upstream itself (`/responses/compact`). The outcome, its *window*, takes the place of what it was
made from in all that is sent upstream afterwards. The turns stay as they are.
"""

from __future__ import annotations

from gateway.domain.documents import NULL, Document, Raw, parse_document
from gateway.domain.ports import Chain
from gateway.domain.requests import without
from gateway.domain.turns import is_type, output_of

COMPACT = "/responses/compact"
"""Where an upstream compacts."""

_WORTH = 4
"""A window is made anew once a quarter of the threshold has come since: one that the upstream
could not make small would else be made anew in each turn."""

_FIELDS = (
    "model",
    "instructions",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
)


def is_due(chain: Chain, threshold: int) -> bool:
    """Tell whether a chain is to be compacted before it goes on.

    Args:
        threshold: Tokens of its last response, input and output, as the upstream counted them.
    """
    told = [turn.head for turn in chain.turns if turn.head.trace]
    if not told:
        return False
    last = told[-1]
    if any(turn.head.id == last.window for turn in chain.turns):
        return True  # the window that kept it small is gone
    size = last.trace[-1].tokens
    if size < threshold or chain.window is None:
        return size >= threshold
    return (size - told[0].trace[0].input_tokens) * _WORTH >= threshold


def compaction_body(turn: Document) -> Document:
    """Write the body of a compaction, without its input: what it shares with the turn's own."""
    return without(turn, *(turn.keys() - set(_FIELDS)))


def compacted_output(body: bytes) -> list[Raw]:
    """Read what a compaction came to.

    Raises:
        msgspec.DecodeError: It is not a JSON object.
        ValueError: It holds no `compaction` item.
    """
    output = output_of(parse_document(body))
    if not any(is_type(item, "compaction") for item in output):
        raise ValueError("the answer holds no compaction")
    return output


def manages_itself(turn: Document) -> bool:
    """Tell whether the caller has the upstream compact (`context_management`)."""
    return bytes(turn.get("context_management", NULL)) not in (b"null", b"[]")
