"""A replica dies at each step of a held turn; another one goes on (APPR-4, APPR-5)."""

from __future__ import annotations

import time
from itertools import cycle

import anyio
import pytest

from gateway.services.failpoints import Point
from tests.reliability.support import Ledger, Site, eventually, report

LOST = {Point.AFTER_DISPATCH, Point.AFTER_POST}
"""Where the answer was sent, or may have been, and what came back is lost."""

pytestmark = pytest.mark.timeout(240)


@pytest.mark.covers("APPR-4", "APPR-5", "STREAM-3", "OPS-2")
@pytest.mark.parametrize("point", list(Point), ids=lambda point: point.value)
async def test_a_replica_that_dies_at_a_step_is_replaced(site: Site, point: Point) -> None:
    (steady,) = site.up("steady")
    frail = site.begin(site.prepare("frail"), failpoint=point.value).ready()
    ledger = Ledger(site)
    async with ledger.approver(), anyio.create_task_group() as group:
        # One turn at a time, so that no other one is in flight when the replica dies. Either
        # replica may take the job: until it was the frail one.
        for at in cycle((frail, steady)):
            if not frail.running:
                break
            count = len(ledger.turns) + 1
            group.start_soon(ledger.turn, at)

            async def over(count: int = count) -> bool:
                return not frail.running or ledger.ended >= count

            await eventually(over, "the turns end, or the replica dies")
        died = time.monotonic()
    counted = await ledger.check()
    report(
        "failpoint",
        point=point.value,
        all_ended_after=round(max(turn.at for turn in ledger.turns) - died, 2),
        **counted,
    )
    assert all(turn.connections == 1 for turn in ledger.turns if turn.first == "steady")
    in_doubt = sum(ledger.resolved.values())
    assert in_doubt >= 1 if point in LOST else in_doubt == 0
