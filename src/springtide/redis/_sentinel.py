"""Ask Sentinels who the primary is.

All are asked at once. Each names a server and the epoch of the failover that made it the primary; the
greatest epoch is the newest truth, whoever says it, and of equal ones the server that most name. So a
Sentinel that was cut off leads nobody back to an old primary, and one that knows is enough to leave it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from springtide.errors import ConfigurationError, RedisError, RedisUnavailable
from springtide.redis._address import Endpoint
from springtide.redis.link import Link

__all__ = ["Sentinels", "newest"]


def newest(named: Sequence[tuple[int, Endpoint]]) -> tuple[int, Endpoint] | None:
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
        named, _ = await self._ask()
        found = newest([(epoch, place) for epoch, place in named if epoch >= self._epoch])
        return found is None or found[1] == endpoint

    def close(self) -> None:
        for endpoint, link in self._links.items():
            if link is not None:
                link.close()
            self._links[endpoint] = None

    async def _ask(self) -> tuple[list[tuple[int, Endpoint]], list[Exception]]:
        async with self._asking:  # links of one process share the finder
            answers = await asyncio.gather(*map(self._ask_one, self._links))
        named = [answer for answer in answers if isinstance(answer, tuple)]
        return named, [answer for answer in answers if isinstance(answer, Exception)]

    async def _ask_one(self, sentinel: Endpoint) -> tuple[int, Endpoint] | Exception:
        try:
            link = self._links[sentinel]
            if link is None or not link.alive:
                link = self._links[sentinel] = await self._connect(sentinel)
            flat: list[bytes] = await link.send("SENTINEL", "MASTER", self._primary)
            return _named(dict(zip(flat[::2], flat[1::2], strict=True)))
        except (RedisUnavailable, RedisError, ConfigurationError, ValueError, KeyError) as error:
            return error


def _named(answer: Mapping[bytes, bytes]) -> tuple[int, Endpoint]:
    return int(answer[b"config-epoch"]), Endpoint(answer[b"ip"].decode(), int(answer[b"port"]))
