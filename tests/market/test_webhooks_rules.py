"""What is signed how, when an endpoint is given up, what may be set. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from market.webhooks import rules, signing
from market.webhooks.settings import WebhookSettings
from springtide.errors import ConfigurationError


def test_the_example_of_the_specification() -> None:
    """The signature that its libraries publish for this message and secret."""
    said = signing.headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )  # fmt: skip
    assert said["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_settings_say_what_is_wrong() -> None:
    assert WebhookSettings.from_environment({}) == WebhookSettings(loopback=False)
    assert WebhookSettings.from_environment({"MARKET_WEBHOOK_LOOPBACK": "yes"}).loopback
    with pytest.raises(ConfigurationError, match="MARKET_WEBHOOK_LOOPBACK must be yes or no, got 'maybe'"):
        WebhookSettings.from_environment({"MARKET_WEBHOOK_LOOPBACK": "maybe"})
    with pytest.raises(ConfigurationError, match="timeout must be > 0"):
        WebhookSettings(timeout=0)


def test_when_an_endpoint_is_given_up() -> None:
    """Time alone is not enough, nor are tries."""
    now = datetime(2026, 11, 26, tzinfo=UTC)
    assert not rules.is_hopeless(9, now - timedelta(days=30), now)
    assert not rules.is_hopeless(100, now - timedelta(days=2) + timedelta(seconds=1), now)
    assert rules.is_hopeless(10, now - timedelta(days=2), now)
