"""A tool call that is to be decided: what rules, grants and pins look at (APPR-8, APPR-13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from gateway.domain.registry import McpServer, Trust


class Annotations(msgspec.Struct, frozen=True):
    """What a tool says of itself; `None` means that it does not say.

    The MCP defaults are the careful ones: not read-only, destructive, not idempotent, open world.

    Attributes:
        verified: Whether the operator vouches for the server (`trust` is not "untrusted"). Else
            these are claims, and nothing may become more permissive through them.
    """

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None
    title: str | None = None
    verified: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether a second run does no harm, on a word that can be trusted (APPR-5)."""
        return self.verified and (self.read_only is True or self.idempotent is True)


UNANNOTATED = Annotations()
"""A tool that says nothing of itself."""


class ChainFacts(msgspec.Struct, frozen=True):
    """What is known of a chain, carried from turn to turn in each turn's head.

    Attributes:
        id: The response id of the chain's first turn; "" before it has one.
        saw_untrusted: A tool of an untrusted server has run in the chain (taint).
        saw_private: A tool that reads private data has run in the chain.
        rounds: Answers in a row that no person gave (see `gateway.domain.loops`).
        tokens: Tokens of all legs so far.
        denied: Names of denied calls (see `loops.call_name`), the newest last, at most 32.
    """

    id: str = ""
    saw_untrusted: bool = False
    saw_private: bool = False
    rounds: int = 0
    tokens: int = 0
    denied: tuple[str, ...] = ()

    def after(self, server: McpServer | None) -> ChainFacts:
        """Return the facts once a tool of the server has run; nothing is ever forgotten.

        Args:
            server: `None` is a caller's own, for which nobody vouches in either respect.
        """
        untrusted = server is None or server.trust == "untrusted"
        private = server is None or server.private
        return msgspec.structs.replace(
            self,
            saw_untrusted=self.saw_untrusted or untrusted,
            saw_private=self.saw_private or private,
        )


NEW_CHAIN = ChainFacts()
"""A chain without any turn."""

PinStatus = Literal["unseen", "trusted", "quarantined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an MCP tool, with all that may be decided by.

    Attributes:
        subject, roles, groups, end_user: For whom the turn is.
        server: The server's label; `server_identity` changes when the label comes to mean
            another server.
        arguments: The raw JSON text from the upstream.
        definition_hash: Of the tool's pinned definition, or "" when none is known (MCP-5).
    """

    tenant: str
    subject: str
    server: str
    server_identity: str
    tool: str
    arguments: str
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    end_user: str = ""
    trust: Trust = "untrusted"
    annotations: Annotations = UNANNOTATED
    pin: PinStatus = "unseen"
    definition_hash: str = ""
    chain: ChainFacts = NEW_CHAIN
