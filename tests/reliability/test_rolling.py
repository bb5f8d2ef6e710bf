"""A rolling restart while turns are held (STREAM-4, APPR-4)."""

from __future__ import annotations

import signal
import time

import anyio
import pytest

from tests.reliability.support import Ledger, Site, eventually, report, spread

pytestmark = [pytest.mark.timeout(300)]

HELD = 6


@pytest.mark.covers("APPR-4", "STREAM-3", "STREAM-4")
async def test_a_rolling_restart_cuts_no_held_turn(site: Site) -> None:
    site.up("one", "two")
    ledger = Ledger(site)
    exits = []
    async with anyio.create_task_group() as group:
        for name in ("one", "two"):
            leaving = site.replicas[name]
            turns = [ledger.new() for _ in range(HELD)]
            for turn in turns:
                group.start_soon(ledger.turn, leaving, turn)
            for turn in turns:
                await turn.held.wait()

            async def asked(count: int = HELD) -> bool:
                return len(await ledger.pending()) == count

            await eventually(asked, "all of them are pending")
            leaving.listed = False  # readiness says no from now on
            leaving.signal(signal.SIGTERM)
            begun = time.monotonic()
            assert await anyio.to_thread.run_sync(leaving.wait, 20.0) == 0
            exits.append(time.monotonic() - begun)

            async def attached(turns: list[object] = turns) -> bool:  # type: ignore[assignment]
                return all(turn.connections >= 2 for turn in turns)  # type: ignore[attr-defined]

            await eventually(attached, "their callers are attached to the other replica")
            for approval in await ledger.pending():
                assert await ledger.decide(approval) == 200
            await eventually(lambda: _over(ledger), "all turns have ended")
            site.begin(leaving).ready()
    counted = await ledger.check()
    assert counted["completed"] == counted["reattached"] == 2 * HELD
    report("rolling restart", exits=spread(exits), **counted)


async def _over(ledger: Ledger) -> bool:
    return ledger.completed == len(ledger.turns)
