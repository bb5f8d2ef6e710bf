"""Configuration (RUN-6): sources, faults that name file and key, and the domain objects."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.domain.identity import Role, Tenant
from gateway.domain.registry import ApiKeyAuth, EntraAuth
from gateway.domain.rules import Effect
from gateway.domain.secrets import SecretRef
from gateway.settings import ConfigError, Settings, load_settings
from gateway.settings.fields import seconds
from gateway.settings.model import is_loopback

CANARY = "canary-4f1a9c"

Write = Callable[..., Path]
HASH = "sha256:" + "0" * 64


def faults_of(path: Path | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value)
    return caught.value.faults


def only_fault(path: Path | None) -> str:
    (fault,) = faults_of(path)
    return fault


@pytest.mark.covers("RUN-6")
def test_the_environment_wins_over_the_file_and_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[server]\nport = 1111\nhost = "10.0.0.1"\n')
    monkeypatch.setenv("GATEWAY_SERVER__PORT", "2222")
    settings = load_settings(path)
    assert settings.server.port == 2222
    assert settings.server.host == "10.0.0.1"
    assert settings.server.heartbeat == 15


def test_lists_and_whole_sections_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[server]\nport = 1111\n")
    monkeypatch.setenv("GATEWAY_SERVER", '{"host": "::1"}')
    monkeypatch.setenv("GATEWAY_ENCRYPTION__KEYS", '[{"id": "k1", "value": "env:K"}]')
    settings = load_settings(path)
    assert (settings.server.port, settings.server.host) == (1111, "::1")
    assert settings.encryption.keys[0].value == SecretRef("env", "K")


def test_the_file_is_the_argument_else_gateway_config_else_the_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, port in (("a.toml", 1), ("b.toml", 2), ("gateway.toml", 3)):
        (tmp_path / name).write_text(f"[server]\nport = {port}\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().server.port == 3
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "b.toml"))
    assert load_settings().server.port == 2
    assert load_settings(tmp_path / "a.toml").server.port == 1


def test_without_file_and_environment_there_are_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.server.max_body_bytes == 64 * 1024 * 1024
    assert settings.upstreams == ()


BAD = [
    ("[server]\nprot = 1", "server.prot: unknown setting; did you mean port?"),
    ("[sever]\nport = 1", "sever: unknown setting; did you mean server?"),
    ("[server]\nport = 70000", "server.port: must be less than or equal to 65535"),
    ('[server]\nport = "x"', "server.port: must be a valid integer"),
    ('[server]\ngrace_period = "soon"', "server.grace_period: must be a duration"),
    ("[server]\ngrace_period = true", "server.grace_period: must be a duration"),
    ("[server]\nstall_timeout = 0", "server.stall_timeout: must be greater than 0"),
    ('[server]\nheartbeat = "1m"', "server.heartbeat: must be less than or equal to 15"),
    ('[server]\ncors_allow_origins = ["https://a/"]', "server.cors_allow_origins[0]: must be an"),
    ('[server]\npublic_url = "gw.example.com"', "server.public_url: must be an http://"),
    ('[redis]\nurl = "http://x"', 'redis.url: must be "embedded", a URL'),
    (f'[redis]\nurl = "{CANARY}"', 'redis.url: must be "embedded", a URL'),
    (f'[redis]\nurl = "redis://:{CANARY}@h"', "redis.url: must not hold a password"),
    (
        f'[encryption]\nkeys = [{{ id = "a", value = "{CANARY}" }}]',
        "encryption.keys[0].value: must be a reference: env:NAME, file:PATH or keyvault:NAME",
    ),
    ('[encryption]\nkeys = [{ id = "a" }]', "encryption.keys[0].value: is required"),
    ('[[upstreams]]\nname = "a"', "upstreams[0].kind: is required"),
    ('[auth.jwt]\nissuer = "https://i"', "auth.jwt.audience: is required"),
    (f'[[webhooks]]\nurl = "https://{CANARY}:{CANARY}@h"', "webhooks[0].url: must not hold a user"),
    ('[[webhooks]]\nurl = "https://h\\\\@evil"', "webhooks[0].url: must be an ASCII URL"),
    ('[[webhooks]]\nurl = "https://h:port"', "webhooks[0].url: must be a valid http://"),
    ('[[webhooks]]\nurl = "https://h#x"', "webhooks[0].url: must not hold a fragment"),
    (f'[[webhooks]]\nurl = "https://h"\nsecret = "{CANARY}"', "webhooks[0].secret: must be a ref"),
]


@pytest.mark.covers("RUN-6")
@pytest.mark.parametrize(("text", "fault"), BAD)
def test_a_fault_names_file_and_key(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    assert any(line.startswith(f"{path}: {fault}") for line in faults_of(path)), faults_of(path)


CHANGED = [
    ('kind = "azure"', 'kind = "azur"', "upstreams[0].kind: must be 'azure', 'openai' or"),
    ('"api_key", value = "env:PROVIDER_KEY"', '"x"', "upstreams[0].auth: must have type"),
    ('"env:PROVIDER_KEY"', f'"{CANARY}"', "upstreams[0].auth.value: must be a reference"),
    ('"api_key", value', '"api_key", vaule', "upstreams[0].auth.value: is required"),
    ('"env:GITHUB_AUTH"', f'"Bearer {CANARY}"', "mcp_servers[0].headers.Authorization: must be a"),
    ("{ Authorization", '{ "Content-Length"', "mcp_servers[0].headers.Content-Length: is a header"),
    ("{ Authorization", '{ "A b"', "mcp_servers[0].headers.A b: is not a valid header name"),
    ('label = "github"', 'label = "git hub"', "mcp_servers[0].label: must be 1 to 63"),
    ('effect = "allow"', 'effect = "maybe"', "rules[0] \"reads\": effect: must be 'allow'"),
    ("quorum = 1", "quorum = 0", 'rules[1] "writes": approval.quorum: must be greater than 0'),
    ('["role:approver"]', '["bob"]', 'rules[1] "writes": approval.approvers[0]: must be role:NAME'),
    (
        '["role:approver"]',
        '["role:boss"]',
        'rules[1] "writes": approval.approvers[0]: names no role',
    ),
    ('["role:approver"]', "[]", 'rules[1] "writes": approval.approvers: '),
    ('roles = ["caller"]', 'roles = ["cook"]', "api_keys[0].roles[0]: must be 'caller'"),
    (f'"{HASH}"', f'"gw_web_{CANARY}"', "api_keys[0].hash: must be sha256: and 64 hex digits"),
    (
        'server = "github", tool = "c',
        'server = "gl*", tool = "c',
        'rules[1] "writes": match.server: ',
    ),
    ('id = "writes"', 'id = "reads"', 'rules[1] "reads": id: "reads" is used twice'),
]


@pytest.mark.parametrize(("old", "new", "fault"), CHANGED)
def test_a_fault_in_a_section_names_its_place(write: Write, old: str, new: str, fault: str) -> None:
    path = write((old, new))
    found = [re.sub(r"\.toml:\d+: rules", ".toml: rules", line) for line in faults_of(path)]
    assert any(line.startswith(f"{path}: {fault}") for line in found), found


RULES = """# [[rules]] in a comment is none
[[rules]]
id = "first"
effect = "allow"
reason = '''
[[rules]]
is text here'''

[[rules]]
id = "second"
effect = "ask"
match = { tool = "pay", args = { "/amount" = { gee = 100 } } }

[[rules]]
id = "third"
effect = "deny"
# amount
[rules.match.args]
"/a" = { ge = 1 }
"/amount" = { exists = true,  ge = "1" }
[rules.match.principal]
groupz = ["x"]

[server]
port = 1

[[rules]]
effect = "deny"
"when" = "args.amount >"

[[rules]]
id = "fifth"
effect = "deny"
[rules.match]
chain = { saw_untrusted = 7 }
args = { amount = { ge = 1 }, "/b" = {} }
[[ rules ]]
id = "sixth"
effect = "deny"
when = "request.amount > now() && args.l.exists(x, args.l.exists(y, x == y))"
[[rules]]
id = "first"
effect = "deny"
"""


@pytest.mark.covers("APPR-13", "RUN-6")
def test_a_fault_in_a_rule_names_file_line_and_rule(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(RULES)
    found = faults_of(path)
    assert found[:8] == [
        f'{path}:12: rules[1] "second": match.args./amount.gee: unknown predicate; '
        "did you mean ge?",
        f'{path}:20: rules[2] "third": match.args./amount.ge: must be a number',
        f'{path}:22: rules[2] "third": match.principal.groupz: unknown setting; '
        "did you mean groups?",
        f"{path}:27: rules[3]: id: is required",
        f"{path}:29: rules[3]: when: is not a CEL expression: "
        + found[4].partition("expression: ")[2],
        f'{path}:36: rules[4] "fifth": match.args.amount: must be a JSON pointer such as "/amount"',
        f'{path}:36: rules[4] "fifth": match.args./b: must be a table of predicates such as '
        "{ ge = 100 }",
        f'{path}:35: rules[4] "fifth": match.chain.saw_untrusted: '
        + found[7].partition("saw_untrusted: ")[2],
    ]
    assert found[8].startswith(f'{path}:40: rules[5] "sixth": when: goes over a list inside')
    assert "1:" in found[4]
    assert len(found) == 9
    path.write_text(
        RULES.partition('[[rules]]\nid = "second"')[0] + '[[rules]]\nid = "first"\neffect = "ask"'
    )
    assert faults_of(path) == [f'{path}:10: rules[1] "first": id: "first" is used twice']


@pytest.mark.covers("APPR-13", "RUN-6")
def test_a_fault_in_a_rule_of_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("")
    rules = [{"id": "a", "effect": "deny", "match": {"args": {"/x": {"under_path": "x"}}}}]
    monkeypatch.setenv("GATEWAY_RULES", json.dumps(rules))
    assert faults_of(path) == [
        'environment GATEWAY_RULES: rules[0] "a": match.args./x.under_path: must be an absolute '
        'path such as "/srv/data", without "." or ".."'
    ]


ADDED = [
    (
        '[[models]]\nname = "m"\nroutes = [{ upstream = "norway", deployment = "d" }]',
        'models[0].routes[0].upstream: no upstream is called "norway"; there is sweden',
    ),
    (
        '[[tenants]]\nid = "acme"\nmcp_servers = ["gitlab"]',
        'tenants[0].mcp_servers[0]: no MCP server is called "gitlab"; there is github',
    ),
    ('[[tenants]]\nid = "other"', 'api_keys[0].tenant: no tenant is called "acme"; there is other'),
    (
        '[[tenants]]\nid = "acme"\nserver_url_patterns = ["https://x"]',
        "tenants[0].server_url_patterns[0]: must be a host pattern",
    ),
    ('[[tenants]]\nid = "acme"\nttl = "0s"', "tenants[0].ttl: must be greater than"),
    (
        '[[upstreams]]\nname = "b"\nkind = "openai"\nbase_url = "https://b"\n'
        f'auth = {{ type = "entra" }}\nheaders = {{ api-key = "{CANARY}" }}',
        "upstreams[1].headers.api-key: credentials belong into auth",
    ),
    (
        '[[mcp_servers]]\nlabel = "x"\nurl = "https://x"\nheaders = { A = "env:A" }\n'
        'forward_headers = { B = "a" }',
        "mcp_servers[1].forward_headers.B: a is also in headers",
    ),
    (
        '[[mcp_servers]]\nlabel = "x"\nurl = "https://x"\nforward_headers = { Api-Key = "A" }',
        "mcp_servers[1].forward_headers.Api-Key: Api-Key holds the caller's key",
    ),
]


@pytest.mark.parametrize(("more", "fault"), ADDED)
def test_a_lost_reference_between_sections_is_a_fault(write: Write, more: str, fault: str) -> None:
    path = write(more=more)
    assert any(line.startswith(f"{path}: {fault}") for line in faults_of(path)), faults_of(path)


def test_all_faults_are_told_at_once(write: Write) -> None:
    path = write(('kind = "azure"', 'kind = "x"'), ('effect = "allow"', 'effect = "x"'))
    assert len(faults_of(path)) == 2


def test_a_fault_in_a_list_is_not_told_twice(write: Write) -> None:
    only_fault(write(('["role:approver"]', '["bob"]')))


def test_a_fault_of_the_environment_names_the_variable(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    monkeypatch.setenv("GATEWAY_SERVER__PORT", CANARY)
    assert only_fault(path).startswith("environment GATEWAY_SERVER__PORT: server.port: must be a ")


@pytest.mark.parametrize("name", ["GATEWAY_UPSTREAMS", "GATEWAY_SERVER__CORS_ALLOW_ORIGINS"])
def test_broken_json_in_the_environment_names_the_variable(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, f'["{CANARY}')
    assert only_fault(write()).startswith(f"environment {name}: ")


@pytest.mark.covers("RUN-6")
def test_a_misspelt_section_in_the_environment_is_a_fault(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SERVR__PORT", "1")
    fault = only_fault(write())
    assert fault == "environment GATEWAY_SERVR__PORT: unknown setting; did you mean server?"


def test_other_variables_with_the_prefix_are_let_be(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(("env:KEY_1", "env:GATEWAY_KEY__1"))
    for name in ("GATEWAY_KEY_K2", "GATEWAY_PORT_8080_TCP", "GATEWAY_KEY__1"):
        monkeypatch.setenv(name, CANARY)
    load_settings(path)


def test_a_password_for_redis_may_stand_in_the_environment_and_is_never_shown(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_REDIS__URL", f"rediss://:{CANARY}@redis:10000")
    settings = load_settings(write())
    assert CANARY not in repr(settings) + str(settings) + settings.model_dump_json()
    assert not settings.redis.embedded


async def test_the_url_of_redis_may_be_a_reference(write: Write) -> None:
    settings = load_settings(write(('"embedded"', '"env:REDIS_URL"')))

    async def resolve(ref: SecretRef) -> str:
        return f"redis://{ref.name}"

    assert await settings.redis.resolve_url(resolve) == "redis://REDIS_URL"
    with pytest.raises(ValueError, match="is not set"):
        await Settings().redis.resolve_url(resolve)


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(f"[server]\nport = \n# {CANARY}")
    assert re.fullmatch(rf"{path}: not valid TOML: .*line 2.*", only_fault(path))


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    assert only_fault(tmp_path / "none.toml").endswith("cannot be read: No such file or directory")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert only_fault(tmp_path / "bytes.toml").endswith("the file is not UTF-8")


def test_settings_made_directly_ignore_the_environment_and_hide_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEWAY_SERVER__PORT", "2222")
    assert Settings().server.port == 8080
    with pytest.raises(ValidationError) as caught:
        Settings(webhooks=[{"url": "https://x", "secret": CANARY}])
    assert CANARY not in str(caught.value)


def test_settings_become_domain_objects(write: Write) -> None:
    more = """
[[upstreams]]
name = "norway"
kind = "azure"
base_url = "https://n"
auth = { type = "entra" }
timeout = "2m"
[[models]]
name = "gpt"
routes = [{ upstream = "norway", deployment = "gpt-1" }]
[[tenants]]
id = "acme"
stateless = true
ttl = "1h30m"
mcp_servers = ["github"]
limits = { concurrent = 5 }
"""
    settings = load_settings(write(more=more))
    sweden, norway = settings.to_upstreams()
    assert sweden.auth == ApiKeyAuth(SecretRef("env", "PROVIDER_KEY"))
    assert norway.auth == EntraAuth()
    assert norway.timeout == 120
    assert settings.to_models()[0].routes[0].deployment == "gpt-1"
    assert settings.to_mcp_servers()[0].headers == {
        "Authorization": SecretRef("env", "GITHUB_AUTH")
    }
    reads, writes = settings.to_rules()
    assert reads.effect is Effect.ALLOW
    assert (writes.approval.timeout, writes.approval.approvers) == (1800, ("role:approver",))
    assert settings.to_rule_set().decide("github", "create_issue").rule == "writes"
    (tenant,) = settings.to_tenants()
    assert (tenant.ttl, tenant.limits.concurrent, tenant.stateless) == (5400, 5, True)
    _, ann = settings.to_api_keys()
    assert ann.roles == {Role.APPROVER}
    assert ann.groups == {"security"}


def test_without_tenants_each_key_brings_its_own(write: Write) -> None:
    assert load_settings(write()).to_tenants() == (Tenant(id="acme"),)


def test_sections_can_be_replaced_and_settings_sent_to_workers(write: Write) -> None:
    path = write()
    rule = """
[[rules]]
id = "z"
effect = "deny"
match.args = { "/a" = { regex = "x", len = { ge = 1 } } }
when = "args.a == 'x'"
"""
    path.write_text(path.read_text() + rule)
    settings = load_settings(path).replace(server={"port": 1})
    assert json.loads(settings.model_dump_json())["rules"][-1]["match"]["args"] == {
        "/a": {"regex": "x", "len": {"ge": 1}}
    }
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.server.port == 1
    assert json.loads(settings.model_dump_json())["server"]["port"] == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30m", 1800),
        ("15s", 15),
        ("2h", 7200),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1d", 86400),
        ("45", 45),
        (0.5, 0.5),
        (3, 3),
    ],
)
def test_durations(text: object, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "5 m", "-5s", "1w", None, True, "1e3"])
def test_bad_durations(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        seconds(text)


def test_loopback() -> None:
    near = ["http://localhost:1/x", "http://127.0.0.1", "http://[::1]:8", "http://a.localhost"]
    assert all(map(is_loopback, near))
    assert not any(
        map(is_loopback, ["http://127.evil.com", "http://0.0.0.0", "http://localhost.x"])
    )
