"""Mail as it leaves and as the server answers: real SMTP to the mailbox, told to misbehave."""

from __future__ import annotations

import dataclasses
import email
import email.policy
import email.utils
from collections.abc import AsyncIterator
from email.header import decode_header, make_header
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests import jobs_support
from tests.jobs_support import until
from tests.market.harness import one_platform, one_shard
from tests.market.mailing import MailboxProcess, header
from tests.market.notices import World, comment, mailing, notice, world

from market.notifications import delivery
from market.notifications.api import Preference, Recipient
from market.notifications.jobs import SendMail
from market.notifications.letters import Post
from market.notifications.mail import Mailer, TryAgain
from springtide.db import bucket_of
from springtide.jobs.job import kind_of

pytestmark = one_platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _mailbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MailboxProcess]:
    made = MailboxProcess(tmp_path_factory.mktemp("mailbox"), login="market:secret")
    try:
        await made.start()
        yield made
    finally:
        await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def mailbox(_mailbox: MailboxProcess) -> MailboxProcess:
    """Empty, and well."""
    await _mailbox.clear()
    return _mailbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _worlds(
    _databases: list[str], home: Path, _mailbox: MailboxProcess
) -> AsyncIterator[dict[int, World]]:
    settings = mailing(_mailbox.smtp, mail_timeout=50.0)
    async with world(_databases[:1], home, settings) as one, world(_databases, home, settings) as two:
        yield {1: one, 2: two}


@pytest.fixture
def told(_worlds: dict[int, World], urls: list[str]) -> World:
    return _worlds[len(urls)]


async def test_one_mail_for_one_cause(told: World, mailbox: MailboxProcess) -> None:
    """Although it is told twice and the job runs twice, as after a crash before its end was written."""
    ann = await told.introduced("Ann", "ann@example.com")
    for _ in range(2):
        await told.notifications.notify(comment(ann, ann, "job-1"))
    await told.run_jobs()
    for pool in told.db.pools.values():
        await pool.execute(jobs_support.again("notifications"))
    assert await told.run_jobs() == 1
    assert len(await mailbox.mails()) == 1
    assert await told.mail_states(ann) == ["sent"]


async def test_a_mail_says_what_it_should(told: World, mailbox: MailboxProcess) -> None:
    ann = await told.introduced("Ann", "ann@example.com")
    bob = await told.introduced("Bob", "bob@example.com")
    await told.notifications.notify(comment(ann, bob, "job-1"))
    await told.run_jobs()
    (mail,) = await mailbox.mails()
    assert (mail["sender"], mail["recipients"]) == ("market@example.com", ["ann@example.com"])
    assert header(mail, "From") == "Market <market@example.com>"
    assert header(mail, "To") == "Ann <ann@example.com>"
    assert header(mail, "Subject") == "Bob commented on “On tides”"
    assert header(mail, "Auto-Submitted") == "auto-generated"
    assert header(mail, "List-Unsubscribe-Post") == "List-Unsubscribe=One-Click"
    stop = (header(mail, "List-Unsubscribe") or "").strip("<>")
    assert stop.startswith("https://market.example/market/notifications/unsubscribe?token=")
    created = (await told.notifications.inbox(ann)).items[0].created_at
    assert email.utils.parsedate_to_datetime(header(mail, "Date") or "") == created.replace(microsecond=0)
    for part in (mail["text"], mail["html"]):
        assert "Hello Ann" in part
        assert "Well said" in part
        assert "https://market.example/articles/on-tides" in part
        assert stop in part
    kind = await told.notifications.stop_mail(stop.split("token=")[1])
    assert kind == "comment"
    await told.notifications.notify(comment(ann, bob, "job-2"))
    assert await told.mail_states(ann) == ["unwanted", "sent"]


async def test_a_mail_that_may_have_been_taken_is_sent_again_as_the_same(
    told: World, mailbox: MailboxProcess
) -> None:
    """At least once: when the answer is lost nobody knows, so there are two, with one Message-ID and Date."""
    ann = await told.introduced()
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await mailbox.behave(lose_answers=True)
    await told.run_jobs()
    assert await told.mail_states(ann) == ["queued"]
    await mailbox.behave()
    await told.run_jobs()
    assert await told.mail_states(ann) == ["sent"]
    mails = await mailbox.mails()
    assert len(mails) == 2
    for name in ("Message-ID", "Date"):
        assert header(mails[0], name) == header(mails[1], name) is not None
    bob = await told.introduced()
    await told.notifications.notify(notice(bob, "welcome", "joined"))
    await told.run_jobs()
    assert len({header(mail, "Message-ID") for mail in await mailbox.mails()}) == 2


async def test_a_mail_server_that_is_away_for_an_hour_loses_nothing(
    told: World, mailbox: MailboxProcess
) -> None:
    """Refused connections, 4xx at every step: each mail is tried again, later each time, and then sent."""
    people = [await told.introduced() for _ in range(delivery.AT_ONCE + 1)]
    for id in people:
        await told.notifications.notify(notice(id, "welcome", "joined"))
    troubles: list[dict[str, Any]] = [
        {"down": True}, {"down": True}, {"sender_code": 451}, {"recipient_codes": {"*": 450}},
        {"data_code": 452}, {"sender_code": 550},
    ]  # fmt: skip
    waits: list[float] = []
    for trouble in troubles:
        await mailbox.behave(**trouble)
        await told.run_jobs()
        rows = await told.jobs("kind = 'notifications.mail'")
        assert [row["state"] for row in rows] == ["ready"] * 4
        waits.append(min((row["run_at"] - row["now"]).total_seconds() for row in rows))
    assert waits[0] < 10
    assert waits[-1] > 60
    assert await mailbox.mails() == []
    await mailbox.behave()
    await told.run_jobs()
    assert [await told.mail_states(id) for id in people] == [["sent"]] * 4
    assert len(await mailbox.mails()) == 4


async def test_jobs_are_tried_for_longer_than_half_a_day(told: World) -> None:
    """By the least that the backoff can wait."""
    spec = kind_of(SendMail)
    waits = [
        min(spec.backoff * 2.0 ** (attempt - 1), spec.max_backoff) for attempt in range(1, spec.max_attempts)
    ]
    assert sum(waits) * 0.5 > 12 * 3600


async def test_a_mail_whose_tries_are_used_up_can_be_sent_yet(told: World, mailbox: MailboxProcess) -> None:
    """Its dead letter is made ready again, as docs/jobs.md says, when the mail server is back after days."""
    ann = await told.introduced()
    await mailbox.behave(sender_code=451)
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    database, last = told.db, kind_of(SendMail).max_attempts - 1
    async with database.write(ann) as tx:
        await tx.execute("update notifications._job set attempt = $1 where bucket = $2", last, bucket_of(ann))
    await told.run_jobs()
    assert [row["state"] for row in await told.jobs("kind = 'notifications.mail'")] == ["dead"]
    assert await told.mail_states(ann) == ["queued"]
    await mailbox.behave()
    async with database.write(ann) as tx:
        await tx.execute(
            "update notifications._job set state = 'ready', attempt = 0, run_at = now() where bucket = $1",
            bucket_of(ann),
        )
    await told.run_jobs()
    assert await told.mail_states(ann) == ["sent"]


async def test_an_address_that_takes_no_mail_is_marked_until_it_changes(
    told: World, mailbox: MailboxProcess
) -> None:
    ann = await told.introduced("Ann", "ann@example.com")
    await mailbox.behave(recipient_codes={"ann@example.com": 550})
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    assert await told.jobs("state = 'dead'") == []  # it could only be refused again
    assert await told.mail_states(ann) == ["refused"]
    assert (await told.notifications.preferences(ann)).bouncing
    await mailbox.behave()
    await told.notifications.notify(comment(ann, ann, "job-1"))
    assert await told.run_jobs() == 0
    same = Recipient(id=ann, name="Anna", email="ann@example.com", version=2)
    await told.notifications.introduce(same)
    unwanted = await told.notifications.prefer(ann, [Preference(kind="sale", mail=False, push=True)])
    assert unwanted.bouncing
    wanted = await told.notifications.prefer(ann, [Preference(kind="sale", mail=True, push=True)])
    assert not wanted.bouncing
    await mailbox.behave(recipient_codes={"ann@example.com": 550})
    await told.notifications.notify(comment(ann, ann, "job-again"))
    await told.run_jobs()
    assert (await told.notifications.preferences(ann)).bouncing
    await mailbox.behave()
    other = Recipient(id=ann, name="Anna", email="anna@example.com", version=3)
    await told.notifications.introduce(other)
    assert not (await told.notifications.preferences(ann)).bouncing
    await told.notifications.notify(comment(ann, ann, "job-2"))
    await told.run_jobs()
    assert await told.mail_states(ann) == ["sent", "refused", "refused", "refused"]
    assert len(await mailbox.mails("anna@example.com")) == 1


async def test_a_mail_that_is_refused_says_nothing_about_the_address(
    told: World, mailbox: MailboxProcess
) -> None:
    ann = await told.introduced()
    await mailbox.behave(data_code=554)
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    assert await told.mail_states(ann) == ["refused"]
    assert not (await told.notifications.preferences(ann)).bouncing


async def test_what_somebody_does_not_want_is_not_mailed(told: World, mailbox: MailboxProcess) -> None:
    """Also when they say so after it was told, and before it is sent."""
    ann = await told.introduced()
    await told.notifications.notify(comment(ann, ann, "job-1"))
    await told.notifications.prefer(ann, [Preference(kind="comment", mail=False, push=True)])
    await told.notifications.notify(comment(ann, ann, "job-2"))
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    assert await told.mail_states(ann) == ["sent", "unwanted", "unwanted"]
    (mail,) = await mailbox.mails()
    assert header(mail, "Subject") == "Welcome to market"


async def test_a_notice_may_come_before_its_recipient_is_introduced(
    told: World, mailbox: MailboxProcess
) -> None:
    ann = await told.introduced()
    stranger = ann + (1 << 30)
    await told.notifications.notify(notice(stranger, "welcome", "joined"))
    await told.run_jobs()
    assert await told.mail_states(stranger) == ["queued"]
    await told.introduced("Late", "late@example.com", id=stranger)
    await told.run_jobs()
    assert len(await mailbox.mails("late@example.com")) == 1


HOSTILE = "<script>alert(1)</script> & \"'"


async def test_what_people_wrote_is_escaped_in_the_html_part(told: World, mailbox: MailboxProcess) -> None:
    ann = await told.introduced(f"Ann {HOSTILE}"[:64])
    bob = await told.introduced("</title><img src=x onerror=alert(2)>")
    data = {"article": f"On {HOSTILE}", "excerpt": f"{HOSTILE}\n<b>bold</b>"}
    await told.notifications.notify(comment(ann, bob, "job-1", data=data))
    await told.run_jobs()
    (mail,) = await mailbox.mails()
    assert not [tag for tag in ("<script", "<img", "<b>") if tag in mail["html"]]
    assert "&lt;b&gt;bold&lt;/b&gt;" in mail["html"]
    assert mail["html"].count("&lt;script&gt;alert(1)&lt;/script&gt; &amp;") == 4
    assert f"{HOSTILE}\n<b>bold</b>" in mail["text"].replace("\r\n", "\n")


INJECTED = "x\r\nBcc: victim@example.com\r\n\r\nSpam"
ENCODED = "=?utf-8?q?x=0d=0aBcc:_victim@example.com?="


async def test_nobody_writes_headers(told: World, mailbox: MailboxProcess) -> None:
    """Line breaks and control characters in names, titles and comments stay text of one line.

    So do those that are spelled as encoded words (RFC 2047), which whoever reads a header decodes.
    """
    for number, name in enumerate((f"Ann{ENCODED}", f"{ENCODED} {ENCODED}"[:64], "=?utf-8?q?Admin?=")):
        id = await told.introduced(name)
        await told.notifications.notify(comment(id, id, f"job-{number}", data={"article": ENCODED}))
    await told.run_jobs()
    for mail in await mailbox.mails():
        assert header(mail, "Bcc") is None
        assert "= ?utf-8?q?x=0d=0aBcc:_victim@example.com?=" in (header(mail, "Subject") or "")
        assert "= ?utf-8?q?" in (header(mail, "To") or "")
    await mailbox.clear()
    ann = await told.introduced(f"Ann{INJECTED}")
    bob = await told.introduced(f"Bob{INJECTED}\u202e")
    await told.notifications.notify(comment(ann, bob, "job-1", data={"article": INJECTED}))
    await told.run_jobs()
    (mail,) = await mailbox.mails()
    assert header(mail, "Bcc") is None
    assert mail["recipients"] == [f"person{ann}@example.com"]
    assert header(mail, "Subject") == (
        "Bobx Bcc: victim@example.com Spam commented on “x Bcc: victim@example.com Spam”"
    )
    source = (await mailbox.http.get(f"{mailbox.url}/mails/{mail['id']}.eml")).text
    head = source.split("\n\n")[0] if "\n\n" in source else source.split("\r\n\r\n")[0]
    assert not [line for line in head.splitlines() if line.lower().startswith("bcc")]


@pytest.mark.parametrize(
    "address",
    [
        "ann@example.com\r\nRCPT TO:<victim@example.com>", "ann@example.com> BODY=8BITMIME", "ann", "@",
        "a b@example.com", "ann@exa mple.com", "@example.com", "ann@", "a,b@example.com", "a@b@c.com",
        "<ann@example.com>", "ann@example..com", "ann@-example.com", "ann@exam_ple.com", ".ann@example.com",
        "a..n@example.com", 'ann"@example.com', "ann\x7f@example.com", "ann\u2028@example.com",
        "ann@\u0661\u0662.example", "=?utf-8?q?x=0d=0aBcc=3A=20victim=40example=2Ecom?=@example.com",
        "=?utf-8?b?DQpCY2M6IGV2aWxAZS5jb20=?=@example.com",
    ],
)  # fmt: skip
@one_shard
async def test_what_is_no_address_gets_no_mail(told: World, mailbox: MailboxProcess, address: str) -> None:
    """It is refused before anything is said to the mail server, and marked."""
    ann = await told.introduced("Ann", address)
    await mailbox.behave(recipient_codes={"*": 421})
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    assert await told.mail_states(ann) == ["refused"]
    assert (await told.notifications.preferences(ann)).bouncing


async def test_names_and_addresses_of_any_script_arrive(told: World, mailbox: MailboxProcess) -> None:
    """A domain goes out in ASCII, a local part as it is; huge names and titles are folded, not cut."""
    names = ["Jürgen, der “Große” <x@y.z>", "佐藤さくら" * 12, "Ж" * 64, 'Ann "the" O\\Neil', "O'Neil"]
    for number, name in enumerate(names):
        id = await told.introduced(name, f"person{number}@bücher.example")
        data = {"article": "Ä" * 255, "excerpt": "ö" * 500}
        await told.notifications.notify(comment(id, id, "job-1", data=data))
    await told.run_jobs()
    mails = {mail["recipients"][0]: mail for mail in await mailbox.mails()}
    assert len(mails) == len(names)
    for number, name in enumerate(names):
        address = f"person{number}@xn--bcher-kva.example"
        mail = mails[address]
        source = (await mailbox.http.get(f"{mailbox.url}/mails/{mail['id']}.eml")).content
        raw = email.message_from_bytes(source, policy=email.policy.compat32)
        shown, spec = parseaddr(raw["To"].replace("\r\n", ""))
        assert (str(make_header(decode_header(shown))), spec) == (name, address)
        assert header(mail, "Subject") == f"{name} commented on “{'Ä' * 255}”"
        assert "ö" * 500 in mail["text"]
        assert source.isascii()
        assert max(map(len, source.split(b"\r\n"))) <= 998


async def test_a_local_part_of_any_script_needs_a_server_that_takes_it(
    told: World, mailbox: MailboxProcess
) -> None:
    ann = await told.introduced("Jürgen", "jürgen@bücher.example")
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    (mail,) = await mailbox.mails()
    assert mail["recipients"] == ["jürgen@xn--bcher-kva.example"]
    assert header(mail, "To") == "Jürgen <jürgen@xn--bcher-kva.example>"


async def test_an_order_of_a_thousand_things_makes_a_mail_that_can_be_read(
    told: World, mailbox: MailboxProcess
) -> None:
    ann = await told.introduced()
    titles = "\n".join(f"Thing {number}" for number in range(1, 1_001))
    await told.notifications.notify(
        notice(ann, "order_confirmed", "order-5", order="5", total="12.50 EUR", titles=titles)
    )
    await told.run_jobs()
    (mail,) = await mailbox.mails()
    assert "Thing 20\r\nand 980 more\r\nTotal: 12.50 EUR" in mail["text"].replace("\n\n", "\n")


@one_shard
async def test_a_silent_mail_server_holds_nothing_else_up(told: World, mailbox: MailboxProcess) -> None:
    """What else there is to do is done meanwhile, and no mail is lost or has used up its tries.

    As many mails are on their way as there are places; the others step aside.
    """
    people = [await told.introduced() for _ in range(20)]
    for id in people:
        await told.notifications.notify(notice(id, "welcome", "joined"))
    await mailbox.behave(silent=True)

    async def stepped_aside() -> bool:
        """Every mail but those that are on their way, at least once."""
        return len(
            {row["payload"][:40] for row in await told.jobs() if '"waits":0' not in row["payload"]}
        ) >= (20 - delivery.AT_ONCE)

    async with told.working(drain=0.1):
        await until(stepped_aside, seconds=30)
        async with told.db.write(people[0]) as tx:
            other = await tx.enqueue(SendMail(people[0], 99))  # of a notice that there is not
        await until(lambda: told.jobs(f"state = 'done' and id = '{other}'"), seconds=30)
        assert await mailbox.mails() == []
    await mailbox.behave()
    await told.run_jobs()
    assert len(await mailbox.mails()) == 20
    assert max(row["attempt"] for row in await told.jobs()) <= 2


@one_shard
async def test_a_mail_does_not_step_aside_for_ever(
    told: World, mailbox: MailboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After about a day without a place each look is a failed try, and those have an end that is seen."""
    monkeypatch.setattr(delivery, "MAX_WAITS", 1)
    people = [await told.introduced() for _ in range(delivery.AT_ONCE + 1)]
    for id in people:
        await told.notifications.notify(notice(id, "welcome", "joined"))
    await mailbox.behave(silent=True)

    async def failed() -> bool:
        return bool([row for row in await told.jobs() if "no place was free" in (row["error"] or "")])

    async with told.working(drain=0.1):
        await until(failed, seconds=30)


async def test_a_mail_has_a_limit_of_time(mailbox: MailboxProcess) -> None:
    await mailbox.behave(silent=True)
    mailer = Mailer(mailing(mailbox.smtp, mail_timeout=0.1))
    with pytest.raises(TryAgain):
        await mailer.send(POST)


async def test_a_password_that_is_not_taken_is_no_fault_of_the_mail(mailbox: MailboxProcess) -> None:
    """The operator will set it right; until then the mails wait."""
    mailer = Mailer(mailing(mailbox.smtp.replace("secret", "wrong")))
    with pytest.raises(TryAgain, match="535"):
        await mailer.send(POST)
    assert await mailbox.mails() == []


async def test_without_tls_nothing_is_sent_where_tls_is_required(mailbox: MailboxProcess) -> None:
    settings = mailing(mailbox.smtp)
    assert settings.smtp is not None
    strict = dataclasses.replace(settings, smtp=dataclasses.replace(settings.smtp, starttls="required"))
    with pytest.raises(TryAgain):
        await Mailer(strict).send(POST)
    assert await mailbox.mails() == []


POST = Post(sender="a@example.com", recipient="b@example.com", content=b"Subject: x\r\n\r\nx", utf8=False)
