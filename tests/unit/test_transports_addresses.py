"""URLs of SQS and Kafka, names of queues and topics, which offset may be committed: without a server."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import ConfigurationError
from springtide.jobs.transports import _kafka_address as kafka
from springtide.jobs.transports import _sqs_address as sqs
from springtide.jobs.transports._kafka_ended import Ended
from springtide.jobs.transports.seam import MAX_LINE, line_name

KEY = "nodes.b.url"

LINES = st.text("abcXYZ019_-.", min_size=1, max_size=MAX_LINE)
PLATFORMS = st.text("abcxyz019-", min_size=1, max_size=60)


@given(PLATFORMS, LINES, PLATFORMS, LINES)
def test_queues_of_two_lines_have_two_names(platform: str, line: str, other: str, another: str) -> None:
    """Names that SQS takes, the same for the same line, another for another."""
    name = sqs.queue_name(platform, line)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name)
    assert (name == sqs.queue_name(other, another)) == ((platform, line) == (other, another))


def test_lines_that_differ_in_a_dot_or_at_their_end_have_two_queues() -> None:
    assert sqs.queue_name("p", "mail.main.0") != sqs.queue_name("p", "mail-main-0")
    assert sqs.queue_name("p", "m" * 100 + "1") != sqs.queue_name("p", "m" * 100 + "2")
    assert sqs.queue_name("shop", "mail.main.0").startswith("shop-jobs-mail-main-0-")


def test_the_longest_line_is_a_topic() -> None:
    """Kafka takes 249 characters."""
    line = line_name("m" * 63, "S" * 63, 2)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,249}", kafka.topic_name("p" * 63, line))


@pytest.mark.parametrize(
    ("url", "environment", "region"),
    [
        ("https://sqs.eu-central-1.amazonaws.com", {"AWS_REGION": "us-east-1"}, "eu-central-1"),
        ("https://sqs.us-gov-west-1.amazonaws.com/", {}, "us-gov-west-1"),
        ("https://vpce-0a1.sqs.eu-west-2.vpce.amazonaws.com", {}, "eu-west-2"),
        ("http://127.0.0.1:5000?region=eu-1", {"AWS_REGION": "us-east-1"}, "eu-1"),
        ("http://127.0.0.1:5000", {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "x"}, "us-east-1"),
        ("http://127.0.0.1:5000", {"AWS_DEFAULT_REGION": "us-east-2"}, "us-east-2"),
    ],
)
def test_the_region_is_the_nearest_that_is_named(url: str, environment: dict[str, str], region: str) -> None:
    """By the URL before the environment."""
    assert sqs.parse(url, key=KEY, environment=environment).region == region


def test_an_sqs_address_has_its_login_and_hides_it() -> None:
    found = sqs.parse("http://k%2F1:s%3A2@h:1?region=r&visibility=60", key=KEY, environment={})
    assert found == sqs.Address("http://h:1", "r", 60, "k/1", "s:2")
    assert "s:2" not in repr(found)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("amqp://h", "the scheme must be http or https, got 'amqp'"),
        ("http://:5000?region=r", "a host must be named, got ':5000'"),
        ("http://h:99999?region=r", "a port must be 1 to 65535, got '99999'"),
        ("http://key@h?region=r", "an access key and its secret must be given together"),
        (
            "http://h/123/queue?region=r",
            "queues are found by name, got '/123/queue'",
        ),
        ("http://h?regoin=r", "?regoin= is not known here, only region, visibility"),
        ("http://h?region=", "?region= must have a value"),
        ("http://h", "the region must be given by the host's name, ?region= or AWS_REGION, got none"),
        ("http://h?region=r&visibility=0", "?visibility= must be 1 to 43200 whole seconds, got '0'"),
        ("http://h?region=r&visibility=1.5", "?visibility= must be 1 to 43200 whole seconds, got '1.5'"),
    ],
)
def test_a_faulty_sqs_url_is_refused(url: str, rule: str) -> None:
    """With key, rule and value, and without the secret."""
    with pytest.raises(ConfigurationError, match=re.escape(rule)) as caught:
        sqs.parse(url, key=KEY, environment={})
    assert str(caught.value).startswith(f"{KEY}: ")


def test_a_kafka_address_is_what_the_client_needs() -> None:
    found = kafka.parse(
        "kafka+ssl://u%40x:p%3Aw@k1,[::1]:9093?sasl=PLAIN&ssl_ca_certs=/ca&partitions=3&replicas=2&session=10",
        key=KEY,
    )
    assert found.servers == "k1:9092,[::1]:9093"
    assert (found.partitions, found.replicas, found.session) == (3, 2, 10)
    assert found.settings == {
        "bootstrap.servers": "k1:9092,[::1]:9093",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "u@x",
        "sasl.password": "p:w",
        "ssl.ca.location": "/ca",
    }
    assert "p:w" not in repr(found)
    plain = kafka.parse("kafka://k1:1", key=KEY)
    assert plain.settings == {"bootstrap.servers": "k1:1", "security.protocol": "PLAINTEXT"}


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://h", "the scheme must be one of kafka, kafka+ssl, got 'http'"),
        ("kafka://k1,,k2", "a host must be named, got ''"),
        ("kafka://k1:0", "a port must be 1 to 65535, got '0'"),
        ("kafka://k1/topic", "a path is not known here, topics are found by name, got 'topic'"),
        (
            "kafka://k1?ssl_ca_certs=/ca",
            "?ssl_ca_certs= is not known here, only partitions,",
        ),
        ("kafka://k1?partitions=0", "?partitions= must be 1 to 10000, got '0'"),
        ("kafka://k1?session=", "?session= must have a value"),
        ("kafka://user@k1", "a user and a password must be given together"),
        (
            "kafka://u:p@k1?sasl=OAUTH",
            "?sasl= must be one of PLAIN, SCRAM-SHA-256,",
        ),
        ("kafka://u:p@k1?sasl=PLAIN", "?sasl=PLAIN sends the password as it is, and must have kafka+ssl://"),
        ("kafka+ssl://k1?ssl_certfile=/c", "ssl_certfile and ssl_keyfile must be given together"),
    ],
)
def test_a_faulty_kafka_url_is_refused(url: str, rule: str) -> None:
    """With key, rule and value."""
    with pytest.raises(ConfigurationError, match=re.escape(rule)) as caught:
        kafka.parse(url, key=KEY)
    assert str(caught.value).startswith(f"{KEY}: ")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.data())
def test_what_may_be_committed_is_all_that_has_ended(gaps: list[int], data: st.DataObject) -> None:
    """In whatever order messages end, with gaps between their offsets: the position never passes one that has
    not ended, never steps back, and is after the last one when all have."""
    offsets = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    ended = Ended()
    for offset in offsets:
        ended.received(offset)
    left = set(offsets)
    before = 0
    for offset in data.draw(st.permutations(offsets)):
        changed = ended.ended(offset)
        left.discard(offset)
        assert changed == (ended.position > before)
        assert changed == (offset < min(left, default=offset + 1))
        assert ended.position <= min(left, default=ended.position)
        assert before <= ended.position
        before = ended.position
        assert not ended.ended(offset)
    assert ended.position == offsets[-1] + 1
    assert len(ended) == 0
