"""Pages: templates, and the headers that every answer of the console has (APPR-10)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Response
from markupsafe import Markup, escape

from gateway.console.render import Piece, reveal

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_KEPT = {"cache-control": "public, max-age=31536000, immutable"}
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_SURROGATES = re.compile("[\ud800-\udfff]")


class Pages:
    """Writes pages from the templates of the package."""

    def __init__(self) -> None:
        self._assets = _read_assets()
        self._templates = Environment(
            loader=PackageLoader("gateway.console"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters.update(
            pieces=_markup, lines=_lines, plain=_plain, moment=_moment, number="{:,}".format
        )
        self._templates.globals.update(
            assets={name.partition(".")[0]: name for name in self._assets}
        )

    def page(
        self,
        template: str,
        values: Mapping[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Response[bytes]:
        """Answer with a page."""
        text = self._templates.get_template(template).render(values)
        return Response(
            text.encode(),
            status_code=status,
            media_type="text/html",
            headers={**HEADERS, **(headers or {})},
        )

    def asset(self, name: str) -> Response[bytes] | None:
        """Answer with a file, whose name holds its hash; `None` where there is none."""
        found = self._assets.get(name)
        if found is None:
            return None
        kind = _TYPES[name.rpartition(".")[2]]
        return Response(found, media_type=kind, headers={**HEADERS, **_KEPT})


def redirect(
    path: str, headers: Mapping[str, str] | None = None, status: int = 303
) -> Response[bytes]:
    """Send the browser on with a GET; the path is always one of ours."""
    given = {**HEADERS, "location": path, **(headers or {})}
    return Response(b"", status_code=status, headers=given)


def _read_assets() -> dict[str, bytes]:
    """Read the static files, each under a name that changes with its content."""
    found = {}
    for file in files("gateway.console").joinpath("static").iterdir():
        stem, _, ending = file.name.rpartition(".")
        if ending in _TYPES:
            body = file.read_bytes()
            found[f"{stem}.{hashlib.sha256(body).hexdigest()[:12]}.{ending}"] = body
    return found


def _finalize(value: object) -> object:
    """Nothing gets onto a page with a hidden character, whichever template prints it."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _markup(reveal(value)) if not value.isascii() or not value.isprintable() else value
    return value


def _markup(pieces: Sequence[Piece]) -> Markup:
    # In single quotes: an attribute, which templates write in double ones, ends where it should.
    return Markup("").join(
        Markup("<span class='odd' title='{}'>{}</span>").format(piece.name, piece.text)
        if piece.name
        else escape(piece.text)
        for piece in pieces
    )


def _lines(text: str) -> Markup:
    """Write a text of several lines; a template shows it where line breaks count."""
    return _markup(reveal(text, lines=True))


def _plain(text: str) -> Markup:
    """Write what the visitor typed back into its field, where no markup can stand."""
    return escape(_SURROGATES.sub("\ufffd", text))


def _moment(seconds: float) -> Markup:
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), at.strftime("%Y-%m-%d %H:%M:%S UTC")
    )
