"""Real servers that single tests need: `@pytest.mark.needs("postgresql-15")`, named by Debian package.

A missing one skips the test, and the summary lists what is missing; under CI=true it fails instead. What a
stand-in for a server cannot be asked (`not_asked`) is in the summary too.

Tests over a broker come first, those of one kind side by side: where a run is divided, one process has them
all, and starts that broker once.
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
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[bool, str]:
    call = getattr(item, "callspec", None)
    parameters = call.params if call is not None else {}
    kind = next((str(parameters[name]) for name in _BY_BROKER if name in parameters), "postgres")
    return (True, "") if kind == "postgres" else (False, kind)


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
    left_out = [
        f"{report.nodeid}: {what}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, what in report.user_properties
        if name == _NOT_ASKED
    ]
    if left_out:
        terminalreporter.section("not asked of faithful stand-ins", sep="!", yellow=True, bold=True)
        for line in left_out:
            terminalreporter.line(line, yellow=True)


def not_asked(request: pytest.FixtureRequest, what: str) -> None:
    """Have the summary say that this test left `what` out, because its server is a stand-in."""
    request.node.user_properties.append((_NOT_ASKED, what))


_BY_BROKER = ("broker", "carried", "way")
"""Parameters that name a broker, or "postgres" for none."""

_NOT_ASKED = "not asked of a stand-in"

_ABSENT: pytest.StashKey[dict[str, int]] = pytest.StashKey()
