"""The official SDK's accumulator takes every kind of stream, and its types every response."""

from typing import Any

import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from .support import ENCRYPTED, MODEL, DemoServer, Provider, approve, items_of

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FUNCTION: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
    "strict": False,
}


async def _accumulate(provider: Provider, input: Any, **body: Any) -> Any:
    async with (
        provider.sdk as client,
        client.responses.stream(model=MODEL, input=input, **body) as stream,
    ):
        async for _ in stream:
            pass
        return await stream.get_final_response()


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "/think first this\n/echo then that",
        "/function anything {}",
        "/image a cat",
        "/json",
        "/long 200",
        "/computer",
        "/refuse",
    ],
)
async def test_accumulator_takes_stream(provider: Provider, text: str) -> None:
    response = await _accumulate(provider, text)
    assert response.status == "completed"


async def test_accumulator_takes_approvals(provider: Provider, demo: DemoServer) -> None:
    first = await _accumulate(
        provider,
        '/think\n/call github.create_issue {"title":"A"}',
        tools=[demo.tool()],
        include=ENCRYPTED,
    )
    (request,) = items_of(first.model_dump(), "mcp_approval_request")
    second = await _accumulate(
        provider, [approve(request)], previous_response_id=first.id, tools=[demo.tool()]
    )
    assert [item.type for item in second.output] == ["reasoning", "mcp_call", "message"]
    assert "Created issue" in second.output_text


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "/think aloud\n/refuse",
        "/function f {}",
        "/image a cat",
        "/computer",
        "/incomplete",
        '/think\n/call github.create_issue {"title":"A"}',
        '/call payments.search_issues {"query":"a"}\n/call payments.send_payment {}',
    ],
)
@pytest.mark.parametrize("background", [True, False])
async def test_every_event_has_the_sdk_type(
    provider: Provider, demo: DemoServer, text: str, background: bool
) -> None:
    tools = [demo.tool(), demo.tool("payments", require_approval="never")]
    body: Any = {"background": background, "include": ENCRYPTED, "tools": tools}
    for event in await provider.stream(text, **body):
        EVENT.validate_python(event)


async def test_question_calls_the_function_it_names(provider: Provider) -> None:
    async with provider.sdk as client:
        first = await client.responses.create(
            model=MODEL, input="What is the weather in New York?", tools=[FUNCTION]
        )
        (call,) = first.output
        assert call.type == "function_call"
        assert call.arguments == '{"location":"New York"}'
        second = await client.responses.create(
            model=MODEL,
            previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        )
        assert second.output_text == "get_weather returned: sunny"


async def test_structured_output_fits_the_schema(provider: Provider) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    response = await _accumulate(
        provider,
        "Where is it?",
        text={"format": {"type": "json_schema", "name": "place", "schema": schema}},
    )
    assert response.output_text == '{"city":"example city"}'


async def test_every_method_of_the_sdk(provider: Provider) -> None:
    async with provider.sdk as client:
        created = await client.responses.create(model=MODEL, input="hello")
        found = await client.responses.retrieve(created.id)
        assert found.output_text == created.output_text
        items = [i async for i in client.responses.input_items.list(created.id, limit=1)]
        assert [item.type for item in items] == ["message"]
        count = await client.responses.input_tokens.count(model=MODEL, input="hello")
        assert count.input_tokens > 0
        await client.responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(created.id)
        compaction = await client.responses.compact(model=MODEL, input="a long story")
        assert [item.type for item in compaction.output] == ["message", "compaction"]
        # The SDK types the kept user messages as output messages, hence the warnings.
        again: Any = [
            item.model_dump(exclude_none=True, warnings=False) for item in compaction.output
        ]
        more = await client.responses.create(
            model=MODEL, input=[*again, {"role": "user", "content": "/recall"}]
        )
        assert 'I see 1 user message: "a long story"' in more.output_text
        models = [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(models[0])).id == models[0]


async def test_conversations(provider: Provider) -> None:
    async with provider.sdk as client:
        talk = await client.conversations.create(
            metadata={"a": "b"}, items=[{"role": "user", "content": "first"}]
        )
        await client.responses.create(model=MODEL, input="second", conversation=talk.id)
        third = await client.responses.create(model=MODEL, input="/recall", conversation=talk.id)
        assert third.output_text.startswith('I see 2 user messages: "first" | "second";')
        assert third.conversation is not None
        assert third.conversation.id == talk.id
        items = [i async for i in client.conversations.items.list(talk.id, order="asc", limit=2)]
        assert len(items) == 5
        await client.conversations.items.create(
            talk.id, items=[{"role": "user", "content": "added"}]
        )
        first = items[0].id
        assert first is not None
        assert (await client.conversations.items.retrieve(first, conversation_id=talk.id)).id
        await client.conversations.items.delete(first, conversation_id=talk.id)
        updated = await client.conversations.update(talk.id, metadata={"c": "d"})
        assert updated.metadata == {"c": "d"}
        await client.conversations.delete(talk.id)
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(talk.id)
