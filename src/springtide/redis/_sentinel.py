"""Ask Sentinels who the primary is.

All are asked at once. Each names a server and the epoch of the failover that made it the primary; the
greatest epoch is the newest truth, whoever says it, and of equal ones the server that most name. So a
Sentinel that was cut off leads nobody back to an old primary, and one that knows is enough to leave it.

Whoever asks while a question is under way shares the next one: an answer was asked for after the call.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from springtide.context import detached
from springtide.errors import ConfigurationError, RedisError, RedisUnavailable
from springtide.redis._address import Endpoint
from springtide.redis.link import Link

__all__ = ["Sentinels", "newest"]

Answer = tuple[int, Endpoint]
"""The epoch of a failover, and the primary that it made."""


def newest(named: Sequence[Answer]) -> Answer | None:
    """Of what Sentinels say, (epoch, primary) each: the one to believe; None when nobody said anything."""
    if not named:
        return None
    epoch = max(epoch for epoch, _ in named)
    votes = Counter(endpoint for known, endpoint in named if known == epoch)
    return epoch, max(votes, key=lambda endpoint: (votes[endpoint], str(endpoint)))


class Sentinels:
    """A finder. Links to the Sentinels stay open between questions; `close` ends them."""

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        primary: str,
        connect: Callable[[Endpoint], Awaitable[Link]],
    ) -> None:
        self._name = name
        self._primary = primary
        self._connect = connect
        self._links: dict[Endpoint, Link | None] = dict.fromkeys(endpoints)
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[list[Answer | Exception]] | None = None
        self._rounds: set[asyncio.Task[list[Answer | Exception]]] = set()
        self._epoch = -1

    @property
    def _shown(self) -> str:
        return ",".join(map(str, self._links))

    async def find(self) -> Endpoint:
        """Raises RedisUnavailable when nobody answers, ConfigurationError when nobody has such a primary."""
        named, errors = await self._ask()
        found = newest(named)
        if found is not None:
            self._epoch, endpoint = found
            return endpoint
        if len(errors) > len(self._links) // 2 and all(isinstance(error, RedisError) for error in errors):
            what = f"the Sentinels {self._shown} know no primary of this name, got {self._primary!r}"
            raise ConfigurationError(f"{self._name}: {what}")
        raise RedisUnavailable(self._shown, f"no Sentinel answers: {'; '.join(map(str, errors))}")

    async def still(self, endpoint: Endpoint) -> bool:
        found = await self._newest()
        return found is None or found == endpoint

    async def leads(self, address: str) -> bool:
        """True only when somebody says now that the primary is there, and nobody who knows more another."""
        found = await self._newest()
        return found is not None and str(found) == address

    def close(self) -> None:
        for asked in self._rounds:
            asked.cancel()
        for endpoint, link in self._links.items():
            if link is not None:
                link.close()
            self._links[endpoint] = None

    async def _newest(self) -> Endpoint | None:
        """The primary that is named now; None when nobody says anything, or what was true before."""
        named, _ = await self._ask()
        found = newest([(epoch, place) for epoch, place in named if epoch >= self._epoch])
        return None if found is None else found[1]

    async def _ask(self) -> tuple[list[Answer], list[Exception]]:
        asked = self._next
        if asked is None:
            asked = self._next = asyncio.get_running_loop().create_task(
                self._ask_all(), name=f"{self._name}:sentinels", context=detached()
            )
            self._rounds.add(asked)
            asked.add_done_callback(self._rounds.discard)
        await asyncio.wait([asked])
        answers = [] if asked.cancelled() else asked.result()
        named = [answer for answer in answers if isinstance(answer, tuple)]
        return named, [answer for answer in answers if isinstance(answer, Exception)]

    async def _ask_all(self) -> list[Answer | Exception]:
        async with self._asking:  # a link is made once
            self._next = None
            return await asyncio.gather(*map(self._ask_one, self._links))

    async def _ask_one(self, sentinel: Endpoint) -> Answer | Exception:
        try:
            link = self._links[sentinel]
            if link is None or not link.alive:
                link = self._links[sentinel] = await self._connect(sentinel)
            flat: list[bytes] = await link.send("SENTINEL", "MASTER", self._primary)
            return _named(dict(zip(flat[::2], flat[1::2], strict=True)))
        except (RedisUnavailable, RedisError, ConfigurationError, ValueError, KeyError) as error:
            return error


def _named(answer: Mapping[bytes, bytes]) -> Answer:
    return int(answer[b"config-epoch"]), Endpoint(answer[b"ip"].decode(), int(answer[b"port"]))
