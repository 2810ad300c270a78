"""market's pages as a browser without scripts meets them: a jar of cookies, forms found in the HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import httpx
from tests.market.harness import PASSWORD, Api

__all__ = ["Browser", "Document", "browser"]

BASE = "https://market.test"


class Document(HTMLParser):
    """Forms with their fields, links, headings and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.forms: list[dict[str, Any]] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._words: list[str] = []
        self._area: str | None = None
        self._select: str | None = None
        self._heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "form":
            self.forms.append(
                {"action": given.get("action", ""), "method": given.get("method", "get"), "fields": {}}
            )
        elif tag == "input" and self.forms and "name" in given:
            if given.get("type") not in ("radio", "checkbox") or "checked" in given:
                self.forms[-1]["fields"][given["name"]] = given.get("value", "on")
        elif tag == "textarea" and self.forms:
            self._area = given["name"]
            self.forms[-1]["fields"][self._area] = ""
        elif tag == "select" and self.forms:
            self._select = given["name"]
        elif tag == "option" and self._select and ("selected" in given or "value" not in given):
            if "selected" in given or self._select not in self.forms[-1]["fields"]:
                self.forms[-1]["fields"][self._select] = given.get("value", "")
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "h1":
            self._heading = True
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._area is not None:
            fields = self.forms[-1]["fields"]
            fields[self._area] = fields[self._area].removeprefix("\n")
            self._area = None
        elif tag == "select":
            self._select = None
        elif tag == "h1":
            self._heading = False

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self.forms[-1]["fields"][self._area] += data
        if self._heading:
            self.headings[-1] += data
        self._words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self._words).split())

    def form(self, action: str) -> dict[str, str]:
        """The fields of the form that is sent to `action`, as they are shown."""
        found = [form["fields"] for form in self.forms if form["action"] == action]
        assert found, f"no form for {action}: {[form['action'] for form in self.forms]}"
        return dict(found[0])


class Browser:
    """`page` is the one that is open."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.response: httpx.Response | None = None
        self.page = Document("")

    async def get(self, path: str, *, expect: int = 200, **options: Any) -> Document:
        return self._open(await self.client.get(path, **options), expect)

    async def send(
        self, action: str, values: Mapping[str, str] | None = None, *, expect: int = 200, **options: Any
    ) -> Document:
        """Fill in the form of the open page that goes to `action`, send it, follow where it leads."""
        fields = self.page.form(action) | dict(values or {})
        return await self.post(action, fields, expect=expect, **options)

    async def post(
        self, action: str, fields: Mapping[str, str], *, expect: int = 200, **options: Any
    ) -> Document:
        options.setdefault("follow_redirects", True)
        return self._open(await self.client.post(action, data=dict(fields), **options), expect)

    async def sign_up(self, name: str) -> Browser:
        await self.get("/sign-up")
        email = f"{name.lower()}@example.com"
        await self.send("/sign-up", {"username": name, "email": email, "password": PASSWORD})
        assert name in self.page.text
        return self

    @property
    def path(self) -> str:
        assert self.response is not None
        return self.response.url.path

    def _open(self, response: httpx.Response, expect: int) -> Document:
        assert response.status_code == expect, f"{response.url}: {response.status_code} {_said(response)}"
        self.response = response
        self.page = Document(response.text)
        return self.page


def browser(api: Api) -> Browser:
    """Somebody new, with an empty jar, at the same application."""
    transport = api.client._transport.like()
    return Browser(httpx.AsyncClient(transport=transport, base_url=BASE))


def _said(response: httpx.Response) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", response.text).split())[:600]
