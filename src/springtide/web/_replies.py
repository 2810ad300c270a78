"""Which answer an error becomes.

Messages of unexpected errors stay inside; the request id finds them in the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from springtide.errors import (
    AlreadyReserved,
    BodyTooLarge,
    CommitUnknown,
    CsrfRefused,
    DeadlineExceeded,
    IdempotencyError,
    IdempotencyInFlight,
    IdempotencyKeyInvalid,
    IdempotencyKeyReused,
    IdempotencyLost,
    InvalidCursor,
    InvalidToken,
    SessionEnded,
    SessionError,
    Unavailable,
)

__all__ = ["CLIENT_GONE", "ErrorReply", "RenderError", "problem_json", "reply_for"]

CLIENT_GONE = 499
"""The status that counts a request whose client left before the answer; never sent."""

QUERY_CANCELED = "57014"

_RETRY_AFTER = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """An answer that a layer gives instead of the application.

    `code` is stable and for programs; `title` and `detail` are for people and never carry internals.
    `retry_after` is in seconds. `headers` go out with it, whatever the body looks like.
    """

    status: int
    code: str
    title: str
    detail: str
    request_id: str = ""
    retry_after: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """`headers` and Retry-After, in whole seconds and never too early."""
        if self.retry_after is None:
            return list(self.headers)
        seconds = max(1, math.ceil(self.retry_after))
        return [*self.headers, (b"retry-after", str(seconds).encode("ascii"))]


RenderError = Callable[[ErrorReply, Mapping[str, Any]], tuple[bytes, str]]
"""Reply and ASGI scope in; body and content type out."""


def problem_json(reply: ErrorReply, scope: Mapping[str, Any]) -> tuple[bytes, str]:
    """RFC 9457: the default form of every error."""
    body = {
        "type": "about:blank",
        "title": reply.title,
        "status": reply.status,
        "detail": reply.detail,
        "code": reply.code,
        "request_id": reply.request_id,
    }
    return msgspec.json.encode(body), "application/problem+json"


def reply_for(error: BaseException, *, request_id: str, late: bool = False) -> ErrorReply:
    """The answer to `error`; `late` says that the deadline has passed or is about to."""
    if isinstance(error, DeadlineExceeded) or (late and getattr(error, "sqlstate", None) == QUERY_CANCELED):
        return deadline_reply(request_id)
    if isinstance(error, Unavailable):
        return ErrorReply(
            status=503, code="unavailable", title="Service Unavailable", request_id=request_id,
            detail="The service cannot take this request now; try again later.",
            retry_after=_RETRY_AFTER if error.retry_after is None else error.retry_after,
        )  # fmt: skip
    if isinstance(error, BodyTooLarge):
        return ErrorReply(
            status=413, code="body-too-large", title="Content Too Large", request_id=request_id,
            detail=f"The body may have at most {error.limit} bytes.",
        )  # fmt: skip
    if isinstance(error, CommitUnknown):
        return ErrorReply(
            status=500, code="commit-unknown", title="Outcome Unknown", request_id=request_id,
            detail="The change may or may not have been made; look before trying again.",
        )  # fmt: skip
    if isinstance(error, AlreadyReserved):
        return ErrorReply(
            status=409, code="already-taken", title="Conflict", request_id=request_id,
            detail=f"This {error.kind} is already taken.",
        )  # fmt: skip
    if isinstance(error, InvalidCursor):
        return bad_request(request_id, "invalid-cursor", "The cursor was not made by this query.")
    if isinstance(error, InvalidToken):
        return ErrorReply(
            status=401, code="invalid-token", title="Unauthorized", request_id=request_id,
            detail="The token is malformed, expired or not meant for this.",
            headers=((b"www-authenticate", b"Bearer"),),
        )  # fmt: skip
    if isinstance(error, IdempotencyError | SessionError):
        return _refusal(error, request_id)
    return _internal(request_id)


def _refusal(error: IdempotencyError | SessionError, request_id: str) -> ErrorReply:
    """The answer to a key or a session that cannot be used."""
    if isinstance(error, IdempotencyKeyInvalid):
        return bad_request(request_id, "idempotency-key-invalid", str(error))
    if isinstance(error, IdempotencyKeyReused):
        return ErrorReply(
            status=422, code="idempotency-key-reused", title="Unprocessable Content", request_id=request_id,
            detail="This idempotency key was used for a request with another body.",
        )  # fmt: skip
    if isinstance(error, IdempotencyInFlight | IdempotencyLost):
        return ErrorReply(
            status=409, code="idempotency-in-flight", title="Conflict", request_id=request_id,
            detail="A request with this idempotency key is still at work; ask again.",
            retry_after=error.retry_after,
        )  # fmt: skip
    if isinstance(error, CsrfRefused):
        return ErrorReply(
            status=403, code="csrf-refused", title="Forbidden", request_id=request_id,
            detail="This form is out of date or was not sent by this site; load the page again.",
        )  # fmt: skip
    if isinstance(error, SessionEnded):
        return ErrorReply(
            status=401, code="session-ended", title="Unauthorized", request_id=request_id,
            detail="The session has ended; sign in again.",
        )  # fmt: skip
    return _internal(request_id)


def _internal(request_id: str) -> ErrorReply:
    return ErrorReply(
        status=500, code="internal", title="Internal Server Error", request_id=request_id,
        detail="Something failed on our side; the request id finds it in our log.",
    )  # fmt: skip


def expected(error: BaseException, *, late: bool = False) -> bool:
    """Whether `error` is an ordinary answer that needs no traceback in the log."""
    ordinary = (
        AlreadyReserved, BodyTooLarge, DeadlineExceeded, IdempotencyError, InvalidCursor, InvalidToken,
        SessionError, Unavailable,
    )  # fmt: skip
    return isinstance(error, ordinary) or (late and getattr(error, "sqlstate", None) == QUERY_CANCELED)


def deadline_reply(request_id: str) -> ErrorReply:
    return ErrorReply(
        status=504, code="deadline-exceeded", title="Gateway Timeout", request_id=request_id,
        detail="The request could not be answered within its time.",
    )  # fmt: skip


def slow_body_reply(request_id: str) -> ErrorReply:
    return ErrorReply(
        status=408, code="body-too-slow", title="Request Timeout", request_id=request_id,
        detail="The body of the request did not arrive in time.",
    )  # fmt: skip


def bad_request(request_id: str, code: str, detail: str) -> ErrorReply:
    return ErrorReply(status=400, code=code, title="Bad Request", detail=detail, request_id=request_id)
