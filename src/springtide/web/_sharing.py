"""The headers that say who may keep an answer: read, written and taken back. Pure.

    declared public  -> Cache-Control: public, max-age=0, s-maxage=30, stale-while-revalidate=10
                        CDN-Cache-Control: max-age=30, stale-while-revalidate=10        (RFC 9213)
    for its client   -> Cache-Control: private, no-cache   (or private, max-age=...)
    an error         -> Cache-Control: no-store

`s-maxage` says the same as `CDN-Cache-Control`, because nginx, Varnish and HAProxy do not read the latter.
What an answer says by headers of its own is left as it is, unless it is personal and does not say so: then it
is made private, because shared caches may keep whatever does not forbid it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from springtide.provenance import HttpPolicy, Provenance

__all__ = ["SAFE", "Decision", "Headers", "decide", "is_shared", "privately"]

Headers = list[tuple[bytes, bytes]]

PRIVATE = b"private, no-cache"
FOR_NETWORKS = frozenset({b"cache-tag", b"surrogate-control", b"surrogate-key"})

SAFE = ("GET", "HEAD")

PERSONAL = frozenset({b"*", b"authorization", b"cookie"})
"""What an answer may say that it varies by, which not every shared cache heeds: it is its client's own."""

KEPT = frozenset({200, 203, 204, 206, 300, 301, 304, 308})
"""Statuses that a policy is about; the others are errors, or lead elsewhere for the moment."""

_SPEAKING = frozenset({b"cache-control", b"set-cookie", b"vary"}) | FOR_NETWORKS
"""Without any of these, and with nothing else to say, an answer stays as it is."""

MAX_KEY_BYTES = 8000
"""Of surrogate keys in one header; with more, the classes are named instead (networks take 16 KiB)."""


def _directives(value: bytes) -> list[bytes]:
    return [part.strip() for part in value.split(b",")]


def _for_networks(name: bytes) -> bool:
    """Whether a header (in lower case) speaks to content networks alone; RFC 9213 ends them all alike."""
    return name in FOR_NETWORKS or name.endswith(b"cdn-cache-control")


def is_shared(headers: Headers) -> bool:
    """Whether an answer says that it may be kept for everybody."""
    for name, value in headers:
        lower = name.lower()
        if _for_networks(lower):
            return True
        if lower == b"cache-control":
            for directive in _directives(value.lower()):
                if directive == b"public" or directive.startswith(b"s-maxage"):
                    return True
    return False


def privately(headers: Headers) -> Headers:
    """The headers of an answer that is for one client alone; how long that one may keep it stays as it is."""
    kept: Headers = []
    said = False
    for name, value in headers:
        lower = name.lower()
        if _for_networks(lower):
            continue
        if lower != b"cache-control":
            kept.append((name, value))
            continue
        said = True
        own = [
            directive
            for directive in _directives(value)
            if directive and not directive.lower().startswith((b"public", b"s-maxage", b"proxy-revalidate"))
        ]
        if not {b"private", b"no-store"} & {directive.lower() for directive in own}:
            own.insert(0, b"private")
        kept.append((name, b", ".join(own)))
    if not said:
        kept.append((b"cache-control", PRIVATE))
    return kept


@dataclass(frozen=True, slots=True)
class Decision:
    """The headers that an answer gets.

    public:  whether they allow shared caches something.
    reason:  why they allow less than was declared, or said by the answer itself; None: they do not.
    """

    headers: Headers
    public: bool = False
    reason: str | None = None


def decide(provenance: Provenance, *, method: str, status: int, headers: Headers, keys: bool) -> Decision:
    """Who may keep an answer that is about to begin. `keys`: whether its receiver may see surrogate keys."""
    found = _lines(headers)
    if provenance.policy is None and provenance.personal is None and not _SPEAKING & found.keys():
        return Decision(headers)
    if b"set-cookie" in found:
        provenance.restrict("set-cookie")
    elif PERSONAL & set(_directives(found.get(b"vary", b"").lower())):
        provenance.restrict("vary")
    personal = provenance.personal
    spoken = b"cache-control" in found or any(map(_for_networks, found))
    if personal is not None and spoken and _may_be_kept(headers, found):
        return Decision(privately(headers), reason=personal)
    if spoken or method not in SAFE:
        return Decision(headers, spoken and _is_granted(headers, found))
    policy, reason = provenance.granted()
    if policy is None:
        return Decision(privately(headers) if personal is not None else headers)
    if status not in KEPT:
        kept = b"no-store" if status >= 400 else PRIVATE
        return Decision([*headers, (b"cache-control", kept)])
    added = [*_said(policy), *_vary(policy, found)]
    if provenance.age > 0 and b"age" not in found:
        added.append((b"age", b"%d" % math.ceil(provenance.age)))  # never told too small
    if policy.public and keys:
        added += _surrogates(provenance)
    return Decision([*headers, *added], policy.public, reason)


def _lines(headers: Headers) -> dict[bytes, bytes]:
    """The headers by name in lower case, all lines of one as the list that they are."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        lower = name.lower()
        found[lower] = found[lower] + b", " + value if lower in found else value
    return found


def _may_be_kept(headers: Headers, found: Mapping[bytes, bytes]) -> bool:
    """Whether a shared cache may keep an answer by what it says: whatever it does not forbid is allowed."""
    forbidden = {b"private", b"no-store"} & set(_directives(found.get(b"cache-control", b"").lower()))
    return not forbidden or is_shared(headers)


def _is_granted(headers: Headers, found: Mapping[bytes, bytes]) -> bool:
    """Whether an answer itself gives shared caches leave to use it without asking."""
    directives = set(_directives(found.get(b"cache-control", b"").lower()))
    if {b"private", b"no-store", b"no-cache"} & directives:
        return False
    fresh = any(one.startswith(b"max-age=") and one != b"max-age=0" for one in directives)
    return fresh or is_shared(headers)


def _said(policy: HttpPolicy) -> Headers:
    if not policy.public:
        return [(b"cache-control", b"private, max-age=%d" % policy.max_age if policy.max_age else PRIVATE)]
    late = b""
    if policy.stale_while_revalidate:
        late += b", stale-while-revalidate=%d" % policy.stale_while_revalidate
    if policy.stale_if_error:
        late += b", stale-if-error=%d" % policy.stale_if_error
    edge = policy.edge_seconds
    return [
        (b"cache-control", b"public, max-age=%d, s-maxage=%d%s" % (policy.max_age, edge, late)),
        (b"cdn-cache-control", b"max-age=%d%s" % (edge, late)),
    ]


def _vary(policy: HttpPolicy, found: Mapping[bytes, bytes]) -> Headers:
    said = set(_directives(found.get(b"vary", b"").lower()))
    names = [name.encode("ascii") for name in policy.vary if name.lower().encode("ascii") not in said]
    return [(b"vary", b", ".join(names))] if names else []


def _surrogates(provenance: Provenance) -> Headers:
    for keys in (provenance.keys, provenance.classes):
        names = [quote(key, safe=":*@/=+!~").encode("ascii") for key in keys]
        if names and sum(map(len, names)) + len(names) <= MAX_KEY_BYTES:
            return [(b"surrogate-key", b" ".join(names)), (b"cache-tag", b",".join(names))]
    return []
