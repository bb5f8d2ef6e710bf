"""Microsoft Agent Framework as an application uses it: only base URL and key differ from OpenAI.

Usage: agent_framework_chat.py SCENARIO WORD; prints one JSON object.
"""

import asyncio
import json
import os
import sys

from agent_framework import Agent, Message
from agent_framework.openai import OpenAIChatClient

scenario, word = sys.argv[1:]

ISSUE = f'/call github.create_issue {{"title": "{word}"}}'
THREE = ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]
STATELESS = {"store": False, "include": ["reasoning.encrypted_content"]}

# The helper wants a URL: an empty one leaves the place of the server to the gateway.
GITHUB = OpenAIChatClient.get_mcp_tool(name="github", url="")


def agent(options=None, tools=()):
    client = OpenAIChatClient(
        "gpt-5", base_url=os.environ["GATEWAY_URL"] + "/v1", api_key=os.environ["GATEWAY_KEY"]
    )
    return Agent(client, tools=list(tools), default_options=options or {})


async def plain():
    return {"text": (await agent().run("/echo hello")).text}


async def stream():
    run = agent().run("/echo a b c", stream=True)
    contents = [content async for update in run for content in update.contents]
    texts = [content for content in contents if content.type == "text"]
    # The last one is the whole text, and replaces the pieces.
    return {"pieces": [content.text for content in texts if content.merge_mode == "append"]}


async def functions(options):
    cities = []

    def get_weather(city: str) -> str:
        """Tell the weather of a city."""
        cities.append(city)
        return "sunny"

    helper = agent(options, [get_weather])
    session = helper.create_session()
    prompt = '/think of rain\n/function get_weather {"city": "Paris"}'
    text = (await helper.run(prompt, session=session)).text
    later = await helper.run("/recall", session=session)
    return {"text": text, "cities": cities, "recalled": later.text}


async def held(options):
    helper = agent(options, [GITHUB])
    session = helper.create_session()
    first = await helper.run(ISSUE, session=session, stream=True).get_final_response()
    later = await helper.run("/recall", session=session)
    return {"text": first.text, "recalled": later.text}


async def native(options):
    helper = agent(options, [GITHUB])
    session = helper.create_session()
    first = await helper.run(ISSUE, session=session)
    requests = first.user_input_requests
    asked = [request.function_call.parse_arguments() for request in requests]
    answers = [request.to_function_approval_response(approved=True) for request in requests]
    last = await helper.run(Message("user", answers), session=session)
    later = await helper.run("/recall", session=session)
    return {"asked": asked, "text": last.text, "recalled": later.text}


async def replay():
    helper = agent(STATELESS)
    session = helper.create_session()
    return {"texts": [(await helper.run(text, session=session)).text for text in THREE]}


async def chain():
    texts, previous = [], None
    for text in THREE:
        options = {"conversation_id": previous} if previous else {}
        run = await agent({"store": False}).run(text, options=options)
        previous = run.response_id
        texts.append(run.text)
    return {"texts": texts}


SCENARIOS = {
    "plain": plain,
    "stream": stream,
    "functions": lambda: functions({}),
    "functions_stateless": lambda: functions(STATELESS),
    "held": lambda: held({}),
    "held_stateless": lambda: held(STATELESS),
    "native": lambda: native({}),
    "native_stateless": lambda: native(STATELESS),
    "replay": replay,
    "chain": chain,
}

print(json.dumps(asyncio.run(SCENARIOS[scenario]())))
