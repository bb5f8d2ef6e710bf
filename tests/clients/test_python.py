"""openai-python's synchronous client beyond what every client does (API-1)."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.support.stack import Gateway

MODEL = "gpt-4.1"


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    url, key = gateway.url + "/v1", gateway.keys["caller"]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


@pytest.mark.covers("API-1")
def test_a_response_is_created_retrieved_listed_and_deleted(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="/echo hello")
    assert response.output_text == "hello"
    assert client.responses.retrieve(response.id).output_text == "hello"
    assert [item.type for item in client.responses.input_items.list(response.id)] == ["message"]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.covers("API-1")
def test_a_stream_is_read_to_its_end(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="/echo a b c") as stream:
        numbers = [event.sequence_number for event in stream]
        assert stream.get_final_response().output_text == "a b c"
    assert numbers == list(range(len(numbers)))
