"""openai-python's synchronous client as an application uses it: only base URL and key differ.

Usage: openai_python.py SCENARIO WORD; prints one JSON object.
"""

import json
import os
import sys

from openai import OpenAI

scenario, word = sys.argv[1:]
client = OpenAI(
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

    def create(self, content, **options):
        new = [{"role": "user", "content": content}] if isinstance(content, str) else content
        self.items += new
        response = client.responses.create(
            model="gpt-5",
            input=self.items if self.replays else new,
            **({} if self.replays else {"previous_response_id": self.previous}),
            **self.options,
            **options,
        )
        if options.get("stream"):
            events = list(response)
            response = events[-1].response
        self.items += [item.model_dump(exclude_unset=True) for item in response.output]
        self.previous = response.id
        return response


def plain():
    return {"text": client.responses.create(model="gpt-5", input="/echo hello").output_text}


def stream():
    events = client.responses.create(model="gpt-5", input="/echo a b c", stream=True)
    return {
        "pieces": [event.delta for event in events if event.type == "response.output_text.delta"]
    }


def functions(**options):
    talk, cities = Talk(tools=[WEATHER], **options), []
    response = talk.create('/think of rain\n/function get_weather {"city": "Paris"}')
    outputs = []
    for item in response.output:
        if item.type == "function_call":
            cities.append(json.loads(item.arguments)["city"])
            outputs.append(
                {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
            )
    text = talk.create(outputs).output_text
    return {"text": text, "cities": cities, "recalled": talk.create("/recall").output_text}


def held(**options):
    talk = Talk(tools=[GITHUB], **options)
    text = talk.create(ISSUE, stream=True).output_text
    return {"text": text, "recalled": talk.create("/recall").output_text}


def native(**options):
    talk = Talk(tools=[GITHUB], **options)
    requests = [item for item in talk.create(ISSUE).output if item.type == "mcp_approval_request"]
    answers = [
        {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        for request in requests
    ]
    text = talk.create(answers).output_text
    asked = [json.loads(request.arguments) for request in requests]
    return {"asked": asked, "text": text, "recalled": talk.create("/recall").output_text}


def three(**options):
    talk = Talk(**options)
    return {"texts": [talk.create(text).output_text for text in THREE]}


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

print(json.dumps(SCENARIOS[scenario]()))
