"""The part of the OpenAPI document that is under /market, made from the operations and their structs.

What market sends to sellers' programs is in it, too, as OpenAPI's webhooks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from market.rest.bodies import DEFAULT_LIMIT, MAX_LIMIT
from market.rest.operations import PREFIX, Operation
from market.rest.problems import DETAIL, PROBLEM, Problem

__all__ = ["extend"]

Schema = dict[str, Any]

REF = "#/components/schemas/{name}"
SECURITY = "Token"
"""The scheme of the document that is extended: the same tokens open both APIs."""

LATER = {
    413: "The body is too large.",
    503: "Busy; try again after Retry-After seconds.",
    504: "The request could not be answered in time.",
}

ABOUT = (
    " Under `/market` is the API of the shops: errors are `application/problem+json` (RFC 9457), lists are"
    ' pages `{"items": [..], "next": cursor}`, reads have ETags, and changes need If-Match.'
)


SIGNED = {
    "webhook-id": "of the message, the same at each try",
    "webhook-timestamp": "of the try, in seconds since 1970",
    "webhook-signature": "`v1,` and base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`; two with a space"
    " between while a secret is being replaced",
}

TAKEN = {
    "2XX": {"description": "It is taken. What else is answered is not read."},
    "410": {"description": "The address is gone: it is called no more."},
    "default": {"description": "It is sent again, later each time, for about three days."},
}


def extend(document: Schema, operations: Sequence[Operation], told: Mapping[str, Any]) -> Schema:
    """`document` with the operations added, and what is `told`: the struct of the data of each type.

    Raises ValueError when a name or an address is there already.
    """
    described = {**document, "info": {**document["info"]}, "paths": {**document["paths"]}}
    described["info"]["description"] += ABOUT
    tags = [tag["name"] for tag in document["tags"]]
    described["tags"] = [{"name": name} for name in dict.fromkeys([*tags, *(one.tag for one in operations)])]
    for operation in operations:
        methods = described["paths"].setdefault(PREFIX + operation.path, {})
        if operation.method.lower() in methods:
            raise ValueError(f"{operation.method} {operation.path} is described twice")
        methods[operation.method.lower()] = _operation(operation)
    described["webhooks"] = {type: {"post": _message(type, data)} for type, data in told.items()}
    schemas = _schemas(operations, told.values())
    if both := schemas.keys() & document["components"]["schemas"].keys():
        raise ValueError(f"two schemas have one name: {', '.join(sorted(both))}")
    components = document["components"]
    described["components"] = {**components, "schemas": {**components["schemas"], **schemas}}
    return described


def _operation(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": _responses(operation),
    }
    if operation.says:
        described["description"] = operation.says
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(operation.body)}},
        }
    if operation.auth == "required":
        described["security"] = [{SECURITY: []}]
    elif operation.auth == "optional":
        described["security"] = [{}, {SECURITY: []}]
    return described


def _message(type: str, data: Any) -> Schema:
    properties: Schema = {
        "type": {"type": "string", "const": type},
        "version": {"type": "integer", "description": "of the shape of the data"},
        "timestamp": {"type": "string", "format": "date-time", "description": "when it happened"},
        "data": _ref(data),
    }
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {
        "operationId": "".join(part.title() for part in re.split("[._]", type)),
        "tags": ["Webhooks"],
        "summary": "What a program that wants it is sent",
        "parameters": [
            {**_parameter(name, "header", {"type": "string"}, says), "required": True}
            for name, says in SIGNED.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": TAKEN,
    }


def _parameters(operation: Operation) -> list[Schema]:
    found = [
        _parameter(name, "path", {"type": "integer" if name == "id" else "string"}, f"the {name}")
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    found += [_parameter(name, "query", {"type": "string"}, says) for name, says in operation.query]
    if operation.listed:
        limit = {"type": "integer", "minimum": 1, "default": DEFAULT_LIMIT}
        found += [
            _parameter("limit", "query", limit, f"how many; more than {MAX_LIMIT} is taken as {MAX_LIMIT}"),
            _parameter("after", "query", {"type": "string"}, "`next` of the page before"),
        ]
    if operation.conditional and operation.method == "GET":
        found.append(
            _parameter("If-None-Match", "header", {"type": "string"}, "an ETag: 304 if it is current")
        )
    elif operation.conditional:
        says = 'the ETag of what is changed, its version alone (`"3"`), or `*` for whichever is there'
        found.append({**_parameter("If-Match", "header", {"type": "string"}, says), "required": True})
    if operation.idempotent:
        says = "8 to 128 characters that name this request: sent again with it, it happens once"
        found.append(_parameter("Idempotency-Key", "header", {"type": "string"}, says))
    return found


def _responses(operation: Operation) -> Schema:
    good: Schema = {"description": "No content" if operation.answer is None else "OK"}
    if operation.answer is not None:
        good["content"] = {"application/json": {"schema": _ref(operation.answer)}}
    responses = {str(operation.status): good}
    failures = {*operation.errors, 422, 503, 504}
    if operation.conditional and operation.method == "GET":
        responses["304"] = {"description": "You have it already"}
    elif operation.conditional:
        failures |= {412, 428}
    if operation.body is not None:
        failures |= {413, 415}
    if operation.idempotent:
        failures |= {400, 409}
    for status in sorted(failures):
        responses[str(status)] = {
            "description": DETAIL.get(status) or LATER[status],
            "content": {PROBLEM: {"schema": _ref(Problem)}},
        }
    return responses


def _parameter(name: str, place: str, schema: Schema, says: str) -> Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": says}


def _ref(shape: Any) -> Schema:
    return {"$ref": REF.format(name=shape.__name__)}


def _schemas(operations: Sequence[Operation], told: Iterable[Any]) -> Mapping[str, Schema]:
    shapes = [Problem, *told]
    shapes += [shape for one in operations for shape in (one.body, one.answer) if shape is not None]
    _, components = msgspec.json.schema_components(list(dict.fromkeys(shapes)), ref_template=REF)
    return components
