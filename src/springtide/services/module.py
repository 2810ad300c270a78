"""A module: a unit of the application that could be its own service.

It provides one typed interface, owns one database, and names what it requires of others. Nothing else is
shared: a module gets its own database and the services it declared, and no way to anybody else's tables.
A declaration is a value; building it connects to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from springtide.clock import Clock
from springtide.errors import ModuleError
from springtide.events.event import kind_of
from springtide.events.group import Group
from springtide.flows.flow import Workflow
from springtide.jobs.job import Handler
from springtide.jobs.job import kind_of as kind_of_job
from springtide.jobs.schedule import Schedule
from springtide.signals import Sink

if TYPE_CHECKING:
    from springtide.cache import Cache
    from springtide.db import Database
    from springtide.flows import Flows
    from springtide.identity.passwords import Passwords
    from springtide.identity.tokens import AccessTokens

__all__ = ["Background", "Interface", "Module", "ModuleContext"]

T = TypeVar("T")

Interface: TypeAlias = Callable[..., T]
"""A Protocol class. (`type[T]` would say so, but type checkers refuse protocols there.)"""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_TAKEN = frozenset({"public", "springtide", "information_schema", "default"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """Work that a worker does every `every` seconds: `method` is called with the module's implementation.

    Calls never overlap in one process, but every worker process makes them: the method must bear company.
    """

    name: str
    every: float
    method: Callable[[Any], Awaitable[None]]

    def __post_init__(self) -> None:
        if not self.name:
            raise ModuleError("a background task's name must not be empty")
        if not self.every > 0:
            raise ModuleError(f"background task {self.name!r}: every must be > 0 seconds, got {self.every!r}")
        if not callable(self.method):
            raise ModuleError(
                f"background task {self.name!r}: method must be a function of the implementation,"
                f" such as Users.sweep, got {self.method!r}"
            )


@dataclass(frozen=True, slots=True)
class Module:
    """What a module is, declared. `name` is also its PostgreSQL schema.

    migrations: folder of `0001_name.sql` files, read when they are applied or checked;
                None means that the module has no database.
    provides:   the Protocol that other modules may call.
    factory:    makes the implementation; must neither connect nor start anything. An implementation that
                has `start()` and `stop()` (a lifecycle Service) is started after what it requires.
    requires:   the Protocols of other modules that the implementation may ask its context for.
    background: periodic work for the workers.
    jobs:       handlers of the module's jobs, run by the workers; they need the module's database.
    schedules:  when jobs of the module are enqueued by the clock.
    publishes:  classes of the events that its writes may append; they need the module's database.
    groups:     who of the module handles events, its own or other modules'.
    workflows:  several steps that are all done or all undone; the implementation starts them by its
                context's `flows`.
    settings:   any value of the module's own, handed on as `ModuleContext.settings`.

    Raises ModuleError that names the module, the value and the rule.
    """

    name: str
    migrations: Path | None = field(kw_only=True)
    provides: Interface[Any] = field(kw_only=True)
    factory: Callable[[ModuleContext], Any] = field(kw_only=True)
    requires: Sequence[Interface[Any]] = field(default=(), kw_only=True)
    background: Sequence[Background] = field(default=(), kw_only=True)
    jobs: Sequence[Handler[Any]] = field(default=(), kw_only=True)
    schedules: Sequence[Schedule] = field(default=(), kw_only=True)
    publishes: Sequence[type[Any]] = field(default=(), kw_only=True)
    groups: Sequence[Group] = field(default=(), kw_only=True)
    workflows: Sequence[Workflow[Any]] = field(default=(), kw_only=True)
    settings: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ModuleError(
                "a module's name must be lower-case letters, digits and _, at most 48, a letter first,"
                f" got {self.name!r}"
            )
        if self.name in _TAKEN or self.name.startswith("pg_"):
            raise ModuleError(f"module {self.name!r}: the name is taken by PostgreSQL or Springtide itself")
        if not callable(self.factory):
            raise ModuleError(f"module {self.name!r}: factory must be callable, got {self.factory!r}")
        names = [task.name for task in self.background]
        for name in names:
            if names.count(name) > 1:
                raise ModuleError(f"module {self.name!r}: background task {name!r} is declared twice")
        kinds = [name for handler in self.jobs for name in handler.names]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ModuleError(f"module {self.name!r}: two handlers take the job {kind}")
        flows = [workflow.name for workflow in self.workflows]
        for name in flows:
            if flows.count(name) > 1:
                raise ModuleError(f"module {self.name!r}: workflow {name} is declared twice")
        steps = {kind_of_job(step).name for workflow in self.workflows for step in workflow.jobs.values()}
        if taken := sorted(steps & set(kinds)):
            raise ModuleError(
                f"module {self.name!r}: {taken[0]} is a step of a workflow and has a handler, too"
            )
        if (kinds or flows) and self.migrations is None:
            raise ModuleError(
                f"module {self.name!r} has jobs but no migrations, so no database to keep them in"
            )
        named = [schedule.name for schedule in self.schedules]
        for schedule in self.schedules:
            if named.count(schedule.name) > 1:
                raise ModuleError(f"module {self.name!r}: schedule {schedule.name!r} is declared twice")
            if schedule.kind not in [handler.kind.name for handler in self.jobs]:
                raise ModuleError(
                    f"module {self.name!r}: schedule {schedule.name!r} enqueues {schedule.kind}, for which"
                    " the module lists no handler"
                )
        self._check_events()

    def _check_events(self) -> None:
        published = [kind_of(event).kind for event in self.publishes]
        for kind in published:
            if published.count(kind) > 1:
                raise ModuleError(f"module {self.name!r}: the event {kind} is published by two classes")
        if published and self.migrations is None:
            raise ModuleError(
                f"module {self.name!r} publishes events but has no migrations, so no database to keep them in"
            )
        groups = [(group.source or self.name, group.name) for group in self.groups]
        for group in groups:
            if groups.count(group) > 1:
                raise ModuleError(f"module {self.name!r}: two groups of {group[0]} have the name {group[1]}")


class ModuleContext:
    """What the platform hands to a module's factory: its own database, and the services it requires.

    `cached` is whether the topology has a cache: without one, `cache` shares loads and keeps nothing.
    Also `clock` and `sink` for its own layers, `settings` as declared, and the platform's `cache`,
    `passwords` and `tokens` (made on first use: who needs none has none). Tests build one directly.
    """

    __slots__ = (
        "_cache", "_database", "_flows", "_home", "_passwords", "_services", "_tokens", "cached", "clock",
        "name", "settings", "sink",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        sink: Sink,
        database: Database | None = None,
        services: Mapping[Any, Any] | None = None,
        settings: Any = None,
        home: Path | None = None,
        passwords: Callable[[], Passwords] | None = None,
        tokens: Callable[[], AccessTokens] | None = None,
        cache: Callable[[], Cache] | None = None,
        cached: bool = False,
        flows: Flows | None = None,
    ) -> None:
        self.name = name
        self.clock = clock
        self.sink = sink
        self.settings = settings
        self._database = database
        self._services = dict(services or {})
        self._home = home
        self._passwords = passwords
        self._tokens = tokens
        self._cache = cache
        self._flows = flows
        self.cached = cached

    @property
    def db(self) -> Database:
        """The module's own database; ModuleError when it declared no migrations."""
        if self._database is None:
            raise ModuleError(f"module {self.name!r} declares no migrations, so it has no database")
        return self._database

    @property
    def flows(self) -> Flows:
        """The module's workflows; ModuleError when it declared none."""
        if self._flows is None:
            raise ModuleError(f"module {self.name!r} declares no workflows")
        return self._flows

    @property
    def home(self) -> Path:
        """The platform's folder on this machine: for files of the module and, in `secrets/`, its keys."""
        if self._home is None:
            raise ModuleError(f"module {self.name!r}: this context was built without a home")
        return self._home

    def service(self, interface: Interface[T]) -> T:
        """The provider of `interface`; ModuleError when the module does not list it in `requires`."""
        try:
            service: T = self._services[interface]
        except KeyError:
            name = getattr(interface, "__name__", repr(interface))
            raise ModuleError(
                f"module {self.name!r} asks for {name}, which is not among its requires"
            ) from None
        return service

    @property
    def cache(self) -> Cache:
        """The platform's cache, to define classes of values in: in the factory, before anything is started.

        Where the topology has none, values are kept nowhere, and loaded once for all who want them at once.
        """
        if self._cache is None:
            raise ModuleError(f"module {self.name!r}: this context was built without a cache")
        return self._cache()

    @property
    def passwords(self) -> Passwords:
        """The platform's password hashing."""
        if self._passwords is None:
            raise ModuleError(f"module {self.name!r}: this context was built without passwords")
        return self._passwords()

    @property
    def tokens(self) -> AccessTokens:
        """The platform's access tokens."""
        if self._tokens is None:
            raise ModuleError(f"module {self.name!r}: this context was built without tokens")
        return self._tokens()
