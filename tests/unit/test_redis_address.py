"""What URLs of Redis say, and how those are refused that cannot be."""

from __future__ import annotations

import pytest

from springtide.errors import ConfigurationError
from springtide.redis import Redis
from springtide.redis._address import Address, Endpoint, Login, Tls, parse
from springtide.redis._cluster import owners, slot
from springtide.redis._sentinel import newest

GOOD = {
    "redis://h": Address("single", (Endpoint("h", 6379),)),
    "redis://h:1/7": Address("single", (Endpoint("h", 1),), db=7),
    "redis://h:1?db=7": Address("single", (Endpoint("h", 1),), db=7),
    "redis://:p%40s@[::1]:1": Address("single", (Endpoint("::1", 1),), login=Login("", "p@s")),
    "redis://[::1]": Address("single", (Endpoint("::1", 6379),)),
    "redis://u:p@h": Address("single", (Endpoint("h", 6379),), login=Login("u", "p")),
    "rediss://h": Address("single", (Endpoint("h", 6379),), tls=Tls()),
    "rediss://h?ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/k&ssl_check_hostname=false": Address(
        "single", (Endpoint("h", 6379),), tls=Tls("/ca", "/c", "/k", False)
    ),
    "unix:///run/r.sock?db=2": Address("single", (Endpoint(path="/run/r.sock"),), db=2),
    "unix://u:p@/r": Address("single", (Endpoint(path="/r"),), login=Login("u", "p")),
    "redis+sentinel://a,b:1/main?db=1&sentinel_password=s": Address(
        "sentinel",
        (Endpoint("a", 26379), Endpoint("b", 1)),
        db=1,
        primary="main",
        sentinel_login=Login("", "s"),
    ),
    "rediss+cluster://u:p@a:1,b:2": Address(
        "cluster", (Endpoint("a", 1), Endpoint("b", 2)), login=Login("u", "p"), tls=Tls()
    ),
}

BAD = {
    "": "the scheme must be one of redis, .*got ''",
    "localhost:6379": "the scheme must be one of",
    "http://h": "got 'http'",
    "redis+ring://h": "got 'redis\\+ring'",
    "unix+cluster:///x": "got 'unix\\+cluster'",
    "redis://": "a host must be named, got ''",
    "redis://h:0": "a port must be 1 to 65535, got '0'",
    "redis://h:x": "a port must be 1 to 65535, got 'x'",
    "redis://h/x": "the database must be a number >= 0, got 'x'",
    "redis://h/-1": "the database must be a number >= 0, got '-1'",
    "redis://h/1?db=2": "the database must be given once, got /1 and db=2",
    "redis://a,b": "several hosts need redis\\+sentinel:// or redis\\+cluster://, got 'a,b'",
    "redis://h?timeout=1": "\\?timeout= is not known here, only db",
    "redis://h?ssl_ca_certs=/x": "\\?ssl_ca_certs= is not known here",
    "redis://h?db=": "\\?db= must have a value",
    "rediss://h?ssl_check_hostname=no": "must be true or false, got 'no'",
    "rediss://h?ssl_certfile=/c": "ssl_certfile and ssl_keyfile must be given together",
    "unix://h/x": "it must be unix:///path/of/the/socket, got host 'h'",
    "unix://": "it must be unix:///path/of/the/socket",
    "redis+sentinel://h": "the name of the primary among the Sentinels, got ''",
    "redis+cluster://h/1": "a cluster has database 0 only, got 1",
    "redis://u@h": "a user must come with a password, got user 'u' alone",
}


@pytest.mark.parametrize("url", GOOD)
def test_a_url_says(url: str) -> None:
    """Every part of it, with the defaults that Redis has."""
    assert parse(url, key="cache.redis") == GOOD[url]


@pytest.mark.parametrize("url", BAD)
def test_a_wrong_url_is_refused_by_key_rule_and_value(url: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError, match=f"^cache: .*{BAD[url]}"):
        Redis(url, name="cache")


def test_all_faults_of_a_url_are_said_at_once_and_no_password() -> None:
    """The reader mends it in one go, and may show the sentence to others."""
    with pytest.raises(ConfigurationError) as caught:
        parse("redis://user:hidden-1@a:99999,b/x?what=1&sentinel_password=hidden-2", key="k")
    message = str(caught.value)
    assert all(part in message for part in ("99999", "several hosts", "'x'", "?what="))
    assert "hidden" not in message
    assert "hidden" not in repr(parse("redis://user:hidden@h", key="k"))


def test_a_login_is_not_shown() -> None:
    """Not by the address of the client either."""
    client = Redis("redis+sentinel://u:hidden@h/n?sentinel_password=hidden")
    assert "hidden" not in repr(client.address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be > 0 seconds, got 0"),
        ({"connect_timeout": -1}, "connect_timeout must be > 0 seconds, got -1"),
        ({"connections": 0}, "connections must be 1 to 64, got 0"),
        ({"name": "a b"}, "name must be printable characters without spaces, got 'a b'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    """With its value."""
    with pytest.raises(ValueError, match=message):
        Redis("redis://h", **options)  # type: ignore[arg-type]


def test_a_slot_is_that_of_the_hash_tag() -> None:
    """The specification's check value, and its rule what a tag is."""
    assert slot("123456789") == 0x31C3
    assert slot("{user}:1") == slot(b"user") == slot("x{user}{other}")
    assert slot("{}:1") != slot("")
    assert slot("{}:1") == slot(b"{}:1")
    assert slot("a{b") == slot(b"a{b")


def test_the_newest_failover_is_believed_then_the_most_votes() -> None:
    """One Sentinel that knows beats two that do not."""
    old, new, odd = Endpoint("old", 1), Endpoint("new", 1), Endpoint("odd", 1)
    assert newest([]) is None
    assert newest([(1, old), (1, old), (2, new)]) == (2, new)
    assert newest([(2, odd), (2, new), (2, new), (1, old)]) == (2, new)


def test_slots_without_a_host_belong_to_who_was_asked() -> None:
    """As nodes answer that do not know their own address; replicas are left out."""
    asked = Endpoint("asked", 9)
    answer = [
        [0, 4, [b"", 1, b"id"], [b"r", 2, b"id2"]],
        [5, 9, [None, 1, b"id"]],
        [10, 10, [b"b", 2, b"id3", []]],
    ]
    assert owners(answer, asked) == {
        Endpoint("asked", 1): [range(5), range(5, 10)],
        Endpoint("b", 2): [range(10, 11)],
    }
