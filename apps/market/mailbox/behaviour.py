"""How the mailbox misbehaves, as its control endpoint sets it; the default is a server that is well."""

from __future__ import annotations

import msgspec

__all__ = ["Behaviour"]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    down             the SMTP port refuses connections
    silent           connections are accepted and nothing is ever said
    delay            seconds before a mail's sender is answered
    sender_code      what MAIL is answered with, such as 451
    recipient_codes  address, or "*" for any other -> what RCPT is answered with, such as 550 or 450
    data_code        what a whole mail is answered with; it is not kept
    lose_answers     mails are kept, and the connection is cut before the sender hears so
    """

    down: bool = False
    silent: bool = False
    delay: float = 0.0
    sender_code: int | None = None
    recipient_codes: dict[str, int] = {}
    data_code: int | None = None
    lose_answers: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.delay <= 600:
            raise ValueError(f"delay must be 0 to 600 seconds, got {self.delay}")
        codes = [self.sender_code, self.data_code, *self.recipient_codes.values()]
        for code in codes:
            if code is not None and not 400 <= code <= 599:
                raise ValueError(f"codes must be 400 to 599, got {code}")

    def recipient_code(self, address: str) -> int | None:
        return self.recipient_codes.get(address, self.recipient_codes.get("*"))
