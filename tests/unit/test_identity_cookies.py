"""The session's cookie and the proofs of a form: strict in what they take, silent about why not."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import CsrfRefused
from springtide.identity.cookies import SessionCookie, check_origin, csrf_token, csrf_valid

VALUE = "A" * 63 + "_"
OTHER = "B" * 64


def scope(*headers: tuple[str, str], method: str = "POST", **more: Any) -> dict[str, Any]:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"method": method, "scheme": "https", "headers": raw, "client": ("192.0.2.1", 1), **more}


def test_the_cookie_is_as_safe_as_cookies_get() -> None:
    """`__Host-` needs Secure, Path=/ and no Domain; scripts and cross-site posts do not get it."""
    cookie = SessionCookie()
    assert cookie.set(VALUE) == f"__Host-session={VALUE}; Path=/; Secure; HttpOnly; SameSite=Lax"
    assert cookie.set(VALUE, max_age=60.9).endswith("; Max-Age=60")
    assert cookie.clear() == "__Host-session=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"
    with pytest.raises(ValueError, match="64 characters"):
        cookie.set("x; Domain=evil.example")
    with pytest.raises(ValueError, match="got 'a;b'"):
        SessionCookie(name="a;b")


def test_reading_takes_the_one_well_formed_cookie() -> None:
    cookie = SessionCookie()
    assert cookie.read(scope(("cookie", f"a=1; __Host-session={VALUE};b"))) == VALUE
    assert cookie.read(scope(("cookie", "a=1"), ("cookie", f"__Host-session={VALUE}"))) == VALUE
    assert cookie.read(scope(("cookie", f"__Host-session={VALUE}; __Host-session={VALUE}"))) == VALUE
    for line in (
        "",
        f"session={VALUE}",
        f"__host-session={VALUE}",
        f"__Host-session={VALUE}x",
        f"__Host-session={VALUE[:-1]}",
        f"__Host-session={VALUE[:-1]}\xe9",
        f"__Host-session={VALUE}; __Host-session={OTHER}",
        "__Host-session",
    ):
        assert cookie.read(scope(("cookie", line))) is None, line


@given(st.binary(max_size=300))
def test_no_header_can_break_the_reader(line: bytes) -> None:
    found = SessionCookie().read({"headers": [(b"cookie", line)], "client": None})
    assert found is None or len(found) == 64


def test_an_insecure_cookie_stays_on_this_machine() -> None:
    """Without Secure there is no prefix, and nobody from elsewhere is served."""
    cookie = SessionCookie(secure=False)
    line = ("cookie", f"session={VALUE}")
    assert cookie.set(VALUE) == f"session={VALUE}; Path=/; HttpOnly; SameSite=Lax"
    for host in ("127.0.0.1", "::1", "127.8.9.1"):
        assert cookie.read(scope(line, client=(host, 1))) == VALUE
    for client in (("192.0.2.1", 1), ("localhost.evil.example", 1), None):
        assert cookie.read(scope(line, client=client)) is None
        assert not cookie.serves(scope(client=client))


def test_a_token_belongs_to_one_cookie() -> None:
    """Each rendering differs, each is valid, and only for the cookie it was made with."""
    first, second = csrf_token(VALUE), csrf_token(VALUE)
    assert first != second
    assert csrf_valid(VALUE, first) and csrf_valid(VALUE, second)
    assert not csrf_valid(OTHER, first)
    assert VALUE not in first


@given(st.text(max_size=200))
def test_hostile_tokens_are_refused(token: str) -> None:
    assert not csrf_valid(VALUE, token)


def test_a_token_with_any_bit_changed_is_refused() -> None:
    data = base64.urlsafe_b64decode(csrf_token(VALUE) + "==")
    for index in range(len(data)):
        changed = data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]
        assert not csrf_valid(VALUE, base64.urlsafe_b64encode(changed).decode())


SITE = ("host", "shop.example")


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "none")],
        [("origin", "https://shop.example")],
        [],
        [("origin", "https://partner.example"), ("sec-fetch-site", "cross-site")],
    ],
)
def test_our_own_pages_may_ask(headers: list[tuple[str, str]]) -> None:
    check_origin(scope(SITE, *headers), origins=["https://partner.example"])


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "cross-site"), ("origin", "https://shop.example")],
        [("origin", "null")],
        [("origin", "http://shop.example")],
        [("origin", "https://shop.example.evil.example")],
        [("origin", "https://shop.example"), ("origin", "https://evil.example")],
        [("origin", "https://other.example"), ("host", "other.example")],
    ],
)
def test_pages_of_other_sites_may_not(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(CsrfRefused):
        check_origin(scope(SITE, *headers))
    check_origin(scope(SITE, *headers, method="GET"))
