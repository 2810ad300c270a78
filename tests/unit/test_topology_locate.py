"""Every key of a valid TOML document is found on its line."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.topology.locate import locate

DOCUMENT = '''\
# a comment with [brackets] and key = 1
top = 1
"quoted key" = 2   # a comment
'lit.eral' . inner = 3
text = """
[not.a.table]
no = "key"
\\""" still text """
raw = \'\'\'
[[also]] = 'text'\'\'\'\'
list = [
    1,  # one ]
    "two, ]",
    { a = 1, "b" = [2, 3] },
]
when = 1979-05-27 07:32:00Z
inline = { x = 1, y.z = "}", w = {} }

[table]
key = 1
  [table.inner]   # indented
  deep.er = true
[[items]]
n = 1
[items.sub]
m = 2
[[items]]
n = 3
[[items.parts]]
p = 4
[ spaced . header ]
"\\u0041" = 5
'''


def test_every_form_of_key_is_on_its_line() -> None:
    """Tables, dotted and quoted keys, arrays of tables, inline tables, multi-line strings."""
    lines = locate(DOCUMENT)
    texts = DOCUMENT.split("\n")
    expected: dict[tuple[str | int, ...], str] = {
        ("top",): "top = 1",
        ("quoted key",): '"quoted key" = 2',
        ("lit.eral", "inner"): "'lit.eral' . inner",
        ("text",): 'text = """',
        ("raw",): "raw = '''",
        ("list",): "list = [",
        ("list", 0): "    1,",
        ("list", 1): '    "two',
        ("list", 2, "b", 1): "    { a",
        ("when",): "when",
        ("inline", "y", "z"): "inline",
        ("table",): "[table]",
        ("table", "inner", "deep", "er"): "  deep.er",
        ("items", 0): "[[items]]",
        ("items", 0, "sub", "m"): "m = 2",
        ("items", 1, "n"): "n = 3",
        ("items", 1, "parts", 0, "p"): "p = 4",
        ("spaced", "header", "A"): '"\\u0041" = 5',
    }
    for path, start in expected.items():
        assert texts[lines[path] - 1].startswith(start), path
    assert set(lines) == _paths(tomllib.loads(DOCUMENT))


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every path that tomllib sees; the locator must know exactly these."""
    found = {path} if path else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        found |= _paths(inner, (*path, name))
    return found


_names = st.text(st.sampled_from("ab.[]#='\"\\ -é\n"), max_size=4)


def _basic(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@st.composite
def _keys(draw: st.DrawFn) -> str:
    name = draw(_names)
    if name and name.isascii() and name.replace("-", "").isalnum():
        return name
    if "'" not in name and "\n" not in name and draw(st.booleans()):
        return f"'{name}'"
    return _basic(name)


@st.composite
def _strings(draw: st.DrawFn) -> str:
    text = draw(_names)
    form = draw(st.sampled_from(["basic", "literal", "multi", "multi literal"]))
    if form == "literal" and "'" not in text and "\n" not in text:
        return f"'{text}'"
    if form == "multi":
        return (
            '"""'
            + text.replace("\\", "\\\\").replace('"', '\\"')
            + "\n"
            + draw(st.sampled_from(["", '"', '""']))
            + '"""'
        )
    if form == "multi literal" and "'''" not in text:
        return "'''" + text.replace("'", "") + "\n" + draw(st.sampled_from(["", "'", "''"])) + "'''"
    return _basic(text)


_blank = st.sampled_from(["", " ", "\t"])
_break = st.sampled_from(["", " ", "\n", " # ] } , = \" '\n", "\n\n"])


def _values() -> st.SearchStrategy[str]:
    scalars = st.one_of(_strings(), st.sampled_from(["1", "-2.5e3", "true", "inf", "1979-05-27", "07:32:00"]))

    def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        arrays = st.lists(st.tuples(_break, inner, _break), max_size=3).map(
            lambda items: "[" + ",".join(a + value + b for a, value, b in items) + "]"
        )
        tables = st.lists(st.tuples(_keys(), inner), max_size=3, unique_by=lambda pair: pair[0]).map(
            lambda pairs: "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"
        )
        return st.one_of(arrays, tables)

    return st.recursive(scalars, containers, max_leaves=5)


@st.composite
def _documents(draw: st.DrawFn) -> tuple[str, list[tuple[int, str]]]:
    """A document, and the 1-based line of each statement with a marker key only it has."""
    text, marks = "", []
    for number in range(draw(st.integers(0, 8))):
        text += draw(_break).lstrip(" ")
        if text and not text.endswith("\n"):
            text += "\n"
        line = text.count("\n") + 1
        prefix = "".join(
            f"{draw(_keys())}{draw(_blank)}.{draw(_blank)}" for _ in range(draw(st.integers(0, 2)))
        )
        form = draw(st.sampled_from(["pair", "table", "array"]))
        marks.append((line, f"mark{number}"))
        if form == "pair":
            text += f"{prefix}mark{number}{draw(_blank)}={draw(_blank)}{draw(_values())} # end\n"
        elif form == "table":
            text += f"[{prefix}mark{number}]\n"
        else:
            text += f"[[{prefix}mark{number}]]\n"
    return text, marks


@settings(max_examples=40, deadline=None)
@given(_documents())
def test_any_valid_document_is_understood_like_the_parser_does(
    document: tuple[str, list[tuple[int, str]]],
) -> None:
    """The locator finds exactly the keys that tomllib finds, and each marked key on its line."""
    _hold_against_the_parser(*document)


@pytest.mark.stress
@settings(max_examples=3_000, deadline=None)
@given(_documents())
def test_thousands_of_documents_are_understood_like_the_parser_does(
    document: tuple[str, list[tuple[int, str]]],
) -> None:
    """The same, for as many documents as there is time for."""
    _hold_against_the_parser(*document)


def _hold_against_the_parser(text: str, marks: list[tuple[int, str]]) -> None:
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # two statements of the random document contradict each other
    lines = locate(text)
    assert set(lines) == _paths(parsed)
    for line, mark in marks:
        found = [at for path, at in lines.items() if path[-1] == mark]
        assert found == [line], mark
