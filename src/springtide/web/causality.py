"""Carry the causality token: in with the request, out with the answer.

    keys = CausalityKeys.load_or_create(Path("secrets/causality.key"))
    app = CausalityLayer(app, Carrier(keys, name="shop"))          # alone; `Platform.wrap` has it built in

A client proves what it has seen by the cookies of `_jar.py` or the header `Springtide-Causality`; both hold
the text of `_seal.py`. What is not ours is as if it were not there, and is counted. What an answer carries:

    header   to a client that sent one, and to every one whose request wrote. A client that asks several
             things at once sends back all that it got (one header each, or with commas between)
    cookies  when the request wrote; and when a client that uses cookies has seen more than before, or has
             read on from its witness, or is signed in by a session, unless the answer is for shared caches
    neither  when nothing was seen: an anonymous client's answers stay as cacheable as they were

An answer with a token is for its client alone: `public` and `s-maxage` in its Cache-Control give way to
`private`, and the headers that speak to content networks alone are dropped. Positions are not renewed: by
the time one expires it says nothing any more. Witnesses are.

A client with an identity that brought no token, or is given one now, may never bring any. What it has seen
is kept for the identity, before the answer goes out, and looked up when its next request first reads at
`session` level from what has replicas (`identity/positions.py`); nothing is kept or asked for clients that
bring one. A request that only reads on from its witness keeps nothing where that is safe.

What a write asks of caches travels in the same cookies and header, and is kept for no identity: a client with
an identity that brings no token is *unproven*, and a cache asks how far its invalidations have come, once for
each such request and slot, before it answers from this process (`cache/_session.py`). Where a cache could not
be told of a write, the answer to such a client waits until no process can have what was there before.

What is written after the answer has begun (a stream, a background task) has been acknowledged by nothing,
and travels nowhere but to later reads of the same request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from springtide.clock import Clock, SystemClock
from springtide.context import CausalityToken, RequestContext, activate, current
from springtide.errors import ConfigurationError
from springtide.lifecycle import StartStop
from springtide.signals import CausalityChecked, NullSink, Sink
from springtide.web._jar import MARK, PIN, Jar, again, read_cookies, remove_cookie, set_cookie
from springtide.web._seal import CausalityKeys, Seal, Sealed, new_client, new_key
from springtide.web._sharing import Headers, is_shared, privately
from springtide.web._types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from springtide.context import Identity
    from springtide.identity.positions import Found, Positions, Version

__all__ = ["CLOCKS", "HEADER", "LIFETIME", "Carried", "Carrier", "CausalityKeys", "CausalityLayer", "new_key"]

HEADER = b"springtide-causality"

SPELLINGS = frozenset({HEADER, HEADER.replace(b"-", b"_")})

LIFETIME = 60.0
"""Seconds that a position matters after it was seen. A replica that lags by more is not read from."""

RENEW = 0.25
"""Share of the lifetime after which a witness is renewed."""

CLOCKS = 15.0
"""Seconds that the clocks of two app servers may differ."""

MAX_HEADERS = 32
"""Tokens that one request's headers may hold; the client of more reads from the primaries."""


NOTHING = Sealed("")
"""Of clients that bring none; never changed."""


class Carried:
    """What one request brought. `names` are cookies that may be removed: `sealed` has what they said.

    For a client that brought nothing to believe it is the context's `recall`.
    """

    __slots__ = (
        "believed", "by_cookie", "by_header", "found", "grown", "names", "positions", "renew", "sealed",
        "sighted", "sights",
    )  # fmt: skip

    def __init__(self, positions: Positions | None, sealed: Sealed = NOTHING) -> None:
        self.sealed = sealed
        self.names: Sequence[str] = ()
        self.by_cookie = False
        self.by_header = False
        self.believed = False
        self.renew = False
        self.grown = 0
        self.sighted = 0
        self.sights: dict[str, int] = {}
        self.positions = positions
        self.found: Found | None = None

    async def __call__(self, context: RequestContext) -> None:
        identity = context.known
        if identity is None or self.positions is None:
            return  # it may become known later in the same request
        found = await self.positions.lookup(identity.subject)
        if self.found is None:
            token = context.causality
            grown = token.grown
            token.merge(found.token)
            token.grown = grown  # what was known before is no news
            for cluster, witness in found.token.witnesses.items():
                token.leaning.setdefault(cluster, witness)  # also after a write: another one would be news
                self.sights[cluster] = token.sights(cluster)
            self.found = found
            self.renew = found.age >= self.positions.lifetime * RENEW
            context.recall = None

    def tells(self, token: CausalityToken) -> bool:
        """Whether the request has read on from a witness that it found, and has to say so."""
        if self.found is None or self.positions is None:
            return False
        return any(
            cluster in token.witnesses
            and token.sights(cluster) != sights
            and not self.positions.may_be_quiet(self.found, cluster)
            for cluster, sights in self.sights.items()
        )


class Carrier:
    """Reads and writes tokens; shared by all requests of a process.

    keys:      the secrets, or a function that reads them; that one is called off the loop by `start`, and
               before it no token is read or written.
    name:      the platform: only tokens of that name are believed.
    clusters:  the clusters that exist; positions of others are dropped. None: any.
    positions: keeps what clients wrote that bring no token; None: only tokens count.
    lifetime:  seconds that a position matters.
    longest_lag: of all replicas that may be read from by position (`RoutingSettings.longest_lag`).

    What was seen last before a witness was renewed must be on all of them by the time it expires, by whatever
    clock; else raises ConfigurationError.
    """

    def __init__(
        self,
        keys: CausalityKeys | Callable[[], CausalityKeys],
        *,
        name: str,
        clusters: Collection[str] | None = None,
        positions: Positions | None = None,
        lifetime: float = LIFETIME,
        longest_lag: float = 30.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        kept = lifetime if positions is None else min(positions.lifetime, lifetime)
        if kept < (least := (longest_lag + CLOCKS) / (1 - RENEW)):
            raise ConfigurationError(
                f"lifetime must be >= {least:g} s, got {kept:g}: replicas up to {longest_lag:g} s behind"
                f" (3 x max_lag) are read from, clocks may differ by {CLOCKS:g} s, and what was seen is"
                f" renewed after {RENEW:.0%} of it"
            )
        self.name = "causality"
        self._keys = keys
        self._platform = name
        self._clusters = clusters
        self._lifetime = lifetime
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._seal: Seal | None = self._sealing(keys) if isinstance(keys, CausalityKeys) else None
        self._jar = Jar(lifetime=lifetime)
        self._positions = positions
        self._life = StartStop(self.name, self._open, self._close, sink=self._sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def take(self, context: RequestContext, *, header: bytes | None, cookie: bytes | None) -> Carried | None:
        """Put what the request brought into its context; None when it brought nothing of ours."""
        context.unproven = set()
        seal = self._seal
        if seal is None:
            return None
        if header is not None or (cookie is not None and MARK in cookie):
            carried = self._read(seal, context, header, cookie)
        elif self._positions is not None:
            carried = Carried(self._positions)
        else:
            return None
        if carried.believed:
            context.unproven = None
        elif self._positions is not None:
            context.recall = carried
        return carried

    def has_news(self, carried: Carried | None, context: RequestContext) -> bool:
        """Whether `give` has something to do; cheap, because most answers have nothing to say."""
        token = context.causality
        if carried is None:
            return token.grown > 0
        if context.granted is not None and token:
            return True
        if carried.by_header or carried.renew or token.written or token.grown != carried.grown:
            return True
        return _reads_on(carried, token) or carried.tells(token)

    async def give(
        self, carried: Carried | None, context: RequestContext, scope: Scope, headers: Headers
    ) -> Headers:
        """The answer's headers with its token. Waits until what was seen is kept, where it must be."""
        seal = self._seal
        if seal is None:
            return headers
        carried = carried or Carried(None)
        token, identity = context.causality, context.known
        news = carried.renew or token.written or token.grown != carried.grown
        if carried.positions is not None:
            await self._keep(carried.positions, carried, context, news=news or carried.tells(token))
        if identity is not None and not carried.believed:
            await self._settle(context)
        now = self._clock.now()
        sealed = carried.sealed.after(token, now, renew=self._lifetime * RENEW)
        sealed.client = sealed.client or new_client()
        if token.pinned and not sealed.pinned_until:
            sealed.pinned_until = int(now + self._lifetime)
        given: Headers = []
        if carried.by_header or token.written:
            given.append((HEADER, seal.seal(sealed, now).encode("ascii")))
        secure = scope.get("scheme") in ("https", "wss")
        if token.written or (news and self._is_followed(carried, identity, headers)):
            given += [(b"set-cookie", line) for line in self._cookies(seal, carried, sealed, now, secure)]
        elif _reads_on(carried, token) and self._is_followed(carried, identity, headers):
            name, text = again(carried.names), seal.seal(sealed, now)
            given.append((b"set-cookie", set_cookie(name, text, max_age=self._lifetime, secure=secure)))
            given += [(b"set-cookie", remove_cookie(old, secure=secure)) for old in carried.names]
        return [*privately(headers), *given] if given else headers

    async def _settle(self, context: RequestContext) -> None:
        """Wait until no cache has what this request has changed, where one could not be told."""
        now = self._clock.monotonic()
        wait, left = context.settled - now, context.remaining(now)
        if wait > 0:
            await self._clock.sleep(wait if left is None else min(wait, left))

    async def _keep(
        self, positions: Positions, carried: Carried, context: RequestContext, *, news: bool
    ) -> None:
        """Keep what was seen for clients that may bring no token with their next request: who brought none
        with this one, and whoever is given proof of who he is by its answer, whatever he brought."""
        token, identity, granted = context.causality, context.known, context.granted
        known = carried.found.versions if carried.found is not None else {}
        kept: dict[int, Mapping[str, Version]] = {}
        if news and identity is not None and not carried.believed:
            kept[identity.subject] = known
        if token and granted is not None:
            kept.setdefault(granted, {})
        if kept:
            await asyncio.gather(*(positions.keep(subject, token, kept[subject]) for subject in kept))

    def _is_followed(self, carried: Carried, identity: Identity | None, headers: Headers) -> bool:
        """Whether a client whose request only read gets a cookie."""
        if carried.by_header:
            return False
        signed_in = identity is not None and identity.scheme == "session"
        return (carried.by_cookie or signed_in) and not is_shared(headers)

    def _cookies(
        self, seal: Seal, carried: Carried, sealed: Sealed, now: float, secure: bool
    ) -> Iterable[bytes]:
        name = self._jar.name(sealed, now)
        if name is None:
            self._note("pinned")
            pin = Sealed(sealed.client)
            pin.lose(now + 2 * self._lifetime)
            yield set_cookie(PIN, seal.seal(pin, now), max_age=2 * self._lifetime, secure=secure)
            return
        yield set_cookie(name, seal.seal(sealed, now), max_age=self._lifetime, secure=secure)
        for old in carried.names:
            yield remove_cookie(old, secure=secure)

    def _read(
        self, seal: Seal, context: RequestContext, header: bytes | None, cookie: bytes | None
    ) -> Carried:
        sealed, names, now = Sealed(""), list[str](), self._clock.now()
        carried = Carried(self._positions, sealed)
        texts: list[tuple[str | None, str]] = []
        if header is not None:
            carried.by_header = True
            parts = header.decode("latin-1").split(",", MAX_HEADERS)
            if len(parts) > MAX_HEADERS:
                sealed.lose(now + self._lifetime)
            texts += [(None, part.strip()) for part in parts[:MAX_HEADERS]]
        if cookie is not None and MARK in cookie:
            pairs, more = read_cookies(cookie)
            if more:
                sealed.lose(now + self._lifetime)
            texts += pairs
        for name, text in texts:
            found = seal.open(text, now)
            if not isinstance(found, Sealed):
                self._note(found)
                continue
            carried.believed = True
            sealed.client = sealed.client or found.client
            sealed.merge(found)
            if name is not None:
                carried.by_cookie = True
                if name != PIN:
                    names.append(name)
        if not carried.believed:
            sealed.pinned_until = 0  # it is a stranger: nothing of it is known to be ours
            sealed.marks.clear()
            return carried
        sealed.tell(context.causality)
        carried.names = names
        carried.grown, carried.sighted = context.causality.grown, context.causality.sighted
        carried.renew = sealed.is_due(now, self._lifetime * RENEW)
        self._jar.back(sealed, now)
        return carried

    def _note(self, event: str) -> None:
        self._sink.emit(CausalityChecked(event))

    def _sealing(self, keys: CausalityKeys) -> Seal:
        return Seal(keys, name=self._platform, lifetime=self._lifetime, clusters=self._clusters)

    async def _open(self) -> None:
        if not isinstance(self._keys, CausalityKeys):
            self._seal = self._sealing(await asyncio.to_thread(self._keys))

    async def _close(self) -> None:
        if not isinstance(self._keys, CausalityKeys):
            self._seal = None


class CausalityLayer:
    """`app` with tokens and nothing else around it, for applications without `Layers`; pure ASGI."""

    def __init__(self, app: ASGIApp, carrier: Carrier) -> None:
        self._app = app
        self._carrier = carrier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        context = current() or RequestContext()
        with activate(context):
            pairs = [(name.lower(), value) for name, value in scope["headers"]]
            found = [value for name, value in pairs if name == HEADER]
            inner = [pair for pair in scope["headers"] if pair[0].lower() not in SPELLINGS]
            cookies = [value for name, value in pairs if name == b"cookie"]
            carried = self._carrier.take(
                context,
                header=b",".join(found) if found else None,
                cookie=b"; ".join(cookies) if cookies else None,
            )
            answering = scope["type"] == "http"

            async def given(message: Message) -> None:
                if (
                    answering
                    and message["type"] == "http.response.start"
                    and self._carrier.has_news(carried, context)
                ):
                    headers = list(message.get("headers", ()))
                    headers = await self._carrier.give(carried, context, scope, headers)
                    message = {**message, "headers": headers}
                await send(message)

            await self._app({**scope, "headers": inner}, receive, given)


def _reads_on(carried: Carried, token: CausalityToken) -> bool:
    """Whether the request has seen more of a witness that its cookies name."""
    return bool(carried.names) and token.sighted != carried.sighted and bool(token.witnesses)
