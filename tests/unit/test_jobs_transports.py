"""Messages and capabilities of transports, without a broker."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.transports import BROKERS

from springtide.errors import ConfigurationError, TransportRefused
from springtide.jobs.transports import DRIVERS, Message, driver
from springtide.jobs.transports.redis import RedisTransport
from springtide.jobs.transports.seam import MAX_BODY, MAX_LINE, check, emulated, line_name, readable

KEYS = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=500)
NOWHERE = "redis://127.0.0.1:1/0"


@given(st.integers(-(2**15), 2**15 - 1), st.uuids(), st.integers(1, 2**31 - 1), KEYS)
def test_a_message_is_read_as_it_was_sent(bucket: int, id: UUID, turn: int, key: str | None) -> None:
    """Whatever the key: the same message, in no more bytes than every broker takes; no two turns are one."""
    message = Message("mail.main.1", bucket, id, turn, key)
    assert readable("mail.main.1", message.body) == message
    assert len(message.body) <= MAX_BODY
    assert message.key != message._replace(turn=turn + 1).key


@given(st.binary(max_size=60))
def test_what_others_put_there_is_no_message(body: bytes) -> None:
    """Bytes of somebody else are no message, or happen to be one; never an error."""
    found = readable("mail.main.1", body)
    assert found is None or found.body == body


def test_the_longest_names_make_a_line() -> None:
    """Those of a module and a shard have 63 characters at most."""
    assert len(line_name("m" * 63, "S" * 63, 2)) <= MAX_LINE


def test_what_nothing_can_replace_is_refused() -> None:
    """A driver that takes too little is refused with key, value and rule; what SQL does is said."""
    check(RedisTransport(NOWHERE, name="test"))

    class Narrow(RedisTransport):
        capabilities = replace(RedisTransport.capabilities, max_body=100)

    with pytest.raises(TransportRefused, match="max_body must be at least 2048 bytes, got 100"):
        check(Narrow(NOWHERE, name="test"))
    able = dict.fromkeys(("survives_restart", "redelivers", "ordered", "deduplicates", "delays"), True)
    assert emulated(replace(RedisTransport.capabilities, **able, priorities=True)) == []
    assert emulated(replace(RedisTransport.capabilities, **able, priorities=False)) == [
        "each priority has a line of its own, and few messages are ahead of the workers"
    ]


def test_a_driver_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"transport must be one of redis.*, got 'pigeon'"):
        driver("pigeon", NOWHERE, name="test")


def test_every_driver_is_in_the_conformance_suite() -> None:
    assert set(BROKERS) == set(DRIVERS)


def test_who_has_no_broker_imports_no_driver() -> None:
    """Neither the jobs nor the platform import a driver, or what it needs, by themselves."""
    code = (
        "import sys, springtide.platform, springtide.jobs.transports as t; "
        "print([name for name in sys.modules if name in {module for module, _ in t.DRIVERS.values()}"
        " or name.split('.')[0] in ('hiredis', 'aio_pika', 'nats', 'aiobotocore', 'confluent_kafka')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
