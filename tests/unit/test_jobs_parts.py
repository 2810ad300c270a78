"""Jobs without a database: declarations, retries, judgements, what an envelope carries."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.context import (
    CausalityToken,
    Identity,
    Position,
    Priority,
    RequestContext,
    Trace,
    activate,
)
from springtide.errors import JobError, JobFailed, JobLost, ModuleError, Unavailable
from springtide.jobs import Handler, JobKind, Run, Upcast, Worker, job, kind_of
from springtide.jobs._retry import delay, describe
from springtide.jobs._rows import new_ids
from springtide.jobs._run import judge
from springtide.outbox import Bell, Envelope
from springtide.services import Module


@job(kind="mail.welcome", version=2, max_attempts=4, backoff=2.0, max_backoff=100.0, max_run=9.0)
class Welcome(msgspec.Struct, frozen=True):
    user_id: int


SPEC = kind_of(Welcome)


class Service:
    async def welcome(self, job: Welcome, run: Run) -> None:
        """Nobody is welcomed."""

    async def asked(self, job: Any, run: Any) -> None:
        """Whatever it is."""


# -- declarations --------------------------------------------------------------------------------------


def test_a_kind_is_told_by_the_class_and_by_its_instances() -> None:
    assert kind_of(Welcome(1)) is kind_of(Welcome) is Handler(Welcome, Service.welcome).kind
    assert SPEC.name == "mail.welcome/2" and SPEC.priority is Priority.NORMAL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "Mail"}, "got 'Mail'"),
        ({"kind": "mail..x"}, "got 'mail..x'"),
        ({"kind": "mail/x"}, "got 'mail/x'"),
        ({"kind": "a.b.c.d.e"}, "1 to 4 words"),
        ({"kind": 5}, "1 to 4 words .*, got 5"),
        ({"priority": 99}, r"job mail\.welcome: priority must be one of .*CRITICAL, NORMAL, BULK, got 99"),
        ({"version": 0}, "version must be >= 1, got 0"),
        ({"max_attempts": 0}, "max_attempts must be >= 1, got 0"),
        ({"version": "1"}, "version must be a whole number, got '1'"),
        ({"max_attempts": 2.5}, "max_attempts must be a whole number, got 2.5"),
        ({"max_run": 0.0}, "max_run must be > 0 seconds and at most 604800, got 0.0"),
        ({"max_run": float("inf")}, "max_run must be a finite number of seconds, got inf"),
        ({"max_run": "60"}, "max_run must be a finite number of seconds, got '60'"),
        ({"max_run": 10.0**6}, "max_run must be > 0 seconds and at most 604800, got 1000000"),
        ({"backoff": 0.0}, "backoff must be > 0 seconds, got 0.0"),
        ({"backoff": 5.0, "max_backoff": 4.0}, "backoff must be <= max_backoff, got 5.0 and 4.0"),
        ({"per": 5.0}, "per is the time of a rate, and there is none, got 5.0"),
    ],
)
def test_a_faulty_declaration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        job(**{"kind": "mail.welcome", **options})


def test_only_frozen_structs_are_jobs() -> None:
    """What is mutable, not a struct, or inherits its declaration is refused with its name."""

    class Loose(msgspec.Struct):
        pass

    class Derived(Welcome, frozen=True):
        other: int

    with pytest.raises(JobError, match="Loose must be frozen"):
        job(kind="a")(Loose)
    with pytest.raises(JobError, match=r"a job is a msgspec\.Struct"):
        job(kind="a")(dict)  # type: ignore[type-var]
    with pytest.raises(JobError, match="Derived is not declared as a job"):
        kind_of(Derived)


def test_a_faulty_handler_is_refused() -> None:
    @job(kind="a")
    class Opaque(msgspec.Struct, frozen=True):
        what: Callable[[], None]

    def plain(service: Service, job: Welcome, run: Any) -> None:
        """Its effect would be there before it is found that there is nothing to await."""

    def typed(service: Service, job: Welcome, run: Any) -> Awaitable[None]:
        return service.welcome(job, run)

    @functools.wraps(Service.welcome)
    def wrapped(*args):  # type: ignore[no-untyped-def]
        return Service.welcome(*args)

    for method in (typed, wrapped, lambda service, job, run: service.welcome(job, run)):
        assert Handler(Welcome, method).method is method
    with pytest.raises(JobError, match=r"handler of mail\.welcome/2: method must be async .*, got .*plain"):
        Handler(Welcome, plain)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="method must be a function"):
        Handler(Welcome, "welcome")  # type: ignore[arg-type]
    with pytest.raises(JobError, match='effect must be "any" or "transactional", got \'once\''):
        Handler(Welcome, Service.welcome, effect="once")  # type: ignore[arg-type]
    with pytest.raises(JobError, match="Opaque cannot be stored as JSON"):
        Handler(Opaque, Service.welcome)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="int is not declared as a job"):
        Handler(int, Service.welcome)  # type: ignore[arg-type, type-var]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upcasts": [Upcast(2, dict)]}, r"upcasts must be of each version up to 1, oldest first, got \[2\]"),
        ({"upcasts": [Upcast(1, dict), Upcast(1, dict)]}, r"got \[1, 1\]"),
        (
            {"upcasts": [Upcast(0, dict), Upcast(1, dict)]},
            r"handler of mail\.welcome/2: an upcast's version must be >= 1, got 0",
        ),
        ({"upcasts": [Upcast(True, dict)]}, "an upcast's version must be a whole number, got True"),
        ({"upcasts": [Upcast(1.0, dict)]}, r"version must be a whole number, got 1\.0"),  # type: ignore[arg-type]
        ({"batch": 0}, "batch must be >= 1, got 0"),
        ({"batch": 1001}, "batch must be at most 1000, got 1001"),
        ({"batch": 2.5}, r"handler of mail\.welcome/2: batch must be a whole number, got 2\.5"),
        ({"wait": 1.0}, "wait must be 0 to 5 seconds, and 0 without batch, got 1.0"),
        ({"batch": 2, "wait": 6.0}, "got 6.0"),
        ({"batch": 2, "wait": "x"}, r"handler of mail\.welcome/2: wait must be 0 to 5 seconds.*, got 'x'"),
    ],
)
def test_a_faulty_option_of_a_handler_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Handler(Welcome, Service.welcome, **options)

    @job(kind="a", result=True)
    class Asked(msgspec.Struct, frozen=True):
        pass

    with pytest.raises(JobError, match="jobs that keep a result are run one by one"):
        Handler(Asked, Service.asked, batch=2)


def test_a_handler_takes_the_versions_of_its_upcasts() -> None:
    handler = Handler(Welcome, Service.welcome, upcasts=[Upcast(1, dict)])
    assert handler.names == ["mail.welcome/2", "mail.welcome/1"]


def test_a_module_lists_each_kind_once_and_has_a_database_for_them() -> None:
    class Api(Protocol):
        async def nothing(self) -> None: ...

    handler = Handler(Welcome, Service.welcome)
    options: dict[str, Any] = {"provides": Api, "factory": lambda _: None}
    Module("users", migrations=Path("m"), jobs=[handler], **options)
    with pytest.raises(ModuleError, match=r"two handlers take the job mail\.welcome/2"):
        Module("users", migrations=Path("m"), jobs=[handler, handler], **options)

    @job(kind="mail.welcome", version=1)
    class Before(msgspec.Struct, frozen=True):
        pass

    older: list[Handler[Any]] = [
        Handler(Welcome, Service.welcome, upcasts=[Upcast(1, dict)]),
        Handler(Before, Service.asked),
    ]
    with pytest.raises(ModuleError, match=r"two handlers take the job mail\.welcome/1"):
        Module("users", migrations=Path("m"), jobs=older, **options)
    with pytest.raises(ModuleError, match="has jobs but no migrations"):
        Module("users", migrations=None, jobs=[handler], **options)


def test_a_killed_worker_is_replaced_within_35_seconds() -> None:
    """By default a lease passes and is rescued in time: lease, and the longest pause between rescues."""
    defaults = inspect.signature(Worker).parameters
    lease, upkeep = defaults["lease"].default, defaults["upkeep"].default
    assert lease + upkeep * 1.1 <= 35.0
    assert defaults["heartbeat"].default * 3 <= lease


# -- retries -------------------------------------------------------------------------------------------

kinds = st.builds(
    JobKind,
    kind=st.just("a"),
    version=st.just(1),
    max_attempts=st.integers(1, 100),
    max_run=st.just(1.0),
    backoff=st.floats(0.001, 10.0),
    max_backoff=st.floats(10.0, 10_000.0),
    priority=st.sampled_from(Priority),
)


@given(kinds, st.integers(1, 10_000), st.floats(0.5, 1.5))
def test_delays_grow_and_are_bounded(spec: JobKind, attempt: int, spread: float) -> None:
    error = ValueError()
    now, later = delay(spec, attempt, error, spread), delay(spec, attempt + 1, error, spread)
    assert spec.backoff * spread * 0.999 <= now <= later <= spec.max_backoff * spread * 1.001


def test_the_defaults_outlast_an_hour() -> None:
    """A dependency that is down for an hour costs no job, even with the least luck."""

    @job(kind="a")
    class Default(msgspec.Struct, frozen=True):
        pass

    spec = kind_of(Default)
    assert sum(delay(spec, attempt, ValueError(), 0.5) for attempt in range(1, spec.max_attempts)) > 3600


def test_a_failure_may_ask_for_more_time() -> None:
    assert delay(SPEC, 1, Unavailable("x", retry_after=50.0), 1.0) == 50.0
    assert delay(SPEC, 1, Unavailable("x", retry_after=1e9), 1.0) == SPEC.max_backoff
    assert delay(SPEC, 1, Unavailable("x", retry_after=0.1), 1.0) == 2.0


@given(st.text())
def test_errors_become_text_that_postgresql_holds(text: str) -> None:
    described = describe(ValueError(text))
    assert "\0" not in described and len(described) <= 2000
    described.encode("utf-8")


def test_lone_surrogates_in_errors_are_replaced() -> None:
    assert describe(ValueError("\udc80")).encode("utf-8")


# -- judgements ----------------------------------------------------------------------------------------

CANCELLED = asyncio.CancelledError()


@pytest.mark.parametrize(
    ("error", "ended_by", "attempt", "outcome", "state"),
    [
        (None, None, 1, "done", "done"),
        (None, "overrun", 1, "done", "done"),  # it succeeded all the same
        (None, "lost", 1, "done", "done"),  # the guard decides
        (ValueError("x"), None, 1, "retry", "ready"),
        (ValueError("x"), None, 4, "dead", "dead"),
        (JobFailed("x"), None, 1, "dead", "dead"),
        (JobLost("x"), None, 1, "lost", None),
        (CANCELLED, None, 1, "retry", "ready"),
        (CANCELLED, None, 4, "dead", "dead"),
        (CANCELLED, "overrun", 4, "dead", "dead"),
        (CANCELLED, "lost", 4, "lost", None),
        (CANCELLED, "returned", 4, "returned", "ready"),
        (ValueError("x"), "returned", 4, "returned", "ready"),
        (JobFailed("x"), "returned", 1, "dead", "dead"),
    ],
)
def test_how_a_run_ends(
    error: BaseException | None, ended_by: str | None, attempt: int, outcome: str, state: str | None
) -> None:
    found, ending, _ = judge(SPEC, attempt, 4, error, ended_by=ended_by, transactional=False, spread=1.0)
    assert (found, ending.state if ending is not None else None) == (outcome, state)
    if outcome == "returned":
        assert ending is not None and ending.uncounted


def test_a_transactional_success_is_written_already() -> None:
    assert judge(SPEC, 1, 4, None, ended_by=None, transactional=True, spread=1.0)[:2] == ("done", None)


# -- what travels --------------------------------------------------------------------------------------


def test_an_envelope_carries_trace_request_and_causality_and_nothing_else() -> None:
    """Neither identity nor deadline outlive the request."""
    trace = Trace("a" * 32, "b" * 16, sampled=True, state="x=1")
    token = CausalityToken({"main": Position(1, 77)})
    request = RequestContext("r", 5.0, Priority.CRITICAL, Identity(7, "token"), trace, 3, token)
    with activate(request):
        envelope = Envelope.capture()
    stored = msgspec.json.decode(msgspec.json.encode(envelope.dump()))
    opened = Envelope.load({**stored, "of_a_newer_version": 1}).open(priority=Priority.BULK, attempt=2)
    assert opened.request_id == "r" and opened.causality == token
    assert opened.trace is not None
    assert (opened.trace.trace_id, opened.trace.parent_id) == (trace.trace_id, trace.span_id)
    assert opened.trace.sampled and opened.trace.state == "x=1"
    assert opened.trace.span_id != trace.span_id
    assert (opened.identity, opened.deadline, opened.priority, opened.attempt) == (
        None,
        None,
        Priority.BULK,
        2,
    )


def test_outside_of_a_request_an_envelope_is_empty() -> None:
    assert Envelope.capture().dump() == {}
    opened = Envelope().open()
    assert opened.request_id and opened.trace is not None and not opened.causality


def test_an_unreadable_token_reads_from_the_primaries() -> None:
    """They have whatever it said."""
    assert Envelope(causality="nonsense").open().causality.pinned


def test_ids_are_of_version_7_and_differ() -> None:
    ids = [*new_ids(500), *(new_ids(1)[0] for _ in range(500))]
    assert len(set(ids)) == 1000
    assert ids[:500] == sorted(ids[:500])
    assert {made.version for made in ids} == {7}
    assert {made.variant for made in ids} == {"specified in RFC 4122"}


def test_a_bell_checks_its_spacing() -> None:
    with pytest.raises(ValueError, match="spacing must be >= 0 seconds, got -1"):
        Bell(spacing=-1)
