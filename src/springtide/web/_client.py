"""Who is asking: the client's address behind trusted proxies.

Each proxy appends the address it saw to X-Forwarded-For, so the list is believed from the right, and only as
far as the one who wrote an entry is trusted. The first address that is not a trusted proxy is the client.
What stands left of it was sent by the client and is never looked at. Anything that is not an address ends the
walk at the last proxy that was believed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

__all__ = ["UNIX", "Networks", "ProxyParser", "parse_address"]

UNIX = "unix"
"""In a list of networks: peers on a UNIX socket, which have no address."""

MAX_REMEMBERED = 4096
MAX_ENTRIES = 64

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> Address | None:
    """One entry of X-Forwarded-For: IPv4 with or without port, IPv6 bare or `[..]` with or without port."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    if len(text) > 45 or not text.isascii():
        return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_port(text: str) -> bool:
    return text[0] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


class Networks:
    """A set of networks, and UNIX sockets if `unix` is listed; answers are remembered, bounded."""

    def __init__(self, networks: Sequence[str], *, option: str) -> None:
        self._unix = UNIX in networks
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for text in networks:
            if text == UNIX:
                continue
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise ValueError(
                    f"{option} must list networks such as 10.0.0.0/8, or {UNIX!r}, got {text!r}: {error}"
                ) from error
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def holds(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def holds_peer(self, host: str | None) -> bool:
        """Whether the peer of a connection belongs to the set; None is a peer on a UNIX socket."""
        if host is None or host == "":
            return self._unix
        known = self._known.get(host)
        if known is None:
            address = parse_address(host)
            known = address is not None and self.holds(address)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[host] = known
        return known


class ProxyParser:
    """Pure: peer and headers in, client address and scheme out."""

    def __init__(self, trusted: Networks) -> None:
        self._trusted = trusted

    def client(self, peer: str | None, forwarded_for: bytes | None) -> str | None:
        """The client's address; `peer` itself when it is not a trusted proxy or reported nothing usable."""
        if forwarded_for is None or not self._trusted.holds_peer(peer):
            return peer
        client = peer
        for entry in reversed(forwarded_for.decode("latin-1").rsplit(",", MAX_ENTRIES)[-MAX_ENTRIES:]):
            address = parse_address(entry)
            if address is None:
                break
            client = str(address)
            if not self._trusted.holds(address):
                break
        return client

    def scheme(self, peer: str | None, forwarded_proto: bytes | None) -> str | None:
        """What the proxy nearest to us says it was asked by; None when nobody trusted says so."""
        if forwarded_proto is None or not self._trusted.holds_peer(peer):
            return None
        word = forwarded_proto.rpartition(b",")[2].strip().lower()
        return word.decode("ascii") if word in (b"http", b"https") else None
