"""market as it would be without jobs in one place: who registers waits until the mail server has the welcome.

The mail is sent by market's own mailer, as its job would; everything else is market's.
"""

from __future__ import annotations

from email.message import EmailMessage
from typing import Any

from market.application import served
from market.notifications.letters import Post
from market.notifications.mail import Mailer
from market.notifications.settings import NotificationSettings
from market.platform import modules
from market.settings import Settings
from market.users.api import Account, NewAccount
from market.users.service import UserService
from springtide.platform import Platform

__all__ = ["make"]


def make() -> Any:
    settings = NotificationSettings.from_environment()
    mailer, register = Mailer(settings), UserService.register
    assert settings.sender is not None
    sender = settings.sender.addr_spec

    async def register_and_mail(users: UserService, new: NewAccount) -> Account:
        account = await register(users, new)
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = sender, account.email, "Welcome to market"
        message.set_content("Your account is ready. Write, browse, buy and sell.\n")
        await mailer.start()
        await mailer.send(
            Post(sender=sender, recipient=account.email, content=message.as_bytes(), utf8=False)
        )
        return account

    UserService.register = register_and_mail  # type: ignore[method-assign]
    platform = Platform.from_topology(modules=modules())
    return served(platform, Settings.from_environment())


def __getattr__(name: str) -> Any:
    """`app`, made when a server asks for it."""
    if name == "app":
        return make()
    raise AttributeError(name)
