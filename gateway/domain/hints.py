"""The names of the hints between replicas, see `Wake`: they hold ids and nothing else.

Whoever listens and whoever tells uses these; scripts of `adapters/redis` write the same texts.
"""

from __future__ import annotations

JOBS, HOOKS = "jobs", "hooks"
"""Something is to be done, or to be delivered: for any tenant; told as `jobs:<tenant>`."""


def turn_hint(tenant: str, turn_id: str) -> str:
    """Something happened to a turn."""
    return f"turn:{tenant}:{turn_id}"


def stop_hint(tenant: str, batch_id: str) -> str:
    """What runs for a batch is to stop."""
    return f"stop:{tenant}:{batch_id}"


def inbox_hint(tenant: str) -> str:
    """Something happened to one of a tenant's approvals."""
    return f"inbox:{tenant}"
