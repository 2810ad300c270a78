"""/docs: the OpenAPI document as one page, readable without a network, without scripts and without fonts.

FastAPI's own pages load their parts from other people's servers; this one is text and a style sheet, made
once when the application is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import msgspec

__all__ = ["STYLE", "page"]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --get: #2b6cb0; --post: #2f855a;
  --put: #b7791f; --delete: #c53030 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 2rem 1rem }
h1 { margin-bottom: .2rem } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
code, pre { font: 14px/1.5 ui-monospace, monospace } a { color: inherit }
pre { background: var(--soft); padding: .7rem 1rem; overflow-x: auto; border-radius: .4rem }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0 }
summary { cursor: pointer; padding: .5rem .8rem } details > div { padding: 0 .8rem .8rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top;
  padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line) }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700 }
.get { color: var(--get) } .post { color: var(--post) } .put { color: var(--put) }
.delete { color: var(--delete) }
[id^=schema-] { scroll-margin-top: 4rem }
.lock { float: right; opacity: .7; font-size: .85rem }
"""


def page(document: dict[str, Any]) -> str:
    info = document["info"]
    scheme = document["components"]["securitySchemes"]["Token"]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
            f"<p>{_prose(info['description'])}</p>",
            '<p>The same as a file: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1)</p>',
            f'<h2 id="token">Signing in</h2><p>{_prose(scheme["description"])}</p>',
            *_operations(document),
            *_messages(document.get("webhooks", {})),
            '<h2 id="schemas">Schemas</h2>',
            *_schemas(document["components"]["schemas"]),
            "</body></html>",
        ]
    )


def _operations(document: dict[str, Any]) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(path, method, operation)


def _messages(webhooks: dict[str, Any]) -> Iterator[str]:
    if webhooks:
        yield '<h2 id="messages">Messages to your programs</h2>'
    for type, methods in webhooks.items():
        for method, message in methods.items():
            yield from _operation(type, method, message)


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    security = operation.get("security", [])
    lock = "" if not security else "token optional" if {} in security else "token required"
    yield (
        f'<details id="{escape(operation["operationId"])}"><summary><span class="method {method}">'
        f"{method.upper()}</span> <code>{escape(path)}</code> {escape(operation['summary'])}"
        f'<span class="lock">{lock}</span></summary><div>'
    )
    if "description" in operation:
        yield f"<p>{_prose(operation['description'])}</p>"
    if "parameters" in operation:
        yield "<h4>Parameters</h4><table>"
        for parameter in operation["parameters"]:
            yield (
                f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{escape(parameter['in'])}</td>"
                f"<td>{_kind(parameter['schema'])}</td><td>{_prose(parameter['description'])}</td></tr>"
            )
        yield "</table>"
    if "requestBody" in operation:
        yield f"<h4>Body</h4><p>{_content(operation['requestBody'])}</p>"
    yield "<h4>Answers</h4><table>"
    for status, response in operation["responses"].items():
        example = _media(response).get("example")
        shown = "" if example is None else f"<br><code>{escape(msgspec.json.encode(example).decode())}</code>"
        yield (
            f"<tr><td>{status}</td><td>{_prose(response['description'])}{shown}</td>"
            f"<td>{_content(response)}</td></tr>"
        )
    yield "</table></div></details>"


def _schemas(schemas: dict[str, Any]) -> Iterator[str]:
    """The name is inside what is folded: whoever follows a link to it finds it unfolded."""
    for name, schema in sorted(schemas.items()):
        text = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
        yield (
            f"<details><summary><code>{escape(name)}</code></summary>"
            f'<div id="schema-{escape(name)}"><pre>{escape(text)}</pre></div></details>'
        )


def _content(part: dict[str, Any]) -> str:
    media = _media(part)
    return _kind(media["schema"]) if media else ""


def _media(part: dict[str, Any]) -> dict[str, Any]:
    """What a body or an answer carries, whatever its type is called; empty when it carries nothing."""
    return next(iter(part.get("content", {}).values()), {})


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to the named ones."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}"><code>{name}</code></a>'
    if "properties" in schema:
        fields = ", ".join(f"{escape(name)}: {_kind(value)}" for name, value in schema["properties"].items())
        return f"{{ {fields} }}"
    limits = [f"{word} {schema[key]}" for key, word in LIMITS.items() if key in schema]
    return escape(", ".join([str(schema.get("type", "anything")), *limits]))


LIMITS = {"minimum": "at least", "default": "default"}


def _prose(text: str) -> str:
    """Text with `code` in backticks."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
