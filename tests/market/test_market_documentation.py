"""/docs and /openapi.json: complete, correct, and readable without a network."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.market.harness import Api
from tests.market.realworld import specification

from market.realworld.documentation import document
from market.realworld.page import page


@pytest.fixture
def shards() -> int:
    return 1


DOCUMENT = document(title="market", version="0")


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path.removeprefix("/api")): operation
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its references and its unions with null followed: comparable to the specification's."""
    if "$ref" in schema:
        return resolve(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return {"type": sorted((resolve(part)["type"] for part in schema["anyOf"]), reverse=True)}
    plain = {"type": schema["type"]}
    if "format" in schema:
        plain["format"] = schema["format"]
    if "properties" in schema:
        plain["properties"] = {name: resolve(part) for name, part in schema["properties"].items()}
        plain["required"] = sorted(schema.get("required", ()))
    for key in ("items", "additionalProperties"):
        if key in schema:
            plain[key] = resolve(schema[key])
    return plain


def test_every_operation_of_the_specification_is_documented() -> None:
    assert operations().keys() == specification.OPERATIONS.keys()


@pytest.mark.parametrize("operation", sorted(specification.OPERATIONS), ids=" ".join)
def test_answers_are_documented_as_specified(operation: tuple[str, str]) -> None:
    """The same statuses and schemas; beyond them only what transport and trouble can answer."""
    status, schema, refusals = specification.OPERATIONS[operation]
    documented = {int(code): response for code, response in operations()[operation]["responses"].items()}
    assert {status, *refusals} <= documented.keys()
    assert documented.keys() <= {status, *refusals, *specification.TRANSPORT, 503, 504}
    if schema is None:
        assert "content" not in documented[status]
    else:
        assert resolve(documented[status]["content"]["application/json"]["schema"]) == schema
    for code, response in documented.items():
        if code != status:
            assert resolve(response["content"]["application/json"]["schema"]) == specification.ERRORS
            example = response["content"]["application/json"]["example"]
            assert not specification.faults(specification.ERRORS, example)


def test_what_needs_a_token_says_so() -> None:
    for name, operation in operations().items():
        security = operation.get("security", [])
        if security == [{"Token": []}]:
            assert "401" in operation["responses"], name
        elif not security:
            assert name[1] in ("/users", "/users/login", "/tags"), name


def test_every_parameter_of_a_path_is_documented() -> None:
    for (method, path), operation in operations().items():
        named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path)), (method, path)


def test_every_reference_leads_somewhere() -> None:
    text = repr(DOCUMENT)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in DOCUMENT["components"]["schemas"]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """No scripts, no style sheets, fonts or pictures of other servers; everything documented is on it."""
    html = page(DOCUMENT)
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://", html)
    for path in DOCUMENT["paths"]:
        assert f"<code>{path}</code>" in html
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{anchor}"' in html


async def test_the_application_routes_what_it_documents(api: Api) -> None:
    """/openapi.json is the document; each operation in it has a route, and FastAPI adds nothing."""
    response = await api.client.get("/openapi.json")
    paths = {path for path in response.json()["paths"] if path.startswith("/api/")}
    assert paths == DOCUMENT["paths"].keys()
    docs = await api.client.get("/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    for method, path in operations():
        answer = await api.send(method, re.sub(r"\{\w+\}", "1", path))
        assert answer.status_code not in (405, 500), (method, path)
        assert answer.status_code != 404 or "route" not in answer.json()["errors"], (method, path)
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert (await api.client.get(path)).status_code == 404
