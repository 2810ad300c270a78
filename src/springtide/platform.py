"""The composition root: the one place where topology, database, telemetry, web and modules meet.

A platform is built from a topology and a list of modules; building connects to nothing. Started, it opens
the pools, refuses to run on a database whose migrations are pending, and starts the modules in the order of
their requirements; stopped, it undoes that in reverse. It runs in one event loop and wraps one application.

    platform = Platform.from_topology(modules=modules())
    app = platform.wrap(FastAPI())
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from springtide._serving import Serving
from springtide.clock import Clock, SystemClock
from springtide.db import Database, Migrator, Pool, ShardMap
from springtide.errors import ConfigurationError, MigrationError, ModuleError
from springtide.lifecycle import Group, Periodic, Service, StartStop
from springtide.services.module import Interface, Module, ModuleContext
from springtide.services.registry import Registry
from springtide.signals import FanOut, Sink
from springtide.telemetry.logs import LogSink
from springtide.telemetry.metrics import MetricsSink
from springtide.topology import Topology, load

if TYPE_CHECKING:
    from springtide.identity.passwords import Passwords
    from springtide.identity.tokens import AccessTokens

__all__ = ["Platform", "load_modules"]

T = TypeVar("T")

RECONCILE_EVERY = 30.0
"""Seconds between two passes over what crashed writers left, per database."""


class Platform:
    """One process's view of the running whole.

    topology:    what exists; its nodes must have addresses (given, or filled in by the runner).
    modules:     the application's modules, in any order.
    home:        folder for what the platform keeps (`secrets/`); None means `.springtide` beside the file.
    sink:        hears every signal beside the platform's own metrics and logs; None means nobody.
    check_calls: make calls between modules as a network would (for tests; see services.call.Checked).

    Raises ConfigurationError (ModuleError, TopologyError) when the parts do not fit. `start` raises
    MigrationError when migrations are pending, and DatabaseUnavailable when a cluster cannot be reached.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        modules: Sequence[Module] = (),
        home: Path | None = None,
        clock: Clock | None = None,
        sink: Sink | None = None,
        check_calls: bool = False,
    ) -> None: ...

    @classmethod
    def from_topology(
        cls, path: Path | None = None, *, modules: Sequence[Module] | None = None, check_calls: bool = False
    ) -> Platform:
        """Read springtide.toml and build the platform that it describes.

        path None means the file that the runner named (SPRINGTIDE_TOPOLOGY), else ./springtide.toml.
        modules None means those that the file's `modules` key names.
        """
        ...

    def service(self, interface: Interface[T]) -> T:
        """The service that provides `interface`. Raises ModuleError when no module does."""
        ...

    def database(self, module: str) -> Database:
        """The database of `module`: for migrations, seeds and tests; a module uses its context's `db`."""
        ...

    @property
    def passwords(self) -> Passwords: ...

    @property
    def tokens(self) -> AccessTokens: ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def __aenter__(self) -> Platform: ...
    async def __aexit__(self, *_: object) -> None: ...

    async def migrate(self) -> list[str]:
        """Apply every module's pending migrations on every shard, required modules first; their names."""
        ...

    def background(self) -> list[Service]:
        """What a worker runs beside a started platform: every module's periodic work, stopped first."""
        ...

    def wrap(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """`app` with the layers around it, /metrics and /health beside it, and start/stop by lifespan."""
        ...


def load_modules(topology: Topology) -> list[Module]:
    """The modules that the topology's `modules` key names: a list or a function giving one; [] without key."""
    ...
