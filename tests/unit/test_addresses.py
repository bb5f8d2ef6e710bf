"""Where webhooks may go: the list is written out, so it is tested entry by entry (APPR-9)."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from gateway.domain.addresses import PUBLIC, Reach

PRIVATE = Reach(private=True)


@pytest.mark.covers("APPR-9")
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("fc00::1", "private"),
        ("fdff::1", "private"),
        ("fec0::1", "private"),
        ("100.64.0.1", "CGNAT"),
        ("100.127.255.255", "CGNAT"),
        ("192.0.0.8", "special use"),
        ("192.0.2.1", "special use"),
        ("192.88.99.1", "special use"),
        ("198.18.0.1", "special use"),
        ("198.19.255.255", "special use"),
        ("198.51.100.1", "special use"),
        ("203.0.113.1", "special use"),
        ("2001:db8::1", "special use"),
        ("2001::1", "special use"),  # Teredo
        ("2002:7f00:1::", "special use"),  # 6to4
        ("3fff::1", "special use"),
        ("5f00::1", "special use"),
        ("::7f00:1", "special use"),  # IPv4-compatible
        ("64:ff9b:1::1", "special use"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::10.0.0.1", "private"),
    ],
)
def test_what_is_not_public_is_refused_and_may_be_allowed(address: str, reason: str) -> None:
    assert reason in (PUBLIC.refusal(address) or "")
    assert PRIVATE.refusal(address) is None


@pytest.mark.covers("APPR-9")
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("64:ff9b::169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("192.0.0.192", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("not an address", "no numeric address"),
        ("127.1", "no numeric address"),
        ("2130706433", "no numeric address"),
        ("", "no numeric address"),
    ],
)
def test_some_are_refused_whatever_is_allowed(address: str, reason: str) -> None:
    everything = Reach(private=True, networks=frozenset({ip_network("0.0.0.0/0")}))
    for reach in (PUBLIC, PRIVATE, everything):
        assert reason in (reach.refusal(address) or "")


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1", "64:ff9b::1.1.1.1"],
)
def test_the_public_internet_is_open(address: str) -> None:
    assert PUBLIC.refusal(address) is None
    assert not PRIVATE.allows_plain_http(address)


def test_a_named_network_opens_itself_and_nothing_else() -> None:
    reach = Reach(networks=frozenset({ip_network("10.1.0.0/16"), ip_network("::1/128")}))
    assert reach.refusal("10.1.2.3") is None
    assert reach.refusal("10.2.0.1") == "a private address"
    assert reach.refusal("127.0.0.1") == "a loopback address"
    assert reach.allows_plain_http("::1")
    assert not reach.allows_plain_http("10.1.2.3")
    assert not reach.allows_plain_http("127.0.0.1")
    assert not PUBLIC.allows_plain_http("127.0.0.1")
