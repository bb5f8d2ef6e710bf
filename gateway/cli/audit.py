"""`gateway audit verify`: follow an audit's chain in Redis, or in an export (APPR-11, RUN-5)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.domain.audit import Checkpoint, Verdict
from gateway.services.audit import Verifier, read_checkpoint, verify_lines

if TYPE_CHECKING:
    from gateway.settings import Settings


class AuditError(Exception):
    """The audit cannot be read; the message says why, in one line."""


def verify_file(path: Path, expected: str | None) -> Verdict:
    """Verify an export.

    Raises:
        AuditError: A line is no JSON.
    """
    return verify_lines(_lines(path), wanted=expected)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise AuditError(f"{path}: line {number} is no JSON object")
            yield line


def read_log(path: Path) -> list[Checkpoint]:
    """Find the checkpoints in a gateway's log; other lines are passed over.

    Raises:
        AuditError: There is none.
    """
    found = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if '"audit checkpoint"' not in text:
                continue
            try:
                # A log shipper may put its own words before the line.
                found.append(read_checkpoint(json.loads(text[text.index("{") :])["checkpoint"]))
            except (ValueError, KeyError, TypeError):
                continue
    if not found:
        raise AuditError(f"{path}: holds no audit checkpoint")
    return found


def verify_store(
    settings: Settings,
    tenants: Sequence[str],
    known: Sequence[Checkpoint],
    expected: str | None,
) -> list[tuple[str, Verdict]]:
    """Verify chains in Redis, one after the other.

    Raises:
        AuditError: No Redis, no key, or Redis does not answer.
    """
    return asyncio.run(_verify_store(settings, tenants, known, expected))


async def _verify_store(
    settings: Settings,
    tenants: Sequence[str],
    known: Sequence[Checkpoint],
    expected: str | None,
) -> list[tuple[str, Verdict]]:
    from gateway.domain.errors import GatewayError
    from gateway.stores import open_stores

    if settings.redis.embedded or settings.redis.url is None:
        raise AuditError("redis.url: must name a Redis that runs; an export is read with --file")
    try:
        async with open_stores(settings, command_timeout=10.0) as stores:
            verifier = Verifier(stores.audit, stores.cipher)
            return [
                (
                    tenant,
                    await verifier.verify(
                        tenant,
                        known=[one for one in known if one.tenant == tenant],
                        wanted=expected,
                    ),
                )
                for tenant in tenants
            ]
    except (GatewayError, ValueError) as exc:
        raise AuditError(str(exc)) from exc


def line(name: str, verdict: Verdict) -> str:
    """Say in one line what was found."""
    if verdict.problem is None:
        head = f"head {verdict.head.sequence} {verdict.head.hash}"
        return f"{name}: OK, {verdict.entries} entries, {head}"
    where = f" at entry {verdict.broken_at}" if verdict.broken_at else ""
    return f"{name}: BROKEN{where}: {verdict.problem}"
