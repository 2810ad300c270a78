"""`Idempotency-Key` on unsafe requests: the effect happens once, and every repetition gets its answer.

The key counts within who asks (the user, else the client's address), the method and the path; the body is
what must be the same. So nobody ever sees another one's answer, and one key may serve two routes.

    first request           -> the effect and its answer commit together
    again, answered         -> the kept status, content headers and body, with `Idempotent-Replayed: true`
    again, still at work    -> 409 with Retry-After
    again, another body     -> 422
    failed, or 5xx          -> nothing is kept; the same key may be tried again

The state is in `springtide.db.idempotency`; here is only what is HTTP. The key follows the IETF draft
(draft-ietf-httpapi-idempotency-key-header), with or without its quotes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from springtide.context import current
from springtide.db import BUCKETS, Bucket
from springtide.db.idempotency import Answer, Idempotency, Once, Outcome
from springtide.errors import ConfigurationError, IdempotencyKeyInvalid

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from springtide.db import Key, WriteTransaction

__all__ = ["REPLAYED", "answer_of", "check_key", "idempotent", "once_of", "read_key", "replay"]

HEADER = b"idempotency-key"
REPLAYED = "idempotent-replayed"

MIN_KEY_CHARS = 8
MAX_KEY_CHARS = 128

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

KEPT = frozenset({
    "content-type", "content-language", "content-disposition", "content-encoding", "content-location",
    "location", "etag", "last-modified", "cache-control", "link",
})  # fmt: skip
"""Headers that are kept with an answer; cookies never are, they belong to the moment."""

_KEY = re.compile(r"[A-Za-z0-9._~:+/=@-]+")


def check_key(key: str) -> str:
    """`key`, if it is one: 8 to 128 letters, digits and `._~:+/=@-`. Raises IdempotencyKeyInvalid."""
    if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS:
        raise IdempotencyKeyInvalid(
            f"an idempotency key has {MIN_KEY_CHARS} to {MAX_KEY_CHARS} characters, got {len(key)}"
        )
    if _KEY.fullmatch(key) is None:
        raise IdempotencyKeyInvalid("an idempotency key has letters, digits and ._~:+/=@- only")
    return key


def read_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key of a request's raw headers; None when there is none. Raises IdempotencyKeyInvalid."""
    found = [value for name, value in headers if name.lower() == HEADER]
    if not found:
        return None
    if len(found) > 1:
        raise IdempotencyKeyInvalid("a request has one idempotency key, got several")
    text = found[0].decode("latin-1").strip(" \t")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return check_key(text)


def once_of(scope: Mapping[str, Any], body: bytes, key: str, *, subject: int | str | None = None) -> Once:
    """The request of an ASGI scope with this body and key, for `db.idempotency` and for other modules.

    `subject` is who asks: None means the identity of the context, else the client's address.
    """
    context = current()
    if subject is None and context is not None and context.identity is not None:
        subject = context.identity.subject
    if subject is not None:
        who = f"subject {subject}"
    else:
        client = scope.get("client")
        who = f"address {client[0]}" if client else "address unix"
    path = scope.get("raw_path") or scope["path"].encode()
    content_type = next((v for name, v in scope["headers"] if name.lower() == b"content-type"), b"")
    return Once.of(
        (who, scope["method"], path, check_key(key)), (scope.get("query_string", b""), content_type, body)
    )


async def idempotent(
    request: Request,
    keys: Idempotency,
    effect: Callable[[WriteTransaction], Awaitable[Response]],
    *,
    home: Key | None = None,
    key: str | None = None,
    subject: int | str | None = None,
    required: bool = False,
) -> Response:
    """Answer `request` by `effect`, once per key; `effect` writes in the transaction that it is given.

    home:     where the effect writes, as for `Database.write`; the same for each attempt. None means a
              bucket of the request's own (`tx.bucket`), for effects whose rows have no owner yet.
    key:      instead of the header, such as a hidden field of a form.
    subject:  who asks, instead of the context's identity.
    required: refuse a request without a key; otherwise its effect just runs in a transaction.

    What `effect` raises undoes everything and leaves the key free; so does an answer of 5xx. Decide inside
    the effect whatever depends on stored data: outside, a repetition would be judged by its own result.
    Raises IdempotencyKeyInvalid (400), IdempotencyKeyReused (422), IdempotencyInFlight and IdempotencyLost
    (409), and what the database raises.
    """
    if request.method in SAFE:
        raise ConfigurationError(f"idempotent() is for unsafe methods, got {request.method}")
    given = check_key(key) if key is not None else read_key(request.scope["headers"])
    made: list[Response] = []

    async def answered(tx: WriteTransaction) -> Answer:
        made.append(await effect(tx))
        return answer_of(made[-1])

    if given is None:
        if required:
            raise IdempotencyKeyInvalid("this request needs an Idempotency-Key header")
        anywhere = Bucket(secrets.randbelow(BUCKETS))
        return await _unkeyed(keys, answered, made, anywhere if home is None else home)
    once = once_of(request.scope, await request.body(), given, subject=subject)
    outcome = await keys.run(once, answered, home=once.bucket if home is None else home)
    return replay(outcome) if outcome.replayed or not made else made[-1]


async def _unkeyed(
    keys: Idempotency,
    answered: Callable[[WriteTransaction], Awaitable[Answer]],
    made: list[Response],
    home: Key,
) -> Response:
    try:
        async with keys.database.write(home) as tx:
            if (await answered(tx)).status >= 500:
                raise _Undo
    except _Undo:
        pass
    return made[-1]


class _Undo(Exception):
    """Rolls back what a 5xx answer wrote."""


def answer_of(response: Response) -> Answer:
    """What of a response is kept. Raises ConfigurationError for one that streams: it has no body to keep."""
    body = getattr(response, "body", None)
    if not isinstance(body, bytes | memoryview):
        raise ConfigurationError(
            f"the answer to a request with an idempotency key cannot stream, got {type(response).__name__}"
        )
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
    kept = tuple((name, value) for name, value in pairs if name in KEPT)
    return Answer(response.status_code, kept, bytes(body))


def replay(outcome: Outcome) -> Response:
    """The kept answer as a response, marked when it was given before."""
    from starlette.responses import Response

    response = Response(outcome.answer.body, outcome.answer.status)
    for name, value in outcome.answer.headers:
        response.headers.append(name, value)
    if outcome.replayed:
        response.headers[REPLAYED] = "true"
    return response
