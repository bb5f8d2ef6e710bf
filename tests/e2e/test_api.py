"""The whole Responses surface through the official SDK, under OpenAI's and Azure's paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest

from gateway.emulator import EmulatorSettings, create_emulator
from gateway.emulator.serve import serving
from tests.support.events import numbers, read_events
from tests.support.stack import OPEN_CLIENTS, UPSTREAM_KEY, Gateway, Stack, upstream_entry

FUNCTION: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}


@pytest.mark.covers("API-1", "API-4")
async def test_a_response_is_created_retrieved_listed_and_deleted(
    gateway: Gateway, stack: Stack
) -> None:
    client = gateway.client()
    made = await client.responses.create(model="gpt-4.1", input="/echo hello")
    assert made.output_text == "hello"
    found = await client.responses.retrieve(made.id)
    assert (found.id, found.output_text) == (made.id, "hello")
    items = await client.responses.input_items.list(made.id)
    assert [item.type for item in items.data] == ["message"]
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)


@pytest.mark.covers("API-4")
async def test_the_id_is_the_upstreams_own(gateway: Gateway, stack: Stack) -> None:
    made = await gateway.client().responses.create(model="gpt-4.1", input="hello")
    direct = openai.AsyncOpenAI(base_url=stack.emulator_url + "/v1", api_key=UPSTREAM_KEY)
    OPEN_CLIENTS.append(direct)
    assert (await direct.responses.retrieve(made.id)).id == made.id
    assert len(made.id) <= 64


@pytest.mark.covers("API-1")
async def test_the_strict_stream_of_the_sdk_accepts_every_kind_of_output(gateway: Gateway) -> None:
    async with gateway.client().responses.stream(
        model="gpt-4.1",
        input='/think hard\n/function get_weather {"city": "Rome"}\n/long 20\n/refuse never',
        tools=[
            {
                "type": "function",
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {}},
                "strict": False,
            }
        ],
    ) as stream:
        numbers = [event.sequence_number async for event in stream]
        final = await stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert [item.type for item in final.output][:2] == ["reasoning", "function_call"]


@pytest.mark.covers("API-1")
async def test_input_items_come_in_pages(gateway: Gateway) -> None:
    client = gateway.client()
    made = await client.responses.create(
        model="gpt-4.1", input=[{"role": "user", "content": f"text {n}"} for n in range(5)]
    )
    pages = client.responses.input_items.list(made.id, limit=2, order="asc")
    contents: list[Any] = [item.content async for item in pages]  # type: ignore[union-attr]
    texts = [content[0].text for content in contents]
    assert texts == [f"text {n}" for n in range(5)]


@pytest.mark.covers("API-1")
async def test_input_tokens_are_counted_and_a_conversation_is_compacted(gateway: Gateway) -> None:
    client = gateway.client()
    counted = await client.responses.input_tokens.count(model="gpt-4.1", input="one two three")
    assert counted.input_tokens > 0
    compacted = await client.responses.compact(
        model="gpt-4.1", input=[{"role": "user", "content": "remember the word plum"}]
    )
    assert [item.type for item in compacted.output][-1] == "compaction"


@pytest.mark.covers("API-1")
async def test_models_are_listed_and_retrieved(gateway: Gateway, stack: Stack) -> None:
    client = gateway.client()
    assert "gpt-4.1" in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("gpt-4.1")).id == "gpt-4.1"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("unknown-model")
    assert caught.value.code == "model_not_found"


@pytest.mark.covers("API-1")
async def test_configured_models_are_the_list_and_are_sent_as_their_deployment(
    stack: Stack,
) -> None:
    models = [{"name": "fast", "routes": [{"upstream": "emulator", "deployment": "gpt-5-mini"}]}]
    with stack.gateway(models=models) as gateway:
        client = gateway.client()
        assert [model.id async for model in client.models.list()] == ["fast"]
        assert (await client.models.retrieve("fast")).id == "fast"
        await stack.forget()
        await client.responses.create(model="fast", input="hello")
        (sent,) = await stack.requests()
        assert sent["body"]["model"] == "gpt-5-mini"
        for call in (client.responses.create(model="gpt-5-mini", input="x"),):
            with pytest.raises(openai.NotFoundError) as caught:
                await call
            assert caught.value.code == "model_not_found"
            assert caught.value.param == "model"


@pytest.mark.covers("API-1", "CHAIN-5")
async def test_conversations_and_their_items_pass_through(gateway: Gateway) -> None:
    client = gateway.client()
    talk = await client.conversations.create(
        metadata={"topic": "plums"},
        items=[{"type": "message", "role": "user", "content": "the word is plum"}],
    )
    assert (await client.conversations.retrieve(talk.id)).metadata == {"topic": "plums"}
    changed = await client.conversations.update(talk.id, metadata={"topic": "pears"})
    assert changed.metadata == {"topic": "pears"}
    added = await client.conversations.items.create(
        talk.id, items=[{"type": "message", "role": "user", "content": "and pear"}]
    )
    item = added.data[0]
    found = await client.conversations.items.retrieve(item.id or "", conversation_id=talk.id)
    assert found.id == item.id
    said = await client.responses.create(model="gpt-4.1", input="/recall", conversation=talk.id)
    assert "plum" in said.output_text
    listed = [one.id async for one in client.conversations.items.list(talk.id)]
    assert item.id in listed
    await client.conversations.items.delete(item.id or "", conversation_id=talk.id)
    assert item.id not in [one.id async for one in client.conversations.items.list(talk.id)]
    await client.conversations.delete(talk.id)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.conversations.retrieve(talk.id)
    assert caught.value.code == "conversation_not_found"


@pytest.fixture(scope="module")
def patient(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose upstream takes its time for background turns."""
    settings = EmulatorSettings(api_keys=frozenset({UPSTREAM_KEY}), chunk_delay=0.01)
    with serving(create_emulator(settings)) as url:
        entry = upstream_entry(url + "/v1/")
        with stack.gateway(upstreams=[entry]) as running:
            yield running


@pytest.mark.covers("API-1", "STREAM-3")
async def test_a_native_background_response_is_polled_until_it_can_be_chained_on(
    patient: Gateway,
) -> None:
    client = patient.client()
    begun = await client.responses.create(
        model="gpt-4.1", input="/echo the word is plum", background=True
    )
    assert begun.status == "queued"
    with anyio.fail_after(30):
        while (found := await client.responses.retrieve(begun.id)).status != "completed":
            await anyio.sleep(0.01)
    assert found.output_text == "the word is plum"
    said = await client.responses.create(
        model="gpt-4.1", input="/recall", previous_response_id=begun.id
    )
    assert "plum" in said.output_text


@pytest.mark.covers("API-1", "STREAM-3")
async def test_a_native_background_response_can_be_cancelled_twice(patient: Gateway) -> None:
    client = patient.client()
    begun = await client.responses.create(model="gpt-4.1", input="/long 5000", background=True)
    assert (await client.responses.cancel(begun.id)).status == "cancelled"
    assert (await client.responses.cancel(begun.id)).status == "cancelled"
    assert (await client.responses.retrieve(begun.id)).status == "cancelled"
    done = await client.responses.create(model="gpt-4.1", input="/echo done", background=True)
    with anyio.fail_after(30):
        while (found := await client.responses.retrieve(done.id)).status != "completed":
            await anyio.sleep(0.01)
    assert await client.responses.cancel(done.id) == found  # what is over stays what it is


@pytest.mark.covers("API-1", "STREAM-3")
async def test_a_native_background_stream_is_resumed_after_a_cursor(patient: Gateway) -> None:
    client = patient.client()
    stream = await client.responses.create(
        model="gpt-4.1", input="/long 10", background=True, stream=True
    )
    seen = []
    async for event in stream:
        seen.append(event)
        if event.sequence_number == 5:
            break
    await stream.close()
    created = seen[0]
    assert created.type == "response.created"
    rest = await client.responses.retrieve(created.response.id, stream=True, starting_after=5)
    seen += [event async for event in rest]
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[-1].type == "response.completed"
    async with patient.http() as http:
        path = f"/v1/responses/{created.response.id}?stream=true&include_obfuscation=false"
        whole = (await http.get(path)).content
        for after in (0, 5, len(seen) - 2):
            part = (await http.get(f"{path}&starting_after={after}")).content
            assert whole.endswith(part)
            assert numbers(read_events(part)) == list(range(after + 1, len(seen)))


@pytest.mark.covers("API-2")
async def test_the_azure_client_works_with_the_v1_path(gateway: Gateway) -> None:
    client = openai.AsyncAzureOpenAI(
        base_url=gateway.url + "/openai/v1/",
        api_key=gateway.keys["caller"],
        api_version="preview",
        max_retries=0,
    )
    OPEN_CLIENTS.append(client)
    await every_door(client)


@pytest.mark.covers("API-2")
async def test_the_azure_client_works_with_last_generations_path(gateway: Gateway) -> None:
    client = openai.AsyncAzureOpenAI(
        azure_endpoint=gateway.url,
        api_key=gateway.keys["caller"],
        api_version="2025-04-01-preview",
        max_retries=0,
    )
    OPEN_CLIENTS.append(client)
    await every_door(client)


@pytest.mark.covers("API-2")
async def test_the_azure_client_works_with_a_token(gateway: Gateway) -> None:
    client = openai.AsyncAzureOpenAI(
        azure_endpoint=gateway.url,
        azure_ad_token=gateway.keys["caller"],
        api_version="2025-04-01-preview",
        max_retries=0,
    )
    OPEN_CLIENTS.append(client)
    await every_door(client)


async def every_door(client: openai.AsyncOpenAI) -> None:
    """Call all that a client calls; the paths differ, the answers do not."""
    made = await client.responses.create(model="gpt-4.1", input="/echo one")
    async with client.responses.stream(
        model="gpt-4.1", input="/echo two", previous_response_id=made.id
    ) as stream:
        assert (await stream.get_final_response()).output_text == "two"
    assert (await client.responses.retrieve(made.id)).output_text == "one"
    assert (await client.responses.input_items.list(made.id)).data
    assert (await client.responses.input_tokens.count(model="gpt-4.1", input="x")).input_tokens
    assert (await client.models.list()).data
    talk = await client.conversations.create()
    assert (await client.conversations.items.list(talk.id)).data == []
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel("resp_unknown")
    await client.responses.delete(made.id)


@pytest.mark.covers("API-2")
async def test_the_callers_api_version_is_not_sent_to_the_upstream(
    gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    async with gateway.http() as client:
        answer = await client.get(
            "/openai/v1/models", params={"api-version": "preview", "limit": "1"}
        )
    assert answer.status_code == 200
    assert "api-version" not in (await stack.requests())[-1]["query"]


@pytest.mark.covers("API-8", "API-5")
async def test_an_azure_upstream_is_called_as_azure_and_its_errors_stay_azures(
    stack: Stack,
) -> None:
    settings = EmulatorSettings(api_keys=frozenset({UPSTREAM_KEY}), azure=True)
    with serving(create_emulator(settings)) as url:
        entry = upstream_entry(
            url + "/openai/v1/", name="sweden", kind="azure", query={"api-version": "preview"}
        )
        with stack.gateway(upstreams=[entry]) as gateway:
            client = gateway.client()
            made = await client.responses.with_raw_response.create(
                model="gpt-4.1", input="/echo hello"
            )
            assert made.parse().output_text == "hello"
            assert made.headers["x-ms-region"] == "Sweden Central"
            with pytest.raises(openai.NotFoundError) as caught:
                await client.responses.create(model="unknown", input="x")
            assert caught.value.code == "DeploymentNotFound"


@pytest.mark.covers("API-1")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("PUT", "/v1/responses", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v2/responses/resp_1", 404),
    ],
)
async def test_what_is_not_there_is_an_error_in_openais_shape(
    gateway: Gateway, method: str, path: str, status: int
) -> None:
    async with gateway.http() as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.covers("API-1", "STREAM-3")
async def test_a_background_response_is_chained_on_without_being_polled(patient: Gateway) -> None:
    client = patient.client()
    begun = await client.responses.create(
        model="gpt-4.1", input="/echo the word is plum", background=True
    )
    with anyio.fail_after(30):
        text = ""
        while "plum" not in text:
            try:
                said = await client.responses.create(
                    model="gpt-4.1", input="/recall", previous_response_id=begun.id
                )
            except openai.BadRequestError:  # the upstream itself says that it runs still
                await anyio.sleep(0.02)
            else:
                text = said.output_text


@pytest.mark.covers("API-3")
async def test_every_value_of_a_repeated_query_field_is_passed_on(
    gateway: Gateway, stack: Stack
) -> None:
    client = gateway.client()
    made = await client.responses.create(model="gpt-4.1", input="x")
    await stack.forget()
    await client.responses.retrieve(
        made.id, include=["message.output_text.logprobs", "web_search_call.action.sources"]
    )
    (sent,) = await stack.requests()
    assert "logprobs" in sent["query"]
    assert "sources" in sent["query"]


@pytest.mark.covers("STREAM-3", "STATE-1")
async def test_a_stateless_turn_goes_on_from_a_background_response_that_was_polled(
    patient: Gateway,
) -> None:
    client = patient.client()
    begun = await client.responses.create(
        model="gpt-4.1", input="/function look {}", background=True, tools=[FUNCTION]
    )
    with pytest.raises(openai.ConflictError) as caught:
        await client.responses.create(
            model="gpt-4.1", input="x", previous_response_id=begun.id, store=False
        )
    assert caught.value.code == "response_in_progress"
    with anyio.fail_after(30):
        while (done := await client.responses.retrieve(begun.id)).status != "completed":
            await anyio.sleep(0.01)
    call: Any = done.output[0]
    said = await client.responses.create(
        model="gpt-4.1",
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "a plum"}],
        previous_response_id=begun.id,
        store=False,
        tools=[FUNCTION],
    )
    assert "a plum" in said.output_text
