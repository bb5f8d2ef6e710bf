"""openai-python's `responses.connect()`, a WebSocket: only base URL and key differ from OpenAI.

Usage: openai_python_socket.py SCENARIO WORD; prints one JSON object.
"""

import json
import os
import sys

from openai import OpenAI

scenario, word = sys.argv[1:]

ISSUE = f'/call github.create_issue {{"title": "{word}"}}'
GITHUB = {"type": "mcp", "server_label": "github"}
WEATHER = {"type": "function", "name": "get_weather", "parameters": {}, "strict": False}
THREE = ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]
STATELESS = {"store": False, "include": ["reasoning.encrypted_content"]}


class Talk:
    """A conversation on one socket: continued by id, or with all items again."""

    def __init__(self, replays=False, **options):
        self.replays, self.options = replays, options
        self.items, self.previous, self.pieces = [], None, []

    def ask(self, content):
        new = [{"role": "user", "content": content}] if isinstance(content, str) else content
        self.items += new
        chain = {} if self.replays or not self.previous else {"previous_response_id": self.previous}
        asked = self.items if self.replays else new
        connection.response.create(model="gpt-5", input=asked, **chain, **self.options)
        for event in connection:
            assert event.type not in ("error", "response.failed"), event
            if event.type == "response.output_text.delta":
                self.pieces.append(event.delta)
            if event.type == "response.completed":
                break
        self.items += [item.model_dump(exclude_unset=True) for item in event.response.output]
        self.previous = event.response.id
        return event.response


def plain():
    return {"text": Talk().ask("/echo hello").output_text}


def stream():
    talk = Talk()
    talk.ask("/echo a b c")
    return {"pieces": talk.pieces}


def functions(**options):
    talk, cities, outputs = Talk(tools=[WEATHER], **options), [], []
    for item in talk.ask('/think of rain\n/function get_weather {"city": "Paris"}').output:
        if item.type == "function_call":
            cities.append(json.loads(item.arguments)["city"])
            outputs.append(
                {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
            )
    text = talk.ask(outputs).output_text
    return {"text": text, "cities": cities, "recalled": talk.ask("/recall").output_text}


def held(**options):
    talk = Talk(tools=[GITHUB], **options)
    text = talk.ask(ISSUE).output_text
    return {"text": text, "recalled": talk.ask("/recall").output_text}


def native(**options):
    talk = Talk(tools=[GITHUB], **options)
    requests = [item for item in talk.ask(ISSUE).output if item.type == "mcp_approval_request"]
    answers = [
        {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        for request in requests
    ]
    text = talk.ask(answers).output_text
    asked = [json.loads(request.arguments) for request in requests]
    return {"asked": asked, "text": text, "recalled": talk.ask("/recall").output_text}


def three(**options):
    talk = Talk(**options)
    return {"texts": [talk.ask(text).output_text for text in THREE]}


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

with (
    OpenAI(base_url=os.environ["GATEWAY_URL"] + "/v1", api_key=os.environ["GATEWAY_KEY"]) as client,
    client.responses.connect() as connection,
):
    seen = SCENARIOS[scenario]()
print(json.dumps(seen))
