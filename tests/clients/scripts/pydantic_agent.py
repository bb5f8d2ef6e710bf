"""Pydantic AI as an application uses it: only base URL and key differ from OpenAI.

Usage: pydantic_agent.py SCENARIO WORD; prints one JSON object.
"""

import asyncio
import json
import os
import sys

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

scenario, word = sys.argv[1:]

ISSUE = f'/call github.create_issue {{"title": "{word}"}}'
GITHUB = {"type": "mcp", "server_label": "github"}
THREE = ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]
CHAINED = {"openai_previous_response_id": "auto"}
STATELESS = {"openai_store": False}


def agent(settings=None, tools=()):
    client = AsyncOpenAI(
        base_url=os.environ["GATEWAY_URL"] + "/v1", api_key=os.environ["GATEWAY_KEY"], max_retries=0
    )
    model = OpenAIResponsesModel("gpt-5", provider=OpenAIProvider(openai_client=client))
    return Agent(
        model, model_settings=OpenAIResponsesModelSettings(**settings or {}), tools=list(tools)
    )


async def plain():
    return {"text": (await agent().run("/echo hello")).output}


async def stream():
    async with agent().run_stream("/echo a b c") as run:
        return {"pieces": [piece async for piece in run.stream_text(delta=True, debounce_by=None)]}


async def functions(settings):
    cities = []

    def get_weather(city: str) -> str:
        """Tell the weather of a city."""
        cities.append(city)
        return "sunny"

    helper = agent(settings, [get_weather])
    first = await helper.run('/think of rain\n/function get_weather {"city": "Paris"}')
    later = await helper.run("/recall", message_history=first.all_messages())
    return {"text": first.output, "cities": cities, "recalled": later.output}


async def held(settings):
    """Its own `MCPServerTool` says that no approval is needed; the setting takes a whole tool."""
    helper = agent({**settings, "openai_native_tools": [GITHUB]})
    async with helper.run_stream(ISSUE) as run:
        text = await run.get_output()
    later = await helper.run("/recall", message_history=run.all_messages())
    return {"text": text, "recalled": later.output}


async def three(settings):
    texts, history = [], []
    helper = agent(settings)
    for text in THREE:
        run = await helper.run(text, message_history=history)
        history = run.all_messages()
        texts.append(run.output)
    return {"texts": texts}


SCENARIOS = {
    "plain": plain,
    "stream": stream,
    "functions": lambda: functions({}),
    "functions_stateless": lambda: functions(STATELESS),
    "held": lambda: held({}),
    "held_stateless": lambda: held(STATELESS),
    "replay": lambda: three(STATELESS),
    "chain": lambda: three({**STATELESS, **CHAINED}),
}

print(json.dumps(asyncio.run(SCENARIOS[scenario]())))
