"""Where in a TOML file a rule's fault stands: `tomllib` does not tell positions.

The n-th `[[rules]]` table is found by its header; inside it, the keys of the path are looked for
one after the other. What cannot be found leaves the line that was found last.
"""

from __future__ import annotations

import re

Location = tuple[str | int, ...]

_QUIET = re.compile(
    r'"""(?:\\.|[^\\])*?"""'
    r"|'''.*?'''"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*",
    re.DOTALL,
)
_HEADER = re.compile(r"^[ \t]*\[\[?[ \t]*(?P<name>[^\]\n]*?)[ \t]*\]\]?", re.MULTILINE)
_RULES = re.compile(r"^[ \t]*\[\[[ \t]*[\"']?rules[\"']?[ \t]*\]\]", re.MULTILINE)


def rule_line(text: str, location: Location) -> int | None:
    """Find the line of `("rules", n, key, …)`, counted from 1; `None` where no table is found."""
    bare = _QUIET.sub(_hidden, text)
    tables = list(_RULES.finditer(bare))
    if len(location) < 2 or not isinstance(location[1], int) or location[1] >= len(tables):
        return None
    place = tables[location[1]].start()
    end = _end_of_table(bare, tables[location[1]].end())
    for key in location[2:]:
        if isinstance(key, str):
            pattern = rf"(?<![\w-])[\"']?{re.escape(key)}[\"']?[ \t]*[=.\]]"
            found = re.compile(pattern).search(bare, place, end)
            place = found.start() if found else place
    return bare.count("\n", 0, place) + 1


def _hidden(found: re.Match[str]) -> str:
    """Blank out comments and long texts; short texts may be keys."""
    text = found.group()
    if text.startswith(("#", '"""', "'''")):
        return re.sub(r"[^\n]", " ", text)
    return text


def _end_of_table(text: str, start: int) -> int:
    for header in _HEADER.finditer(text, start):
        name = header["name"].replace('"', "").replace("'", "")
        if not name.startswith("rules."):
            return header.start()
    return len(text)
