"""Whether a broker's URL is one that its driver takes, asked without the driver's client library. Pure."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from springtide.errors import ConfigurationError
from springtide.jobs.transports import _kafka_address, _sqs_address
from springtide.redis import _address as _redis_address

__all__ = ["authorities", "check_url"]

OPTION = "ssl_ca_certs"


def check_url(kind: str, url: str, *, key: str) -> None:
    """Raise ConfigurationError, which calls the URL `key`, for one that the driver of `kind` would refuse."""
    if kind == "redis":
        _redis_address.parse(url, key=key)
    elif kind == "sqs":
        # the region may be said where the workers are
        _sqs_address.parse(url, key=key, environment={"AWS_REGION": "of the workers"})
    elif kind == "kafka":
        _kafka_address.parse(url, key=key)
    else:
        authorities(url, key=key)


def authorities(url: str, *, key: str) -> str | None:
    """The file whose authorities are trusted, all that a URL of RabbitMQ or NATS may add; None: the system's.

    Raises ConfigurationError.
    """
    options = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    for name, value in options.items():
        if name != OPTION:
            raise ConfigurationError(f"{key}: ?{name}= is not known here, only {OPTION}")
        if not value:
            raise ConfigurationError(f"{key}: ?{name}= must have a value")
    return options.get(OPTION)
