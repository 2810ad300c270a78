"""The SMTP side: every mail for everybody is taken, unless the behaviour says otherwise.

One server socket that can be closed and opened again on its port, so that `down` is what it is for a real
server: nobody listens.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from hmac import compare_digest
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from market.mailbox.behaviour import Behaviour
from market.mailbox.keeping import Mails

__all__ = ["MAX_MAIL_BYTES", "Receiver"]

MAX_MAIL_BYTES = 10_000_000


class Receiver:
    """`login` is `user:password`, without which no mail is taken; None asks nobody."""

    def __init__(self, mails: Mails, host: str, port: int, *, login: str | None = None) -> None:
        self._mails = mails
        self._host = host
        self._login = login
        self._server: asyncio.Server | None = None
        self.behaviour = Behaviour()
        self._socket: socket.socket | None = socket.create_server((host, port))
        self.port: int = self._socket.getsockname()[1]

    async def behave(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        if behaviour.down:
            self.close()
        else:
            await self.open()

    async def open(self) -> None:
        if self._server is not None:
            return
        listener, self._socket = self._socket or socket.create_server((self._host, self.port)), None
        self._server = await asyncio.get_running_loop().create_server(self._protocol, sock=listener)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _protocol(self) -> asyncio.BaseProtocol:
        if self.behaviour.silent:
            return asyncio.Protocol()
        return SMTP(
            Handler(self._mails, lambda: self.behaviour),
            hostname="mailbox.localhost",
            ident="mailbox",
            data_size_limit=MAX_MAIL_BYTES,
            enable_SMTPUTF8=True,
            decode_data=False,
            authenticator=None if self._login is None else self._authenticate,
            auth_required=self._login is not None,
            auth_require_tls=False,
        )

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert self._login is not None
        given = data.login + b":" + data.password if isinstance(data, LoginPassword) else b""
        return AuthResult(success=compare_digest(given, self._login.encode()), handled=False)


class Handler:
    """aiosmtpd's hooks; what a method returns is the answer."""

    def __init__(self, mails: Mails, behaviour: Callable[[], Behaviour]) -> None:
        self._mails = mails
        self._behaviour = behaviour

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        behaviour = self._behaviour()
        await asyncio.sleep(behaviour.delay)
        if behaviour.sender_code is not None:
            return f"{behaviour.sender_code} as told"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        code = self._behaviour().recipient_code(address)
        if code is not None:
            return f"{code} as told"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        behaviour = self._behaviour()
        if behaviour.data_code is not None:
            return f"{behaviour.data_code} as told"
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        kept = await self._mails.keep(envelope.mail_from or "", envelope.rcpt_tos, content)
        if behaviour.lose_answers and isinstance(server.transport, asyncio.WriteTransport):
            server.transport.abort()
        return f"250 kept as {kept.id}"
