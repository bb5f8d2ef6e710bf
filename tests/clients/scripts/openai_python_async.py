"""openai-python's asynchronous client and its `responses.stream()`: only base URL and key differ.

Usage: openai_python_async.py SCENARIO WORD; prints one JSON object.
"""

import asyncio
import json
import os
import sys

from openai import AsyncOpenAI

scenario, word = sys.argv[1:]
client = AsyncOpenAI(
    base_url=os.environ["GATEWAY_URL"] + "/v1", api_key=os.environ["GATEWAY_KEY"], max_retries=0
)

ISSUE = f'/call github.create_issue {{"title": "{word}"}}'
GITHUB = {"type": "mcp", "server_label": "github"}
WEATHER = {"type": "function", "name": "get_weather", "parameters": {}, "strict": False}
THREE = ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]
STATELESS = {"store": False, "include": ["reasoning.encrypted_content"]}


class Talk:
    """A conversation: continued by id, or with all items again."""

    def __init__(self, replays=False, **options):
        self.replays, self.options = replays, options
        self.items, self.previous = [], None
        self.pieces = []

    async def ask(self, content):
        new = [{"role": "user", "content": content}] if isinstance(content, str) else content
        self.items += new
        chain = {} if self.replays or not self.previous else {"previous_response_id": self.previous}
        asked = self.items if self.replays else new
        async with client.responses.stream(
            model="gpt-5", input=asked, **chain, **self.options
        ) as stream:
            async for event in stream:
                if event.type == "response.output_text.delta":
                    self.pieces.append(event.delta)
            response = await stream.get_final_response()
        # The accumulator adds what it parsed, which is no field of the API.
        parsed = {"parsed_arguments": True, "content": {"__all__": {"parsed"}}}
        self.items += [
            item.model_dump(
                exclude_unset=True,
                exclude=parsed if item.type == "message" else {"parsed_arguments"},
            )
            for item in response.output
        ]
        self.previous = response.id
        return response


async def plain():
    response = await client.responses.create(model="gpt-5", input="/echo hello")
    return {"text": response.output_text}


async def stream():
    talk = Talk()
    await talk.ask("/echo a b c")
    return {"pieces": talk.pieces}


async def functions(**options):
    talk, cities, outputs = Talk(tools=[WEATHER], **options), [], []
    response = await talk.ask('/think of rain\n/function get_weather {"city": "Paris"}')
    for item in response.output:
        if item.type == "function_call":
            cities.append(json.loads(item.arguments)["city"])
            outputs.append(
                {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
            )
    text = (await talk.ask(outputs)).output_text
    return {"text": text, "cities": cities, "recalled": (await talk.ask("/recall")).output_text}


async def held(**options):
    talk = Talk(tools=[GITHUB], **options)
    text = (await talk.ask(ISSUE)).output_text
    return {"text": text, "recalled": (await talk.ask("/recall")).output_text}


async def native(**options):
    talk = Talk(tools=[GITHUB], **options)
    output = (await talk.ask(ISSUE)).output
    requests = [item for item in output if item.type == "mcp_approval_request"]
    answers = [
        {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        for request in requests
    ]
    text = (await talk.ask(answers)).output_text
    asked = [json.loads(request.arguments) for request in requests]
    return {"asked": asked, "text": text, "recalled": (await talk.ask("/recall")).output_text}


async def three(**options):
    talk = Talk(**options)
    return {"texts": [(await talk.ask(text)).output_text for text in THREE]}


SCENARIOS = {
    "plain": plain,
    "stream": stream,
    "functions": functions,
    "functions_stateless": lambda: functions(replays=True, **STATELESS),
    "held": held,
    "held_stateless": lambda: held(replays=True, **STATELESS),
    "native": native,
    "native_stateless": lambda: native(replays=True, **STATELESS),
    "replay": lambda: three(replays=True, **STATELESS),
    "chain": lambda: three(store=False),
}

print(json.dumps(asyncio.run(SCENARIOS[scenario]())))
