"""Twenty people decide one approval at the same moment, at two replicas (APPR-6)."""

from __future__ import annotations

import json
from collections import Counter

import anyio
import httpx2
import pytest

from tests.reliability.support import GITHUB, Ledger, Site, amount, eventually, report, vote

pytestmark = [pytest.mark.timeout(600)]


@pytest.mark.covers("APPR-5", "APPR-6", "OPS-2")
async def test_one_decision_of_twenty_wins(site: Site) -> None:
    replicas = site.up("one", "two")
    ledger = Ledger(site)
    outcomes: Counter[str] = Counter()
    for race in range(amount(25, long=500)):
        word = f"race-{race}"
        command = f'/call github.create_issue {{"title": "{word}"}}'
        held = (
            await replicas[race % 2]
            .client()
            .post(
                "/responses",
                body={"model": "gpt-4.1", "input": command, "tools": [GITHUB]},
                cast_to=httpx2.Response,
            )
        )
        response = json.loads(held.text)
        (approval,) = (await ledger.get(f"/responses/{response['id']}/approvals"))["data"]
        answers: dict[str, int] = {}

        async def decide(
            number: int,
            person: str,
            approval: dict[str, str] = approval,
            answers: dict[str, int] = answers,
            race: int = race,
        ) -> None:
            decision = _said(number, race)
            answers[person] = await vote(replicas[number % 2], approval, decision, key=person)

        async with anyio.create_task_group() as group:
            for number, person in enumerate(site.people):
                group.start_soon(decide, number, person)
        assert Counter(answers.values()) == {200: 1, 409: 19}, answers
        winner = next(n for n, person in enumerate(site.people) if answers[person] == 200)
        status = "denied" if _said(winner, race) == "deny" else "approved"
        outcomes[status] += 1
        decided = await ledger.get(f"/approvals/{approval['id']}")
        assert decided["status"] == status

        async def over(id_: str = response["id"]) -> bool:
            return bool(
                (await ledger.get(f"/responses/{id_}", key="caller"))["status"] == "completed"
            )

        await eventually(over, "the turn has gone on")
        assert (await site.executed())[word] == int(status == "approved")
    report("races of 20 decisions", races=sum(outcomes.values()), winners_per_race=1, **outcomes)


def _said(number: int, race: int) -> str:
    """Half of them say no, at both replicas; who comes first differs from race to race."""
    return "deny" if (number + race) % 4 < 2 else "approve"
