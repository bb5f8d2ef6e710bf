"""The OpenAI Agents SDK as an application uses it: only base URL and key differ from OpenAI.

Usage: openai_agents.py SCENARIO WORD; prints one JSON object.
"""

import asyncio
import json
import os
import sys

from agents import (
    Agent,
    HostedMCPTool,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent

scenario, word = sys.argv[1:]
url, key = os.environ["GATEWAY_URL"] + "/v1", os.environ["GATEWAY_KEY"]
set_default_openai_client(AsyncOpenAI(base_url=url, api_key=key, max_retries=0))
set_tracing_disabled(True)

ISSUE = f'/call github.create_issue {{"title": "{word}"}}'
THREE = ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]
STATELESS = ModelSettings(store=False, response_include=["reasoning.encrypted_content"])


def agent(settings=None, tools=()):
    return Agent(
        name="helper",
        model="gpt-5",
        tools=list(tools),
        model_settings=settings or ModelSettings(),
    )


def asking(text, before=None):
    return [*(before.to_input_list() if before else []), {"role": "user", "content": text}]


async def pieces(run):
    return [
        event.data.delta
        async for event in run.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]


async def plain():
    return {"text": (await Runner.run(agent(), "/echo hello")).final_output}


async def stream():
    return {"pieces": await pieces(Runner.run_streamed(agent(), "/echo a b c"))}


async def functions(settings=None):
    cities = []

    @function_tool
    def get_weather(city: str) -> str:
        cities.append(city)
        return "sunny"

    helper = agent(settings, [get_weather])
    first = await Runner.run(helper, '/think of rain\n/function get_weather {"city": "Paris"}')
    later = await Runner.run(helper, asking("/recall", first))
    return {"text": first.final_output, "cities": cities, "recalled": later.final_output}


async def held(settings=None):
    github = HostedMCPTool(tool_config={"type": "mcp", "server_label": "github"})
    helper = agent(settings, [github])
    first = Runner.run_streamed(helper, ISSUE)
    text = "".join(await pieces(first))
    later = await Runner.run(helper, asking("/recall", first))
    return {"text": text, "recalled": later.final_output}


async def native(settings=None):
    asked = []

    def decide(request):
        asked.append(json.loads(request.data.arguments))
        return {"approve": True}

    github = HostedMCPTool(
        tool_config={"type": "mcp", "server_label": "github"}, on_approval_request=decide
    )
    helper = agent(settings, [github])
    first = await Runner.run(helper, ISSUE)
    later = await Runner.run(helper, asking("/recall", first))
    return {"asked": asked, "text": first.final_output, "recalled": later.final_output}


async def replay():
    texts, before = [], None
    for text in THREE:
        before = await Runner.run(agent(STATELESS), asking(text, before))
        texts.append(before.final_output)
    return {"texts": texts}


async def chain():
    """Chain without asking for the ciphertext, as the SDK does by itself."""
    texts, previous = [], None
    for text in THREE:
        run = await Runner.run(
            agent(ModelSettings(store=False)), text, previous_response_id=previous
        )
        previous = run.last_response_id
        texts.append(run.final_output)
    return {"texts": texts}


SCENARIOS = {
    "plain": plain,
    "stream": stream,
    "functions": functions,
    "functions_stateless": lambda: functions(STATELESS),
    "held": held,
    "held_stateless": lambda: held(STATELESS),
    "native": native,
    "native_stateless": lambda: native(STATELESS),
    "replay": replay,
    "chain": chain,
}

print(json.dumps(asyncio.run(SCENARIOS[scenario]())))
