"""What of a chain can be told in other words."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.domain.documents import raw
from gateway.domain.history import Kept, Origin, closed


def _kept(origin: Origin, kind: str, **fields: Any) -> Kept:
    return Kept(origin, raw({"type": kind, **fields}))


@pytest.mark.covers("STATE-6", "APPR-5")
@pytest.mark.parametrize(("approve", "count"), [(True, 1), (False, 3)])
def test_what_was_approved_is_not_told_without_its_call(approve: bool, count: int) -> None:
    items = [
        _kept("in", "message"),
        _kept("out", "mcp_approval_request", id="mcpr_1"),
        _kept("gw", "mcp_approval_response", approval_request_id="mcpr_1", approve=approve),
    ]
    called = [*items, _kept("out", "mcp_call", id="mcp_1", approval_request_id="mcpr_1")]
    waits = _kept("out", "function_call", id="fc_1", call_id="call_1")
    assert closed([*called, waits]) == count
    assert closed(called) == 4
