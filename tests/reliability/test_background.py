"""A replica that runs a background response dies, or is told to stop (STREAM-3, STREAM-4)."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import anyio
import httpx2
import openai
import pytest

from gateway.services.failpoints import Point
from tests.reliability.support import Replica, Site, eventually

pytestmark = pytest.mark.timeout(240)

BEFORE = [Point.BEFORE_CLAIM, Point.AFTER_CLAIM, Point.BEFORE_DISPATCH]
AFTER = [Point.AFTER_DISPATCH, Point.AFTER_POST]


async def posts(site: Site, word: str) -> int:
    """Count the requests with a word that the provider was sent."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        found = (await client.get(site.provider + "/_emulator/requests")).json()
    requests = found["requests"] if isinstance(found, dict) else found
    return sum(word in str(one["body"]) for one in requests)


async def ended(replica: Replica, id_: str) -> Any:
    """Poll a response until it has ended."""

    async def over() -> bool:
        found = await replica.client().responses.retrieve(id_)
        return found.status not in ("queued", "in_progress")

    await eventually(over, "the response ends", seconds=60)
    return await replica.client().responses.retrieve(id_)


@pytest.mark.covers("STREAM-3", "STATE-7", "APPR-5")
@pytest.mark.parametrize("point", BEFORE + AFTER, ids=lambda point: point.value)
async def test_it_is_sent_at_most_once_whenever_its_replica_dies(site: Site, point: Point) -> None:
    (steady,) = site.up("steady")
    frail = site.begin(site.prepare("frail"), failpoint=point.value).ready()
    words: dict[str, str] = {}
    while frail.running:  # either replica may take the job: until it was the frail one
        for _ in range(4):
            word = f"{point.value}-{len(words)}"
            begun = await steady.client().responses.create(
                model="gpt-4.1", input=f"/echo {word}.", background=True, store=False, stream=False
            )
            words[begun.id] = word

        async def over() -> bool:
            last = await steady.client().responses.retrieve(list(words)[-1])
            return not frail.running or last.status == "completed"

        await eventually(over, "a response ends, or the replica dies")
    outcomes: Counter[str] = Counter()
    for id_, word in words.items():
        found = await ended(steady, id_)
        code = found.error.code if found.error else ""
        outcomes[f"{found.status} {code}".strip()] += 1
        sent = await posts(site, word + ".")
        if found.status == "completed":
            assert (found.output_text, sent) == (word + ".", 1)
        else:
            assert sent <= 1
    lost = sum(count for outcome, count in outcomes.items() if outcome != "completed")
    assert set(outcomes) <= {"completed", "failed background_lost"}
    assert lost >= 1 if point in AFTER else lost == 0


@pytest.mark.covers("STREAM-3", "STREAM-4")
async def test_a_stream_of_a_replica_that_died_is_read_on_at_another(site: Site) -> None:
    for replica in site.replicas.values():
        replica.stop()
    runner, other = site.up("runner", "other")
    stream = await runner.client().responses.create(
        model="gpt-4.1",
        input="/long 200\n/fault slow:0.05",
        background=True,
        store=False,
        stream=True,
    )
    numbers: list[int] = []
    id_ = ""
    async for event in stream:
        numbers.append(event.sequence_number)
        id_ = id_ or event.response.id  # type: ignore[union-attr]
        if len(numbers) == 12:
            break
    await stream.close()
    runner.kill()
    other.kill()  # whichever ran it
    (other,) = site.up("other")
    resumed = await other.client().responses.retrieve(id_, stream=True, starting_after=numbers[-1])
    last: Any = None
    try:
        async for event in resumed:
            numbers.append(event.sequence_number)
            last = event
    except openai.APIError as error:  # the SDK raises the `error` event
        last = error
    assert "not sent a second time" in str(last)
    assert numbers == list(range(len(numbers)))
    found = await ended(other, id_)
    assert found.error is not None
    assert found.error.code == "background_lost"


@pytest.mark.covers("STREAM-3", "STREAM-4", "STATE-7")
async def test_a_stop_leaves_queued_turns_to_others_and_fails_what_ran_beyond_the_grace_period(
    site: Site,
) -> None:
    for replica in site.replicas.values():
        replica.stop()
    leaving = site.prepare("leaving", server={"grace_period": 1, "max_background": 1})
    site.up("leaving")
    client = leaving.client()
    asked: dict[str, Any] = {"model": "gpt-4.1", "background": True, "store": False}
    stuck = await client.responses.create(input="/fault silence:600\n/echo stuck.", **asked)

    async def runs() -> bool:
        return (await client.responses.retrieve(stuck.id)).status == "in_progress"

    await eventually(runs, "the first one runs", seconds=60)
    words = [f"stopped-{number}" for number in range(3)]
    queued = [(await client.responses.create(input=f"/echo {word}.", **asked)).id for word in words]
    leaving.listed = False
    leaving.signal(signal.SIGTERM)
    assert await anyio.to_thread.run_sync(leaving.wait, 60.0) == 0
    (other,) = site.up("other")
    for id_, word in zip(queued, words, strict=True):
        assert (await ended(other, id_)).output_text == word + "."
        assert await posts(site, word + ".") == 1
    lost = await ended(other, stuck.id)
    assert (lost.status, lost.error.code) == ("failed", "background_lost")
    assert await posts(site, "stuck.") == 1
    for _ in range(2):  # what is over stays what it is
        assert await other.client().responses.cancel(stuck.id) == lost
