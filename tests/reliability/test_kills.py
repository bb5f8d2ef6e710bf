"""Replicas are killed at random moments under load (APPR-4, APPR-5)."""

from __future__ import annotations

import random
import time

import anyio
import pytest

from tests.reliability.support import Ledger, Site, amount, report, spread

pytestmark = [pytest.mark.timeout(1800)]


@pytest.mark.covers("APPR-4", "APPR-5", "STREAM-3", "OPS-2")
async def test_replicas_killed_at_random_lose_and_double_nothing(site: Site) -> None:
    site.up("one", "two", "three")
    # Every fourth is denied: that a deny is carried out counts as much.
    ledger = Ledger(site, lambda word: "deny" if int(word[-1], 16) % 4 == 0 else "approve")
    most, budget = amount(50, long=500), amount(270, long=1200)
    kills, begun = 0, time.monotonic()
    async with ledger.load(6):
        while kills < most and time.monotonic() - begun < budget:
            await anyio.sleep(random.uniform(0.0, 0.5))  # any moment of any turn
            victim = site.any()
            victim.kill()
            kills += 1
            site.begin(victim)
            await site.until_ready(2)
    counted = await ledger.check()
    report(
        "replicas killed at random",
        kills=kills,
        seconds_to_go_on=spread([turn.seconds for turn in ledger.turns if turn.connections > 1]),
        **counted,
    )
    assert kills >= 3
    assert counted["reattached"] > 0
