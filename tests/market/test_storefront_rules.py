"""What pages decide without asking anybody: ways back, Markdown, forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.storefront.forms import Form, local
from market.storefront.markdown import Markdown

REL = 'rel="nofollow ugc noopener"'

ELSEWHERE = [
    "//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example",
    "javascript:alert(1)", "/\n//evil.example", " //evil.example", "evil.example", "///evil.example",
    "/ /evil",    "/\x00/evil.example", "http:/evil.example", "/é", "",
]  # fmt: skip


@pytest.mark.parametrize("target", ELSEWHERE)
def test_only_addresses_of_this_site_are_led_back_to(target: str) -> None:
    assert local(target) == "/"


@pytest.mark.parametrize("target", ["/", "/cart", "/articles?tag=a%20b&page=2", "/people/J%C3%B6rg"])
def test_addresses_of_this_site_are_led_back_to(target: str) -> None:
    assert local(target) == target


MARKDOWN = [
    ("[a](javascript:alert(1))", "<a", 0),
    ("[a](data:text/html,x)", "<a", 0),
    ("[a](vbscript:x)", "<a", 0),
    ("<b onclick=x>", "<b", 0),
    ("![p](https://evil.example/p.png)", "<img", 0),
    ("![p](https://evil.example/p)", f'<a href="https://evil.example/p" {REL}>p</a>', 1),
    ("[![p](/x.png)](/y)", "<a", 1),
    ("[a](https://example.com)", REL, 1),
    ('[a](https://example.com "t\\" onmouseover=x")', "onmouseover=x&quot;", 0),
    ("# big", "<h1", 0),
    ("# big", "<h2>big</h2>", 1),
    ("a \\<b>", "&lt;b&gt;", 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "part", "times"), MARKDOWN)
def test_markdown_cannot_do_anything(text: str, part: str, times: int) -> None:
    html = Markdown().render(text)
    assert html.count(part) == times, html


@given(st.text(max_size=300))
def test_no_text_becomes_an_active_tag(text: str) -> None:
    """Whatever is written: no tag with a handler or a style, no script, no picture."""
    html = Markdown().render(text)
    for tag in html.split("<")[1:]:
        name = tag.split(">")[0]
        assert not name.startswith(("script", "img", "iframe", "style", "svg", "form", "input")), html
        assert " on" not in name.split('"')[0], html


def test_forms_read_whole_numbers_and_nothing_else() -> None:
    for text, number in {
        "5": 5,
        " -3 ": -3,
        "0": 0,
        "1e3": None,
        "٣": None,
        "": None,
        "9" * 17: None,
    }.items():
        assert Form([("n", text)]).whole("n") == number, text


def test_the_lines_of_a_text_end_with_one_character() -> None:
    """As they were typed, and not as HTTP sends them."""
    assert Form([("t", "a\r\nb")]).text("t") == "a\nb"
