"""The pages for people: a list, and one mail. Everything that a mail holds is escaped; no scripts.

The HTML part of a mail is an answer of its own, sandboxed by its policy, so that nothing in it can run, load
or reach the page around it; links in it open.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import DictLoader, Environment, StrictUndefined

from market.mailbox.keeping import Kept

__all__ = ["PAGE_POLICY", "PART_POLICY", "listed", "shown"]

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
PART_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation;"
    " default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"
)

BASE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% block title %}Mailbox{% endblock %}</title>
<style>
  body {
    font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #1d2733;
  }
  a { color: #0b5cad; }
  table { border-collapse: collapse; }
  th { text-align: left; padding-right: 1rem; vertical-align: top; white-space: nowrap; }
  td { overflow-wrap: anywhere; padding-right: 1rem; vertical-align: top; }
  .list tr { border-bottom: 1px solid #d5dbe1; }
  .list td, .list th { padding-block: .4rem; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f3f5f7; padding: 1rem; }
  iframe { width: 100%; height: 32rem; border: 1px solid #d5dbe1; background: #fff; }
</style>
<main>{% block main %}{% endblock %}</main>
</html>
"""

LIST = """{% extends "base" %}
{% block main %}
<h1>Mailbox</h1>
<p>Mails that the application sent. They went no further.</p>
{% if mails %}
<table class="list">
<thead><tr><th scope="col">Subject</th><th scope="col">To</th><th scope="col">Date</th></tr></thead>
<tbody>
{% for mail in mails %}
<tr><td><a href="mails/{{ mail.id }}">{{ mail.subject or "(no subject)" }}</a></td>
<td>{{ mail.recipients | join(", ") }}</td><td>{{ dates[mail.id] }}</td></tr>
{% endfor %}
</tbody>
</table>
{% else %}
<p>There is none.</p>
{% endif %}
{% endblock %}
"""

MAIL = """{% extends "base" %}
{% block title %}{{ mail.subject or "(no subject)" }}{% endblock %}
{% block main %}
<p><a href="../">All mails</a> · <a href="{{ mail.id }}.eml">Source</a></p>
<h1>{{ mail.subject or "(no subject)" }}</h1>
<table>
<tr><th scope="row">From (envelope)</th><td>{{ mail.sender }}</td></tr>
<tr><th scope="row">To (envelope)</th><td>{{ mail.recipients | join(", ") }}</td></tr>
{% for name, value in mail.headers %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% if mail.html %}<h2>HTML</h2><iframe src="{{ mail.id }}.html" title="HTML part"></iframe>{% endif %}
{% if mail.text %}<h2>Text</h2><pre>{{ mail.text }}</pre>{% endif %}
{% endblock %}
"""

_pages = Environment(
    loader=DictLoader({"base": BASE, "list": LIST, "mail": MAIL}), autoescape=True, undefined=StrictUndefined
)


def listed(mails: Sequence[Kept]) -> str:
    dates = {mail.id: next((v for n, v in mail.headers if n.lower() == "date"), "") for mail in mails}
    return _pages.get_template("list").render(mails=mails, dates=dates)


def shown(mail: Kept) -> str:
    return _pages.get_template("mail").render(mail=mail)
