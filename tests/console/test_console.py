"""The console over HTTP: what a browser sends, and what it must not be able to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import anyio
import pytest
from typing_extensions import override

from tests.console.conftest import Held, Open, paths, ticket_of
from tests.support.approvals import create, pending, tenancy, vote
from tests.support.provider import Call, provider, response
from tests.support.stack import CANARY, RULES, UPSTREAM_KEY, Gateway, Stack

Hold = Callable[..., Held]
HOSTILE = {
    "title": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "body": "gnp\u202eexe zero\u200bwidth \U000e0041 {{ 7*7 }} ' onfocus=alert(3) x=\"",
}


def inline_scripts(page: str) -> list[str]:
    """Scripts that are not files of ours."""
    ours = r'<script src="/console/static/[a-z.]+\.[0-9a-f]{12}\.js" defer></script>'
    return re.findall(r"(?i)<script[^>]*>", re.sub(ours, "", page))


def assert_safe(headers: object) -> None:
    assert isinstance(headers, dict) or hasattr(headers, "get")
    assert headers.get("content-security-policy") == (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    assert headers.get("referrer-policy") == "no-referrer"
    assert headers.get("x-content-type-options") == "nosniff"
    assert headers.get("cache-control") == "no-store"


@pytest.mark.covers("APPR-10", "APPR-2")
async def test_a_person_approves_and_the_held_stream_goes_on(browser: Open, hold: Hold) -> None:
    visitor = browser()
    assert (await visitor.sign_in()).headers["location"] == "/console"
    held = hold('{"title": "From the console"}')
    path = await visitor.waiting()
    page = (await visitor.get(path)).text
    for said in ("create_issue", "svc:caller", "It changes what others see.", "writes", "sha256:"):
        assert said in page
    assert "this one call, once" in page
    assert "untrusted: written by the model" in page
    answer = await visitor.decide(path, "approve", preset="expected", reason="Looked at it")
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    with anyio.fail_after(30):
        await held.done.wait()
    assert [item.type for item in held.final.output][-2:] == ["mcp_call", "message"]
    page = (await visitor.get(path)).text
    assert "Approved" in page
    assert "subject:user:ann" in page
    assert "Expected and checked. Looked at it" in page
    assert "/decision" not in page
    assert paths((await visitor.get("/console")).text) == []
    assert path in paths((await visitor.get("/console?status=approved")).text)


@pytest.mark.covers("APPR-10")
async def test_a_person_denies_and_the_model_is_told_why(
    browser: Open, hold: Hold, stack: Stack
) -> None:
    await stack.forget()
    visitor = browser()
    await visitor.sign_in()
    held = hold()
    path = await visitor.waiting()
    await visitor.decide(path, "deny", preset="needless", reason="Ask <me>.")
    with anyio.fail_after(30):
        await held.done.wait()
    assert await stack.calls() == []
    assert "This is not needed. Ask <me>." in json.dumps(await stack.requests())
    assert "This is not needed. Ask &lt;me&gt;." in (await visitor.get(path)).text


@pytest.mark.covers("APPR-10")
async def test_an_argument_of_tricks_is_shown_whole_and_does_nothing(
    browser: Open, hold: Hold
) -> None:
    visitor = browser()
    await visitor.sign_in()
    hold(json.dumps(HOSTILE, ensure_ascii=False))
    path = await visitor.waiting()
    for page in ((await visitor.get(path)).text, (await visitor.get("/console")).text):
        assert not inline_scripts(page)
        assert "<img src=x" not in page
        assert not set(page) & set("\u202e\u200b\U000e0041")
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "⟦U+202E⟧" in page
    page = (await visitor.get(path)).text
    assert "⟦U+200B⟧" in page
    assert "⟦U+E0041⟧" in page
    assert "{{ 7*7 }} &#39; onfocus" in page
    assert "reverse the direction" in page


class _Attributes(HTMLParser):
    """Collects the names of attributes, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}


@pytest.mark.covers("APPR-10")
async def test_an_id_of_tricks_stays_in_its_attribute(browser: Open, stack: Stack) -> None:
    async def answer(call: Call) -> None:
        await call.document(json.dumps(response("resp_\u202e onfocus=alert(1)")).encode())

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], **tenancy(stack)) as other:
            await create(other, "hi", tools=())
            visitor = browser(other)
            await visitor.sign_in("caller")
            page = (await visitor.get("/console/turns")).text
    assert "⟦U+202E⟧</span> onfocus=alert(1)" in page
    assert all(name.replace("-", "").isalpha() for name in _Attributes(page).names)


@pytest.mark.covers("AUTH-1", "APPR-10")
async def test_a_wrong_key_is_refused_and_not_repeated(browser: Open, gateway: Gateway) -> None:
    visitor = browser()
    wrong = gateway.keys["approver"][:-1] + "x"
    for key in (wrong, "<script>", "", "gw_nobody_" + "A" * 43):
        answer = await visitor.post("/console/sign-in", {"key": key})
        assert answer.status_code == 401
        assert "not valid" in answer.text
        assert not key or key not in answer.text
        assert "set-cookie" not in answer.headers
        assert_safe(answer.headers)


@pytest.mark.covers("APPR-10")
async def test_signing_out_ends_the_session_in_the_browser(browser: Open) -> None:
    visitor = browser()
    await visitor.sign_in()
    page = (await visitor.get("/console")).text
    assert (await visitor.post("/console/sign-out", {"ticket": "x"})).status_code == 403
    form = page[page.index('action="/console/sign-out"') :]
    ticket = form[form.index('value="') + 7 :].partition('"')[0]
    answer = await visitor.post("/console/sign-out", {"ticket": ticket})
    assert answer.status_code == 303
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await visitor.get("/console")).headers["location"] == "/console/sign-in"


async def test_after_signing_in_one_is_where_one_wanted_to_be(browser: Open, hold: Hold) -> None:
    approver, visitor = browser(), browser()
    await approver.sign_in()
    hold()
    path = await approver.waiting()
    approval_id = path.rpartition("/")[2]
    answer = await visitor.get(path)
    assert answer.headers["location"] == f"/console/sign-in?approval={approval_id}"
    assert f'value="{approval_id}"' in (await visitor.get(answer.headers["location"])).text
    assert (await visitor.sign_in(approval=approval_id)).headers["location"] == path


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example", "../x", "apr_1\r\nx: y"]
)
async def test_there_is_no_open_redirect(browser: Open, where: str) -> None:
    visitor = browser()
    answer = await visitor.sign_in(approval=where)
    assert answer.headers["location"] == "/console"
    answer = await visitor.get("/console/sign-in?approval=" + where.replace("\r\n", "%0D%0A"))
    assert answer.headers["location"] == "/console"


async def test_a_browser_that_keeps_no_cookie_is_told(browser: Open, gateway: Gateway) -> None:
    visitor = browser()
    answer = await visitor.post("/console/sign-in", {"key": gateway.keys["approver"]})
    visitor.cookie = ""
    answer = await visitor.get(answer.headers["location"])
    assert "did not keep the session" in answer.text


async def test_a_link_from_elsewhere_loads_again_to_find_the_session(browser: Open) -> None:
    path = "/console/approvals/apr_" + "0" * 32
    answer = await browser().get(path, sec_fetch_site="cross-site")
    assert f'content="0;url={path}"' in answer.text


@pytest.mark.covers("APPR-10", "APPR-6")
async def test_who_is_no_approver_sees_but_does_not_decide(browser: Open, hold: Hold) -> None:
    asker, approver = browser(), browser()
    await asker.sign_in("caller")
    await approver.sign_in()
    hold()
    path = await asker.waiting()
    page = (await asker.get(path)).text
    assert "not decide it" in page
    assert "/decision" not in page
    stolen = ticket_of((await approver.get(path)).text)
    answer = await asker.post(f"{path}/decision", {"ticket": stolen, "decision": "approve"})
    assert answer.status_code == 403
    assert path in paths((await approver.get("/console")).text)


@pytest.mark.covers("APPR-6")
async def test_nobody_decides_their_own_request(browser: Open, hold: Hold) -> None:
    visitor = browser()
    await visitor.sign_in("second")
    hold(key="second")
    path = await visitor.waiting()
    page = (await visitor.get(path)).text
    assert "your own request" in page
    assert "/decision" not in page


@pytest.mark.covers("AUTH-2", "APPR-10")
async def test_another_tenants_approval_reads_like_none(browser: Open, hold: Hold) -> None:
    approver, stranger = browser(), browser()
    await approver.sign_in()
    await stranger.sign_in("other")
    hold()
    path = await approver.waiting()
    unknown = "/console/approvals/apr_" + "0" * 32
    foreign, none = await stranger.get(path), await stranger.get(unknown)
    assert foreign.status_code == none.status_code == 404
    ours = foreign.text.replace(path.rpartition("/")[2], "ID")
    assert _without_tickets(ours) == _without_tickets(none.text.replace("apr_" + "0" * 32, "ID"))
    answer = await stranger.post(f"{path}/decision", {"decision": "approve", "ticket": "x"})
    assert answer.status_code == 404
    assert paths((await stranger.get("/console?status=all")).text) == []


def _without_tickets(page: str) -> str:
    start = page.index('name="ticket"')
    return page[:start] + page[page.index(">", start) :]


@pytest.mark.covers("APPR-10")
async def test_a_forged_form_decides_nothing(browser: Open, hold: Hold) -> None:
    mine, twin = browser(), browser()
    await mine.sign_in()
    await twin.sign_in()
    hold('{"title": "one"}')
    first = await mine.waiting()
    hold('{"title": "two"}')
    with anyio.fail_after(30):
        while len(found := paths((await mine.get("/console")).text)) < 2:
            await anyio.sleep(0.02)
    second = next(path for path in found if path != first)
    ticket = ticket_of((await mine.get(first)).text)
    other_session = ticket_of((await twin.get(first)).text)
    for path, given in ((first, ""), (first, "AAAA"), (second, ticket), (first, other_session)):
        answer = await mine.post(f"{path}/decision", {"ticket": given, "decision": "approve"})
        assert answer.status_code == 403
        assert "Nothing was done" in answer.text
        assert_safe(answer.headers)
    good = {"ticket": ticket, "decision": "approve"}
    host = str(mine._client.base_url).rstrip("/")
    for headers in (
        {"sec-fetch-site": "cross-site", "origin": host},
        {"sec-fetch-site": "same-site", "origin": "https://app.gw.example"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {},
    ):
        answer = await mine.post(f"{first}/decision", good, headers)
        assert answer.status_code == 403, headers
    mine_signed_out = browser()
    assert (await mine_signed_out.post(f"{first}/decision", good)).status_code == 401
    assert len(paths((await mine.get("/console")).text)) == 2
    answer = await mine.post(f"{first}/decision", good, {"origin": host})
    assert answer.status_code == 303


@pytest.mark.covers("APPR-10")
async def test_get_and_head_decide_nothing(browser: Open, hold: Hold) -> None:
    visitor = browser()
    await visitor.sign_in()
    hold()
    path = await visitor.waiting()
    ticket = ticket_of((await visitor.get(path)).text)
    query = f"?decision=approve&ticket={ticket}"
    assert (await visitor.get(f"{path}/decision{query}")).status_code in (404, 405)
    assert (await visitor.get(f"{path}{query}")).status_code == 200
    head = await visitor._client.head(f"{path}/decision{query}", headers=visitor._cookies)
    assert head.status_code in (404, 405)
    assert path in paths((await visitor.get("/console")).text)


@pytest.mark.covers("APPR-6", "APPR-10")
async def test_who_comes_second_is_told_and_changes_nothing(
    browser: Open, hold: Hold, gateway: Gateway
) -> None:
    visitor = browser()
    await visitor.sign_in()
    hold()
    path = await visitor.waiting()
    ticket = ticket_of((await visitor.get(path)).text)
    for approval in await pending(gateway, "", key="second"):
        await vote(gateway, approval, "deny", key="second", reason="No.")
    answer = await visitor.post(f"{path}/decision", {"ticket": ticket, "decision": "approve"})
    assert answer.status_code in (409, 412)
    assert 'role="alert"' in answer.text
    assert "Denied" in answer.text


@pytest.mark.covers("APPR-10")
@pytest.mark.parametrize(
    "form",
    [
        {"decision": "maybe"},
        {"decision": "approve", "preset": "needless"},
        {"decision": "deny", "preset": "unknown"},
        {"decision": "deny", "reason": "x" * 2001},
    ],
)
async def test_a_form_that_makes_no_sense_is_shown_again(
    browser: Open, hold: Hold, form: dict[str, str]
) -> None:
    visitor = browser()
    await visitor.sign_in()
    hold()
    path = await visitor.waiting()
    ticket = ticket_of((await visitor.get(path)).text)
    answer = await visitor.post(f"{path}/decision", {"ticket": ticket, "reason": "mine", **form})
    assert answer.status_code == 422
    assert "Nothing was decided" in answer.text
    assert form.get("reason", "mine") in answer.text
    assert path in paths((await visitor.get("/console")).text)


@pytest.mark.covers("APPR-10")
async def test_an_expired_approval_is_said_to_be(browser: Open, stack: Stack) -> None:
    rules = [{**RULES[1], "approval": {"approvers": ["role:approver"], "timeout": "1s"}}]
    with stack.gateway(rules=rules) as short:
        visitor = browser(short)
        await visitor.sign_in()
        async with anyio.create_task_group() as group:
            group.start_soon(Held(short, "{}", "caller").run)
            path = await visitor.waiting()
            page = (await visitor.get(path)).text
            await anyio.sleep(1.1)
            answer = await visitor.post(
                f"{path}/decision", {"ticket": ticket_of(page), "decision": "approve"}
            )
            assert answer.status_code in (409, 410, 412)
            assert "Nobody decided in time" in answer.text


@pytest.mark.covers("APPR-10")
async def test_every_answer_has_the_headers(browser: Open) -> None:
    visitor = browser()
    assert_safe((await visitor.get("/console")).headers)
    assert_safe((await visitor.get("/console/sign-in")).headers)
    await visitor.sign_in()
    for path, status in (
        ("/console", 200),
        ("/console?status=denied", 200),
        ("/console?status=nonsense", 400),
        ("/console/approvals/nothing", 404),
        ("/console/no/such/place", 404),
        ("/console/static/none.css", 404),
    ):
        answer = await visitor.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (
            status,
            "text/html; charset=utf-8",
        )
        assert_safe(answer.headers)
        assert not inline_scripts(answer.text)
        assert " style=" not in answer.text


async def test_the_stylesheet_is_ours_and_may_be_kept(browser: Open) -> None:
    visitor = browser()
    page = (await visitor.get("/console/sign-in")).text
    path = page.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    answer = await visitor.get(path)
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "immutable" in answer.headers["cache-control"]
    assert "url(" not in answer.text


async def test_forms_are_bounded(browser: Open) -> None:
    visitor = browser()
    assert (await visitor.post("/console/sign-in", {"key": "x" * 100_000})).status_code == 413
    many = {f"f{number}": "x" for number in range(50)}
    assert (await visitor.post("/console/sign-in", many)).status_code == 400
    answer = await visitor._client.post(
        "/console/sign-in", json={"key": "x"}, headers={"sec-fetch-site": "same-origin"}
    )
    assert answer.status_code == 400


async def test_an_empty_inbox_says_so_and_looks_again_by_itself(browser: Open) -> None:
    visitor = browser()
    await visitor.sign_in("other")
    page = (await visitor.get("/console")).text
    assert "Nothing waits for you" in page
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in page
    assert 'data-source="/console/events"' in page


@pytest.mark.covers("APPR-10")
async def test_the_inbox_has_pages(browser: Open, gateway: Gateway, hold: Hold) -> None:
    visitor = browser()
    await visitor.sign_in()
    for number in range(26):
        hold(json.dumps({"title": f"issue {number}"}))
    with anyio.fail_after(30):
        while "Older" not in (page := (await visitor.get("/console")).text):
            await anyio.sleep(0.1)
    older = page[page.index('rel="next"') :].partition('href="')[2].partition('"')[0]
    rest = (await visitor.get(older.replace("&amp;", "&"))).text
    assert len(paths(page)) == 25
    assert len(set(paths(page) + paths(rest))) == 26


@pytest.mark.covers("MCP-3")
async def test_no_secret_is_on_any_page(browser: Open, hold: Hold, gateway: Gateway) -> None:
    visitor = browser()
    await visitor.sign_in()
    hold()
    path = await visitor.waiting()
    secrets = [CANARY, UPSTREAM_KEY, *gateway.keys.values()]
    for place in ("/console", path, "/console?status=all", "/console/sign-in", "/console/x"):
        answer = await visitor.get(place)
        everything = answer.text + str(answer.headers)
        assert not [secret for secret in secrets if secret in everything]


async def test_other_origins_may_not_read_the_console(browser: Open, stack: Stack) -> None:
    server = {"lame_duck": 0, "grace_period": 1, "cors_allow_origins": ["https://app.example"]}
    with stack.gateway(server=server) as open_to_others:
        visitor = browser(open_to_others)
        answer = await visitor.get("/console/sign-in", origin="https://app.example")
        assert not [name for name in answer.headers if name.startswith("access-control")]
        preflight = await visitor._client.options(
            "/console/sign-in",
            headers={"origin": "https://app.example", "access-control-request-method": "POST"},
        )
        assert "access-control-allow-origin" not in preflight.headers
        answer = await visitor.get("/v1/approvals", origin="https://app.example")
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
