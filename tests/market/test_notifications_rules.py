"""What may be called, pushed and set; what a mail server's answers mean. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from market.notifications import mail
from market.notifications.push import MAX_PAYLOAD, payload
from market.notifications.settings import NotificationSettings, Smtp
from springtide.errors import ConfigurationError


def test_a_payload_fits_whatever_it_says() -> None:
    """Cut at a character, never in one, and still JSON."""
    for text in ("x" * 10_000, "ö" * 10_000, '😀\n"' * 3_000, "short"):
        for title in ("Title", "Ä" * 330):
            content = payload(7, "comment", title, text, "/x")
            assert len(content) <= MAX_PAYLOAD
            said = msgspec.json.decode(content)
            assert (said["id"], said["title"], said["link"]) == (7, title, "/x")
            assert text.startswith(said["body"].removesuffix("…"))
            assert len(content) > MAX_PAYLOAD - 20 or said["body"] == text


@pytest.mark.parametrize(
    ("code", "text", "for_good", "address"),
    [
        (550, "5.1.1 no such user", True, True), (550, "no such user", True, True),
        (553, "5.1.3 bad address", True, True), (550, "5.2.1 disabled", True, True),
        (552, "5.2.2 mailbox full", True, False), (550, "5.7.1 relaying denied", True, False),
        (554, "5.3.4 too large", True, False), (554, "rejected", True, False),
        (530, "5.7.0 sign in", False, False), (535, "5.7.8 password", False, False),
        (503, "bad sequence", False, False), (450, "4.2.1", False, False), (421, "later", False, False),
    ],
)  # fmt: skip
def test_what_an_answer_means(code: int, text: str, for_good: bool, address: bool) -> None:
    """An address is given up only for what is about the address, a mail only for what is about the mail."""
    assert mail.is_for_good(code) == for_good
    if for_good:
        assert mail.is_the_address(code, text) == address


def test_a_mail_server_is_set_by_one_url() -> None:
    read = Smtp.parse("smtp://us%40er:p%3Aw@mail.example.com:2525", None)
    assert (read.host, read.port, read.user, read.password) == ("mail.example.com", 2525, "us@er", "p:w")
    assert (read.tls, read.starttls) == (False, "required")
    assert Smtp.parse("smtps://mail.example.com", None).port == 465
    assert Smtp.parse("smtp://mail.example.com", None).port == 587
    assert Smtp.parse("smtp://127.0.0.1:1025", None).starttls == "offered"


WRONG: list[tuple[dict[str, str], str]] = [
    ({"MARKET_SMTP_URL": "http://x"}, "MARKET_SMTP_URL"),
    ({"MARKET_SMTP_URL": "smtp://"}, "MARKET_SMTP_URL"),
    ({"MARKET_SMTP_URL": "smtp://host:99999"}, "MARKET_SMTP_URL"),
    ({"MARKET_SMTP_URL": "smtp://host/path"}, "MARKET_SMTP_URL"),
    ({"MARKET_SMTP_URL": "smtp://user@host"}, "MARKET_SMTP_URL"),
    ({"MARKET_SMTP_URL": "smtp://u:p@host", "MARKET_SMTP_STARTTLS": "offered"}, "password"),
    ({"MARKET_SMTP_URL": "smtp://host", "MARKET_SMTP_STARTTLS": "maybe"}, "MARKET_SMTP_STARTTLS"),
    ({"MARKET_SMTP_URL": "smtp://host"}, "MARKET_MAIL_FROM"),
    ({"MARKET_MAIL_FROM": "a@b.example"}, "MARKET_SMTP_URL"),
    ({"MARKET_SMTP_URL": "smtp://host", "MARKET_MAIL_FROM": "nobody"}, "MARKET_MAIL_FROM"),
    ({"MARKET_SMTP_URL": "smtp://host", "MARKET_MAIL_FROM": "x\r\ny <a@b.example>"}, "MARKET_MAIL_FROM"),
    ({"MARKET_PUBLIC_URL": "market.example"}, "MARKET_PUBLIC_URL"),
    ({"MARKET_PUBLIC_URL": "https://market.example/?a"}, "MARKET_PUBLIC_URL"),
    ({"MARKET_PUSH_KEY": "short"}, "MARKET_PUSH_KEY"),
    ({"MARKET_PUSH_KEY": "A" * 43}, "MARKET_PUSH_KEY"),
    ({"MARKET_PUSH_LOOPBACK": "1"}, "MARKET_PUSH_LOOPBACK"),
]


@pytest.mark.parametrize(("environment", "named"), WRONG)
def test_wrong_settings_are_refused_by_name(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        NotificationSettings.from_environment(environment)


def test_settings_come_from_the_environment() -> None:
    nothing = NotificationSettings.from_environment({})
    assert (nothing.smtp, nothing.sender, nothing.push_key, nothing.push_loopback) == (
        None,
        None,
        None,
        False,
    )
    values: dict[str, Any] = {
        "MARKET_SMTP_URL": "smtps://user:pw@mail.example.com",
        "MARKET_MAIL_FROM": "Der Markt <m@example.com>",
        "MARKET_PUBLIC_URL": "https://market.example/", "MARKET_PUSH_KEY": "A" * 42 + "E",
        "MARKET_PUSH_LOOPBACK": "yes",
    }  # fmt: skip
    read = NotificationSettings.from_environment(values)
    assert read.smtp is not None
    assert read.sender is not None
    assert (read.smtp.tls, read.smtp.password) == (True, "pw")
    assert (read.sender.display_name, read.sender.addr_spec) == ("Der Markt", "m@example.com")
    assert read.link("/orders/5") == "https://market.example/orders/5"
    assert (len(read.push_key or b""), read.push_loopback) == (32, True)
