"""Mail over TLS: from the first byte and by STARTTLS, with a certificate that is checked."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.market.notices import SENDER

from market.notifications.letters import Post
from market.notifications.mail import Mailer, TryAgain
from market.notifications.settings import NotificationSettings, Smtp

POST = Post(sender="a@example.com", recipient="b@example.com", content=b"Subject: x\r\n\r\nx", utf8=False)


class Taken:
    """Keeps whether each mail came over TLS."""

    def __init__(self) -> None:
        self.by_tls: list[bool] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        transport = server.transport
        assert transport is not None
        self.by_tls.append(transport.get_extra_info("ssl_object") is not None)
        return "250 OK"


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A server's certificate for 127.0.0.1, signed by itself; `tmp_path/cert.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


@asynccontextmanager
async def serving(taken: Taken, context: ssl.SSLContext, *, implicit: bool) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    starttls = None if implicit else context
    server = await loop.create_server(
        lambda: SMTP(taken, tls_context=starttls, loop=loop),
        "127.0.0.1",
        0,
        ssl=context if implicit else None,
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def send(url: str) -> None:
    mailer = Mailer(NotificationSettings(smtp=Smtp.parse(url, "required"), sender=SENDER, mail_timeout=10.0))
    await mailer.start()
    await mailer.send(POST)


@pytest.mark.parametrize("scheme", ["smtps", "smtp"])
async def test_mail_goes_over_tls_to_whom_we_trust_alone(
    certificate: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """A certificate that nobody vouches for gets no mail; it waits until somebody sees to it."""
    taken = Taken()
    async with serving(taken, certificate, implicit=scheme == "smtps") as port:
        with pytest.raises(TryAgain, match=r"(?i)certificate"):
            await send(f"{scheme}://127.0.0.1:{port}")
        assert taken.by_tls == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        await send(f"{scheme}://127.0.0.1:{port}")
        assert taken.by_tls == [True]
