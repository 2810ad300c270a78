"""What a username, an e-mail address, a password and a profile may be. Pure.

Usernames are part of addresses (/profiles/{username}) and of what people read, so they are made of letters
and digits of any script, and `_`, `-`, `.` and inner spaces. Two that differ only in case or in the form of
their characters are the same name (NFKC, then case-folded): otherwise one person could pass for another.
E-mail addresses are compared without regard to case as well; only their shape is checked, since nothing but a
message that arrives proves one.
"""

from __future__ import annotations

import re
import unicodedata

from msgspec import UNSET

from market.checks import Checks, storable
from market.users.api import (
    BIO_LENGTH,
    EMAIL_LENGTH,
    IMAGE_LENGTH,
    PASSWORD_LENGTH,
    USERNAME_LENGTH,
    AccountChanges,
    NewAccount,
)

__all__ = [
    "check_changes",
    "check_login",
    "check_new",
    "fold",
    "is_username",
]

_EMAIL = re.compile(r"[^\s@\x00-\x1f\x7f]{1,64}@[^\s@\x00-\x1f\x7f.]+(?:\.[^\s@\x00-\x1f\x7f.]+)*")


def fold(value: str) -> str:
    """The form under which usernames and e-mail addresses are compared and reserved."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())


def is_username(value: str) -> bool:
    return 0 < len(value) <= USERNAME_LENGTH and storable(value) and _has_form_of_username(value)


def check_new(new: NewAccount) -> NewAccount:
    """The account to create, its username and address trimmed. Raises Invalid."""
    checks = Checks()
    cleaned = NewAccount(username=new.username.strip(), email=new.email.strip(), password=new.password)
    _username(checks, cleaned.username)
    _email(checks, cleaned.email)
    _password(checks, cleaned.password)
    checks.finish()
    return cleaned


def check_changes(changes: AccountChanges) -> AccountChanges:
    """The changes to make, trimmed; an empty bio or image becomes None. Raises Invalid."""
    checks = Checks()
    username, email, bio, image = changes.username, changes.email, changes.bio, changes.image
    if username is not UNSET:
        username = username.strip()
        _username(checks, username)
    if email is not UNSET:
        email = email.strip()
        _email(checks, email)
    if changes.password is not UNSET:
        _password(checks, changes.password)
    if bio is not UNSET:
        bio = bio or None
        checks.text("bio", bio or "", max_length=BIO_LENGTH, required=False)
    if image is not UNSET:
        image = (image or "").strip() or None
        checks.text("image", image or "", max_length=IMAGE_LENGTH, required=False)
    checks.finish()
    return AccountChanges(username=username, email=email, password=changes.password, bio=bio, image=image)


def check_login(email: str, password: str) -> None:
    """Refuse what cannot be anybody's credentials by form. Raises Invalid; says nothing about who exists."""
    checks = Checks()
    checks.text("email", email, max_length=EMAIL_LENGTH)
    _password(checks, password)
    checks.finish()


def _has_form_of_username(value: str) -> bool:
    """Letters, digits, marks (many scripts write vowels so) and some more; no mark, dot or dash in front."""
    first = value[0] == "_" or value[0].isalnum()
    return first and value[-1] != " " and all(_may_be_in_username(character) for character in value)


def _may_be_in_username(character: str) -> bool:
    return character in "_-. " or character.isalnum() or unicodedata.category(character)[0] == "M"


def _username(checks: Checks, value: str) -> None:
    if checks.text("username", value, max_length=USERNAME_LENGTH) and not _has_form_of_username(value):
        checks.fault("username", "may have letters, digits, spaces and _ - . only")


def _email(checks: Checks, value: str) -> None:
    if checks.text("email", value, max_length=EMAIL_LENGTH) and not _EMAIL.fullmatch(value):
        checks.fault("email", "is invalid")


def _password(checks: Checks, value: str) -> None:
    checks.text("password", value, max_length=PASSWORD_LENGTH)
