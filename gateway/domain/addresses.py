"""Which addresses a webhook may be sent to (APPR-9).

`ipaddress` alone does not answer this: what `is_private` and `is_global` say has changed between
Python versions, and neither knows the metadata services or looks into every form that wraps an
IPv4 address. So the list is written out. What no setting can open comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

_NEVER: dict[str, tuple[str, ...]] = {
    # Whoever may ask these gets the machine's own credentials.
    "a metadata service": (
        "169.254.169.254/32",
        "169.254.170.2/32",
        "168.63.129.16/32",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
    ),
    "an unspecified address": ("0.0.0.0/8", "::/128"),
    "a link-local address": ("169.254.0.0/16", "fe80::/10"),
    "a multicast address": ("224.0.0.0/4", "ff00::/8"),
    "a broadcast or reserved address": ("240.0.0.0/4",),
}
_UNLESS_ALLOWED: dict[str, tuple[str, ...]] = {
    "a loopback address": ("127.0.0.0/8", "::1/128"),
    "a private address": (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        "fec0::/10",
    ),
    "an address shared by a carrier's customers (CGNAT)": ("100.64.0.0/10",),
    "an address for special use": (
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    ),
}
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_GLOBAL = ip_network("2000::/3")
_WRAPPERS = (ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96"))
"""IPv4 mapped into IPv6, and the well-known prefix of NAT64: the last 32 bits are meant."""


def _parse(lists: dict[str, tuple[str, ...]]) -> tuple[tuple[Network, str], ...]:
    return tuple((ip_network(text), name) for name, texts in lists.items() for text in texts)


_FORBIDDEN, _CLOSED = _parse(_NEVER), _parse(_UNLESS_ALLOWED)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far messages may go beyond the public internet.

    Attributes:
        private: Loopback and private addresses are allowed as well.
        networks: So are the addresses in these networks.
    """

    private: bool = False
    networks: frozenset[Network] = frozenset()

    def refusal(self, address: str) -> str | None:
        """Say what is wrong with a numeric address, such as "a private address", or `None`.

        Metadata services, link-local, multicast and reserved addresses are never allowed.
        """
        found = _read(address)
        if found is None:
            return "no numeric address"
        forbidden = _in(found, _FORBIDDEN)
        if forbidden is not None:
            return forbidden
        closed = _in(found, _CLOSED) or _beyond(found)
        if closed is None or self.private or _within(found, self.networks):
            return None
        return closed

    def allows_plain_http(self, address: str) -> bool:
        """Tell whether a message may go unencrypted: to this machine alone, where allowed."""
        found = _read(address)
        return found is not None and _within(found, _LOOPBACK) and self.refusal(address) is None


PUBLIC = Reach()


def numeric(host: str) -> bool:
    """Tell whether a host is written as an address, IPv6 without its brackets."""
    return _read(host) is not None


def _read(text: str) -> Address | None:
    """Read an address; IPv4 that is wrapped in IPv6 is judged as what it leads to."""
    try:
        address = ip_address(text.partition("%")[0])  # a zone says which interface, not where
    except ValueError:
        return None
    if _within(address, _WRAPPERS):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _in(address: Address, lists: Iterable[tuple[Network, str]]) -> str | None:
    return next((name for network, name in lists if address in network), None)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _beyond(address: Address) -> str | None:
    """Only 2000::/3 is given out; what else there may be one day is not the public internet."""
    return None if address.version == 4 or address in _GLOBAL else "an address for special use"
