"""Whether this process still wants work (STREAM-4)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lifecycle:
    """Told by the process entry, read by readiness and by streams.

    Attributes:
        draining: A stop was asked for: readiness says no, while requests are still served.
        drained: Set when the lame duck is over: no new connection comes any more. A stream that
            another replica can go on with (a held turn, a resumed reader) ends now; others have
            the grace period.
    """

    draining: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)
