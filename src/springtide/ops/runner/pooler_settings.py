"""What PgBouncer is told: its ini file and its list of users, from the servers behind it. Pure.

One user, `springtide`, with a password of the pooler's own, reaches every database of the list; each line
names the server, the user and the password that the pooler uses there. Both sides speak SCRAM.

A server connection asks its backend to look after its client every second: a statement whose caller died is
ended by the server itself, because no `statement_timeout` travels with single statements.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from springtide.errors import RunnerError

__all__ = ["USER", "Upstream", "ini", "upstream", "userlist"]

USER = "springtide"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
AFTER_CONNECT = "SET client_connection_check_interval = 1000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One database as the pooler reaches it; `sslrootcert` is a file, None for the system's authorities."""

    host: str
    port: int
    dbname: str
    user: str
    password: str
    sslmode: str
    sslrootcert: str | None


def upstream(url: str) -> Upstream:
    """Read a server's url. Raises RunnerError for one that PgBouncer cannot use."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if not parts.hostname or "," in parts.netloc.rpartition("@")[2]:
        raise RunnerError("a server behind a pooler must have a url with one host")
    sslmode = query.get("sslmode") or ("disable" if parts.hostname in LOOPBACK else "prefer")
    return Upstream(
        host=parts.hostname,
        port=parts.port or 5432,
        dbname=unquote(parts.path.strip("/")),
        user=unquote(parts.username or USER),
        password=unquote(parts.password or ""),
        sslmode=sslmode,
        sslrootcert=query.get("sslrootcert"),
    )


def userlist(password: str) -> str:
    """In the clear, in a file of 0600: given a SCRAM verifier, PgBouncer 1.18 would try its client's keys
    on the server, too, whatever password the server's line has."""
    return f'"{USER}" "{password}"\n'


def ini(
    databases: dict[str, Upstream],
    *,
    port: int,
    folder: Path,
    sockets: Path,
    server_connections: int,
    max_clients: int,
    query_wait: float,
    prepared_statements: int,
    tls: bool,
) -> str:
    """pgbouncer.ini: `databases` by the name that clients connect to, files of the pooler in `folder`.

    `tls`: clients must speak TLS; the pooler's certificate is in `folder`.
    """
    lines = ["# Written by Springtide; a change is lost at the next start.", "[databases]"]
    for name, to in databases.items():
        said = {
            "host": to.host,
            "port": str(to.port),
            "dbname": to.dbname,
            "user": to.user,
            "password": to.password,
            "connect_query": AFTER_CONNECT,
        }
        lines.append(f"{name} = {' '.join(f'{key}={_quoted(text)}' for key, text in said.items() if text)}")
    settings: dict[str, object] = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": sockets,
        "unix_socket_mode": "0700",
        "auth_type": "scram-sha-256",
        "auth_file": folder / "userlist.txt",
        "stats_users": USER,  # SHOW alone; the socket's owner may do everything as user pgbouncer
        "pool_mode": "transaction",
        "default_pool_size": server_connections,
        "max_db_connections": server_connections,
        "max_client_conn": max_clients,
        "query_wait_timeout": f"{query_wait:g}",
        "server_login_retry": 1,  # a server that restarts is noticed within a second
        "server_connect_timeout": 5,
        "log_connections": 0,
        "log_disconnections": 0,
        "log_stats": 0,
    }
    if prepared_statements:
        settings["max_prepared_statements"] = prepared_statements
    settings |= _tls_to_servers(databases, folder)
    if tls:
        settings |= {
            "client_tls_sslmode": "require",
            "client_tls_cert_file": folder / "server.crt",
            "client_tls_key_file": folder / "server.key",
        }
    lines += ["", "[pgbouncer]", *(f"{key} = {value}" for key, value in settings.items()), ""]
    return "\n".join(lines)


def _tls_to_servers(databases: dict[str, Upstream], folder: Path) -> dict[str, object]:
    """PgBouncer has one such setting for all its servers."""
    asked = {(to.sslmode, to.sslrootcert) for to in databases.values()}
    if len(asked) > 1:
        raise RunnerError(
            f"the clusters {', '.join(databases)} behind one pooler ask for different TLS "
            f"({', '.join(sorted(mode for mode, _ in asked))}): give their urls the same sslmode and "
            "sslrootcert, or give each a pooler"
        )
    ((mode, root),) = asked
    settings: dict[str, object] = {"server_tls_sslmode": mode}
    if root is not None:
        settings["server_tls_ca_file"] = folder / "servers.crt"
    return settings


def _quoted(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise RunnerError("a password, user or database behind a pooler must not have line breaks in it")
    return "'" + text.replace("'", "''") + "'"
