"""What a URL says of Kafka: where brokers are, how they are spoken to, and how topics are made.

    kafka://[user:password@]host[:port][,host[:port]]          kafka+ssl:// by TLS

`?partitions=12` and `?replicas=3` are for topics that are not there yet; without `replicas` the broker has
its default. `?session=6` is for how many seconds a worker that gives no sign of life keeps its partitions.
A login is SASL, `?sasl=` PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 (the default). With TLS: ?ssl_ca_certs=FILE,
?ssl_certfile=FILE and ?ssl_keyfile=FILE; the certificate is checked in any case.

Pure. A URL that cannot be is refused with all that is wrong with it; a password is never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from springtide.errors import ConfigurationError

__all__ = ["Address", "parse", "topic_name"]

PORT = 9092
SCHEMES = ("kafka", "kafka+ssl")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
FILES = {
    "ssl_ca_certs": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
}
NUMBERS = {"partitions": (1, 10_000), "replicas": (1, 100), "session": (1, 1800)}


@dataclass(frozen=True, slots=True)
class Address:
    """`settings` are librdkafka's; `replicas` -1 is the broker's default."""

    servers: str
    settings: Mapping[str, str | int] = field(repr=False)
    partitions: int = 12
    replicas: int = -1
    session: int = 6


def parse(url: str, *, key: str) -> Address:
    """The address that `url` gives. Raises ConfigurationError, which calls the URL `key`."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ConfigurationError(f"{key}: the scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    faults: list[str] = []
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    userinfo, _, hosts = netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    if path.strip("/"):
        faults.append(f"a path is not known here, topics are found by name, got {path!r}")
    servers = ",".join(_server(host, faults) for host in hosts.split(","))
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {*NUMBERS, *(("sasl",) if user else ()), *(FILES if scheme == "kafka+ssl" else ())}
    for name, value in options.items():
        if name not in known:
            faults.append(f"?{name}= is not known here, only {', '.join(sorted(known))}")
        elif not value:
            faults.append(f"?{name}= must have a value")
    numbers = {
        name: _number(name, options[name], *bounds, faults)
        for name, bounds in NUMBERS.items()
        if options.get(name)
    }
    if bool(user) != bool(password):
        faults.append("a user and a password must be given together, user:password@host")
    mechanism = options.get("sasl") or MECHANISMS[-1]
    if mechanism not in MECHANISMS:
        faults.append(f"?sasl= must be one of {', '.join(MECHANISMS)}, got {mechanism!r}")
    if mechanism == "PLAIN" and user and scheme == "kafka":
        faults.append("?sasl=PLAIN sends the password as it is, and must have kafka+ssl://")
    if bool(options.get("ssl_certfile")) != bool(options.get("ssl_keyfile")):
        faults.append("ssl_certfile and ssl_keyfile must be given together")
    if faults:
        raise ConfigurationError(f"{key}: {'; '.join(faults)}")
    settings: dict[str, str | int] = {"bootstrap.servers": servers}
    secure = "SSL" if scheme == "kafka+ssl" else "PLAINTEXT"
    settings["security.protocol"] = f"SASL_{secure}" if user else secure
    if user:
        settings |= {
            "sasl.mechanism": mechanism,
            "sasl.username": unquote(user),
            "sasl.password": unquote(password),
        }
    settings |= {FILES[name]: value for name, value in options.items() if name in FILES}
    return Address(servers, settings, **numbers)


def _server(text: str, faults: list[str]) -> str:
    host, separator, port = text.rpartition(":")
    if not separator or port.endswith("]"):
        host, port = text, str(PORT)
    if not host.removeprefix("[").removesuffix("]"):
        faults.append(f"a host must be named, got {text!r}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        faults.append(f"a port must be 1 to 65535, got {port!r}")
    return f"{host}:{port}"


def _number(name: str, text: str, least: int, most: int, faults: list[str]) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
    if not least <= number <= most:
        faults.append(f"?{name}= must be {least} to {most}, got {text!r}")
    return number


def topic_name(platform: str, line: str) -> str:
    """Kafka takes letters, digits, `_`, `-` and dots, 249 of them at most."""
    return f"{platform}.jobs.{line}"
