"""What a URL says: which servers, by which way, with which login.

    redis://[user:password@]host[:port][/db]            one server; rediss:// by TLS
    unix://[user:password@]/path/to/socket[?db=1]       one server by its socket
    redis+sentinel://[...@]host:port,host:port/name     the primary called `name`; ?db=1; the login of the
                                                        Sentinels: ?sentinel_username=&sentinel_password=
    redis+cluster://[...@]host:port,host:port           a cluster, found by any of its nodes

`rediss+sentinel` and `rediss+cluster` speak TLS to all. With TLS: ?ssl_ca_certs=FILE, ?ssl_certfile=FILE
and ?ssl_keyfile=FILE, ?ssl_check_hostname=false; the certificate is checked in any case.

Pure. A URL that cannot be is refused with all that is wrong with it; a password is never shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from springtide.errors import ConfigurationError

__all__ = ["Address", "Endpoint", "Login", "Tls", "parse"]

PORT = 6379
SENTINEL_PORT = 26379
BASES = ("redis", "rediss", "unix")
KINDS = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
TLS_KEYS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
SENTINEL_KEYS = {"sentinel_username", "sentinel_password"}
SCHEMES = "redis, rediss, unix, redis+sentinel, rediss+sentinel, redis+cluster, rediss+cluster"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one server listens: host and port, or a socket's `path`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """`username` "" is the default user; `password` "" asks for none."""

    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files "" are the system's authorities and no certificate of our own."""

    authorities: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)
    check_hostname: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """`kind`: single, sentinel or cluster; `endpoints` are the Sentinels or the cluster's first nodes."""

    kind: str
    endpoints: tuple[Endpoint, ...]
    login: Login = Login()
    db: int = 0
    tls: Tls | None = None
    primary: str = ""
    sentinel_login: Login = Login()


def parse(url: str, *, key: str) -> Address:
    """The address that `url` gives. Raises ConfigurationError, which calls the URL `key`."""
    faults: list[str] = []
    scheme, separator, rest = url.partition("://")
    base, _, form = scheme.partition("+")
    if not separator or base not in BASES or form not in KINDS or (form and base == "unix"):
        raise ConfigurationError(f"{key}: the scheme must be one of {SCHEMES}, got {scheme!r}")
    kind = KINDS[form]
    parts = urlsplit(f"//{rest}", allow_fragments=False)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = _options(parts.query, base, kind, faults)
    db_text, primary = options.get("db", ""), ""
    if base == "unix":
        endpoints = [Endpoint(path=unquote(parts.path))]
        if hosts or len(parts.path) < 2:
            faults.append(f"it must be unix:///path/of/the/socket, got host {hosts!r}, path {parts.path!r}")
    else:
        endpoints = [_endpoint(host, kind, faults) for host in hosts.split(",")]
        path = unquote(parts.path.strip("/"))
        if kind == "sentinel":
            primary = path
            if not primary or "/" in primary:
                faults.append(f"the path must be the name of the primary among the Sentinels, got {path!r}")
        elif path and db_text:
            faults.append(f"the database must be given once, got /{path} and db={db_text}")
        else:
            db_text = db_text or path
    if kind == "single" and len(endpoints) > 1:
        faults.append(f"several hosts need redis+sentinel:// or redis+cluster://, got {hosts!r}")
    db = int(db_text) if db_text.isascii() and db_text.isdigit() else 0
    if db_text and not (db_text.isascii() and db_text.isdigit()):
        faults.append(f"the database must be a number >= 0, got {db_text!r}")
    if kind == "cluster" and db:
        faults.append(f"a cluster has database 0 only, got {db}")
    if bool(options.get("ssl_certfile")) != bool(options.get("ssl_keyfile")):
        faults.append("ssl_certfile and ssl_keyfile must be given together")
    if username and not password:
        faults.append(f"a user must come with a password, got user {unquote(username)!r} alone")
    if faults:
        raise ConfigurationError(f"{key}: {'; '.join(faults)}")
    return Address(
        kind=kind,
        endpoints=tuple(endpoints),
        login=Login(unquote(username), unquote(password)),
        db=db,
        tls=_tls(options) if base == "rediss" else None,
        primary=primary,
        sentinel_login=Login(options.get("sentinel_username", ""), options.get("sentinel_password", "")),
    )


def _options(query: str, base: str, kind: str, faults: list[str]) -> dict[str, str]:
    known = {"db"}
    if base == "rediss":
        known |= TLS_KEYS
    if kind == "sentinel":
        known |= SENTINEL_KEYS
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in known:
            faults.append(f"?{name}= is not known here, only {', '.join(sorted(known))}")
        elif not value:
            faults.append(f"?{name}= must have a value")
    if options.get("ssl_check_hostname", "true") not in ("true", "false"):
        faults.append(f"?ssl_check_hostname= must be true or false, got {options['ssl_check_hostname']!r}")
    return options


def _endpoint(text: str, kind: str, faults: list[str]) -> Endpoint:
    default = SENTINEL_PORT if kind == "sentinel" else PORT
    host, separator, port = text.rpartition(":")
    if not separator or port.endswith("]"):
        host, port = text, str(default)
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        faults.append(f"a host must be named, got {text!r}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        faults.append(f"a port must be 1 to 65535, got {port!r}")
        port = str(default)
    return Endpoint(host=host, port=int(port))


def _tls(options: dict[str, str]) -> Tls:
    return Tls(
        authorities=options.get("ssl_ca_certs", ""),
        certificate=options.get("ssl_certfile", ""),
        key=options.get("ssl_keyfile", ""),
        check_hostname=options.get("ssl_check_hostname", "true") == "true",
    )
