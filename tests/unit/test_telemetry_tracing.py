"""W3C trace context, strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.telemetry.tracing import headers, join, parse_traceparent, parse_tracestate

T, S = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{T}-{S}-01", (T, S, True)),
        (f"00-{T}-{S}-00", (T, S, False)),
        (f"00-{T}-{S}-ff", (T, S, True)),
        (f"cc-{T}-{S}-01", (T, S, True)),
        (f"cc-{T}-{S}-01-what-comes", (T, S, True)),
        (f"cc-{T}-{S}-01.bad", None),
        (f"00-{T}-{S}-01-extra", None),
        (f"00-{T}-{S}-01-", None),
        (f"ff-{T}-{S}-01", None),
        (f"00-{'0' * 32}-{S}-01", None),
        (f"00-{T}-{'0' * 16}-01", None),
        (f"00-{T.upper()}-{S}-01", None),
        (f"00-{T[1:]}-{S}-01", None),
        (f"0-{T}-{S}-01", None),
        (f"00-{T}-{S}-1", None),
        (f"00-{T}-{S}-01\n", None),
        ("", None),
    ],
)
def test_traceparent(text: str, expected: tuple[str, str, bool] | None) -> None:
    assert parse_traceparent(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("a=1 ,\t b=2,,", "a=1,b=2"),
        ("tenant@vendor=x", "tenant@vendor=x"),
        ("a=1,a=2", ""), ("A=1", ""), ("a", ""), ("a=", ""), ("a=b=c", ""), ("a=\x7f", ""), ("a=ü", ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        ("a=" + "x" * 600, ""),
    ],
)  # fmt: skip
def test_tracestate(text: str, expected: str) -> None:
    assert parse_tracestate(text) == expected


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_comes_a_valid_trace_goes_on(parent: str, state: str) -> None:
    trace = join(parent, state)
    assert parse_traceparent(trace.traceparent) == (trace.trace_id, trace.span_id, trace.sampled)


def test_a_trace_reaches_the_next_service_with_its_state() -> None:
    trace = join(f"00-{T}-{S}-01", "a=1")
    sent = dict(headers(trace.child()))
    again = join(sent["traceparent"], sent["tracestate"])
    assert (again.trace_id, again.sampled, again.state) == (T, True, "a=1")
    assert join(None, "a=1").state == "", "a state without its parent belongs to nobody"
    assert join(None, None, sample=True).sampled
