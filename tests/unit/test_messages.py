"""Messages for chats: nothing in a name becomes markup, a mention or a link (APPR-9)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from gateway.domain.messages import TEAMS_LIMIT, render
from gateway.domain.webhooks import EVENTS, WebhookEvent

DATA: dict[str, object] = {
    "object": "approval",
    "id": "apr_1",
    "status": "pending",
    "server": "github",
    "tool": "create_issue",
    "rule": "writes",
    "requester": "svc:web",
    "expires_at": "2026-11-20T14:37:23.772Z",
    "url": "/console/approvals/apr_1",
    "fingerprint": "sha256:secret-of-the-machine",
}
ASKED = WebhookEvent(id="evt_1", type="approval.requested", occurred_at=1.0, data=DATA)
LINK = "https://gw.example.com/console/approvals/apr_1"


def shown(event: WebhookEvent, form: Any, public_url: str = "https://gw.example.com/") -> Any:
    return json.loads(render(event, form, public_url=public_url))


def named(name: str) -> WebhookEvent:
    return dataclasses.replace(ASKED, data={**DATA, "tool": name})


def texts(value: Any) -> list[str]:
    """All strings of a message."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for item in value.values() for text in texts(item)]
        case list():
            return [text for item in value for text in texts(item)]
        case _:
            return []


@pytest.mark.covers("APPR-9")
def test_a_slack_message_has_blocks_facts_and_a_link() -> None:
    message = shown(ASKED, "slack")
    header, section, context, actions = message["blocks"]
    assert message["text"] == header["text"]["text"] == "Approval requested"
    assert {"type": "mrkdwn", "text": "*Tool*\n`create_issue`", "verbatim": True} in section[
        "fields"
    ]
    assert len(section["fields"]) <= 10  # Slack takes no more
    assert "not checked" in context["elements"][0]["text"]
    (button,) = actions["elements"]
    assert button["url"] == LINK
    assert set(button) == {"type", "text", "url"}  # no action and no value: it decides nothing
    assert "secret-of-the-machine" not in "".join(texts(message))


@pytest.mark.covers("APPR-9")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("<!channel> hi", "&lt;!channel&gt; hi"),
        ("<https://evil|Approve>", "&lt;https://evil|Approve&gt;"),
        ("a&b", "a&amp;b"),
        ("x` *Approved* `", "x⟦U+0060⟧ *Approved* ⟦U+0060⟧"),
        ("a\nb", "a⟦U+000A⟧b"),
        ("abc\u202edef", "abc⟦U+202E⟧def"),
        ("a\u200bb", "a⟦U+200B⟧b"),
        ("\U000e0041", "⟦U+E0041⟧"),
        ("a\ud800b", "a⟦U+D800⟧b"),
    ],
)
def test_a_name_cannot_be_markup_in_slack(name: str, text: str) -> None:
    fields = shown(named(name), "slack")["blocks"][1]["fields"]
    assert [field["text"] for field in fields if "*Tool*" in field["text"]] == [f"*Tool*\n`{text}`"]


@pytest.mark.covers("APPR-9")
def test_a_teams_message_is_a_card_that_parses_no_name() -> None:
    message = shown(named("[Approve](https://evil) **now** \u202e"), "teams")
    (attachment,) = message["attachments"]
    card = attachment["content"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert card["actions"] == [
        {"type": "Action.OpenUrl", "title": "Open in the console", "url": LINK}
    ]
    evil = [
        inline["type"]
        for block in card["body"]
        for inline in block.get("inlines", [block])
        if "evil" in inline.get("text", "")
    ]
    assert evil == ["TextRun"]  # which knows no Markdown
    assert "⟦U+202E⟧" in "".join(texts(card))
    assert any("not checked" in text for text in texts(card))


@pytest.mark.covers("APPR-9")
@pytest.mark.parametrize("form", ["slack", "teams"])
def test_a_message_stays_small_whatever_the_names_are(form: Any) -> None:
    long = dict.fromkeys(DATA, "\u202e\U0001d54f" * 100_000) | {"url": DATA["url"]}
    body = render(dataclasses.replace(ASKED, data=long), form, public_url="https://g")
    assert len(body) < TEAMS_LIMIT / 2
    for field in json.loads(body).get("blocks", [{}, {"fields": []}])[1]["fields"]:
        assert len(field["text"]) < 2000


@pytest.mark.parametrize("form", ["standard", "slack", "teams"])
@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_has_a_form(kind: str, form: Any) -> None:
    bare = WebhookEvent(id="e", type=kind, occurred_at=1.0, data={"object": "x", "id": "x"})
    assert texts(shown(bare, form))


@pytest.mark.parametrize("form", ["slack", "teams"])
def test_without_an_address_there_is_no_button(form: Any) -> None:
    assert not any("console" in text for text in texts(shown(ASKED, form, public_url="")))
