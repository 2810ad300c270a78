"""W3C trace context: `traceparent` and `tracestate`, parsed strictly and written again.

A traceparent that breaks a rule is ignored as a whole and a new trace begins; a tracestate that breaks one
is dropped alone. Versions above 00 are read by their first four fields, as the recommendation asks; ff is
refused.
Spans are made from `RequestFinished` after the request; nothing here keeps any.
Source: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import random
import re

from springtide.context import Trace

__all__ = ["headers", "join", "parse_traceparent", "parse_tracestate"]

MAX_STATE_MEMBERS = 32
MAX_STATE_CHARS = 512

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)


def parse_traceparent(text: str) -> tuple[str, str, bool] | None:
    """Trace id, the caller's span id and whether it samples; None when the text breaks a rule."""
    match = _PARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if trace_id == "0" * 32 or span_id == "0" * 16:
        return None
    return trace_id, span_id, bool(int(flags, 16) & 1)


def parse_tracestate(text: str) -> str:
    """The list in its canonical form, without empty members; "" when it breaks a rule."""
    if len(text) > MAX_STATE_CHARS:
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > MAX_STATE_MEMBERS or len(keys) != len(members):
        return ""
    return ",".join(members) if all(map(_MEMBER.fullmatch, members)) else ""


def join(traceparent: str | None, tracestate: str | None, *, sample: bool = False) -> Trace:
    """The trace of a request: the caller's with a span of our own, or a new one, sampled as `sample` says."""
    caller = parse_traceparent(traceparent) if traceparent is not None else None
    if caller is None:
        ids = f"{random.getrandbits(192):048x}"  # need not be secret, and costs a tenth
        return Trace(ids[:32], ids[32:], sampled=sample)
    trace_id, parent_id, sampled = caller
    state = parse_tracestate(tracestate) if tracestate else ""
    return Trace(trace_id, f"{random.getrandbits(64):016x}", parent_id, sampled, state)


def headers(trace: Trace) -> list[tuple[str, str]]:
    """What an outgoing call carries so that the other side joins this trace."""
    pairs = [("traceparent", trace.traceparent)]
    if trace.state:
        pairs.append(("tracestate", trace.state))
    return pairs
