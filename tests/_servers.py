"""Real servers that single tests need: `@pytest.mark.needs("postgresql-15")`, named by Debian package.

A missing one skips the test, and the summary lists what is missing; under CI=true it fails instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

PROGRAMS = {
    "postgresql-15": "/usr/lib/postgresql/15/bin/postgres",
    "postgresql-15-hypopg": "/usr/share/postgresql/15/extension/hypopg.control",
    "pgbouncer": "/usr/sbin/pgbouncer",
    "patroni": "/usr/bin/patroni",
    "etcd-server": "/usr/bin/etcd",
    "wrk": "wrk",
    "chromium": "chromium",
    "ffmpeg": "ffmpeg",
    "redis-server": "redis-server",
    "redis-sentinel": "redis-sentinel",
    "rabbitmq-server": "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "nats-server": "nats-server",
}


def program(package: str) -> str | None:
    """The path of what `package` brings, its server for most; None when it is not installed."""
    path = PROGRAMS[package]
    return shutil.which(path) or (path if os.path.isfile(path) else None)


def _missing(item: pytest.Item) -> Iterator[str]:
    for marker in item.iter_markers("needs"):
        for package in marker.args:
            if package not in PROGRAMS:
                raise pytest.UsageError(f"{item.nodeid}: needs({package!r}): known are {sorted(PROGRAMS)}")
            if program(package) is None:
                yield package


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent: dict[str, int] = {}
    for item in items:
        for package in _missing(item):
            absent[package] = absent.get(package, 0) + 1
            if os.environ.get("CI") != "true":
                item.add_marker(pytest.mark.skip(reason=f"{package} is not installed (make servers)"))
    config.stash[_ABSENT] = absent


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if packages := sorted(set(_missing(item))):
        pytest.fail(f"{', '.join(packages)} must be installed under CI (make servers)", pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    absent = config.stash.get(_ABSENT, {})
    if absent:
        terminalreporter.section("servers that are not installed", sep="!", red=True, bold=True)
        for package, count in sorted(absent.items()):
            terminalreporter.line(f"{package}: {count} tests did not run. As root: make servers", yellow=True)


_ABSENT: pytest.StashKey[dict[str, int]] = pytest.StashKey()
