"""Call an address that a stranger gave us: a push service, a seller's webhook.

Nobody can make this process talk to its neighbours. An address is taken only if it is https, on port 443 and
a name of the internet by its form (`may_be_called`). It is called only if every address that the name stands
for at that moment is a public one, and the address that was looked at is the one that is connected to, so a
name that changes its mind in between changes nothing. Redirections are not followed, no proxy of the
environment is asked, and nothing of the answer but its head is read. Calls know nothing of each other: what
one stranger answers is sent to no other (cookies), and addresses, which may be secrets, are not logged. That
is why calls go through httpx's transport and not through its client, which does both.

Names are looked up by threads of their own: one whose servers do not answer holds a thread longer than its
call lasts, and must not hold one that others need.

`loopback` lets this machine be called, also without TLS and on any port: for development and tests.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import urlsplit

import httpx

__all__ = ["Answer", "Caller", "NotPublic", "Unreachable", "is_public", "may_be_called", "retry_after"]

MAX_CALLS = 32
"""At once, and as many look-ups."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_EMBEDDING = tuple(
    ipaddress.ip_network(text)
    for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")
)
"""IPv6 addresses that stand for IPv4 ones."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SECONDS = re.compile(r"[0-9]{1,9}")


class NotPublic(Exception):
    """The name stands for an address that must not be called, or for none."""


class Unreachable(Exception):
    """There is no answer; the text says why, in words that the stranger may read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]


class Caller:
    """`timeout`: seconds for one call, from looking up the name on. `start` opens no connection yet."""

    def __init__(self, *, timeout: float, loopback: bool) -> None:
        self._timeout = timeout
        self._loopback = loopback
        self._transport: httpx.AsyncHTTPTransport | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        self._transport = await asyncio.to_thread(_transport)
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="strangers")

    async def stop(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        """Raises NotPublic, Unreachable."""
        transport, threads = self._transport, self._threads
        if transport is None or threads is None:
            raise Unreachable("the caller is not started")
        parts = urlsplit(url)
        try:
            async with asyncio.timeout(self._timeout):
                address = await self._resolved(threads, parts.hostname or "", parts.port or 443)
                request = httpx.Request(
                    "POST",
                    httpx.URL(url).copy_with(host=address),
                    content=content,
                    headers={**headers, "Host": parts.netloc},
                    extensions={"sni_hostname": parts.hostname},
                )
                answer = await transport.handle_async_request(request)
                await answer.aclose()
        except TimeoutError as error:
            raise Unreachable(f"no answer within {self._timeout:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise Unreachable(_why(error)) from error
        return Answer(answer.status_code, {name.lower(): text for name, text in answer.headers.items()})

    async def _resolved(self, threads: ThreadPoolExecutor, host: str, port: int) -> str:
        """An address to connect to. Raises NotPublic."""
        look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(threads, look)
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(self._allowed, addresses)):
            raise NotPublic(f"{host} leads to an address that is not public")
        return addresses[0]

    def _allowed(self, address: str) -> bool:
        return is_public(address) or (self._loopback and ipaddress.ip_address(address).is_loopback)


def _transport() -> httpx.AsyncHTTPTransport:
    # Connections are not kept: the pool knows them by address, and one address has many names behind TLS.
    limits = httpx.Limits(max_connections=MAX_CALLS, max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(trust_env=False, limits=limits)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet at large."""
    found: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found.is_site_local or any(found in network for network in _EMBEDDING):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def may_be_called(url: str, *, loopback: bool) -> bool:
    """By its form; which machine the name stands for is looked at when it is called."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if not plain or parts.fragment or "@" in parts.netloc:
        return False
    if loopback and host in _LOOPBACK:
        return parts.scheme in ("http", "https")
    named = _HOST.fullmatch(host) is not None and not host.rsplit(".", 1)[1].isdigit()
    return parts.scheme == "https" and named and port in (None, 443)


def retry_after(headers: Mapping[str, str], now: datetime, most: float) -> float | None:
    """Seconds that the answer asks to wait, at most `most`; None when it does not say. Pure."""
    text = headers.get("retry-after", "")
    if _SECONDS.fullmatch(text):
        return min(float(text), most)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # no date, or one with numbers that nothing can hold
        return None
    if at.tzinfo is None:  # `-0000`: a time of nowhere
        return None
    return min(max((at - now).total_seconds(), 0.0), most)


def _why(error: BaseException) -> str:
    """The reason without addresses: who gave us the name may not learn what it stands for here."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not good: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "TLS could not be agreed upon"
        if isinstance(cause, socket.gaierror):
            return "its name cannot be resolved"
        cause = cause.__cause__ or cause.__context__
    match error:
        case httpx.TimeoutException():
            return "it did not answer in time"
        case httpx.ConnectError() | ConnectionError():
            return "it could not be connected to"
        case httpx.ProtocolError():
            return "it does not answer as HTTP does"
    return "the connection broke"
