"""The module `sessions`, declared: server-side sessions as one more service of the platform.

    Platform.from_topology(modules=[*modules(), sessions_module()])
    sessions = platform.service(SessionService)

Its tables are in the schema `sessions`, on the shards that the topology's `databases.sessions` (else
`databases.default`) names; workers delete what has expired.
"""

from __future__ import annotations

from springtide.identity.sessions import MIGRATIONS, Sessions, SessionService
from springtide.services.module import Background, Module, ModuleContext

__all__ = ["sessions_module"]


def sessions_module(
    *,
    lifetime: float = 7 * 86_400.0,
    idle: float = 86_400.0,
    grace: float = 10.0,
    touch: float = 60.0,
    purge_every: float = 60.0,
) -> Module:
    """The declaration; see `Sessions` for the options. All are seconds."""

    def make(context: ModuleContext) -> Sessions:
        return Sessions(context.db, lifetime=lifetime, idle=idle, grace=grace, touch=touch, sink=context.sink)

    return Module(
        "sessions",
        migrations=MIGRATIONS,
        provides=SessionService,
        factory=make,
        background=[Background(name="purge", every=purge_every, method=Sessions.purge)],
    )
