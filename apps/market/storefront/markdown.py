"""Markdown that people write, as HTML that cannot do anything: no tags of theirs, no pictures from elsewhere.

Links are marked as other people's (`nofollow ugc`), and only http, https, mailto and addresses of this site
are links at all. A picture becomes a link to it: a page of ours loads nothing from other servers. The
title of the page is its only first heading.
Long texts are rendered in a thread; what was rendered is kept, at most `MAX_KEPT` characters of HTML.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape

__all__ = ["MAX_KEPT", "Markdown"]

MAX_KEPT = 4_000_000
LONG = 8_000
"""Characters from which on rendering would hold the event loop for more than some milliseconds."""

REL = "nofollow ugc noopener"
SCHEMES = frozenset({"", "http", "https", "mailto"})


class Markdown:
    def __init__(self) -> None:
        self._parser = _parser()
        self._kept: OrderedDict[str, Markup] = OrderedDict()
        self._size = 0

    async def html(self, text: str) -> Markup:
        found = self._kept.get(text)
        if found is not None:
            self._kept.move_to_end(text)
            return found
        if len(text) < LONG:
            made = self.render(text)
        else:
            made = await asyncio.to_thread(self.render, text)
        self._keep(text, made)
        return made

    def render(self, text: str) -> Markup:
        return Markup(self._parser.render(text))  # noqa: S704 - the parser escapes all that is not its own

    def _keep(self, text: str, made: Markup) -> None:
        if text in self._kept:
            return
        self._kept[text] = made
        self._size += len(text) + len(made)
        while self._size > MAX_KEPT:
            old, html = self._kept.popitem(last=False)
            self._size -= len(old) + len(html)


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    parser.validateLink = _may_link  # type: ignore[method-assign]  # the documented way to replace it
    for name in ("heading_open", "heading_close"):
        parser.add_render_rule(name, _heading)
    parser.add_render_rule("link_open", _link)
    parser.add_render_rule("image", _image)
    return parser


def _may_link(url: str) -> bool:
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return False
    return parts.scheme.lower() in SCHEMES


def _heading(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    token.tag = f"h{max(int(token.tag[1:]), 2)}"
    return self.renderToken(tokens, index, options, env)


def _link(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("rel", REL)
    return self.renderToken(tokens, index, options, env)


def _image(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Inside a link already it is its text; links do not nest."""
    token = tokens[index]
    text = escape(token.content or "picture")
    if any(one.type == "link_open" for one in tokens[:index]) and not any(
        one.type == "link_close" for one in tokens[:index]
    ):
        return str(text)
    return f'<a href="{escape(str(token.attrGet("src") or ""))}" rel="{REL}">{text}</a>'
