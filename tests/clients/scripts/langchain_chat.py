"""LangChain as an application uses it: only base URL and key differ from OpenAI.

Usage: langchain_chat.py SCENARIO WORD; prints one JSON object.
"""

import json
import os
import sys

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

scenario, word = sys.argv[1:]

ISSUE = f'/call github.create_issue {{"title": "{word}"}}'
GITHUB = {"type": "mcp", "server_label": "github"}
THREE = ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]
CHAINED = {"use_previous_response_id": True}
STATELESS = {"store": False, "include": ["reasoning.encrypted_content"]}


def chat(**options):
    return ChatOpenAI(
        model="gpt-5",
        base_url=os.environ["GATEWAY_URL"] + "/v1",
        api_key=os.environ["GATEWAY_KEY"],
        use_responses_api=True,
        output_version="responses/v1",
        max_retries=0,
        **options,
    )


def ask(model, messages, content):
    """Ask, and add question and answer to the history."""
    messages.append(HumanMessage(content))
    messages.append(model.invoke(messages))
    return messages[-1]


def plain():
    return {"text": chat().invoke("/echo hello").text}


def stream():
    return {"pieces": [chunk.text for chunk in chat().stream("/echo a b c")]}


def functions(**options):
    cities = []

    @tool
    def get_weather(city: str) -> str:
        """Tell the weather of a city."""
        cities.append(city)
        return "sunny"

    model, messages = chat(**options).bind_tools([get_weather]), []
    answer = ask(model, messages, '/think of rain\n/function get_weather {"city": "Paris"}')
    messages += [get_weather.invoke(call) for call in answer.tool_calls]
    assert all(isinstance(message, ToolMessage) for message in messages[2:])
    messages.append(model.invoke(messages))
    text = messages[-1].text
    return {"text": text, "cities": cities, "recalled": ask(model, messages, "/recall").text}


def held(**options):
    model, messages = chat(**options).bind_tools([GITHUB]), [HumanMessage(ISSUE)]
    whole = None
    for chunk in model.stream(messages):
        whole = chunk if whole is None else whole + chunk
    messages.append(whole)
    return {"text": whole.text, "recalled": ask(model, messages, "/recall").text}


def native(**options):
    model, messages = chat(**options).bind_tools([GITHUB]), []
    first = ask(model, messages, ISSUE)
    requests = [block for block in first.content if block["type"] == "mcp_approval_request"]
    answers = [
        {"type": "mcp_approval_response", "approve": True, "approval_request_id": request["id"]}
        for request in requests
    ]
    text = ask(model, messages, answers).text
    recalled = ask(model, messages, "/recall").text
    asked = [json.loads(request["arguments"]) for request in requests]
    return {"asked": asked, "text": text, "recalled": recalled}


def three(**options):
    model, messages = chat(**options), []
    return {"texts": [ask(model, messages, text).text for text in THREE]}


def texts(**options):
    """Keep of the answers what they say, as histories of chats often do."""
    model, messages, said = chat(**options), [], []
    for text in [f"/think of plums\n/echo one {word}", f"/think\n/echo two {word}", "/recall"]:
        messages.append(HumanMessage(text))
        said.append(model.invoke(messages).text)
        messages.append(AIMessage(said[-1]))
    return {"texts": said}


SCENARIOS = {
    "plain": plain,
    "stream": stream,
    "functions": lambda: functions(**CHAINED),
    "functions_stateless": lambda: functions(**STATELESS),
    "held": lambda: held(**CHAINED),
    "held_stateless": lambda: held(**STATELESS),
    "native": lambda: native(**CHAINED),
    "native_stateless": lambda: native(**STATELESS),
    "replay": lambda: three(**STATELESS),
    "texts": lambda: texts(store=False),
    "chain": lambda: three(**STATELESS, **CHAINED),
}

print(json.dumps(SCENARIOS[scenario]()))
