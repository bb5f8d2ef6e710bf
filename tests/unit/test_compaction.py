"""What of a chain may be told in other words, and when (STATE-6)."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.domain.compaction import is_due
from gateway.domain.documents import raw
from gateway.domain.history import Kept, Origin, closed, replay
from gateway.domain.ports import Chain, Turn, TurnHead, Window
from gateway.domain.trace import LegSummary

pytestmark = pytest.mark.covers("STATE-6")


def items(*told: tuple[Origin, dict[str, Any]]) -> list[Kept]:
    return [Kept(origin, raw(item)) for origin, item in told]


USER: tuple[Origin, dict[str, Any]] = ("in", {"role": "user", "content": "hi"})
SAID: tuple[Origin, dict[str, Any]] = ("out", {"type": "message", "id": "m", "role": "assistant"})
THOUGHT: tuple[Origin, dict[str, Any]] = ("out", {"type": "reasoning", "encrypted_content": "x"})


def call(name: str, kind: str = "function_call") -> tuple[Origin, dict[str, Any]]:
    return ("out", {"type": kind, "call_id": name})


def output(name: str, kind: str = "function_call_output") -> tuple[Origin, dict[str, Any]]:
    return ("in", {"type": kind, "call_id": name})


ASKED: tuple[Origin, dict[str, Any]] = ("out", {"type": "mcp_approval_request", "id": "mcpr_1"})
APPROVED: tuple[Origin, dict[str, Any]] = ("gw", {"approval_request_id": "mcpr_1", "approve": True})
DENIED: tuple[Origin, dict[str, Any]] = ("gw", {"approval_request_id": "mcpr_1", "approve": False})
CALLED: tuple[Origin, dict[str, Any]] = (
    "out",
    {"type": "mcp_call", "approval_request_id": "mcpr_1"},
)


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ([], 0),
        ([USER, THOUGHT, SAID], 3),
        ([USER, THOUGHT, call("a")], 1),
        ([USER, THOUGHT, SAID, call("a")], 1),  # what was made in one go is not torn apart
        ([USER, call("a"), output("a")], 3),
        ([USER, call("a"), call("b"), output("a")], 1),
        ([USER, call("a"), call("b"), output("b"), output("a"), THOUGHT, SAID], 7),
        ([USER, call("a"), output("a"), THOUGHT, call("b")], 3),
        ([USER, call("a", "shell_call"), output("a", "shell_call_output"), SAID], 4),
        ([USER, call("a"), output("other"), USER, SAID], 1),
        ([USER, ASKED], 1),
        ([USER, ASKED, DENIED, SAID], 4),
        ([USER, ASKED, APPROVED, SAID], 1),  # the call may be still to come
        ([USER, ASKED, APPROVED, CALLED, SAID], 5),
    ],
)
def test_what_waits_for_nothing_can_be_told_in_other_words(told: list[Any], count: int) -> None:
    assert closed(items(*told)) == count


def test_what_an_upstream_compacted_is_replayed_from_its_compaction_on() -> None:
    compaction: tuple[Origin, dict[str, Any]] = ("out", {"type": "compaction", "id": "cmp_1"})
    chain = [items(USER, THOUGHT, SAID), items(USER, compaction, SAID), items(USER)]
    assert replay(chain, ()) == [kept.i for kept in items(compaction, SAID, USER)]
    # One that the caller sends is part of a window, which is not to be cut.
    window = items(USER, ("in", compaction[1]), USER)
    assert replay([window], ()) == [kept.i for kept in window]
    # A call stays with the output that is to come.
    waiting = items(USER, SAID, USER, call("a"), compaction)
    assert replay([waiting], ()) == [kept.i for kept in items(call("a"), compaction)]


def turn(name: str, before: int, after: int, *, window: str = "") -> Turn:
    """A turn of one leg, by the tokens that the upstream read, and read and wrote."""
    leg = LegSummary(id=name, input_tokens=before, output_tokens=after - before)
    return Turn(head=TurnHead(id=name, tenant="t", upstream="u", trace=(leg,), window=window))


WINDOW = Window(turn_id="w", model="m", items=b"[]")
UNSENT = Turn(head=TurnHead(id="prewarmed", tenant="t", upstream="u"))


@pytest.mark.parametrize(
    ("chain", "due"),
    [
        (Chain(turns=[]), False),
        (Chain(turns=[turn("a", 900, 999)]), False),
        (Chain(turns=[turn("a", 900, 1000)]), True),
        (Chain(turns=[turn("a", 900, 1000), UNSENT]), True),
        (Chain(turns=[UNSENT]), False),
        (Chain(turns=[turn("a", 1000, 2000), turn("b", 100, 200)]), False),
        # With a window: once a quarter has come, and not in each turn.
        (Chain(turns=[], window=WINDOW), False),
        (Chain(turns=[turn("a", 900, 1100, window="w")], window=WINDOW), False),
        (
            Chain(
                turns=[turn("a", 900, 1000, window="w"), turn("b", 1000, 1150, window="w")],
                window=WINDOW,
            ),
            True,
        ),
        # A turn was small because of a window that is not there any more.
        (Chain(turns=[turn("a", 900, 1000), turn("b", 100, 200, window="a")]), True),
        (
            Chain(turns=[turn("a", 90, 100), turn("b", 100, 200, window="a")], window=WINDOW),
            True,
        ),
    ],
)
def test_a_chain_is_due_by_the_tokens_that_its_upstream_counted(chain: Chain, due: bool) -> None:
    assert is_due(chain, 1000) is due
