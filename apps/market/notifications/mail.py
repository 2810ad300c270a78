"""Hand one mail to the mail server, by SMTP: taken, refused for good, or to be tried again.

    refused     the server answered 5xx to the recipient or the content; trying again cannot help
    try again   everything else: nobody answers, 4xx, a server that will not have *us* (sender, password)

One connection per mail and no mail without a limit: connecting, sending and the answer share one time-out.
When it ends, or the connection breaks after the content was sent, nobody knows whether the mail was taken; it
is sent again, with the same Message-ID.
"""

from __future__ import annotations

import asyncio
import re
import ssl

import aiosmtplib

from market.notifications.letters import Post
from market.notifications.settings import NotificationSettings

__all__ = ["Mailer", "MailRefused", "TryAgain", "is_for_good", "is_the_address"]

NOT_OURS_TO_JUDGE = frozenset({502, 503, 504, 530, 534, 535, 538})
"""5xx that speak of the session or the sign-in, not of the mail."""

STARTTLS = {"required": True, "offered": None, "never": False}

_ENHANCED = re.compile(r"5\.([0-9]{1,3})\.[0-9]{1,3}\b")

MAX_SHOWN = 300


class MailRefused(Exception):
    """`address`: the address takes no mail; otherwise this one mail was not taken."""

    def __init__(self, why: str, *, address: bool) -> None:
        super().__init__(why[:MAX_SHOWN])
        self.address = address


class TryAgain(Exception):
    """Nobody knows what became of it, or it was not taken for now."""


class Mailer:
    """`start` reads the certificates that TLS needs; no connection outlives a mail."""

    def __init__(self, settings: NotificationSettings) -> None:
        self._settings = settings
        self._tls: ssl.SSLContext | None = None

    async def start(self) -> None:
        if self._settings.smtp is not None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)

    async def send(self, post: Post) -> None:
        """Raises MailRefused, TryAgain."""
        smtp = self._client()
        try:
            async with asyncio.timeout(self._settings.mail_timeout):
                await smtp.connect()
                await smtp.sendmail(
                    post.sender,
                    [post.recipient],
                    post.content,
                    mail_options=["SMTPUTF8", "BODY=8BITMIME"] if post.utf8 else [],
                )
        except aiosmtplib.SMTPNotSupported as error:
            if post.utf8:
                raise MailRefused("the mail server takes no such address (SMTPUTF8)", address=True) from error
            raise TryAgain(f"the mail server lacks what is needed: {error}") from error
        except aiosmtplib.SMTPRecipientsRefused as error:
            refusal = error.recipients[0]
            text = f"{refusal.code} {refusal.message}"
            if is_for_good(refusal.code):
                address = is_the_address(refusal.code, refusal.message)
                raise MailRefused(text, address=address) from error
            raise TryAgain(text) from error
        except aiosmtplib.SMTPDataError as error:
            text = f"{error.code} {error.message}"
            if is_for_good(error.code):
                raise MailRefused(text, address=False) from error
            raise TryAgain(text) from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise TryAgain(f"{type(error).__name__}: {error}"[:MAX_SHOWN]) from error
        finally:
            smtp.close()

    def _client(self) -> aiosmtplib.SMTP:
        smtp, sender = self._settings.smtp, self._settings.sender
        assert smtp is not None
        assert sender is not None
        return aiosmtplib.SMTP(
            hostname=smtp.host,
            port=smtp.port,
            username=smtp.user,
            password=smtp.password,
            use_tls=smtp.tls,
            start_tls=None if smtp.tls else STARTTLS[smtp.starttls],
            tls_context=self._tls,
            local_hostname=sender.domain,
            timeout=None,  # for each step; `send` has one for all of them
        )


def is_for_good(code: int) -> bool:
    return 500 <= code <= 599 and code not in NOT_OURS_TO_JUDGE


def is_the_address(code: int, text: str) -> bool:
    """Whether a refusal of the recipient is about the address itself, not about its being full or a policy.

    By the enhanced status (RFC 3463: X.1 addressing, X.2 mailbox), where the server has one.
    """
    found = _ENHANCED.search(text)
    if found is not None:
        return found[1] == "1" or (found[1] == "2" and not found[0].startswith("5.2.2"))
    return code in (501, 550, 551, 553)
