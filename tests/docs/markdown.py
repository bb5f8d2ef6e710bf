"""Reading fenced blocks and tables out of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: "```LANGUAGE USE=NAME"."""

    language: str
    use: str
    name: str
    text: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for found in _FENCE.finditer(text):
        language, info, body = found.groups()
        use, _, name = (info or "").partition("=")
        yield Block(language, use, name, body, text.count("\n", 0, found.start()) + 1)


def section(text: str, heading: str) -> str:
    """Return a section: from its heading to the next one of the same level."""
    level = heading.split(" ", 1)[0]
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^{level} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def anchors(text: str) -> set[str]:
    """Return the names by which the headings of a page are linked to, as GitHub makes them."""
    prose = _FENCE.sub("", text)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each table row whose first cell is code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def code(cell: str) -> str:
    """Return the code of a cell, without its backticks."""
    return cell.strip().strip("`")
