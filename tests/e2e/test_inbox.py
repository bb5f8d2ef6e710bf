"""The inbox of approvals: what happens, as it happens, to whom it concerns (APPR-6, AUTH-2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import msgspec
import pytest

from tests.support.approvals import create, issue, marker, pending, settled, tenancy, vote
from tests.support.stack import Gateway, Stack


class Reader:
    """One open inbox."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.cursor = ""

    async def next(self) -> tuple[str, Any]:
        """Wait for the next event; return its name and data, `("", None)` for a mere id."""
        event, data = "", None
        with anyio.fail_after(30):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                match name:
                    case "id":
                        self.cursor = value
                    case "event":
                        event = value
                    case "data":
                        data = msgspec.json.decode(value)
                    case "" if not line and self.cursor:
                        return event, data
        raise AssertionError("the inbox ended")

    async def until(self, event: str) -> list[tuple[str, str]]:
        """Read up to an event; return event and approval of each."""
        seen: list[tuple[str, str]] = []
        while not seen or seen[-1][0] != event:
            name, data = await self.next()
            if name:
                seen.append((name, data["approval"]["id"]))
        return seen


@asynccontextmanager
async def inbox(gateway: Gateway, key: str, after: str = "") -> AsyncIterator[Reader]:
    headers = {"last-event-id": after} if after else {}
    async with (
        gateway.http(key) as client,
        client.stream("GET", "/v1/approvals/events", headers=headers) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        reader = Reader(aiter(answer.aiter_lines()))
        assert await reader.next() == ("", None)
        yield reader


async def held(gateway: Gateway, **body: Any) -> dict[str, Any]:
    word = marker()
    await create(gateway, issue(word), **body)
    return (await pending(gateway, word))[0]


QUORUM = [{"id": "two", "effect": "ask", "approval": {"quorum": 2}}]


@pytest.mark.covers("APPR-6")
async def test_an_inbox_tells_what_happens_and_goes_on_where_it_broke_off_on_any_replica(
    stack: Stack,
) -> None:
    sections = {"rules": QUORUM, **tenancy(stack)}
    with stack.gateway(**sections) as one, stack.gateway(**sections) as other:
        async with inbox(one, "approver") as reader:
            approval = await held(other)
            name, data = await reader.next()
            assert (name, data["type"]) == ("approval.requested", "approval.requested")
            assert data["approval"] == approval
            cursor = reader.cursor
        await vote(other, approval)
        async with one.http("approver") as client:
            await client.post(approval["url"] + "/extend", json={"seconds": 60})
        await vote(one, approval, key="second")
        async with inbox(other, "approver", cursor) as reader:
            assert await reader.until("approval.resolved") == [
                ("approval.voted", approval["id"]),
                ("approval.extended", approval["id"]),
                ("approval.resolved", approval["id"]),
            ]
        await settled(one, approval["response_id"])


@pytest.mark.covers("APPR-6", "AUTH-2")
async def test_an_inbox_tells_nobody_of_what_is_not_theirs(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        async with (
            inbox(gateway, "caller") as mine,
            inbox(gateway, "other") as foreign,
            inbox(gateway, "approver") as approver,
        ):
            theirs = await held(gateway, safety_identifier="user:ann")
            approval = await held(gateway)
            hidden = await create(gateway, issue(word := marker()), key="second")
            assert hidden.status_code == 200
            (of_bob,) = await pending(gateway, word)
            for one in (theirs, approval, of_bob):
                await vote(gateway, one, "deny", key="admin")
            everything = [name for name, _ in await approver.until("approval.resolved")]
            assert everything[:3] == ["approval.requested"] * 3
            assert await mine.until("approval.resolved") == [
                ("approval.requested", approval["id"]),
                ("approval.resolved", approval["id"]),
            ]
            with anyio.move_on_after(0.2) as waited:
                while await foreign.next() == ("", None):
                    pass  # a comment
            assert waited.cancelled_caught


@pytest.mark.covers("APPR-6")
async def test_an_inbox_says_when_events_are_kept_no_more(stack: Stack) -> None:
    from gateway.adapters.redis.client import execute, open_clients

    sections = tenancy(stack)
    key = f"gw:{{{sections['tenants'][0]['id']}}}:inbox"
    with stack.gateway(**sections) as gateway:
        async with inbox(gateway, "approver") as reader:
            approval = await held(gateway)
            await reader.next()
            cursor = reader.cursor
        await vote(gateway, approval, "deny")
        await settled(gateway, approval["response_id"])
        async with open_clients(stack.redis_url) as clients:
            await execute(clients.commands, "XTRIM", key, "MAXLEN", 0)
        await held(gateway)
        async with inbox(gateway, "approver", cursor) as reader:
            assert (await reader.next())[0] == "approval.lost"
            assert (await reader.next())[0] == "approval.requested"


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize("cursor", ["odd", "1", "1-2-3", "-1-0", "9" * 30 + "-1"])
async def test_a_cursor_that_is_none_is_refused(gateway: Gateway, cursor: str) -> None:
    async with gateway.http("approver") as client:
        headers = {"last-event-id": cursor}
        answer = await client.get("/v1/approvals/events", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Last-Event-ID"


@pytest.mark.covers("AUTH-1")
async def test_an_inbox_needs_a_key(gateway: Gateway) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        assert (await client.get("/v1/approvals/events")).status_code == 401


@pytest.mark.covers("APPR-6")
async def test_a_reader_that_is_ahead_of_the_server_begins_anew(stack: Stack) -> None:
    """A server that has lost its newest writes gave out places that it does not know."""
    with stack.gateway(**tenancy(stack)) as gateway:
        await held(gateway)
        async with (
            gateway.http("approver") as client,
            client.stream(
                "GET", "/v1/approvals/events", headers={"last-event-id": "999999999999999-7"}
            ) as answer,
        ):
            reader = Reader(aiter(answer.aiter_lines()))
            assert await reader.next() == ("", None)
            assert (await reader.next())[0] == "approval.lost"
            begun = reader.cursor
            later = await held(gateway)
            assert (await reader.next())[1]["approval"]["id"] == later["id"]
        async with inbox(gateway, "approver", begun) as reader:
            assert (await reader.next())[1]["approval"]["id"] == later["id"]


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize("place", ["9" * 20 + "-0", "1-" + "9" * 20, "x", "1"])
async def test_a_place_that_no_event_has_is_refused(gateway: Gateway, place: str) -> None:
    async with gateway.http("approver") as client:
        answer = await client.get("/v1/approvals/events", headers={"last-event-id": place})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
