"""What an emulator is: which keys it takes, whose name seals its reasoning, how fast it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EmulatorSettings:
    """The character of one emulated provider account.

    Two emulators with the same `resource` can open each other's `encrypted_content`; with
    different names they refuse it, as two Azure resources do.
    """

    api_keys: frozenset[str] = frozenset()
    """Accepted keys. Empty: any non-empty key."""
    resource: str = "emulator"
    """The account or Azure resource that seals and opens `encrypted_content`."""
    azure: bool = False
    """Azure's error shapes, headers, `content_filters` and `api-key` header."""
    store: bool = True
    """False: a zero-data-retention organisation, every response has `store: false`."""
    chunk_delay: float = 0.0
    """Seconds before each delta."""
    first_byte_delay: float = 0.0
    """Seconds before the response headers of a turn."""
    queue_delay: float = 0.0
    """Seconds a background response stays `queued`."""
    visibility_lag: float = 0.0
    """Seconds after which a streamed response can be found; Azure takes some."""
    stream_retention: float = 300.0
    """Seconds during which a background response can be streamed again."""
    mcp_timeout: float = 30.0
    """Seconds an MCP server may take for one request."""
    history: int = 500
    """How many received requests `/_emulator/requests` keeps."""
    capacity: int = 5000
    """How many responses, items and conversations are kept; the oldest go first."""
