"""The causality token as text that a client may carry: sealed, so that only what we said is believed.

    1.<key id>.<content>.<mac>
    content: base64url of  <client>.<pinned until>.<cluster:epoch:lsn:seen>,<cluster:epoch:lsn:seen:witness>,
             and marks for caches, <~slot:scope:sequence:until>

The mac is HMAC-SHA256, cut to 128 bits, under a key derived from the platform's name, so two platforms that
share a secret do not read each other's. Times are whole seconds since 1970, in hexadecimal. `client` names
one browser for as long as it comes back, and nothing else about it.

What was seen of a cluster is worth something for `lifetime` seconds, and keeps the time when it was *seen*
on its way through further answers: by then every server that may be read from has it, because a replica
that is `longest_lag` behind is not read from. What was seen as far in the future is refused. Only a witness
is renewed, when a quarter of the lifetime is over: its session goes on reading there, and each read is as
old as its request. So three quarters of `lifetime` must exceed that lag by what the clocks of two servers
may differ; `Carrier` refuses less. A mark says itself when it ends, and is carried until then or for
two lifetimes, whichever is first.

What cannot be believed is as if it were not there, which means "nothing seen": a forger gains what anybody
has who sends nothing. So `open` never raises; it says which of these it was:

    malformed   not of this form, or too long        foreign   sealed under a key that is not ours
    forged      the mac is wrong                     expired   every position and mark in it is

Pure but for random client names. The keys: one seals, all open, so that they can be rotated without a gap.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from springtide._keyfile import key_of, read_or_create
from springtide._marks import ALL, NEITHER, Mark, encode_marks, mark_in, mark_of, merge_mark
from springtide.context import DOUBT, NOWHERE, CausalityToken, Position
from springtide.errors import ConfigurationError

__all__ = ["MAX_CHARS", "CausalityKeys", "Fault", "Seal", "Sealed", "Seen", "new_client", "new_key"]

MAX_CHARS = 3072
"""A longer token is refused unread, as a cookie may have 4096 bytes. Ours have about 60 characters, and 40
more for each cluster."""

VERSION = "1"
MAC_BYTES = 16
CLIENT_CHARS = 12

_SCHEME = "hmac-sha256"
_HEAD = re.compile(rf"([A-Za-z0-9_-]{{{CLIENT_CHARS}}})\.([0-9a-f]{{1,12}})\.")
_SEEN = re.compile(r"([^:,]{1,128}):([0-9]{1,10}):([0-9A-F]{1,16}):([0-9a-f]{1,12})(?::([0-9a-f]{12}|\?))?")

Fault = Literal["malformed", "foreign", "forged", "expired"]


class Seen(NamedTuple):
    """What was seen of one cluster, and when; see `CausalityToken` for the witness."""

    position: Position
    at: int
    witness: str | None = None

    def is_due(self, now: float, renew: float) -> bool:
        return self.witness is not None and now - self.at >= renew


@dataclass(slots=True)
class Sealed:
    """What a token carries. `pinned_until`: the session reads from the primaries until then, 0 for not."""

    client: str
    seen: dict[str, Seen] = field(default_factory=dict)
    pinned_until: int = 0
    marks: dict[str, Mark] = field(default_factory=dict)

    def merge(self, other: Sealed) -> None:
        """Take over the later position of each cluster and every witness; two of them are `DOUBT`."""
        for cluster, theirs in other.seen.items():
            ours = self.seen.get(cluster)
            if ours is None:
                self.seen[cluster] = theirs
            else:
                witness = ours.witness or theirs.witness
                if theirs.witness not in (None, witness):
                    witness = DOUBT
                self.seen[cluster] = Seen(
                    max(ours.position, theirs.position), max(ours.at, theirs.at), witness
                )
        for slot, mark in other.marks.items():
            merge_mark(self.marks, slot, mark)
        self.pinned_until = max(self.pinned_until, other.pinned_until)

    def tell(self, token: CausalityToken) -> None:
        """Put what is carried into the token of a request."""
        for cluster, seen in self.seen.items():
            if seen.position != NOWHERE:
                token.observe(cluster, seen.position)
            if seen.witness is not None:
                token.saw(cluster, seen.witness)
        for slot, mark in self.marks.items():
            token.mark(slot, mark)
        token.pinned = token.pinned or self.pinned_until > 0

    def after(self, token: CausalityToken, now: float, *, renew: float) -> Sealed:
        """What to carry after a request that brought this one; what has not changed was not seen again, but
        for a witness that is `renew` seconds old."""
        seen: dict[str, Seen] = {}
        for cluster in token.positions.keys() | token.witnesses.keys():
            position = token.positions.get(cluster, NOWHERE)
            made = Seen(position, int(now), token.witnesses.get(cluster))
            known = self.seen.get(cluster)
            same = known is not None and known._replace(at=made.at) == made
            seen[cluster] = made if known is None or not same or known.is_due(now, renew) else known
        marks = {slot: mark for slot, mark in token.marks.items() if mark.until > now}
        return Sealed(self.client, seen, self.pinned_until, marks)

    def is_due(self, now: float, renew: float) -> bool:
        return any(seen.is_due(now, renew) for seen in self.seen.values())

    def covers(self, other: Sealed, now: float) -> bool:
        """Whether this was carried no earlier than `other`, and says no less of positions and slots."""
        return all(
            (ours := self.seen.get(cluster)) is not None
            and ours.position >= theirs.position
            and ours.at >= theirs.at
            for cluster, theirs in other.seen.items()
        ) and all(
            mark.until <= now
            or ((known := mark_of(self.marks, slot)) is not None and known.until >= mark.until)
            for slot, mark in other.marks.items()
        )

    def lose(self, until: float) -> None:
        """It said more, which is not known: until then neither replicas nor caches have all that it saw."""
        self.pinned_until = int(until)
        merge_mark(self.marks, ALL, Mark(NEITHER, 0, int(until)))


def new_client() -> str:
    return secrets.token_urlsafe(CLIENT_CHARS * 3 // 4)


def new_key() -> str:
    """A new key, as a line of a key file."""
    return f"{_SCHEME} {_base64(secrets.token_bytes(32))}"


class CausalityKeys:
    """The secrets that tokens are sealed with, one per line: `hmac-sha256 <base64url of at least 32 bytes>`.

    The first line seals, all open. To rotate: add the new key as the *second* line everywhere, make it the
    first, remove the old one a few minutes later. Blank lines and lines with `#` are skipped.
    Raises ConfigurationError that names `source` and the line, never the key.
    """

    __slots__ = ("_secrets",)

    def __init__(self, lines: Sequence[str], *, source: str = "causality keys") -> None:
        self._secrets: list[bytes] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            secret = key_of(line, f"{source}: line {number}", scheme=_SCHEME, least=32)
            if secret in self._secrets:
                raise ConfigurationError(f"{source}: line {number}: the key is listed twice")
            self._secrets.append(secret)
        if not self._secrets:
            raise ConfigurationError(f"{source}: must list at least one key")

    def __repr__(self) -> str:
        return f"CausalityKeys(keys={len(self._secrets)})"

    @classmethod
    def load_or_create(cls, path: Path) -> CausalityKeys:
        """The keys in `path`, created with a new one when there is none. Blocks: call it off the loop."""
        return cls(read_or_create(path, new_key, what="the causality keys"), source=str(path))

    def of(self, platform: str) -> dict[str, bytes]:
        """Key id -> key, for the tokens of this platform alone; the first one seals."""
        keys: dict[str, bytes] = {}
        for secret in self._secrets:
            key = hmac.digest(secret, f"springtide causality {VERSION} {platform}".encode(), "sha256")
            keys[hashlib.sha256(key).hexdigest()[:8]] = key
        return keys


class Seal:
    """Seals and opens the tokens of the platform `name`; `clusters` None means that any may be named."""

    def __init__(
        self, keys: CausalityKeys, *, name: str, lifetime: float, clusters: Collection[str] | None = None
    ) -> None:
        if not lifetime >= 1:
            raise ValueError(f"lifetime must be >= 1 second, got {lifetime}")
        self.lifetime = int(lifetime)
        # a keyed hash is copied per token: making one takes ten times as long
        self._keys = {kid: hmac.new(key, b"", hashlib.sha256) for kid, key in keys.of(name).items()}
        self._clusters = None if clusters is None else frozenset(clusters)
        self._kid, self._key = next(iter(self._keys.items()))

    def seal(self, sealed: Sealed, now: float) -> str:
        """The text; one that would be too long says instead that the session is pinned."""
        text = self._text(sealed, now)
        if len(text) > MAX_CHARS:
            lost = Sealed(sealed.client)
            lost.lose(max(sealed.pinned_until, now + self.lifetime))
            text = self._text(lost, now)
        return text

    def _text(self, sealed: Sealed, now: float) -> str:
        last = int(now) + 2 * self.lifetime  # as long as anything sealed is believed
        parts = [
            f"{name}:{position.epoch}:{position.lsn:X}:{at:x}{f':{witness}' if witness else ''}"
            for name, (position, at, witness) in sorted(sealed.seen.items())
        ]
        parts += encode_marks({s: m._replace(until=min(m.until, last)) for s, m in sealed.marks.items()})
        content = _base64(f"{sealed.client}.{sealed.pinned_until:x}.{','.join(parts)}".encode())
        signed = f"{VERSION}.{self._kid}.{content}"
        return f"{signed}.{_base64(_mac(self._key, signed))}"

    def open(self, text: str, now: float) -> Sealed | Fault:
        """What the text carries and is still worth something, or what is wrong with it."""
        if len(text) > MAX_CHARS or not text.isascii():
            return "malformed"
        signed, _, mac = text.rpartition(".")
        parts = signed.split(".")
        if len(parts) != 3 or parts[0] != VERSION:
            return "malformed"
        key = self._keys.get(parts[1])
        if key is None:
            return "foreign"
        if not hmac.compare_digest(_base64(_mac(key, signed)), mac):
            return "forged"
        return self._read(parts[2], now)

    def _read(self, content: str, now: float) -> Sealed | Fault:
        try:
            plain = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            return "malformed"
        head = _HEAD.match(plain)
        if head is None:
            return "malformed"
        sealed, until = Sealed(head[1]), int(head[2], 16)
        if now < until <= now + 2 * self.lifetime:
            sealed.pinned_until = until
        said, lives = until > 0, sealed.pinned_until > 0
        for part in filter(None, plain[head.end() :].split(",")):
            if part[0] == "~":
                try:
                    slot, mark = mark_in(part)
                except ValueError:
                    return "malformed"
                said = True
                if mark.until > now:
                    lives = True
                    merge_mark(sealed.marks, slot, mark)
                continue
            found = _SEEN.fullmatch(part)
            if found is None:
                return "malformed"
            said, cluster, at = True, found[1], int(found[4], 16)
            if abs(now - at) < self.lifetime:
                lives = True
                if self._clusters is None or cluster in self._clusters:
                    sealed.seen[cluster] = Seen(Position(int(found[2]), int(found[3], 16)), at, found[5])
        return "expired" if said and not lives else sealed


def _mac(key: hmac.HMAC, signed: str) -> bytes:
    keyed = key.copy()
    keyed.update(signed.encode("ascii"))
    return keyed.digest()[:MAC_BYTES]


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
