"""What things are called in Redis, and what an entry of the bus says.

A *slot* is one class on one database cluster (a class without a database: the class alone; a copy of a hot
class: a slot of its own). Its name is the hash tag of all its keys, so that one node has them all and a
script may change them together. The *scope* is a short hash of whose data it is and of the Redis process
that keeps it: another database, another timeline of it or another Redis process has other keys, so nothing
of before, or of others, can be read.

    {slot}:scope:S          the sequence: counts the slot's invalidations
    {slot}:scope:v:<name>   a value          {slot}:scope:l:<name>   the lease of who loads it
    {slot}:scope:o:<name>   an old value that an invalidation moved aside
    {slot}:scope:g:<tag>    a tag's version
    {slot}:scope:T and O    tombstones, the younger and the older generation
    {slot}:scope:B          the bus, a stream

A *field* is what can be invalidated: "k:<name>", "t:<tag>", or "*", all of the slot. Names and tags are any
printable text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

__all__ = [
    "EVERYTHING",
    "Heard",
    "Names",
    "heard",
    "key_field",
    "scope_name",
    "slot_name",
    "tag_field",
    "tag_name",
]

EVERYTHING = "*"
"""The field of a whole slot."""

LONGEST = 200
"""Characters of a tag that is stored as it is."""

_UNSAFE = re.compile(r"[^\x21-\x7e]")


def slot_name(cls: str, cluster: str = "", *, copy: int = 0) -> str:
    """The slot of a class on a database cluster ("": without one); copies of a hot class count from 0.

    >>> slot_name("users", "main", copy=1)
    'users@main#1'
    """
    return cls + (f"@{cluster}" if cluster else "") + (f"#{copy}" if copy else "")


def scope_name(platform: str, run_id: str, cluster: str = "", epoch: int = 0, schema: str = "") -> str:
    """Ten characters for whose data it is: a platform's, of a schema of a database on a cluster's timeline
    (`db.seeing.history`), in one Redis process."""
    text = "\0".join((platform, run_id, cluster, str(epoch), schema))
    return blake2b(text.encode(), digest_size=5).hexdigest()


def tag_name(text: str) -> str:
    """What a tag is called everywhere: its text, or the hash of one that is long, empty or not printable.

    >>> tag_name("org:7")
    'org:7'
    """
    if 0 < len(text) <= LONGEST and text.isprintable():
        return text
    return "~" + blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def key_field(name: str) -> str:
    return "k:" + name


def tag_field(tag: str) -> str:
    return "t:" + tag


class Names:
    """The keys of one slot in one scope."""

    __slots__ = ("bus", "prefix", "scope", "sequence", "slot", "values")

    def __init__(self, slot: str, scope: str) -> None:
        if not slot or _UNSAFE.search(slot) or "{" in slot or "}" in slot:
            raise ValueError(f"a slot's name must be plain ASCII without braces, got {slot!r}")
        self.slot = slot
        self.scope = scope
        self.prefix = f"{{{slot}}}:{scope}:"
        self.sequence = self.prefix + "S"
        """The key that scripts are given; they make the others from it."""
        self.values = self.prefix + "v:"
        self.bus = self.prefix + "B"

    def value(self, name: str) -> str:
        return self.values + name

    def lease(self, name: str) -> str:
        return self.prefix + "l:" + name

    def aside(self, name: str) -> str:
        return self.prefix + "o:" + name


@dataclass(frozen=True, slots=True)
class Heard:
    """An entry of the bus: fields that were voided at `sequence`; or, with `beat`, nothing but that all up
    to `sequence` has been said, and what the relay says of its round."""

    sequence: int
    fields: tuple[str, ...] = ()
    beat: str | None = None


def heard(entry: Mapping[bytes, bytes]) -> Heard:
    """The fields and values of a stream entry. Raises ValueError when it is not one of ours."""
    try:
        sequence = int(entry[b"s"])
        if b"b" in entry:
            return Heard(sequence, beat=entry[b"b"].decode())
        return Heard(sequence, tuple(entry[b"f"].decode().split("\n")))
    except (KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"not an entry of the bus: {dict(entry)!r}") from error
