"""Log lines: one per record, with the request, without credentials."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.context import Ledger, Part, RequestContext, Trace, activate
from springtide.signals import RequestFinished, ServiceChanged
from springtide.telemetry import logs
from springtide.telemetry._redact import redact_text


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access"))]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("test", logging.INFO, "f.py", 1, message, args, None)
    vars(made).update(extra)
    return made


def test_a_line_carries_the_request_that_caused_it() -> None:
    context = RequestContext(request_id="r1", trace=Trace("a" * 32, "b" * 16))
    with activate(context):
        line = json.loads(logs.JsonFormatter().format(record("hello %s", "you", answer=42)))
    assert line["message"] == "hello you"
    assert (line["request_id"], line["trace_id"], line["span_id"]) == ("r1", "a" * 32, "b" * 16)
    assert (line["level"], line["logger"], line["answer"]) == ("info", "test", 42)
    assert line["time"].endswith("Z") and line["time"][10] == "T"


@given(st.text(), st.text(), st.one_of(st.text(), st.binary(), st.floats(), st.lists(st.text())))
def test_no_string_breaks_or_forges_a_line(message: str, name: str, value: object) -> None:
    for formatter in (logs.JsonFormatter(), logs.TextFormatter()):
        made = record("%s", message)
        if name not in vars(made):
            vars(made)[name] = value
        line = formatter.format(made)
        assert len(line.splitlines()) == 1
        assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in line)
        line.encode("utf-8")
        if isinstance(formatter, logs.JsonFormatter):
            json.loads(line)


def test_a_message_cannot_pretend_to_be_another_field() -> None:
    made = record("x", level="critical", time="1970")
    line = json.loads(logs.JsonFormatter().format(made))
    assert (line["level"], line["message"]) == ("info", "x")
    assert line["time"] != "1970"


def test_an_exception_is_data_on_the_same_line_with_its_causes() -> None:
    try:
        try:
            raise KeyError("inner\nline")
        except KeyError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as error:
        made = record("failed")
        made.exc_info = (type(error), error, error.__traceback__)
    line = json.loads(logs.JsonFormatter().format(made))["exception"]
    assert (line["type"], line["message"]) == ("builtins.RuntimeError", "outer")
    assert line["causes"] == ["KeyError: 'inner\\nline'"]
    assert "test_telemetry_logs.py" in line["traceback"]
    assert len(logs.TextFormatter().format(made).splitlines()) == 1


def test_wrong_arguments_lose_no_record() -> None:
    assert "do not fit" in json.loads(logs.JsonFormatter().format(record("%d %d", "x")))["message"]


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2.abc.def", "authorization=Token hunter2",
        "Cookie: a=hunter2; b=hunter2",
        "(b'authorization', b'Bearer hunter2')", "sent Bearer hunter2hunter2", "set-cookie: hunter2",
        "postgresql://me:hunter2@host/db", "Proxy-Authorization: Basic hunter2",
        "{'Authorization': 'hunter2'}",
    ],
)  # fmt: skip
def test_credentials_in_text_are_replaced(text: str) -> None:
    assert "hunter2" not in redact_text(text)
    assert "[redacted]" in redact_text(text)


def test_credentials_in_fields_are_replaced_however_deep() -> None:
    made = record(
        "x", headers=[(b"authorization", b"hunter2"), (b"accept", b"ok")], password="hunter2",
        nested={"cookie": ["hunter2"], "deep": [{"Set-Cookie": "hunter2"}]}, access_token="hunter2",
    )  # fmt: skip
    for formatter in (logs.JsonFormatter(), logs.TextFormatter()):
        line = formatter.format(made)
        assert "hunter2" not in line
        assert "ok" in line


def test_configure_twice_writes_once_and_takes_in_uvicorn() -> None:
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    logging.getLogger("uvicorn.error").setLevel("ERROR")  # as uvicorn.Config(log_level="error") does
    first, second = io.StringIO(), io.StringIO()
    logs.configure("json", "info", stream=first)
    logs.configure("text", "warning", stream=second)
    logging.getLogger("uvicorn.error").warning("from uvicorn")
    logging.getLogger("uvicorn.access").warning("an access line")
    logging.getLogger("x").info("too quiet")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
    assert "WARNING uvicorn.error from uvicorn" in second.getvalue()


@pytest.mark.parametrize(("format", "level"), [("xml", "info"), ("json", "loud")])
def test_a_wrong_option_is_refused(format: str, level: str) -> None:
    with pytest.raises(ValueError, match="got"):
        logs.configure(format, level)  # type: ignore[arg-type]


def request(seconds: float, status: int = 200) -> RequestFinished:
    context = RequestContext()
    context.ledger.add(Part.SQL, 0.3, "select 1", 2)
    return RequestFinished(
        method="GET", route="/a/{b}", status=status, seconds=seconds, request_id="r9", ledger=context.ledger,
        trace=Trace("a" * 32, "b" * 16), error=None, path="/a/1\nGET /forged 200", client="1.2.3.4",
    )  # fmt: skip


def test_slow_and_failed_requests_are_warnings_with_their_ledger_others_a_switch() -> None:
    out = io.StringIO()
    logs.configure("json", "info", stream=out)
    logs.LogSink(slow_request=0.5).emit(request(0.1))
    quiet = logs.LogSink(slow_request=0.5, access=False)
    quiet.emit(request(0.1))
    quiet.emit(request(0.6))
    quiet.emit(request(0.1, status=503))
    quiet.emit(ServiceChanged("pool", "failed", "boom"))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "warning", "error"]
    assert [line["logger"].rpartition(".")[2] for line in lines] == ["request"] * 3 + ["service"]
    assert "ledger" not in lines[0]
    assert lines[1]["ledger"]["sql"] == {"seconds": 0.3, "calls": 1, "rows": 2, "most": {"select 1": 0.3}}
    assert (lines[0]["request_id"], lines[0]["route"], lines[0]["client"]) == ("r9", "/a/{b}", "1.2.3.4")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Whole(int): ...


class Share(float): ...


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize(
    "value",
    [Unprintable(), {Unprintable(): 1}, [Unprintable()], UnprintableError(), Whole(3), Share(0.5), 2**80],
)
def test_no_object_loses_its_record(
    form: logs.Format, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be shown is replaced; the rest of the record is written, on one line, and nothing else."""
    stream = io.StringIO()
    logging.getLogger().handlers.clear()  # pytest's own would not survive
    logs.configure(form, stream=stream)
    logging.getLogger("test").warning("kept", extra={"field": value})
    logging.getLogger("test").warning("%s %r", value, value)
    logging.getLogger("test").warning("kept too", exc_info=UnprintableError(value))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "kept" in lines[0] and "kept too" in lines[2]
    if form == "json":
        assert all(isinstance(json.loads(line), dict) for line in lines)
    assert capsys.readouterr().err == ""


def test_a_number_of_a_library_stays_a_number() -> None:
    line = json.loads(logs.JsonFormatter().format(record("", whole=Whole(3), share=Share(0.5))))
    assert (line["whole"], line["share"]) == (3, 0.5)


def test_a_line_has_a_bound_whatever_a_client_asks_for() -> None:
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    sink = logs.LogSink()
    path = "/" + "a" * 60_000
    sink.emit(RequestFinished("GET", "/", 200, 0.1, "r", Ledger(), None, None, path=path, client=None))
    logging.getLogger("test").warning("m", extra={"field": path, "fields": [path, {"a": path}]})
    request, other = stream.getvalue().splitlines()
    assert len(request) < 6_000
    assert len(other) < 4 * logs.MAX_TEXT


@pytest.mark.parametrize(
    ("status", "error", "level"),
    [(200, None, "info"), (404, None, "info"), (499, "ClientGone", "info"), (413, "BodyTooLarge", "info"),
     (200, "DeadlineExceeded", "warning"), (503, None, "warning")],
)  # fmt: skip
def test_an_answer_that_was_cut_off_is_a_failure_whatever_its_status(
    status: int, error: str | None, level: str
) -> None:
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    logs.LogSink().emit(RequestFinished("GET", "/", status, 0.1, "r", Ledger(), None, error))
    line = json.loads(stream.getvalue())
    assert line["level"] == level
    assert ("ledger" in line) is (level == "warning")


@pytest.mark.parametrize("name", ["token", "id_token", "reset-token", "api_key", "private_key", "X-Api-Key"])
def test_fields_that_are_named_like_credentials_are_hidden(name: str) -> None:
    assert "s3cret" not in logs.JsonFormatter().format(record("", given={name: "s3cret"}))
