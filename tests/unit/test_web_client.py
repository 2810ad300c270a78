"""The client's address behind proxies: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.web._client import MAX_REMEMBERED, Networks, ProxyParser, parse_address

TRUSTED = Networks(["10.0.0.0/8", "fd00::/8", "unix"], option="trusted_proxies")
PARSER = ProxyParser(TRUSTED)


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.7", "198.51.100.7"),
        ("198.51.100.1", b"1.2.3.4", "198.51.100.1"),
        ("10.0.0.1", b"6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", b"6.6.6.6, 198.51.100.7, 10.2.2.2", "198.51.100.7"),
        ("10.0.0.1", b"10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("10.0.0.1", b"198.51.100.7, garbage", "10.0.0.1"),
        ("10.0.0.1", b"garbage, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", b"[2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", b"2001:db8::7", "2001:db8::7"),
        ("fd00::1", b"2001:db8:0:0::7, fd00::2", "2001:db8::7"),
        ("::ffff:10.0.0.1", b"::ffff:198.51.100.7", "198.51.100.7"),
        (None, b"198.51.100.7", "198.51.100.7"),
        ("testclient", b"198.51.100.7", "testclient"),
    ],
)
def test_the_list_is_believed_from_the_right_and_only_through_trusted_hops(
    peer: str | None, header: bytes | None, client: str
) -> None:
    assert PARSER.client(peer, header) == client


@given(st.binary(max_size=300), st.sampled_from(["10.0.0.1", "198.51.100.1", None, "x"]))
def test_no_header_raises_and_every_answer_is_an_address_or_the_peer(header: bytes, peer: str | None) -> None:
    client = PARSER.client(peer, header)
    assert client == peer or parse_address(str(client)) is not None


@given(st.lists(st.ip_addresses().map(str), max_size=5), st.ip_addresses(v=4).map(str))
def test_what_the_client_wrote_itself_never_matters(forged: list[str], real: str) -> None:
    address = parse_address(real)
    assert address is not None
    if TRUSTED.holds(address):
        return
    assert PARSER.client("10.0.0.1", ", ".join([*forged, real]).encode()) == str(address)


def test_a_proxys_scheme_is_believed_only_from_a_trusted_peer_and_only_if_it_is_one() -> None:
    assert PARSER.scheme("10.0.0.1", b"http, https") == "https"
    assert PARSER.scheme("10.0.0.1", b"javascript") is None
    assert PARSER.scheme("198.51.100.1", b"https") is None


def test_the_memory_of_peers_is_bounded() -> None:
    networks = Networks(["10.0.0.0/8"], option="x")
    for number in range(3 * MAX_REMEMBERED):
        networks.holds_peer(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(networks._known) <= MAX_REMEMBERED


@pytest.mark.parametrize(
    "text", ["1.2.3.4.5", "[::1", "::1]", "1.2.3.4:x", "1.2.3.4:999999", "", "a" * 99, "٤.1.1.1"]
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert parse_address(text) is None
