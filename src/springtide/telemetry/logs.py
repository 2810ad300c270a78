"""Structured logs: one line per record, whatever the record holds, with the request that caused it.

JSON for machines, text for people; both carry time (RFC 3339, UTC), level, logger, message, request_id,
trace_id, span_id, the record's `extra` fields and exceptions as data. Control characters are escaped, so a
hostile string cannot forge a line or drive a terminal. Credentials are replaced before anything is written.

`LogSink` turns signals into records: one line per request (a switch), a slow or failed one as a warning with
its ledger, whatever the switch says.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

from springtide.context import Ledger, current
from springtide.signals import (
    CacheHitRateChanged,
    RequestFinished,
    ServiceChanged,
    Signal,
    StatementRepeated,
    StatementSlow,
)
from springtide.telemetry._redact import MAX_TEXT, printed, redact_text, redact_value

__all__ = ["Format", "JsonFormatter", "LogSink", "TextFormatter", "configure"]

Format = Literal["json", "text"]

MAX_FRAMES = 50
MAX_CAUSES = 8
MAX_PATH = 2_000
LEVELS = ("debug", "info", "warning", "error", "critical")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BARE = re.compile(r"[A-Za-z0-9_.:/@+-]+")


def configure(
    format: Format = "json",
    level: str = "info",
    *,
    stream: TextIO | None = None,
) -> None:
    """Make this the process's way of logging. Again with other arguments: the last call holds.

    The root logger gets one handler (stderr unless `stream`); handlers that others put there stay. uvicorn's
    loggers hand their records over; its access log is silenced, because `LogSink` writes one.
    """
    if format not in ("json", "text"):
        raise ValueError(f"format must be 'json' or 'text', got {format!r}")
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)  # a server made with `log_level` has set one of its own
        logger.propagate = name != "uvicorn.access"
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours: known by its type, so that `configure` finds it again."""


class JsonFormatter(logging.Formatter):
    """A record as one JSON object. Fields of our own win over `extra` fields of the same name."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        try:
            line = msgspec.json.encode(fields)
        except UnicodeEncodeError:  # a lone surrogate, which JSON cannot carry
            line = msgspec.json.encode(_escaped(fields))
        return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", line.decode("utf-8"))


class TextFormatter(logging.Formatter):
    """A record as `time LEVEL logger message key=value ...`, still one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        head = [str(fields.pop("time")), f"{str(fields.pop('level')).upper():<7}", str(fields.pop("logger"))]
        message = _CONTROL.sub(_escape, str(fields.pop("message")))
        exception = fields.pop("exception", None)
        pairs = [f"{_pair_name(name)}={_pair_value(value)}" for name, value in fields.items()]
        if isinstance(exception, Mapping):
            pairs.append(f"exception={_pair_value(exception['traceback'])}")
        return " ".join([*head, message, *pairs])


class LogSink:
    """A `Sink` that logs requests and services.

    `slow_request` seconds and more, a status of 500 and above, or an answer that was cut off is a warning
    with the ledger; `access` also writes the others, at info. Paths are logged without their query.
    Slow statements are warnings with their plan; statements run in a loop are told at info. A hit rate
    that fell too low is a warning, and told when it is there again.
    """

    def __init__(
        self, *, slow_request: float = 1.0, access: bool = True, logger: logging.Logger | None = None
    ) -> None:
        if slow_request <= 0:
            raise ValueError(f"slow_request must be > 0 seconds, got {slow_request}")
        self._slow_request = slow_request
        self._access = access
        self._log = logger or logging.getLogger("springtide.request")
        self._services = logger or logging.getLogger("springtide.service")
        self._database = logger or logging.getLogger("springtide.statement")
        self._cache = logger or logging.getLogger("springtide.cache")

    def emit(self, signal: Signal) -> None:
        if isinstance(signal, RequestFinished):
            self._request(signal)
        elif isinstance(signal, ServiceChanged):
            level = logging.ERROR if signal.state == "failed" else logging.INFO
            extra = {"service": signal.service, "state": signal.state, "error": signal.error}
            self._services.log(level, "%s is %s", signal.service, signal.state, extra=extra)
        elif isinstance(signal, StatementSlow):
            self._database.warning(
                "slow statement: %s", signal.statement,
                extra={
                    "cluster": signal.cluster, "seconds": round(signal.seconds, 6), "plan": signal.plan,
                    "request": signal.request_id,
                },
            )  # fmt: skip
        elif isinstance(signal, CacheHitRateChanged):
            self._cache.log(
                logging.WARNING if signal.low else logging.INFO,
                "hit rate of %s: %.2f", signal.cls, signal.rate,
                extra={"cls": signal.cls, "rate": round(signal.rate, 4), "wanted": signal.wanted},
            )  # fmt: skip
        elif isinstance(signal, StatementRepeated):
            self._database.info(
                "%d times in one request: %s", signal.calls, signal.statement,
                extra={"cluster": signal.cluster, "site": signal.site},
            )  # fmt: skip

    def _request(self, signal: RequestFinished) -> None:
        slow = signal.seconds >= self._slow_request
        cut = signal.error is not None and signal.status < 400  # the answer had begun when it failed
        notable = slow or cut or signal.status >= 500
        if not notable and not (self._access and self._log.isEnabledFor(logging.INFO)):
            return
        path = signal.path if len(signal.path) <= MAX_PATH else signal.path[: MAX_PATH - 1] + "…"
        extra: dict[str, Any] = {
            "method": signal.method,
            "path": path,
            "route": signal.route,
            "status": signal.status,
            "seconds": round(signal.seconds, 6),
            "client": signal.client,
            "request_id": signal.request_id,
        }
        if signal.trace is not None:
            extra["trace_id"] = signal.trace.trace_id
            extra["span_id"] = signal.trace.span_id
        if signal.error is not None:
            extra["error"] = signal.error
        if notable:
            extra["ledger"] = _ledger(signal.ledger)
        self._log.log(
            logging.WARNING if notable else logging.INFO,
            "%s %s %d%s", signal.method, path, signal.status, " slow" if slow else "",
            extra=extra,
        )  # fmt: skip


def _ledger(ledger: Ledger) -> dict[str, object]:
    page: dict[str, object] = {}
    for part, entry in ledger.parts.items():
        shown: dict[str, object] = {"seconds": round(entry.seconds, 6), "calls": entry.calls}
        if entry.rows:
            shown["rows"] = entry.rows
        labels = sorted(ledger.labels(part).items(), key=lambda item: -item[1].seconds)[:5]
        if labels:
            shown["most"] = {label: round(spent.seconds, 6) for label, spent in labels}
        page[part.value] = shown
    return page


def _fields(record: logging.LogRecord) -> dict[str, object]:
    when = datetime.fromtimestamp(record.created, UTC)
    fields: dict[str, object] = {
        "time": f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond:06d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": redact_text(_message(record)),
    }
    context = current()
    if context is not None:
        fields["request_id"] = context.request_id
        if context.trace is not None:
            fields["trace_id"] = context.trace.trace_id
            fields["span_id"] = context.trace.span_id
    ours = ("time", "level", "logger", "message", "exception")
    for name, value in vars(record).items():
        if name not in _STANDARD and not name.startswith("_") and name not in ours:
            fields[name] = redact_value(name, value)
    if record.exc_info and record.exc_info[1] is not None:
        fields["exception"] = _exception(record.exc_info[1])
    if record.stack_info:
        fields["stack"] = redact_text(record.stack_info)
    return fields


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a wrong format string must not lose the record
        return f"{printed(record.msg)} (its arguments do not fit: {printed(error, repr)})"


def _exception(error: BaseException) -> dict[str, object]:
    described = traceback.TracebackException.from_exception(error, limit=-MAX_FRAMES)
    causes: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None and len(causes) < MAX_CAUSES:
        causes.append(redact_text(f"{type(cause).__name__}: {printed(cause)}"))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": redact_text(printed(error)),
        "causes": causes,
        "traceback": redact_text("".join(described.format()))[-MAX_TEXT:],
    }


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    known = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
    return known.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _escaped(value: object) -> object:
    """`value` with everything that cannot be encoded written as an escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return value


def _pair_name(name: str) -> str:
    return name if _BARE.fullmatch(name) else _pair_value(name)


def _pair_value(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(_escaped(value)).decode("utf-8")
    if _BARE.fullmatch(text):
        return text
    return '"' + _CONTROL.sub(_escape, text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
