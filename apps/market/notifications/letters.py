"""A notice as a mail: headers, a plain text and the same as HTML. Pure.

The same notice always makes the same Message-ID and Date, so a mail that arrives twice (a crash after the
server took it) can be recognised as one. Names and titles are text that people wrote: they are made one line
before they become a header, and nothing in them is left that reads as an encoded word (RFC 2047): the email
package would decode it, and the line breaks in it would begin new headers. In the HTML part they are escaped.
An address is what it was written as; its domain goes out in ASCII (IDNA). One whose local part is not ASCII
needs a server with SMTPUTF8; one that no server would take, or whose local part reads as an encoded word,
raises Unmailable.
"""

from __future__ import annotations

import re
from datetime import datetime
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import blake2b

import idna
import msgspec
from jinja2 import DictLoader, Environment, StrictUndefined

from market.notifications.texts import Words, one_line

__all__ = ["Post", "Unmailable", "composed", "mailable", "message_id"]

_ATOM = r"[^\s\x00-\x20\"(),.:;<>@\[\\\]\x7f-\x9f]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_LOCAL = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

HTML = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{{ words.title }}</title></head>
<body style="font: 16px/1.5 sans-serif; color: #1d2733; max-width: 36em; margin: 0 auto; padding: 1em">
<p>Hello {{ name }},</p>
<h1 style="font-size: 1.25em">{{ words.title }}</h1>
{% for line in words.lines %}
<p>{{ line }}</p>
{% endfor %}
<p><a href="{{ link }}">{{ words.action }}</a></p>
<hr>
<p style="color: #5b6673; font-size: .9em">You have an account at market, which sent this mail.
<a href="{{ stop }}">No more mails about: {{ kind }}</a></p>
</body>
</html>
"""

TEXT = """Hello {{ name }},

{{ words.title }}

{% for line in words.lines %}
{{ line }}
{% endfor %}

{{ words.action }}: {{ link }}

--{{ " " }}
You have an account at market, which sent this mail.
No more mails about: {{ kind }}
{{ stop }}
"""

_OPTIONS = {"undefined": StrictUndefined, "trim_blocks": True, "keep_trailing_newline": True}
_html = Environment(loader=DictLoader({"mail": HTML}), autoescape=True, **_OPTIONS)  # type: ignore[arg-type]
_text = Environment(loader=DictLoader({"mail": TEXT}), autoescape=False, **_OPTIONS)  # type: ignore[arg-type]  # noqa: S701 - plain text


class Unmailable(Exception):
    """No server would take this address."""


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """A mail ready to go. `utf8`: it needs a server with SMTPUTF8."""

    sender: str
    recipient: str
    content: bytes
    utf8: bool


def mailable(name: str, email: str) -> Address:
    """Raises Unmailable."""
    local, _, domain = email.rpartition("@")
    try:
        ascii_domain = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except idna.IDNAError as error:
        raise Unmailable(f"the domain of {email!r} is none: {error}") from error
    if not _LOCAL.fullmatch(local) or "=?" in local or not _DOMAIN.fullmatch(ascii_domain):
        raise Unmailable(f"{email!r} is no address")
    return Address(display_name=_in_header(name), username=local, domain=ascii_domain)


def message_id(recipient: int, number: int, at: datetime, domain: str) -> str:
    """The same for the same notice; `at` tells apart those of two databases."""
    digest = blake2b(f"{recipient}.{number}.{at.isoformat()}".encode(), digest_size=16).hexdigest()
    return f"<{digest}@{domain}>"


def composed(
    words: Words,
    *,
    name: str,
    to: Address,
    sender: Address,
    kind: str,
    link: str,
    stop: str,
    id: str,
    at: datetime,
) -> Post:
    """`name` is whom the text greets; `stop` stops such mails: a page for people, POST for programs."""
    utf8 = not to.username.isascii()
    message = EmailMessage(policy=policy.SMTPUTF8 if utf8 else policy.SMTP.clone(cte_type="7bit"))
    message["From"] = sender
    message["To"] = to
    message["Subject"] = _in_header(words.title)
    message["Date"] = format_datetime(at)
    message["Message-ID"] = id
    message["Auto-Submitted"] = "auto-generated"
    message["List-Unsubscribe"] = f"<{stop}>"
    if stop.startswith("https://"):  # RFC 8058 allows the one click over nothing else
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    values = {
        "words": words,
        "name": name,
        "link": link,
        "stop": stop,
        "kind": kind,
    }
    message.set_content(_text.get_template("mail").render(values))
    message.add_alternative(_html.get_template("mail").render(values), subtype="html")
    return Post(
        sender=sender.addr_spec, recipient=f"{to.username}@{to.domain}", content=message.as_bytes(), utf8=utf8
    )


def _in_header(text: str) -> str:
    return one_line(text).replace("=?", "= ?")
