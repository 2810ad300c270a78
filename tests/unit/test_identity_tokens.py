"""Access tokens: ours, meant for us, in time; and nothing in a token decides how it is checked."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import ConfigurationError, InvalidToken
from springtide.identity.keys import KeyRing, new_key
from springtide.identity.tokens import AccessTokens
from springtide.testing import ManualClock, stress

OLD, NEW = new_key(), new_key()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def private(line: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(line.split()[1] + "="))


def made(line: str, header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None) -> str:
    """A token signed by `line`'s key, with parts of header and claims replaced; None removes one."""
    kid = KeyRing([line]).kid
    head = {"alg": "EdDSA", "kid": kid, "typ": "at+jwt"} | (header or {})
    said = {"iss": "me", "aud": "you", "sub": "7", "iat": 1_700_000_000, "exp": 1_700_000_900, "jti": "x"}
    said |= claims or {}
    parts = [{k: v for k, v in part.items() if v is not None} for part in (head, said)]
    text = ".".join(b64(json.dumps(part).encode()) for part in parts)
    return f"{text}.{b64(private(line).sign(text.encode()))}"


async def tokens_of(*lines: str, clock: ManualClock | None = None, **options: Any) -> AccessTokens:
    tokens = AccessTokens(
        lambda: KeyRing(lines), issuer="me", audience="you", clock=clock or ManualClock(), **options
    )
    await tokens.start()
    return tokens


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def tokens(clock: ManualClock) -> AsyncIterator[AccessTokens]:
    service = await tokens_of(NEW, OLD, clock=clock)
    yield service
    await service.stop()


async def test_a_token_says_who_and_until_when(tokens: AccessTokens) -> None:
    """Subject, scopes and times come back; two tokens are never the same."""
    token = tokens.issue(7, scopes=["write", "read"])
    claims = tokens.verify(token)
    assert (claims.sub, claims.scope, claims.exp - claims.iat) == ("7", "read write", 900)
    assert (claims.identity.subject, claims.identity.scopes) == (7, {"read", "write"})
    assert token != tokens.issue(7, scopes=["write", "read"])
    assert tokens.verify(made(NEW)).sub == "7"


@pytest.mark.parametrize("cached", [0, 10])
async def test_a_token_ends_at_its_expiry(cached: int) -> None:
    """To the second, also when it was verified before; and with the lifetime it was issued for."""
    clock = ManualClock()
    tokens = await tokens_of(NEW, clock=clock, max_cached=cached)
    short, long = tokens.issue(1), tokens.issue(1, lifetime=86_400.0)
    tokens.verify(short)
    await clock.advance(899.0)
    tokens.verify(short)
    await clock.advance(1.0)
    with pytest.raises(InvalidToken):
        tokens.verify(short)
    assert tokens.verify(long).exp - tokens.verify(long).iat == 86_400
    await tokens.stop()


async def test_keys_rotate_without_a_gap() -> None:
    """The old key verifies while it is listed, the first one signs, a removed one is refused."""
    before, during, after = await tokens_of(OLD), await tokens_of(NEW, OLD), await tokens_of(NEW)
    old = before.issue(1)
    assert during.verify(old).sub == "1"
    assert after.verify(during.issue(2)).sub == "2"
    with pytest.raises(InvalidToken):
        after.verify(old)
    for tokens in (before, during, after):
        await tokens.stop()


def hmac_with_public_key() -> str:
    """The classic confusion: the public key used as the secret of an HMAC."""
    key = private(NEW).public_key()
    spki = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head, said, _ = made(NEW, {"alg": "HS256"}).split(".")
    return f"{head}.{said}.{b64(hmac.new(spki, f'{head}.{said}'.encode(), hashlib.sha256).digest())}"


def unsigned() -> str:
    return made(NEW, {"alg": "none"}).rsplit(".", 1)[0] + "."


def renamed(token: str) -> str:
    """Claims of one token with the signature of another."""
    head, _, signature = token.split(".")
    return f"{head}.{made(NEW, claims={'sub': '8'}).split('.')[1]}.{signature}"


def malleable(token: str) -> str:
    """The same bytes by other text: the last character's unused bits set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


@pytest.mark.parametrize(
    ("token", "because"),
    [
        (unsigned(), "alg must be EdDSA"),
        (hmac_with_public_key(), "alg must be EdDSA"),
        (made(NEW, {"alg": "Ed25519"}), "alg must be EdDSA"),
        (made(NEW, {"typ": "JWT"}), "typ must be"),
        (made(NEW, {"typ": None}), "typ"),
        (made(NEW, {"kid": "0" * 16}), "no key of ours"),
        (made(NEW, {"kid": KeyRing([OLD]).kid}), ""),
        (made(NEW, {"jwk": {}}), "jwk"),
        (made(new_key()), "no key of ours"),
        (made(NEW, claims={"aud": None}), "aud"),
        (made(NEW, claims={"aud": "them"}), "aud must be"),
        (made(NEW, claims={"aud": ["you"]}), "aud"),
        (made(NEW, claims={"iss": "them"}), "iss must be"),
        (made(NEW, claims={"exp": None}), "exp"),
        (made(NEW, claims={"exp": "never"}), "exp"),
        (made(NEW, claims={"exp": 1_700_000_000}), "expired"),
        (made(NEW, claims={"iat": 1_700_000_060}), "future"),
        (made(NEW, claims={"sub": "admin"}), "sub must be"),
        (made(NEW, claims={"sub": "-1"}), "sub must be"),
        (made(NEW, claims={"sub": "\u0667"}), "sub must be"),
        (made(NEW, claims={"admin": True}), "admin"),
        (renamed(made(NEW)), ""),
        (malleable(made(NEW)), "canonical"),
        (made(NEW) + "=", ""),
        (made(NEW) + ".", "three parts"),
        (" " + made(NEW), ""),
        (made(NEW).replace(".", "\u2024"), "ASCII"),
        ("x" * 5000, "at most 4096"),
        ("", "three parts"),
        ("..", ""),
        ("\ud800..", "ASCII"),
    ],
)
async def test_a_token_that_is_not_right_is_refused(tokens: AccessTokens, token: str, because: str) -> None:
    """Always the same answer for the bearer; the reason is the cause, for logs."""
    for _ in range(2):
        with pytest.raises(InvalidToken, match=r"^the access token is not valid$") as caught:
            tokens.verify(token)
        assert because in str(caught.value.__cause__)


@given(st.text(max_size=200), st.integers(0, 400), st.characters(codec="ascii"))
async def test_no_text_breaks_the_check(text: str, place: int, letter: str) -> None:
    """Whatever arrives is refused as InvalidToken; one changed character is too much."""
    tokens = await tokens_of(NEW)
    good = made(NEW)
    spoiled = good[: place % len(good)] + letter + good[place % len(good) + 1 :]
    for bad in (text, spoiled):
        if bad != good:
            with pytest.raises(InvalidToken):
                tokens.verify(bad)
    await tokens.stop()


async def test_remembered_tokens_are_bounded() -> None:
    """The oldest goes first; what was forgotten is verified anew."""
    tokens = await tokens_of(NEW, max_cached=3)
    issued = [tokens.issue(number) for number in range(10)]
    for token in issued + issued:
        tokens.verify(token)
    assert len(tokens._passed) == 3
    await tokens.stop()
    assert not tokens._passed


async def test_an_expired_token_takes_nobodys_place() -> None:
    """Clients that keep sending old tokens do not make everybody else's be verified anew."""
    clock = ManualClock()
    tokens = await tokens_of(NEW, clock=clock, max_cached=2)
    old = [tokens.issue(number, lifetime=60.0) for number in range(4)]
    await clock.advance(60.0)
    live = [tokens.issue(number) for number in range(2)]
    for token in live:
        tokens.verify(token)
    for token in old:
        with pytest.raises(InvalidToken):
            tokens.verify(token)
    assert list(tokens._passed) == live
    await tokens.stop()


async def test_before_the_start_there_are_no_keys() -> None:
    """A clear error, not a token signed by nothing."""
    tokens = AccessTokens(lambda: KeyRing([NEW]), issuer="me", audience="you")
    with pytest.raises(ConfigurationError, match="start the platform first"):
        tokens.issue(1)
    with pytest.raises(ConfigurationError, match="start the platform first"):
        tokens.verify("x")


@pytest.mark.parametrize("lifetime", [0.0, -1.0, 32 * 86_400.0])
async def test_lifetimes_are_bounded(tokens: AccessTokens, lifetime: float) -> None:
    """From a second to 31 days."""
    with pytest.raises(ValueError, match=f"got {lifetime}"):
        tokens.issue(1, lifetime=lifetime)
    with pytest.raises(ValueError, match="got -5"):
        tokens.issue(-5)
    with pytest.raises(ValueError, match="must be a word"):
        tokens.issue(1, scopes=["two words"])


async def test_storms_of_start_stop_and_cancel(tmp_path: Path) -> None:
    """With a key file made on the way."""
    keys = functools.partial(KeyRing.load_or_create, tmp_path / "secrets" / "token.key")
    await stress(lambda: AccessTokens(keys, issuer="me", audience="you"), storms=10, pause=0.002)


# --- keys


def test_a_key_file_is_made_once_and_kept(tmp_path: Path) -> None:
    """Only its owner may read it, or its folder."""
    path = tmp_path / "secrets" / "token.key"
    ring = KeyRing.load_or_create(path)
    assert KeyRing.load_or_create(path).kid == ring.kid
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["token.key"]


def _kid(path: Path) -> str:
    return KeyRing.load_or_create(path).kid


def test_processes_that_start_together_agree_on_the_key(tmp_path: Path) -> None:
    """One wins, all use its key."""
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        for round in range(10):
            kids = set(processes.map(_kid, [tmp_path / str(round) / "token.key"] * 4))
            assert len(kids) == 1


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The message says what to do."""
    path = tmp_path / "token.key"
    path.write_text(NEW)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"chmod 600\), got mode 644"):
        KeyRing.load_or_create(path)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "at least one key"),
        (["# nothing", ""], "at least one key"),
        ([NEW, NEW], "line 2: the key is listed twice"),
        ([NEW, "rsa abc"], "line 2: must be 'ed25519"),
        (["ed25519 !!!"], "line 1: must be 'ed25519"),
        (["ed25519 AAAA"], "line 1: must be 'ed25519"),
        ([NEW + "AA"], "line 1: must be 'ed25519"),
    ],
)
def test_a_faulty_key_file_is_named_by_line(lines: list[str], says: str) -> None:
    """And the key itself is never shown."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        KeyRing(lines, source="token.key")
    assert "token.key" in str(caught.value)
    assert NEW.split()[1] not in str(caught.value)
    assert NEW.split()[1] not in repr(KeyRing([NEW]))


def test_an_unreadable_key_file_is_a_configuration_error(tmp_path: Path) -> None:
    """A folder where the file should be, bytes that are no text."""
    with pytest.raises(ConfigurationError, match="cannot be read or made"):
        KeyRing.load_or_create(tmp_path)
    (tmp_path / "x").write_bytes(b"\xff\xff")
    (tmp_path / "x").chmod(0o600)
    with pytest.raises(ConfigurationError, match="cannot be read or made"):
        KeyRing.load_or_create(tmp_path / "x")
