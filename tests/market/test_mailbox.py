"""The mailbox: what is sent to it can be read, nothing in it runs, and it can misbehave as servers do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib
import pytest
from tests.market.mailing import MailboxProcess, header

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
async def mailbox(tmp_path: Path) -> AsyncIterator[MailboxProcess]:
    made = MailboxProcess(tmp_path / "mails", keep=3)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


def mail(subject: str = "Hello", to: str = "ann@example.com", html: str | None = None) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "market@example.com"
    message["To"] = to
    message["Subject"] = subject
    message.set_content("Grüße")
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message


async def send(mailbox: MailboxProcess, message: EmailMessage) -> None:
    await aiosmtplib.send(message, hostname="127.0.0.1", port=mailbox.smtp_port, start_tls=False, timeout=10)


async def test_what_was_sent_is_there_also_after_a_restart(mailbox: MailboxProcess) -> None:
    await send(mailbox, mail("Grüße an alle", html="<p>Grüße</p>"))
    await send(mailbox, mail(to="bob@example.com"))
    await mailbox.terminate()
    await mailbox.start()
    (kept,) = await mailbox.mails("ann@example.com")
    assert (kept["sender"], kept["recipients"]) == ("market@example.com", ["ann@example.com"])
    assert kept["subject"] == header(kept, "subject") == "Grüße an alle"
    assert "Grüße" in kept["text"]
    assert "<p>Grüße</p>" in kept["html"]
    assert [found["id"] for found in await mailbox.mails()] == [2, 1]


async def test_only_the_newest_are_kept(mailbox: MailboxProcess) -> None:
    for number in range(5):
        await send(mailbox, mail(f"number {number}"))
    assert [found["subject"] for found in await mailbox.mails()] == ["number 4", "number 3", "number 2"]
    assert sorted(path.name for path in mailbox.state.iterdir()) == ["3.eml", "4.eml", "5.eml"]
    assert (await mailbox.http.get(f"{mailbox.url}/mails/1")).status_code == 404


async def test_nothing_in_a_mail_runs(mailbox: MailboxProcess) -> None:
    """Text is escaped on the pages; the HTML part is shown apart, and its policy allows no scripts."""
    await send(mailbox, mail(f"Hello {HOSTILE}", html=HOSTILE))
    for path in ("/", "/mails/1"):
        page = await mailbox.http.get(mailbox.url + path)
        assert HOSTILE not in page.text
        assert "&lt;script&gt;" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
    part = await mailbox.http.get(f"{mailbox.url}/mails/1.html")
    assert HOSTILE in part.text
    policy = part.headers["content-security-policy"]
    assert policy.startswith("sandbox ")
    assert "allow-scripts" not in policy
    assert "script-src" not in policy
    source = await mailbox.http.get(f"{mailbox.url}/mails/1.eml")
    assert source.headers["content-type"].startswith("text/plain")


async def test_what_cannot_be_read_is_kept_all_the_same(mailbox: MailboxProcess) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=mailbox.smtp_port, start_tls=False) as smtp:
        for content in (
            b"\xff\xfe\r\n\r\n\xff", b"To: <<<>@,;:\r\nContent-Type: text/html; charset=nonsense\r\n\r\n\xff",
            b"Content-Transfer-Encoding: base64\r\nContent-Type: text/plain\r\n\r\n!", b"",
        ):  # fmt: skip
            await smtp.sendmail("a@example.com", ["b@example.com"], content)
    assert [found["id"] for found in await mailbox.mails()] == [4, 3, 2]
    for page in ("/", "/mails/2", "/mails/3", "/mails/4"):
        assert (await mailbox.http.get(mailbox.url + page)).status_code == 200


async def test_it_misbehaves_as_told(mailbox: MailboxProcess) -> None:
    await mailbox.behave(recipient_codes={"ann@example.com": 550})
    with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
        await send(mailbox, mail())
    await mailbox.behave(data_code=451)
    with pytest.raises(aiosmtplib.SMTPDataError):
        await send(mailbox, mail())
    await mailbox.behave(sender_code=451)
    with pytest.raises(aiosmtplib.SMTPSenderRefused):
        await send(mailbox, mail())
    await mailbox.behave(down=True)
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await send(mailbox, mail())
    assert await mailbox.mails() == []
    await mailbox.behave(lose_answers=True)
    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await send(mailbox, mail())
    assert len(await mailbox.mails()) == 1
    assert (await mailbox.http.put(f"{mailbox.url}/control", json={"delay": -1})).status_code == 422
    await mailbox.behave()
    await send(mailbox, mail())
    assert len(await mailbox.mails()) == 2
