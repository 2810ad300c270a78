"""The OpenAPI 3.1 document of the API, made from the table of operations and the shapes of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from market.content import api as content
from market.realworld import shapes
from market.realworld.operations import OPERATIONS, PREFIX, Operation
from market.realworld.reads import DEFAULT_LIMIT
from market.users import api as users

__all__ = ["document"]

Schema = dict[str, Any]

REF = "#/components/schemas/{name}"

ERRORS: Mapping[int, tuple[str, dict[str, list[str]]]] = {
    401: ("Nobody is signed in, or the token or the credentials do not pass", {"token": ["is missing"]}),
    403: ("It belongs to somebody else; the key says what", {"article": ["forbidden"]}),
    404: ("There is no such thing; the key says what", {"article": ["not found"]}),
    409: ("It exists already; the key says which field", {"username": ["has already been taken"]}),
    413: ("The body is too large", {"body": ["is too large"]}),
    415: ("The body is no JSON", {"body": ["must be JSON (application/json) in UTF-8"]}),
    422: ("A value breaks a rule; every field that does is named", {"title": ["can't be blank"]}),
    503: ("Busy; try again after Retry-After seconds", {"server": ["is busy, try again later"]}),
    504: ("The request could not be answered in time", {"server": ["took too long to answer"]}),
}

EXAMPLES: Mapping[tuple[str, int], dict[str, list[str]]] = {
    ("Login", 401): {"credentials": ["invalid"]},
    ("CreateArticle", 409): {"title": ["has already been taken"]},
    ("DeleteArticleComment", 403): {"comment": ["forbidden"]},
    ("DeleteArticleComment", 404): {"comment": ["not found"]},
    ("GetProfileByUsername", 404): {"profile": ["not found"]},
    ("FollowUserByUsername", 404): {"profile": ["not found"]},
    ("FollowUserByUsername", 422): {"profile": ["is your own"]},
    ("UnfollowUserByUsername", 404): {"profile": ["not found"]},
    ("Login", 422): {"email": ["can't be blank"]},
    ("CreateUser", 422): {"email": ["is invalid"]},
    ("UpdateCurrentUser", 422): {"username": ["has already been taken"]},
    ("CreateArticleComment", 422): {"body": ["can't be blank"]},
    ("GetArticles", 422): {"limit": ["must be a whole number, 1 or more"]},
    ("GetArticlesFeed", 422): {"limit": ["must be a whole number, 1 or more"]},
}
"""Where an operation's refusal looks otherwise than in ERRORS."""

AUTHORIZATION = (
    "Send `Authorization: Token <token>` (or `Bearer <token>`) with the token that registering or signing in"
    " answered. Tokens end after a day unless the operator set another time; there is no refresh."
)


def document(*, title: str, version: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": 'The RealWorld (Conduit) API. Errors have one shape: `{"errors": {name: [..]}}`.',
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": {**_requests(), **_answers()},
            "securitySchemes": {
                "Token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": AUTHORIZATION,
                }
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": _responses(operation),
    }
    if operation.says:
        described["description"] = operation.says
    if operation.parameters:
        described["parameters"] = [PARAMETERS[name] for name in operation.parameters]
    if operation.body is not None:
        wrapper = WRAPPERS[operation.body]
        schema = _object({wrapper: {"$ref": REF.format(name=operation.body)}}, required=[wrapper])
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.auth == "required":
        described["security"] = [{"Token": []}]
    elif operation.auth == "optional":
        described["security"] = [{}, {"Token": []}]
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "No content" if operation.answer is None else "OK"}
    if operation.answer is not None:
        schema = {"$ref": REF.format(name=operation.answer.__name__)}
        good["content"] = {"application/json": {"schema": schema}}
    bodies = (413, 415) if operation.body is not None else ()
    failures = sorted({*operation.errors, *bodies, 422, 503, 504})
    return {
        str(operation.status): good,
        **{str(status): _failure(operation.id, status) for status in failures},
    }


def _failure(operation: str, status: int) -> dict[str, Any]:
    description, errors = ERRORS[status]
    errors = EXAMPLES.get((operation, status), errors)
    schema = {"$ref": REF.format(name="Errors")}
    described: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": schema, "example": {"errors": errors}}},
    }
    if status == 503:
        described["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return described


def _object(properties: Mapping[str, Schema], *, required: Sequence[str] = ()) -> Schema:
    schema: Schema = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return schema


def _text(longest: int, *, shortest: int = 1, null: bool = False, format: str | None = None) -> Schema:
    schema: Schema = {"type": ["string", "null"] if null else "string", "maxLength": longest}
    if not null:
        schema["minLength"] = shortest
    if format is not None:
        schema["format"] = format
    return schema


def _parameter(name: str, place: str, schema: Schema, says: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": says}


STRING: Schema = {"type": "string"}

PARAMETERS: Mapping[str, dict[str, Any]] = {
    "username": _parameter("username", "path", STRING, "whose profile, in whatever case"),
    "slug": _parameter("slug", "path", STRING, "the article's address"),
    "id": _parameter("id", "path", {"type": "integer"}, "the comment's id"),
    "tag": _parameter("tag", "query", STRING, "only articles with this tag"),
    "author": _parameter("author", "query", STRING, "only articles of this user (username)"),
    "favorited": _parameter("favorited", "query", STRING, "only favourites of this user (username)"),
    "limit": _parameter(
        "limit",
        "query",
        {"type": "integer", "minimum": 1, "default": DEFAULT_LIMIT},
        f"how many articles to answer; more than {content.MAX_LIMIT} is taken as {content.MAX_LIMIT}",
    ),
    "offset": _parameter(
        "offset",
        "query",
        {"type": "integer", "minimum": 0, "default": 0},
        f"how many articles to skip; lists are read at most {content.MAX_OFFSET} deep (then 422),"
        " and past their end they are empty",
    ),
}

WRAPPERS: Mapping[str, str] = {
    "LoginUser": "user",
    "NewUser": "user",
    "UpdateUser": "user",
    "NewArticle": "article",
    "UpdateArticle": "article",
    "NewComment": "comment",
}


def _requests() -> dict[str, Schema]:
    username = _text(users.USERNAME_LENGTH)
    email = _text(users.EMAIL_LENGTH, format="email")
    password = _text(users.PASSWORD_LENGTH, format="password")
    article = {
        "title": _text(content.TITLE_LENGTH),
        "description": _text(content.DESCRIPTION_LENGTH),
        "body": _text(content.BODY_LENGTH),
        "tagList": {"type": "array", "items": _text(content.TAG_LENGTH), "maxItems": content.MAX_TAGS},
    }
    return {
        "LoginUser": _object(
            {"email": email, "password": password},
            required=["email", "password"],
        ),
        "NewUser": _object(
            {"username": username, "email": email, "password": password},
            required=["username", "email", "password"],
        ),
        "UpdateUser": _object(
            {
                "username": username,
                "email": email,
                "password": password,
                "bio": _text(users.BIO_LENGTH, null=True),
                "image": _text(users.IMAGE_LENGTH, null=True),
            }
        ),
        "NewArticle": _object(article, required=["title", "description", "body"]),
        "UpdateArticle": _object(article),
        "NewComment": _object({"body": _text(content.COMMENT_LENGTH)}, required=["body"]),
    }


def _answers() -> dict[str, Schema]:
    wanted = {operation.answer for operation in OPERATIONS if operation.answer is not None}
    ordered = sorted(wanted, key=lambda shape: shape.__name__)
    _, components = msgspec.json.schema_components([*ordered, shapes.Errors], ref_template=REF)
    return components
