"""The command line (RUN-4, RUN-5)."""

import base64
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway import __version__
from gateway.cli.commands import cli
from gateway.domain.identity import KeyRing, Role
from gateway.domain.pins import definition_hash
from gateway.settings import Settings

Write = Callable[..., Path]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.covers("RUN-5")
def test_help_explains_every_command() -> None:
    shown = run("--help").output
    for command in cli.commands:
        assert (command in shown) == (not cli.commands[command].hidden), command
        assert run(command, "--help").exit_code == 0


def test_help_is_quick_because_it_imports_little() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from gateway.cli.commands import cli;"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0;"
        "heavy = {'litestar', 'openai', 'mcp', 'redis', 'pydantic', 'uvicorn', 'azure'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert shown.stdout == "[]\n", shown.stderr


def test_version() -> None:
    assert __version__ in run("--version").output


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["keys", "new"],
        ["keys", "new", "--id", "a b", "--tenant", "t", "--subject", "s"],
        ["keys", "new", "--id", "a", "--tenant", "t t", "--subject", "s"],
        ["keys", "new", "--id", "a", "--tenant", "t", "--subject", "s", "--role", "boss"],
        ["serve", "--port", "99999"],
        ["check", "--config", "/no/such.toml"],
        ["emulator", "--api-key", "plain"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "plain" not in result.output


@pytest.mark.covers("RUN-5", "AUTH-1")
def test_a_new_key_authenticates_by_its_entry() -> None:
    arguments = ["--id", "web", "--tenant", "acme", "--subject", "svc:web"]
    result = run("keys", "new", *arguments, "--role", "caller", "--role", "admin", "--group", "g")
    key, _, entry = result.output.partition("\n\n")
    assert key not in entry
    settings = Settings(**tomllib.loads(entry))
    principal = KeyRing(settings.to_api_keys()).authenticate(key)
    assert principal is not None
    assert (principal.tenant, principal.subject) == ("acme", "svc:web")
    assert principal.roles == {Role.CALLER, Role.ADMIN}
    assert principal.groups == {"g"}
    assert KeyRing(settings.to_api_keys()).authenticate(key[:-1] + "x") is None or key[-1] == "x"


def test_a_new_key_as_json() -> None:
    result = run("keys", "new", "--id", "a", "--tenant", "t", "--subject", "s", "--json")
    shown = json.loads(result.output)
    assert shown["entry"]["roles"] == ["caller"]
    assert shown["key"].startswith("gw_a_")


@pytest.mark.covers("RUN-5", "APPR-13")
@pytest.mark.parametrize(
    ("server", "tool", "effect", "rule"),
    [
        ("github", "search_issues", "allow", "reads"),
        ("github", "create_issue", "ask", "writes"),
        ("github", "other", "ask", "default"),
        ("unknown", "search_issues", "deny", "default"),
    ],
)
def test_simulate(write: Write, server: str, tool: str, effect: str, rule: str) -> None:
    path = str(write())
    arguments = ["policy", "simulate", "--config", path, "--server", server, "--tool", tool]
    text = run(*arguments)
    assert text.exit_code == 0
    assert text.output.startswith(f"{server}.{tool}: {effect}\nrule: {rule}\n")
    shown = json.loads(run(*arguments, "--json").output)
    assert (shown["effect"], shown["rule"]) == (effect, rule)
    assert ("approval" in shown) == (effect == "ask")


def test_simulate_says_who_may_approve_and_why(write: Write) -> None:
    path = str(write())
    arguments = ["--server", "github", "--tool", "create_issue", "--config", path]
    shown = run("policy", "simulate", *arguments).output
    assert "reason: It changes what others see." in shown
    assert "approvers: role:approver" in shown
    assert "timeout: 1800 s, then deny" in shown


def test_simulate_says_when_a_tool_is_not_offered(write: Write) -> None:
    path = write(('label = "github"', 'label = "github"\nallowed_tools = ["a"]'))
    arguments = ["--server", "github", "--tool", "b", "--config", str(path)]
    assert "b is not in the allowed_tools of github" in run("policy", "simulate", *arguments).output


@pytest.mark.covers("APPR-13", "RUN-5")
def test_simulate_takes_all_that_a_rule_can_look_at(write: Write) -> None:
    rule = """
[[rules]]
id = "all"
effect = "allow"
[rules.match]
tool = "pay"
args = { "/n" = { lt = 5 } }
annotations = { destructive = false }
[rules.match.principal]
tenants = ["acme"]
groups = ["finance"]
roles = ["caller"]
subjects = ["svc:*"]
end_users = ["ann"]
[[rules]]
id = "taint"
effect = "deny"
match = { tool = "pay", chain = { saw_untrusted = true, saw_private = true } }
[[rules]]
id = "soon"
effect = "deny"
mode = "shadow"
match = { tool = "pay" }
"""
    path = write()
    text = path.read_text().replace('label = "github"', 'label = "github"\ntrust = "reviewed"')
    path.write_text(text + rule)
    usual = ["policy", "simulate", "--config", str(path), "--server", "github", "--tool", "pay"]
    who = ["--tenant", "acme", "--group", "finance", "--role", "caller"]
    who += ["--subject", "svc:web", "--end-user", "ann"]
    said = ["--args", '{"n": 4.5}', "--annotation", "destructive=false"]
    assert run(*usual, *who, *said).output == (
        "github.pay: allow\nrule: all\nin shadow: deny, by soon\n"
    )
    assert run(*usual, *who).output.startswith("github.pay: ask\nrule: default\n")
    assert run(*usual, *said).output.startswith("github.pay: ask\nrule: default\n")
    explained = run(*usual, *who, *said, "--saw-untrusted", "--saw-private", "--explain").output
    assert explained.startswith("github.pay: deny\nrule: taint\n")
    assert "allow reads: not matched: not: tool is search_*\n" in explained
    assert "allow all: matched\n" in explained
    assert "deny soon (shadow): matched\n" in explained
    shown = json.loads(run(*usual, *who, *said, "--json").output)
    assert shown["shadow"] == {"effect": "deny", "rule": "soon"}
    assert shown["rules"][-3:] == [
        {"id": "all", "mode": "enforce", "outcome": "matched", "why": ""},
        {
            "id": "taint",
            "mode": "enforce",
            "outcome": "not_matched",
            "why": "not: chain.saw_untrusted is true",
        },
        {"id": "soon", "mode": "shadow", "outcome": "matched", "why": ""},
    ]
    wrong = run(*usual, "--annotation", "destructive=maybe")
    assert wrong.exit_code == 2
    assert "must be NAME=true or NAME=false" in wrong.output


@pytest.mark.covers("RUN-4")
def test_check_prints_one_line_per_fault(write: Write) -> None:
    result = run("check", "--config", str(write(("https://mcp", "http://mcp"))))
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert lines[0].startswith("mcp_servers[0].url: is plain http")
    assert lines[1].startswith("encryption.keys[0].value: env:KEY_1: ")
    assert len(lines) == 4


def test_check_offline_reads_no_secret(write: Write) -> None:
    result = run("check", "--offline", "--config", str(write()))
    assert result.exit_code == 0
    assert result.output.startswith("OK: 1 upstream(s)")


@pytest.mark.covers("RUN-4")
def test_serve_refuses_what_check_refuses(write: Write) -> None:
    path = str(write())
    assert run("serve", "--config", path).output == run("check", "--config", path).output
    assert run("serve", "--config", path).exit_code == 1


def test_a_configuration_that_does_not_load_is_told_in_lines(write: Write) -> None:
    path = write(('kind = "azure"', 'kind = "x"'))
    for command in ("serve", "check"):
        result = run(command, "--config", str(path))
        assert result.exit_code == 1
        assert result.output.startswith(f"{path}: upstreams[0].kind: must be")


# probe, against the real demo server


@pytest.fixture(scope="module")
def demo_url() -> Iterator[str]:
    from gateway.emulator.demo_mcp import create_demo_mcp
    from gateway.emulator.serve import serving

    with serving(create_demo_mcp("demo-token")) as url:
        yield f"{url}/mcp"


@pytest.fixture
def probe(write: Write, demo_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("GITHUB_AUTH", "Bearer demo-token")

    def probe(*arguments: str, change: tuple[str, str] = ("env:KEY_1", "env:KEY_1")) -> Result:
        address = ("https://mcp.example.com/github", demo_url)
        path = write(address, change)
        return run("mcp", "probe", "github", "--config", str(path), *arguments)

    return probe


@pytest.mark.covers("RUN-5")
def test_probe_lists_tools_with_claims_rules_and_hashes(probe: Callable[..., Result]) -> None:
    shown = json.loads(probe("--json").output)
    tools = {tool["name"]: tool for tool in shown["tools"]}
    assert set(tools) == {"search_issues", "create_issue", "send_payment"}
    assert tools["search_issues"]["annotations"]["readOnlyHint"] is True
    assert tools["search_issues"]["rule"] == "reads"
    assert tools["send_payment"]["effect"] == "ask"
    hashes = {tool["definition_hash"] for tool in tools.values()}
    assert len(hashes) == 3
    assert json.loads(probe("--json").output) == shown


def test_probe_prints_a_table(probe: Callable[..., Result]) -> None:
    shown = probe().output
    assert "search_issues" in shown
    assert "readOnly" in shown


def test_probe_marks_tools_that_are_not_offered(probe: Callable[..., Result]) -> None:
    change = ('label = "github"', 'label = "github"\nallowed_tools = ["search_issues"]')
    tools = json.loads(probe("--json", change=change).output)["tools"]
    assert [tool["name"] for tool in tools if tool["offered"]] == ["search_issues"]


def test_probe_takes_a_callers_header_by_reference(
    probe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER_TOKEN", "Bearer demo-token")
    change = (
        'headers = { Authorization = "env:GITHUB_AUTH" }',
        'forward_headers = { X-T = "Authorization" }',
    )
    missing = probe(change=change)
    assert missing.exit_code == 1
    assert "--header X-T=env:NAME" in missing.output
    assert probe("--header", "X-T=env:USER_TOKEN", change=change).exit_code == 0
    plain = probe("--header", "X-T=Bearer canary", change=change)
    assert plain.exit_code == 1
    assert "canary" not in plain.output


def test_probe_tells_a_refusal_without_the_header(
    probe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_AUTH", "Bearer canary")
    result = probe()
    assert result.exit_code == 1
    assert "canary" not in result.output
    assert "401" in result.output


@pytest.mark.covers("MCP-5")
def test_probe_compares_with_the_pins_and_accepts_on_confirmation(
    probe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.adapters.redis.embedded import EmbeddedValkey

    monkeypatch.setenv("KEY_1", base64.b64encode(b"k" * 32).decode())
    assert probe("--accept", "--yes").exit_code == 1  # the embedded Valkey does not run
    with EmbeddedValkey() as valkey:
        change = ('url = "embedded"\ndirectory = "state"', f'url = "{valkey.url}"')

        def pins() -> set[str]:
            tools = json.loads(probe("--json", change=change).output)["tools"]
            return {status for tool in tools for status in tool["pins"].values()}

        assert pins() == {"unseen"}
        assert probe("--accept", change=change).exit_code == 1  # nobody said yes
        assert pins() == {"unseen"}
        assert "3 pin(s) changed" in probe("--accept", "--yes", change=change).stderr
        assert pins() == {"trusted"}
        assert "trusted" in probe(change=change).stdout
        assert "0 pin(s) changed" in probe("--accept", "--yes", change=change).stderr


def test_probe_of_an_unknown_label(write: Write) -> None:
    result = run("mcp", "probe", "gitlab", "--config", str(write()))
    assert result.exit_code == 1
    assert 'no mcp_servers entry has the label "gitlab"; there is github' in result.output


def test_the_definition_hash_changes_with_every_part() -> None:
    tool = {
        "name": "a",
        "title": None,
        "description": "d",
        "input_schema": {"type": "object"},
        "output_schema": None,
        "annotations": {"readOnlyHint": True},
    }
    changed = [
        {**tool, "name": "b"},
        {**tool, "title": "t"},
        {**tool, "description": "D"},
        {**tool, "input_schema": {}},
        {**tool, "output_schema": {}},
        {**tool, "annotations": {"readOnlyHint": False}},
    ]
    assert len({definition_hash(item) for item in [tool, *changed]}) == 7
    assert definition_hash(dict(reversed(tool.items()))) == definition_hash(tool)
