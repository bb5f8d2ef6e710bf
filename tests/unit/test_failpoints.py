"""Failpoints: nothing without both variables, and never by accident in production (APPR-5)."""

from __future__ import annotations

import pytest

from gateway.services import failpoints


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, None),
        ({"GATEWAY_FAILPOINT": "after-claim:exit", "GATEWAY_FAILPOINT_TEST": "1"}, None),
        ({"GATEWAY_FAILPOINT": "after-claim:exit"}, "take it out"),
        ({"GATEWAY_FAILPOINT": "nowhere:exit", "GATEWAY_FAILPOINT_TEST": "1"}, "NAME:exit"),
        ({"GATEWAY_FAILPOINT": "after-claim", "GATEWAY_FAILPOINT_TEST": "1"}, "NAME:exit"),
    ],
)
def test_a_failpoint_needs_its_switch_and_a_name(
    environment: dict[str, str], said: str | None
) -> None:
    found = failpoints.fault(environment)
    assert (found is None) if said is None else (found is not None and said in found)


def test_without_its_variables_a_place_is_a_call_that_does_nothing() -> None:
    assert failpoints.reached is failpoints._nothing
    assert failpoints._armed({"GATEWAY_FAILPOINT": "after-claim:exit"}) is failpoints._nothing
