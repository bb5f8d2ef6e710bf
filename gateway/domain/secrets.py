"""Secrets are references until the moment they are sent (RUN-6, MCP-2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

Scheme = Literal["env", "file", "keyvault"]

_REFERENCE = re.compile(r"(env|file|keyvault):(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is kept: `env:NAME`, `file:PATH` or `keyvault:NAME`; never its value."""

    scheme: Scheme
    name: str

    @classmethod
    def parse(cls, text: str) -> SecretRef:
        """Read a reference.

        Raises:
            ValueError: The text is not a reference; the text itself is not repeated, since it
                may be a secret that somebody wrote in plain.
        """
        match = _REFERENCE.fullmatch(text.strip())
        if match is None:
            raise ValueError("must be a reference: env:NAME, file:PATH or keyvault:NAME")
        scheme, name = match.groups()
        return cls(scheme, name)  # type: ignore[arg-type]  # the pattern admits only the schemes

    @override
    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"
