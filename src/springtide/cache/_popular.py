"""What all processes were asked for lately: one list per class in Redis, with a bound and a half-life.

It is no part of any slot: the names of keys are neither old nor wrong, so they outlive timelines of the
database. It is gone with its Redis, after a flush or a restart; that is why each process also writes down
what it was asked for itself (`_report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.cache._names import Names, scope_name, slot_name
from springtide.cache._scripts import HOT
from springtide.cache.hot import HALF_LIFE
from springtide.errors import RedisError, RedisUnavailable

if TYPE_CHECKING:
    from springtide.redis import Redis

__all__ = ["MOST", "Popular", "arguments_of", "member_of"]

MOST = 200
"""Keys of a class that the list keeps."""

KEPT = 24 * 3600.0
"""Seconds that the list of a class stays of which nobody reads anything."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[int | str, ...]).decode


def member_of(arguments: Sequence[Any]) -> bytes:
    """The arguments of a key as text: `[7]`, `["de",7]`."""
    return _encode(tuple(arguments))


def arguments_of(member: bytes) -> tuple[int | str, ...] | None:
    """Back again; None for what is none of ours."""
    try:
        return _decode(member)
    except msgspec.MsgspecError:
        return None


class Popular:
    """The lists of one platform. `redis` is started and stopped by its owner."""

    def __init__(self, redis: Redis, platform: str) -> None:
        self._redis = redis
        self._platform = platform

    def _names(self, cls: str) -> Names:
        return Names(slot_name(cls), scope_name(self._platform, ""))

    async def add(self, cls: str, counts: Sequence[tuple[Sequence[Any], float]]) -> bool:
        """These keys of a class were asked for so often; False when nobody could be told."""
        names = self._names(cls)
        link = self._redis.link(f"{{{names.slot}}}")
        if link is None:
            return False
        pairs = [word for arguments, count in counts for word in (member_of(arguments), f"{count:.3f}")]
        head = (round(HALF_LIFE * 1000), MOST, round(KEPT * 1000))
        try:
            await link.call(HOT, (names.prefix + "H", names.prefix + "A"), (*head, *pairs))
        except (RedisUnavailable, RedisError):
            return False
        return True

    async def top(self, cls: str, count: int = MOST) -> list[tuple[tuple[int | str, ...], float]]:
        """The keys asked for most and how often lately, the first one first.

        Raises RedisUnavailable, RedisError.
        """
        names = self._names(cls)
        link = self._redis.link(f"{{{names.slot}}}")
        if link is None:
            raise RedisUnavailable(self._redis.name, "nobody answers")
        answer = await link.send("ZREVRANGE", names.prefix + "H", 0, count - 1, "WITHSCORES")
        pairs = zip(answer[::2], answer[1::2], strict=True)
        found = ((arguments_of(member), float(score)) for member, score in pairs)
        return [(arguments, score) for arguments, score in found if arguments is not None]
