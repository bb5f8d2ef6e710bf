"""The Codex CLI as its users run it: its configuration names the gateway, nothing else differs.

Usage: codex_cli.py SCENARIO WORD [websocket]; prints one JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

scenario, word, *transport = sys.argv[1:]

ISSUE = f'/call github.create_issue {{"title": "{word}"}}'
THREE = ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]
RAIN = '/think of rain\n/function exec_command {"cmd": "echo sunny in Paris"}'

QUIET = """
request_max_retries = 0
stream_max_retries = 0

[analytics]
enabled = false

[feedback]
enabled = false

[otel]
exporter = "none"
"""

home = Path(tempfile.mkdtemp(dir=os.environ["SCRATCH"]))
work = home / "work"
work.mkdir()
settings = 'model = "gpt-5"\ncheck_for_update_on_startup = false\n' + os.environ["CODEX_SETTINGS"]
settings += "supports_websockets = true\n" if "websocket" in transport else ""
(home / "config.toml").write_text(settings + QUIET)


def execute(prompt, *resume):
    """Run Codex in a new process, and return the items that it tells of."""
    # What it may run is fenced in by the test: there is no network, and the directory is empty.
    options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    done = subprocess.run(
        [os.environ["CODEX"], "exec", *resume, *options, prompt],
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CODEX_HOME": str(home),
            "GATEWAY_KEY": os.environ["GATEWAY_KEY"],
            "NO_PROXY": "127.0.0.1",
        },
    )
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    events = map(json.loads, done.stdout.splitlines())
    return [event["item"] for event in events if event["type"] == "item.completed"]


def resumed(prompt):
    return execute(prompt, "resume", "--last")


def text_of(items):
    return [item["text"] for item in items if item["type"] == "agent_message"][-1]


def plain():
    return {"text": text_of(execute("/echo hello"))}


def stream():
    return {"pieces": [text_of(execute("/echo a b c"))]}


def functions():
    items = execute(RAIN)
    ran = [item["aggregated_output"] for item in items if item["type"] == "command_execution"]
    recalled = text_of(resumed("/recall"))
    return {
        "text": text_of(items),
        "cities": [output.split()[-1] for output in ran],
        "recalled": recalled,
    }


def held():
    text = text_of(execute(ISSUE))
    return {"text": text, "recalled": text_of(resumed("/recall"))}


def replay():
    first, *later = THREE
    return {"texts": [text_of(execute(first)), *(text_of(resumed(text)) for text in later)]}


SCENARIOS = {
    "plain": plain,
    "stream": stream,
    "functions_stateless": functions,
    "held_stateless": held,
    "replay": replay,
    "chain": lambda: {"text": text_of(execute(RAIN))},
}

print(json.dumps(SCENARIOS[scenario]()))
