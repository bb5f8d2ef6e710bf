import anyio

from gateway.emulator import EmulatorSettings, create_emulator
from gateway.emulator.serve import serving

from .support import ENCRYPTED, Json, Provider, read_sse, text_of


async def test_chain_is_remembered(provider: Provider) -> None:
    first = await provider.create("/think\n/echo a")
    second = await provider.create("b", previous_response_id=first["id"])
    third = await provider.create("/recall", previous_response_id=second["id"])
    assert third["previous_response_id"] == second["id"]
    assert text_of(third) == (
        'I see 2 user messages: "/think\\n/echo a" | "b"; reasoning: 1; mcp calls: 0.'
    )


async def test_chain_can_be_forked(provider: Provider) -> None:
    first = await provider.create("a")
    for _ in range(2):
        again = await provider.create("/recall", previous_response_id=first["id"])
        assert text_of(again) == 'I see 1 user message: "a"; reasoning: 0; mcp calls: 0.'


async def test_streamed_response_is_stored_before_its_end_is_seen(provider: Provider) -> None:
    events = await provider.stream("/think\n/echo a", include=ENCRYPTED)
    found = (await provider.get(f"responses/{events[-1]['response']['id']}")).json()
    streamed = events[-1]["response"]
    for item in streamed["output"]:
        item.pop("encrypted_content", None)
    assert found == streamed


async def test_input_items_are_paged(provider: Provider) -> None:
    created = await provider.create([{"role": "user", "content": str(n)} for n in range(5)])
    path = f"responses/{created['id']}/input_items"
    first = (await provider.get(path, limit=2, order="asc")).json()
    assert [item["content"][0]["text"] for item in first["data"]] == ["0", "1"]
    assert first["has_more"] is True
    assert first["last_id"] == first["data"][-1]["id"]
    rest = (await provider.get(path, after=first["last_id"], order="asc")).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "3", "4"]
    assert rest["has_more"] is False
    newest = (await provider.get(path, limit=1)).json()
    assert newest["data"][0]["content"][0]["text"] == "4"
    refused = (await provider.get(path, limit=1000)).json()
    assert refused["error"]["message"] == (
        "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 1000 "
        "instead."
    )


async def test_background_is_polled(slow: Provider) -> None:
    created = await slow.create("hello", background=True)
    assert (created["status"], created["output"]) == ("queued", [])
    seen, found = ["queued"], created
    with anyio.fail_after(30):
        while seen[-1] != "completed":
            found = (await slow.get(f"responses/{created['id']}")).json()
            if found["status"] != seen[-1]:
                seen.append(found["status"])
    # A poll may be too slow to meet it in progress.
    assert seen in (["queued", "completed"], ["queued", "in_progress", "completed"])
    assert text_of(found).startswith("Hello!")


async def test_background_stream_is_resumed(provider: Provider) -> None:
    events = await provider.stream("/long 20", background=True)
    path = f"responses/{events[0]['response']['id']}"
    again = await provider.get(path, stream="true")
    assert _unpadded(read_sse(again.text)) == _unpadded(events)
    rest = await provider.get(path, stream="true", starting_after=9, include_obfuscation="false")
    assert read_sse(rest.text) == _unpadded(events)[10:]


def _unpadded(events: list[Json]) -> list[Json]:
    return [{k: v for k, v in e.items() if k != "obfuscation"} for e in events]


async def test_running_stream_can_be_joined(slow: Provider) -> None:
    created = await slow.create("/long 20", background=True)
    joined = await slow.get(f"responses/{created['id']}", stream="true", starting_after=0)
    types = [event["type"] for event in read_sse(joined.text)]
    assert (types[0], types[-1]) == ("response.queued", "response.completed")


async def test_cancel_stops_a_background_response(slow: Provider) -> None:
    created = await slow.create("/long 100000", background=True)
    path = f"responses/{created['id']}"
    async with slow.http as client:
        for _ in range(2):
            cancelled = (await client.post(f"{path}/cancel")).json()
            assert cancelled["status"] == "cancelled"
    assert (await slow.get(path)).json()["status"] == "cancelled"


async def test_cancel_of_a_synchronous_response_is_refused(provider: Provider) -> None:
    created = await provider.create("hello")
    async with provider.http as client:
        response = await client.post(f"responses/{created['id']}/cancel")
    assert response.json()["error"]["message"] == "Cannot cancel a synchronous response."
    streamed = await provider.get(f"responses/{created['id']}", stream="true")
    assert streamed.status_code == 400


async def test_background_without_storage_can_be_polled_not_chained(forgetful: Provider) -> None:
    created = await forgetful.create("hello", background=True)
    assert created["store"] is False
    assert (await forgetful.get(f"responses/{created['id']}")).status_code == 200
    _, error = await forgetful.refused("more", previous_response_id=created["id"])
    assert error["code"] == "previous_response_not_found"


async def test_streamed_response_may_take_time_to_be_found() -> None:
    with serving(create_emulator(EmulatorSettings(visibility_lag=0.2))) as url:
        provider = Provider(url)
        events = await provider.stream("hello")
        response_id = events[-1]["response"]["id"]
        assert (await provider.get(f"responses/{response_id}")).status_code == 404
        _, error = await provider.refused("more", previous_response_id=response_id)
        assert error["code"] == "previous_response_not_found"
        with anyio.fail_after(30):
            while (await provider.get(f"responses/{response_id}")).status_code == 404:
                await anyio.sleep(0.02)


async def test_deleted_response_is_gone(provider: Provider) -> None:
    created = await provider.create("hello")
    async with provider.http as client:
        deleted = (await client.delete(f"responses/{created['id']}")).json()
    assert deleted == {"id": created["id"], "object": "response", "deleted": True}
    assert (await provider.get(f"responses/{created['id']}")).status_code == 404


async def test_answer_cut_off_by_the_token_limit(provider: Provider) -> None:
    response = await provider.create("/long 100", max_output_tokens=16)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert text_of(response).endswith("word16")


async def test_obfuscation_can_be_turned_off(provider: Provider) -> None:
    padded = await provider.stream("/echo some words")
    deltas = [e for e in padded if e["type"] == "response.output_text.delta"]
    assert {(len(e["delta"]) + len(e["obfuscation"])) % 16 for e in deltas} == {0}
    plain = await provider.stream("/echo some words", stream_options={"include_obfuscation": False})
    assert not any("obfuscation" in event for event in plain)


async def test_headers_of_openai_and_azure(provider: Provider, azure: Provider) -> None:
    ours = (await provider.post("hello")).headers
    assert ours["x-request-id"].startswith("req_")
    assert {"openai-processing-ms", "openai-version", "x-ratelimit-remaining-requests"} <= set(ours)
    theirs = (await azure.post("hello", stream=True)).headers
    assert theirs["azureai-fe-is-streaming"] == "True"
    assert "apim-request-id" in theirs
    assert "openai-version" not in theirs


async def test_azure_reports_content_filters(azure: Provider) -> None:
    response = await azure.create("hello")
    assert [f["source_type"] for f in response["content_filters"]] == ["prompt", "completion"]
