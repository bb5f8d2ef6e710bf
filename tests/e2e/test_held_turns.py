"""What becomes of a held turn whose answers were sent: lost, refused, retried, taken back (APPR-5)."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from gateway.app import create_app
from gateway.domain.lifecycle import Lifecycle
from gateway.emulator.serve import serving
from tests.e2e.test_forgery import call_item, request_item, saying
from tests.support.approvals import (
    GITHUB,
    create,
    decide,
    executed,
    frames,
    issue,
    marker,
    output_types,
    pending,
    refused,
    retrieved,
    sent,
    settled,
    tenancy,
    vote,
)
from tests.support.provider import Call, provider
from tests.support.stack import Gateway, Stack

STORES = pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
LOSSES = ["500", "reset_before", "reset", "malformed", "no_terminal"]


@pytest.fixture(scope="module")
def pair(stack: Stack) -> Iterator[tuple[Gateway, Gateway]]:
    """Two replicas on one Valkey."""
    sections: dict[str, Any] = tenancy(stack)
    sections["server"] = {"lame_duck": 0, "grace_period": 1, "heartbeat": 0.1}
    with stack.gateway(**sections) as one, stack.gateway(**sections) as two:
        yield one, two


def lost(word: str, fault: str = "500", *, times: int = 1) -> str:
    """Ask for an issue, and for a fault when its approval is answered."""
    return f"/fault {fault} on=approval times={times}\n{issue(word)}\n/long 20"


async def choose(
    gateway: Gateway, id_: str, action: str, *, key: str = "approver"
) -> httpx2.Response:
    """Choose what becomes of a turn in doubt."""
    async with gateway.http(key) as client:
        return await client.post(f"/v1/responses/{id_}/continue", json={"action": action})


async def until(gateway: Gateway, id_: str, state: str) -> Any:
    """Wait until a turn's continuation has a state."""
    with anyio.fail_after(30):
        while True:
            shown = await retrieved(gateway, id_)
            if shown.get("gateway", {}).get("continuation") == state:
                return shown
            await anyio.sleep(0.02)


class Stream:
    """A stream that is read beside the test."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.text = ""

    async def read(self) -> None:
        async for text in self._response.aiter_text():
            self.text += text

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events so far."""
        blocks = self.text.split("\n\n")
        return frames("\n\n".join(block for block in blocks if not block.startswith(":")))

    @property
    def kinds(self) -> list[str]:
        """The types of the events so far."""
        return [event["type"] for event in self.events]


@asynccontextmanager
async def streaming(gateway: Gateway, input: str, **options: Any) -> AsyncIterator[Stream]:
    """Open a stream, and read it to its end before this is left."""
    body = {"model": "gpt-4.1", "input": input, "tools": [GITHUB], "stream": True}
    headers = options.pop("headers", {})
    async with (
        gateway.http() as client,
        client.stream(
            "POST", "/v1/responses", json={**body, **options}, headers=headers
        ) as response,
    ):
        assert response.status_code == 200
        stream = Stream(response)
        reading = asyncio.ensure_future(stream.read())
        try:
            yield stream
            with anyio.fail_after(30):
                await reading
        finally:
            reading.cancel()


def well_formed(stream: Stream) -> None:
    """Check what a strict client relies on: gap-free numbers, one opening, one end."""
    events = [event for event in stream.events if not event["type"].startswith("gateway.")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds.count("response.created") == 1
    ends = ("response.completed", "response.failed", "response.incomplete")
    assert [kind for kind in kinds if kind in ends] == [kinds[-1]]
    added = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    assert added == list(range(len(added)))
    done = [e["output_index"] for e in events if e["type"] == "response.output_item.done"]
    assert sorted(done) == added


@pytest.mark.covers("APPR-5")
@STORES
@pytest.mark.parametrize("fault", LOSSES)
async def test_a_lost_answer_asks_a_person_and_a_retry_completes_the_turn(
    pair: tuple[Gateway, Gateway], stack: Stack, fault: str, store: bool
) -> None:
    one, two = pair
    word = marker()
    held = (await create(one, lost(word, fault), store=store)).json()
    await decide(two, word)
    shown = await until(one, held["id"], "indeterminate")
    assert shown["status"] == "in_progress"
    answer = await choose(two, held["id"], "retry")
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == held["id"]
    done = await settled(one, held["id"])
    assert done["status"] == "completed"
    assert output_types(done)[-3:] == ["mcp_call", "message", "message"]
    assert output_types(done).count("mcp_call") == 1
    ran = 1 if fault in ("500", "reset_before") else 2
    assert len(await executed(stack, word)) == ran, "a retry may run it again: a person chose so"
    after = await create(one, "/recall", previous_response_id=done["id"], store=store)
    assert "mcp calls: 1" in after.text


@pytest.mark.covers("APPR-2", "APPR-5")
@STORES
@pytest.mark.parametrize("fault", LOSSES)
async def test_a_stream_goes_on_after_a_retry_without_gap_or_duplicate(
    pair: tuple[Gateway, Gateway], fault: str, store: bool
) -> None:
    one, two = pair
    word = marker()
    async with streaming(one, lost(word, fault), store=store) as stream:
        (approval,) = await pending(two, word)
        await vote(two, approval)
        await until(two, approval["response_id"], "indeterminate")
        assert stream.kinds[-1] not in ("response.failed", "error")
        assert (await choose(two, approval["response_id"], "retry")).status_code == 200
    well_formed(stream)
    assert stream.kinds[-1] == "response.completed"
    final = stream.events[-1]["response"]
    done = [e["item"]["id"] for e in stream.events if e["type"] == "response.output_item.done"]
    assert set(done) == {item["id"] for item in final["output"]}
    assert (await retrieved(one, final["id"]))["output"] == final["output"]
    for gateway in pair:
        async with gateway.http() as client:
            again = await client.get(f"/v1/responses/{final['id']}?stream=true")
        assert frames(again.text) == stream.events
    after = await create(one, "/recall", previous_response_id=final["id"], store=store)
    assert "mcp calls: 1" in after.text, "what broke off is not replayed"


@pytest.mark.covers("APPR-5")
async def test_the_sdk_accepts_a_stream_that_broke_off_and_went_on(
    pair: tuple[Gateway, Gateway],
) -> None:
    one, two = pair
    word = marker()

    async def help_it() -> None:
        (approval,) = await pending(two, word)
        await vote(two, approval)
        await until(two, approval["response_id"], "indeterminate")
        await choose(two, approval["response_id"], "retry")

    helping = asyncio.ensure_future(help_it())
    async with one.client().responses.stream(
        model="gpt-4.1",
        input=lost(word, "reset"),
        tools=[{"type": "mcp", "server_label": "github"}],
    ) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    await helping
    assert final.status == "completed"
    assert final.output_text.endswith("word20")


@pytest.mark.covers("APPR-5")
@STORES
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "json"])
async def test_a_rewind_ends_the_turn_and_the_chain_goes_on_from_before_it(
    pair: tuple[Gateway, Gateway], stack: Stack, store: bool, streamed: bool
) -> None:
    one, two = pair
    word = marker()
    before = (await create(one, "/echo before", store=store)).json()
    text = lost(word)
    if streamed:
        async with streaming(one, text, store=store, previous_response_id=before["id"]) as stream:
            (approval,) = await pending(two, word)
            await vote(two, approval)
            await until(two, approval["response_id"], "indeterminate")
            answer = await choose(one, approval["response_id"], "rewind", key="caller")
        well_formed(stream)
        assert stream.kinds[-2:] == ["error", "response.failed"]
        assert stream.events[-2]["error"]["code"] == "rewound"
        id_ = approval["response_id"]
    else:
        held = await create(one, text, store=store, previous_response_id=before["id"])
        await decide(two, word)
        id_ = held.json()["id"]
        await until(two, id_, "indeterminate")
        answer = await choose(one, id_, "rewind")
    assert answer.status_code == 200, answer.text
    ended = await settled(two, id_)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "rewound")
    status, error = await refused(one, "/echo on", previous_response_id=id_, store=store)
    assert (status, error["code"]) == (409, "response_failed")
    after = await create(one, "/recall", previous_response_id=before["id"], store=store)
    assert after.status_code == 200
    assert "mcp calls: 0" in after.text
    assert await executed(stack, word) == []
    answers = [b for b in await stack.requests() if "mcp_approval_response" in str(b["body"])]
    assert all(word not in str(b["body"]) for b in answers[-1:]) or not store


@pytest.mark.covers("APPR-5")
async def test_who_may_choose(pair: tuple[Gateway, Gateway]) -> None:
    one, _ = pair
    word = marker()
    held = (await create(one, lost(word, times=2))).json()
    status, code = await _choice(one, held["id"], "retry", "approver")
    assert (status, code) == (409, "not_indeterminate")
    await decide(one, word)
    await until(one, held["id"], "indeterminate")
    assert await _choice(one, held["id"], "retry", "caller") == (403, "not_an_approver")
    assert await _choice(one, held["id"], "retry", "other") == (404, "response_not_found")
    assert await _choice(one, "resp_none", "retry", "approver") == (404, "response_not_found")
    assert await _choice(one, held["id"], "again", "approver") == (400, "invalid_value")
    choices = [_choice(one, held["id"], "retry", key) for key in ("approver", "admin", "second")]
    found = sorted([status for status, _ in await asyncio.gather(*choices)])
    assert found == [200, 409, 409]
    await until(one, held["id"], "indeterminate")
    assert (await _choice(one, held["id"], "rewind", "caller"))[0] == 200
    assert await _choice(one, held["id"], "retry", "admin") == (409, "already_continued")
    await settled(one, held["id"])


async def _choice(gateway: Gateway, id_: str, action: str, key: str) -> tuple[int, str | None]:
    answer = await choose(gateway, id_, action, key=key)
    return answer.status_code, (answer.json().get("error") or {}).get("code")


@pytest.mark.covers("APPR-5")
@pytest.mark.parametrize("fault", LOSSES)
async def test_what_is_harmless_is_sent_again_without_a_person(
    pair: tuple[Gateway, Gateway], stack: Stack, fault: str
) -> None:
    """Answers that approve nothing run nothing: losing them needs no person."""
    one, two = pair
    word = marker()
    async with streaming(one, lost(word, fault, times=2)) as stream:
        await decide(two, word, "deny")
    well_formed(stream)
    assert stream.kinds[-1] == "response.completed"
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-5")
@pytest.mark.parametrize("fault", ["429:0.2", "401", "content_filter"])
async def test_a_refusal_ran_nothing_so_the_answers_are_sent_again(
    pair: tuple[Gateway, Gateway], stack: Stack, fault: str
) -> None:
    one, two = pair
    word = marker()
    async with streaming(one, lost(word, fault, times=2)) as stream:
        await decide(two, word)
    well_formed(stream)
    assert stream.kinds[-1] == "response.completed"
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-5")
async def test_a_turn_that_the_upstream_refuses_again_and_again_fails_with_its_error(
    pair: tuple[Gateway, Gateway], stack: Stack
) -> None:
    one, two = pair
    word = marker()
    held = (await create(one, lost(word, "content_filter", times=99))).json()
    await decide(two, word)
    with anyio.fail_after(30):
        done = await settled(two, held["id"])
        while done["status"] == "in_progress":
            done = await settled(two, held["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "content_filter")
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-3", "APPR-5")
async def test_a_caller_that_asks_is_told_how_the_turn_goes_on(
    pair: tuple[Gateway, Gateway],
) -> None:
    one, two = pair
    word = marker()
    async with streaming(one, lost(word), headers={"Gateway-Events": "approvals"}) as stream:
        (approval,) = await pending(two, word)
        await vote(two, approval)
        with anyio.fail_after(30):
            while "gateway.continuation.indeterminate" not in stream.kinds:
                await anyio.sleep(0.02)
        await choose(two, approval["response_id"], "retry")
    told = [kind for kind in stream.kinds if kind.startswith("gateway.continuation.")]
    assert told == [
        "gateway.continuation.started",
        "gateway.continuation.indeterminate",
        "gateway.continuation.started",
        "gateway.continuation.completed",
    ]
    well_formed(stream)


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "json"])
async def test_a_turn_whose_rule_says_rewind_is_taken_back_when_nobody_answers(
    stack: Stack, streamed: bool
) -> None:
    word = marker()
    approval = {"approvers": ["role:approver"], "timeout": "1s", "on_timeout": "rewind"}
    rules = [{"id": "r", "match": {"server": "github"}, "effect": "ask", "approval": approval}]
    with stack.gateway(**tenancy(stack), rules=rules) as gateway:
        before = (await create(gateway, "/echo before")).json()
        if streamed:
            async with streaming(gateway, issue(word), previous_response_id=before["id"]) as stream:
                pass
            well_formed(stream)
            assert stream.events[-2]["error"]["code"] == "approval_expired_rewound"
            id_ = stream.events[0]["response"]["id"]
        else:
            held = await create(gateway, issue(word), previous_response_id=before["id"])
            id_ = held.json()["id"]
        done = await settled(gateway, id_)
        assert (done["status"], done["error"]["code"]) == ("failed", "approval_expired_rewound")
        after = await create(gateway, "/recall", previous_response_id=before["id"])
        assert after.status_code == 200
    assert await sent(stack, "mcp_approval_response" + word) == []
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-6")
async def test_a_turn_that_is_held_without_end_can_be_taken_back(stack: Stack) -> None:
    word = marker()
    approval = {"approvers": ["role:approver"], "timeout": "1s", "on_timeout": "hold"}
    rules = [{"id": "h", "match": {"server": "github"}, "effect": "ask", "approval": approval}]
    with stack.gateway(**tenancy(stack), rules=rules) as gateway:
        held = (await create(gateway, issue(word))).json()
        status, code = await _choice(gateway, held["id"], "retry", "approver")
        assert (status, code) == (409, "not_indeterminate")
        assert (await choose(gateway, held["id"], "rewind", key="caller")).status_code == 200
        done = await settled(gateway, held["id"])
        assert (done["status"], done["error"]["code"]) == ("failed", "rewound")


@pytest.mark.covers("APPR-5")
async def test_where_nobody_chooses_in_time_the_turn_ends_as_it_stands(stack: Stack) -> None:
    word = marker()
    approval = {"approvers": ["role:approver"], "timeout": "6s"}
    rules = [{"id": "a", "match": {"server": "github"}, "effect": "ask", "approval": approval}]
    with stack.gateway(**tenancy(stack), rules=rules) as gateway:
        async with streaming(gateway, lost(word)) as stream:
            await decide(gateway, word)
        well_formed(stream)
        assert stream.events[-2]["error"]["code"] == "continuation_indeterminate"
        id_ = stream.events[0]["response"]["id"]
        done = await settled(gateway, id_)
        assert done["error"]["code"] == "continuation_indeterminate"
    assert len([b for b in await sent(stack, word) if "approve" in str(b.get("input"))]) <= 1


@pytest.mark.covers("APPR-4", "STREAM-4")
async def test_a_replica_that_stops_ends_its_streams_in_order_and_another_goes_on(
    stack: Stack,
) -> None:
    sections = tenancy(stack)
    word = marker()
    body = {"model": "gpt-4.1", "input": issue(word), "tools": [GITHUB], "stream": True}
    asking = {"Gateway-Events": "approvals"}
    with stack.gateway(**sections) as steady:
        lifecycle = Lifecycle()
        app = create_app(stack.settings(**sections), lifecycle=lifecycle)
        with serving(_draining_by_door(app, lifecycle)) as url:
            stopping = Gateway(url=url, settings=steady.settings, keys=stack.keys)
            async with (
                stopping.http() as client,
                client.stream("POST", "/v1/responses", json=body, headers=asking) as response,
            ):
                stream = Stream(response)
                reading = asyncio.ensure_future(stream.read())
                (approval,) = await pending(steady, word)
                waiting = asyncio.ensure_future(
                    retrieved(stopping, approval["response_id"], wait=60)
                )
                with anyio.fail_after(30):
                    async with stopping.http() as other:
                        await other.get("/drain")
                    await reading  # to its proper end: a cut body would raise
                    assert (await waiting)["status"] == "in_progress"
        assert ": draining" in stream.text
        assert stream.kinds[-1] == "gateway.draining"
        seen = [event for event in stream.events if not event["type"].startswith("gateway.")]
        last = stream.events[-1]
        assert last["starting_after"] == seen[-1]["sequence_number"]
        await vote(steady, approval)
        path = f"/v1/responses/{last['response_id']}?stream=true"
        async with steady.http() as client:
            rest = await client.get(f"{path}&starting_after={last['starting_after']}")
            whole = await client.get(path)
    assert [*seen, *frames(rest.text)] == frames(whole.text)
    assert frames(rest.text)[-1]["type"] == "response.completed"
    assert len(await executed(stack, word)) == 1


def _draining_by_door(app: Any, lifecycle: Lifecycle) -> Any:
    """Give a gateway a door that does what SIGTERM does to its process, in its own loop."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/drain":
            await app(scope, receive, send)
            return
        lifecycle.draining = True
        lifecycle.drained.set()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return served


@pytest.mark.covers("APPR-4", "APPR-5", "APPR-13")
async def test_a_held_turn_stays_with_its_rules_while_a_replica_has_them(stack: Stack) -> None:
    """An older replica with laxer rules beside it decides nothing in the turn."""
    sections = tenancy(stack)
    lax = {"rules": [{"id": "all", "match": {"server": "github"}, "effect": "allow"}]}
    with stack.gateway(**{**sections, **lax}) as old:
        for _ in range(2):
            words = [marker(), marker()]
            with stack.gateway(**sections) as new:
                held = (await create(new, "\n/echo and\n".join(map(issue, words)))).json()
                (first,) = await pending(old, words[0])
                assert (await vote(old, first)).status_code == 200
                (second,) = await pending(old, words[1])
                assert second["policy"]["rule"] == "writes"
            # The last replica with those rules is gone: now the others are the only ones.
            assert (await vote(old, second)).status_code == 200
            done = await settled(old, held["id"])
            assert done["status"] == "completed"
            for word in words:
                assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-5")
async def test_the_same_idempotency_key_chooses_once(pair: tuple[Gateway, Gateway]) -> None:
    one, two = pair
    word = marker()
    held = (await create(one, lost(word, times=2))).json()
    await decide(two, word)
    await until(one, held["id"], "indeterminate")
    path, key = f"/v1/responses/{held['id']}/continue", {"Idempotency-Key": word}
    async with two.http("approver") as client:
        first = await client.post(path, json={"action": "retry"}, headers=key)
        assert first.status_code == 200
        await until(one, held["id"], "indeterminate")
        again = await client.post(path, json={"action": "retry"}, headers=key)
        assert again.json()["gateway"]["continuation"] == "indeterminate"
        await client.post(path, json={"action": "retry"}, headers={"Idempotency-Key": "2" + word})
    assert (await settled(one, held["id"]))["status"] == "completed"


@pytest.mark.covers("APPR-4", "APPR-5")
async def test_whatever_happens_to_a_held_turn_it_ends(stack: Stack) -> None:
    """Random verdicts, faults and choices at two replicas: nothing waits for ever."""
    chance = random.Random(20261120)  # no secret
    sections: dict[str, Any] = tenancy(stack)
    sections["rules"] = [
        {
            "id": tool,
            "match": {"server": "github", "tool": tool},
            "effect": "ask",
            "approval": {
                "approvers": ["role:approver"],
                "timeout": timeout,
                "on_timeout": "rewind",
            },
        }
        for tool, timeout in {"create_issue": "30m", "search_issues": "1s"}.items()
    ]

    async def live(gateways: tuple[Gateway, Gateway], store: bool) -> tuple[str, str]:
        one, two = chance.sample(gateways, 2)
        word = marker()
        text = issue(word)
        if chance.random() < 0.7:
            text = lost(word, chance.choice([*LOSSES, "429:0.1"]), times=chance.randint(1, 3))
        verdict = chance.choice(["approve", "approve", "deny", ""])
        if not verdict:  # nobody answers, which is soon over
            text = text.replace("create_issue", "search_issues").replace('"title"', '"query"')
        held = (await create(one, text, store=store)).json()
        if verdict:
            async with two.http("approver") as client:
                approval = (await client.get(held["gateway"]["approvals"][0]["url"])).json()
            await vote(two, approval, verdict, reason="checked")
        with anyio.fail_after(60):
            while (shown := await retrieved(two, held["id"]))["status"] == "in_progress":
                if shown["gateway"]["continuation"] == "indeterminate" and chance.random() < 0.5:
                    await choose(one, held["id"], chance.choice(["retry", "rewind"]))
                await anyio.sleep(0.1)
        return str(shown["status"]), "-" if verdict == "approve" else word

    with stack.gateway(**sections) as one, stack.gateway(**sections) as two:
        ends = await asyncio.gather(*(live((one, two), n % 2 == 0) for n in range(10)))
    assert {status for status, _ in ends} == {"completed", "failed"}
    told = json.dumps([call["arguments"] for call in await stack.calls()])
    assert not any(word in told for _, word in ends), "nobody approved it"


@pytest.mark.covers("APPR-5")
@STORES
async def test_a_lost_answer_to_a_read_only_tool_is_sent_again_without_a_person(
    stack: Stack, store: bool
) -> None:
    word = marker()
    approval = {"approvers": ["role:approver"], "timeout": "30m"}
    rules = [{"id": "a", "match": {"server": "github"}, "effect": "ask", "approval": approval}]
    text = f'/fault 500 on=approval times=2\n/call github.search_issues {{"query": "{word}"}}'
    with stack.gateway(**tenancy(stack), rules=rules) as gateway:
        async with streaming(gateway, text, store=store) as stream:
            await decide(gateway, word)
        well_formed(stream)
        assert stream.kinds[-1] == "response.completed"
        assert len(await executed(stack, word)) == 1
        await create(gateway, text.replace("times=2", "times=3"), store=store)
        await decide(gateway, word)
        async with gateway.http("approver") as client:
            listed = (await client.get("/v1/approvals?status=approved")).json()["data"]
        id_ = listed[0]["response_id"]
        await until(gateway, id_, "indeterminate")


@pytest.mark.covers("APPR-7", "APPR-13")
@pytest.mark.parametrize("by", ["approver", "caller"])
async def test_what_a_rule_allowed_does_not_run_when_the_rules_have_come_to_ask(
    stack: Stack, by: str
) -> None:
    """A call that was allowed waits with its batch; nobody has ever looked at it."""
    sections, read, written = tenancy(stack), marker(), marker()
    search = f'/call github.search_issues {{"query": "{read}"}}'
    with stack.gateway(**sections) as before:
        held = (await create(before, f"{search}\n{issue(written)}")).json()
        (approval,) = await pending(before, written)
    stricter: list[dict[str, Any]] = [{"id": "now", "match": {"server": "github"}, "effect": "ask"}]
    if by == "caller":
        stricter[0]["approval"] = {"by": "caller"}
    with stack.gateway(**{**sections, "rules": stricter}) as after:
        assert (await vote(after, approval)).status_code == 200
        assert (await settled(after, held["id"]))["status"] == "completed"
    assert await executed(stack, read) == []
    assert len(await executed(stack, written)) == 1  # a person has approved that one


@pytest.mark.covers("APPR-4", "STATE-4")
@pytest.mark.parametrize("asks_again", [False, True], ids=["ends", "asks-again"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_response_that_is_deleted_while_its_leg_runs_stays_deleted(
    stack: Stack, stream: bool, asks_again: bool
) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()
    words = [marker(), marker()]
    requests = [request_item(arguments=f'{{"title":"{word}"}}') for word in words]

    async def answer(call: Call) -> None:
        output = [requests[0]]
        if b"mcp_approval_response" in call.body:
            arrived.set()
            await go_on.wait()
            done = {"approval_request_id": requests[0]["id"], "arguments": requests[0]["arguments"]}
            output = [call_item(**done), *([requests[1]] if asks_again else [])]
        await saying(lambda _: output)(call)

    sections = tenancy(stack)
    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], **sections) as gateway:
            creating = asyncio.ensure_future(create(gateway, "hi", store=False, stream=stream))
            (approval,) = await pending(gateway, words[0])
            await vote(gateway, approval)
            await arrived.wait()
            path = f"/v1/responses/{approval['response_id']}"
            async with gateway.http() as client, gateway.http("admin") as admin:
                assert (await client.delete(path)).status_code == 200
                go_on.set()
                event = f"continuation.{'failed' if asks_again else 'completed'}"
                with anyio.fail_after(30):
                    while not (await admin.get(f"/v1/audit?event={event}")).json()["data"]:
                        await anyio.sleep(0.02)
                    await creating
                for query in ({}, {"stream": "true"}):
                    assert (await client.get(path, params=query)).status_code == 404
                assert (await admin.get("/v1/approvals?status=pending")).json()["data"] == []
