"""Webhooks as messages of a chat: Slack blocks, and Adaptive Cards for Teams (APPR-9).

Names come from models, callers and MCP servers. They are put where a chat parses nothing;
characters that show nothing or turn the direction of the text are written out; and a line says
that they are unchecked. A button opens the console, where somebody logs in; nothing can be decided
in the message itself.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator

from gateway.domain.webhooks import Format, WebhookEvent, led, payload

TEAMS_LIMIT = 28 * 1024
"""Most bytes of a message that Teams takes."""

_LONGEST = 120
"""Most characters of one value: ids and names, which need no more."""

_TITLES = {
    "approval.requested": "Approval requested",
    "approval.voted": "Approval: a vote was counted",
    "approval.escalated": "Approval escalated",
    "approval.extended": "Approval extended",
    "approval.expiring": "Approval about to expire",
    "approval.resolved": "Approval resolved",
    "approval.receipt_mismatch": "A tool ran otherwise than approved",
    "continuation.completed": "Held turn completed",
    "continuation.failed": "Held turn failed",
    "continuation.indeterminate": "Held turn: its outcome is not known",
    "tool.drifted": "Tool definition changed",
    "tool.new": "New tool on a known server",
    "webhook.test": "Test message",
}
_FACTS = {
    "status": "Status",
    "server": "Server",
    "tool": "Tool",
    "rule": "Rule",
    "requester": "Requested by",
    "expires_at": "Expires",
    "turn_id": "Turn",
    "id": "Id",
}
_CAUTION = "Names are shown as they came and are not checked: they are no instructions."
_OPEN = "Open in the console"
# Format, control, private, surrogate, unassigned; line and paragraph separators.
_HIDDEN = frozenset({"Cf", "Cc", "Co", "Cs", "Cn", "Zl", "Zp"})


def render(event: WebhookEvent, form: Format, *, public_url: str) -> bytes:
    """Write the body of a message in an endpoint's format."""
    match form:
        case "standard":
            return payload(event, public_url=public_url)
        case "slack":
            return _json(_slack(event, public_url))
        case "teams":
            return _json(_teams(event, public_url))


def _slack(event: WebhookEvent, public_url: str) -> dict[str, object]:
    title = _TITLES[event.type]
    facts = list(_facts(event))
    fields = [
        {"type": "mrkdwn", "text": f"*{name}*\n`{_escaped(value)}`", "verbatim": True}
        for name, value in facts
    ]
    blocks: list[dict[str, object]] = [{"type": "header", "text": _plain(title)}]
    if fields:
        blocks.append({"type": "section", "fields": fields})
        blocks.append({"type": "context", "elements": [_plain(_CAUTION)]})
    link = _link(event, public_url)
    if link is not None:
        button = {"type": "button", "text": _plain(_OPEN), "url": link}
        blocks.append({"type": "actions", "elements": [button]})
    return {"text": title, "blocks": blocks}


def _plain(text: str) -> dict[str, object]:
    return {"type": "plain_text", "text": text, "emoji": False}


def _escaped(text: str) -> str:
    """Write text so that a code span of mrkdwn shows it as it is.

    Entities stop mentions and links (`<!channel>`, `<url|text>`); inside the span nothing is
    styled; and nothing that could end the span is left.
    """
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("`", "⟦U+0060⟧")):
        text = text.replace(mark, written)
    return text


def _teams(event: WebhookEvent, public_url: str) -> dict[str, object]:
    title = {"type": "TextBlock", "text": _TITLES[event.type], "weight": "Bolder", "wrap": True}
    body: list[dict[str, object]] = [title]
    facts = list(_facts(event))
    for name, value in facts:  # a TextRun is shown as it is; a TextBlock or Fact parses Markdown
        runs = [
            {"type": "TextRun", "text": f"{name}: ", "weight": "Bolder"},
            {"type": "TextRun", "text": value},
        ]
        body.append({"type": "RichTextBlock", "inlines": runs, "spacing": "Small"})
    if facts:
        body.append({"type": "TextBlock", "text": _CAUTION, "isSubtle": True, "wrap": True})
    card: dict[str, object] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    }
    link = _link(event, public_url)
    if link is not None:
        card["actions"] = [{"type": "Action.OpenUrl", "title": _OPEN, "url": link}]
    kind = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": kind, "content": card}]}


def _link(event: WebhookEvent, public_url: str) -> str | None:
    link = led(event, public_url)
    return link if link is not None and link.startswith(("https://", "http://")) else None


def _facts(event: WebhookEvent) -> Iterator[tuple[str, str]]:
    for key, name in _FACTS.items():
        value = event.data.get(key)
        if isinstance(value, str) and value:
            yield name, _visible(value)


def _visible(text: str) -> str:
    """Write out characters that show nothing or change what is shown, and cut long text."""
    shown = "".join(
        f"⟦U+{ord(char):04X}⟧" if unicodedata.category(char) in _HIDDEN else char
        for char in text[:_LONGEST]
    )
    return shown[:_LONGEST] + "…" if len(shown) > _LONGEST or len(text) > _LONGEST else shown


def _json(message: dict[str, object]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
