"""The embedded PostgreSQL server of one node: a real server, on this machine, for this platform only.

Its life is that of `served`. A start makes the data folder when there is none, adopts the server that a
killed supervisor left running, or starts one and waits until it accepts connections. One that fails or is
cancelled leaves no half-made folder either.

A server is a primary, or it `follows` one as a streaming replica: its folder is then a base backup, repaired
first (rewound or copied again) when it was a primary itself. Only `promote` makes a primary of a replica; a
replica's folder is never opened as a primary's.
Never opens a folder with another major version, and never runs as root.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from springtide.errors import RunnerError
from springtide.ops.runner import access, making, pgdata, ports, processes, psql, standby
from springtide.ops.runner.access import Access
from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.backups import archiving as archive
from springtide.ops.runner.certificates import verified
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.installs import SHARED, find_install, reachable_install
from springtide.ops.runner.making import Place, uncut
from springtide.ops.runner.processes import Process, Stage
from springtide.ops.runner.served import HOST, Served
from springtide.ops.runner.standby import Upstream
from springtide.signals import Sink

__all__ = ["EmbeddedPostgres"]

_log = logging.getLogger(__name__)

POLL = 0.02
"""How often postmaster.pid is read while a server starts: PostgreSQL tells its state nowhere else."""

GRACE = 0.5
"""Seconds that a promotion leaves to those who read on the server."""

GONE = b"has already been removed"
"""How a replica's log says that its upstream cannot give it what it needs; LC_ALL makes it English."""

SHUTDOWN = (Stage(signal.SIGINT, 20.0), Stage(signal.SIGQUIT, 8.0), Stage(signal.SIGKILL, 8.0))
"""Fast shutdown (clients disconnected), then immediate, then by force (the next start recovers)."""


class EmbeddedPostgres(Served):
    """`home` holds data/, secrets/, logs/ and run/; `port` None means a free one, kept over restarts.

    `follows`: the server of the same home that this one replicates; None = it is a primary.
    `replicated` (an attribute): it keeps more of its log, for replicas and for a primary that it replaces.
    `confirming`: replicas of which one must have a commit on its disk before it is acknowledged; () = none.
    `as_found`: open the data as it is, primary's or replica's, for those who configure replication by hand.
    `durable=False` switches fsync off: for tests, where a crash of the machine may lose the data.
    `archiving`: where the log is archived; None = nowhere.
    """

    KIND, SERVICE, SHUTDOWN = "PostgreSQL", "postgres", SHUTDOWN

    def __init__(
        self,
        name: str,
        *,
        home: Path,
        platform: str = "springtide",
        port: int | None = None,
        max_connections: int = 200,
        follows: Upstream | None = None,
        confirming: Sequence[str] = (),
        as_found: bool = False,
        access: Access | None = None,
        durable: bool = True,
        archiving: archive.Archiving | None = None,
        start_timeout: float = 60.0,
        shared: Path = SHARED,
        cgroup: Cgroup | None = None,
        sink: Sink | None = None,
    ) -> None:
        super().__init__(
            name,
            home=home,
            platform=platform,
            port=port,
            start_timeout=start_timeout,
            shared=shared,
            cgroup=cgroup,
            sink=sink,
        )
        if as_found and follows is not None:
            raise ValueError(f"as_found must be False for a server that follows, got {follows}")
        self.adopted = False
        self.follows = follows
        self.confirming = tuple(confirming)
        self.replicated = follows is not None
        self._urgent = False
        self._max_connections = max_connections
        self._as_found = as_found
        self._access = access
        self._durable = durable
        self._archiving = archiving
        self._place: Place | None = None
        self._sockets: Path | None = None

    @property
    def data(self) -> Path:
        """The real data folder."""
        return self._known().data

    @property
    def socket_folder(self) -> Path:
        assert self._sockets is not None, "the server was not started"
        return self._sockets

    def url(self, dbname: str = "postgres") -> str:
        user = f"{pgdata.SUPERUSER}:{quote(self._known().password, safe='')}"
        proof = f"?{verified(self.home / 'secrets')}" if self._tls else ""
        return f"postgresql://{user}@{HOST}:{self.port}/{quote(dbname, safe='')}{proof}"

    @property
    def _tls(self) -> bool:
        return self._access is not None and self._access.tls

    async def ensure_database(self, dbname: str) -> None:
        """Create `dbname` when it does not exist."""
        await self.query(
            "SELECT format('CREATE DATABASE %I', :'name')"
            " WHERE NOT EXISTS (SELECT 1 FROM pg_database WHERE datname = :'name') \\gexec\n",
            name=dbname,
        )

    async def query(
        self, sql: str, *, dbname: str = "postgres", timeout: float = 30.0, **variables: str
    ) -> str:
        """Run `sql` by psql, which keeps the supervisor small; `:'name'` inserts a variable, quoted."""
        place = self._known()
        try:
            return await psql.ask(
                place.install.program("psql"),
                sql,
                who=f"PostgreSQL {self.name}",
                port=self.port,
                user=pgdata.SUPERUSER,
                password=place.password,
                dbname=dbname,
                root=place.authority,
                timeout=timeout,
                **variables,
            )
        except RunnerError as error:
            if "password authentication failed" in str(error):
                hint = f"{self._password_file(self.name)} is not the password of the database in {place.data}"
                raise RunnerError(f"{error}\n{hint}") from error
            raise

    async def reload(self) -> None:
        """Let the running server read its settings: after a change of `follows` or `confirming`."""
        process = self._running()
        await asyncio.to_thread(self._write_settings)
        process.send(signal.SIGHUP)

    async def promote(self, *, timeout: float = 60.0) -> None:
        """Make this replica a primary and wait until it takes writes; it follows nobody any more.

        All of the log that is here is replayed first, and replay waits for whoever reads what it is about to
        remove. Such readers are stopped: at once those that come into its way from now on, and those that it
        waits for already, who are not told apart from others in a transaction, after GRACE seconds.
        A promotion that fails may be repeated.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        self._urgent = True
        try:
            try:
                await self.reload()
            except OSError as error:  # such as a full disk: without it the readers are stopped one by one
                _log.warning("%s: replay is not told to wait for nobody: %s", self.name, error)
            self.follows = None
            # Not with its own wait: that has a snapshot, which stands in the way of replay like any other.
            asked = "SELECT NOT pg_is_in_recovery() OR pg_promote(false);\n"
            if await self.query(asked, timeout=timeout) != "t":
                raise RunnerError(f"PostgreSQL {self.name} did not hear that it is promoted")
            grace = loop.time() + GRACE
            while await self.query("SELECT pg_is_in_recovery();\n", timeout=timeout) == "t":
                now = loop.time()
                if now > end:
                    raise RunnerError(f"PostgreSQL {self.name} was not promoted within {timeout:g} s")
                if now > grace:
                    await self.query(standby.END_READERS, timeout=timeout)
                await asyncio.sleep(POLL if now < grace else 10 * POLL)
        finally:
            self._urgent = False
        await self.reload()

    async def locate(self) -> bool:
        """Find data and programs without starting anything: for `fence` and `kill` before the first start.

        Whether the data are there.
        """
        return await asyncio.to_thread(self._prepare)

    async def shut_down(self) -> None:
        """Let the running server end in order; whoever watches it hears of it."""
        if not await processes.stop(self._running(), SHUTDOWN):
            raise RunnerError(f"PostgreSQL {self.name} (pid {self.pid}) does not end")

    async def discard(self) -> None:
        """Remove the data and the password of a server that is stopped."""
        if self._place is not None:
            await uncut(pgdata.discard, self.home, self.name, self._place.data)

    async def kill(self) -> None:
        """End every process that works on the data, by SIGKILL; whoever watches the server hears of it."""
        await uncut(pgdata.clear_stale, self._known().data)

    async def is_standby(self) -> bool:
        """Whether the folder is that of a replica; False also for one that is not made yet."""
        return await asyncio.to_thread(standby.is_standby, self._known().data)

    async def repair_wanted(self) -> str | None:
        """How the folder must be repaired before it is opened again: "rewind", "copy", or not at all."""
        return await asyncio.to_thread(standby.repair_wanted, self._known().data)

    async def repair(self, how: str) -> None:
        """Note that the folder must be repaired before it is opened again: "rewind" or "copy"."""
        await uncut(standby.want_repair, self._known().data, how)

    async def fence(self) -> None:
        """Kill whatever runs on the data, at once, and keep the folder from being opened as a primary's."""
        await uncut(self._fence)

    def _fence(self) -> None:
        place = self._known()
        pgdata.clear_stale(place.data)
        if not (place.data / "PG_VERSION").exists():
            return  # nothing that could be opened
        standby.want_repair(place.data, "rewind")
        standby.make_standby(place.data, place.account)

    def _known(self) -> Place:
        assert self._place is not None, "the server was not started"
        return self._place

    async def _begin(self) -> None:
        made = await uncut(self._prepare)
        place = self._known()
        if not await self._adopt(place.data):
            await self._make_ready(place, made=made)
            try:
                await self._launch(place)
            except _LogGone as error:
                await self._copy_instead(place, str(error))

    def _prepare(self) -> bool:
        """Find everything that a start needs; whether the data folder is made already."""
        for folder, mode in (("", 0o755), ("data", 0o755), ("secrets", 0o700), ("logs", 0o700)):
            path = self.home / folder
            if not path.is_dir():
                path.mkdir(parents=True)
                path.chmod(mode)
        account = server_account()
        data = pgdata.locate(
            self.home, self.name, platform=self._platform, account=account, shared=self._shared
        )
        if (data / "PG_VERSION").exists():
            account = pgdata.owner(data, account)
        elif data.exists() and any(data.iterdir()):
            raise RunnerError(f"{data} exists and is no PostgreSQL data folder: move it away")
        origin = data
        if self.follows is not None and not (data / "PG_VERSION").exists():
            origin = (self.home / "data" / self.follows.node).resolve()  # a copy has its upstream's version
        upstream = self._password_file(self.follows.node) if self.follows is not None else None
        self._place = Place(
            node=self.name,
            data=data,
            account=account,
            install=reachable_install(find_install(origin, tls=self._tls), account, shared=self._shared),
            password=pgdata.secret(self._password_file(self.name), data, shared_with=upstream),
            log=self.log,
            durable=self._durable,
            authority=self.home / "secrets" / access.AUTHORITY if self._tls else None,
            archive=None if self._archiving is None else self._archiving.folder,
        )
        pgdata.Staging.clear(data)
        return (data / "PG_VERSION").exists()

    def _password_file(self, node: str) -> Path:
        return self.home / "secrets" / f"{node}.password"

    async def _make_ready(self, place: Place, *, made: bool) -> None:
        """Make the data folder, or what a replica's lacks to follow; refuse a replica's as a primary's."""
        repair = await asyncio.to_thread(standby.repair_wanted, place.data)
        if self.follows is None:
            follows = not self._as_found and await asyncio.to_thread(standby.is_standby, place.data)
            if follows or repair is not None:
                raise RunnerError(
                    f"the data of node {self.name} in {place.data} is a replica's, or that of a primary that "
                    "was replaced: it can only follow"
                )
            if not made:
                await making.initialise(place)
            return
        await uncut(pgdata.clear_stale, place.data)
        if not made or repair == "copy":
            await making.copy(place, self.follows)
        elif repair == "rewind" or not await asyncio.to_thread(standby.is_standby, place.data):
            await making.rewind(place, self.follows)

    async def _copy_instead(self, place: Place, why: str) -> None:
        """A replica that can never get what it lacks, for example after a rewind, is made anew."""
        assert self.follows is not None
        _log.warning("%s; it is copied anew", why)
        await uncut(standby.want_repair, place.data, "copy")
        await making.copy(place, self.follows)
        await self._launch(place)

    async def _adopt(self, data: Path) -> bool:
        """Take over a running server of this folder; one that does not answer is stopped instead."""
        found = await asyncio.to_thread(pgdata.postmaster, data)
        if found is None:
            return False
        try:
            process = await asyncio.to_thread(Process, found.pid)
        except ProcessLookupError:
            return False
        self._port, self._sockets = found.port, Path(found.socket_folder)
        usable = self._wanted_port in (None, found.port) and found.status == "ready"
        # A replaced primary that still runs, or a replica that is to be repaired, is no server to adopt.
        follows = await asyncio.to_thread(standby.is_standby, data)
        usable = usable and await asyncio.to_thread(access.has_tls, data) == self._tls
        usable = usable and (self._as_found or follows == (self.follows is not None))
        usable = usable and await asyncio.to_thread(standby.repair_wanted, data) is None
        if usable and not await asyncio.to_thread(processes.suspended, found.pid):
            try:
                await self.query("SELECT 1", timeout=5.0)
            except RunnerError:
                pass
            else:
                await self._limit(*await asyncio.to_thread(pgdata.servers, data))
                self._process, self.adopted = process, True
                await self.reload()
                return True
        if not await processes.stop(process, SHUTDOWN):
            raise RunnerError(f"PostgreSQL {self.name} (pid {found.pid}) neither answers nor ends")
        return False

    async def _launch(self, place: Place) -> None:
        await uncut(pgdata.clear_stale, place.data)
        try:
            self._sockets = await uncut(pgdata.socket_folder, place.data, place.account)
            await self._launch_on_a_port(place)
        except BaseException:
            await uncut(pgdata.remove_socket_folder, place.data, place.account)
            raise

    def _write_settings(self) -> None:
        place = self._known()
        pgdata.write_settings(place.data, archive.SCRIPT, place.account, name=archive.SCRIPT_NAME)
        text = pgdata.settings_file(
            max_connections=self._max_connections,
            durable=self._durable,
            archiving=None if self._archiving is None else self._archiving.settings(),
        )
        text += standby.settings(
            self.name,
            place.data,
            self.follows,
            user=pgdata.SUPERUSER,
            root=place.data / access.ROOT if self._tls else None,
            confirming=self.confirming,
            replicated=self.replicated,
            urgent=self._urgent,
        )
        if self.follows is not None:
            standby.write_passfile(place.data / standby.PASSFILE, place.password, place.account)
        text += access.settings(self._access, place.data)
        kept = self.home / "secrets" / self.name
        access.install(self._access, place.data, place.account, user=pgdata.SUPERUSER, kept=kept)
        pgdata.write_settings(place.data, text, place.account)

    async def _launch_on_a_port(self, place: Place) -> None:
        await uncut(self._write_settings)
        begin = await asyncio.to_thread(place.log_size)
        for attempt in range(3):
            port = self._wanted_port or self._port if attempt == 0 else None
            self._port = port or _free_port()
            try:
                await self._launch_once(place, begin)
                return
            except _PortTaken:
                if self._wanted_port is not None:
                    break
                self._port = None  # between choosing and binding somebody else took it: choose again
        by = await asyncio.to_thread(ports.holder, self._wanted_port or 0)
        raise RunnerError(
            f"port {self._wanted_port} of node {self.name} is taken{f' by {by}' if by else ''}: choose "
            f"another with nodes.{self.name}.port, or leave it out for a free one"
        )

    async def _launch_once(self, place: Place, begin: int) -> None:
        data = place.data
        process = await processes.spawn(
            [
                str(place.install.program("postgres")),
                "-D",
                str(data),
                "-c",
                f"port={self._port}",
                "-c",
                f"unix_socket_directories={self._sockets}",
            ],
            log=self.log,
            env=making.ENVIRONMENT,
            account=place.account.switch,
        )
        try:
            await self._limit(process.pid)
            async with asyncio.timeout(self._start_timeout):
                await self._ready(process, place, begin)
            await self._limit(*await asyncio.to_thread(pgdata.servers, data))  # those it started meanwhile
        except BaseException as error:
            await processes.stop(process, SHUTDOWN[1:])
            await uncut(pgdata.clear_stale, data)
            if isinstance(error, TimeoutError):
                what = f"be ready within {self._start_timeout:g} s"
                raise RunnerError(await place.failure(what, begin, None)) from None
            raise
        self._process, self.adopted = process, False

    async def _ready(self, process: Process, place: Place, begin: int) -> None:
        ending = asyncio.ensure_future(process.wait())
        try:
            while True:
                done, _ = await asyncio.wait([ending], timeout=POLL)
                if done:
                    message = await place.failure("start", begin, ending.result())
                    if "could not bind" in message and "in use" in message:
                        raise _PortTaken(message)
                    raise RunnerError(message)
                found = await asyncio.to_thread(pgdata.postmaster, place.data)
                if found is not None and found.pid == process.pid and found.status == "ready":
                    return
                if self.follows is not None and await asyncio.to_thread(place.logged, GONE, begin):
                    raise _LogGone(f"{self.follows.node} no longer has the log that {self.name} needs")
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _clear(self) -> None:
        if (place := self._place) is not None:
            await uncut(pgdata.clear_stale, place.data)
            await uncut(pgdata.remove_socket_folder, place.data, place.account)


class _LogGone(Exception):
    """The upstream has removed a part of its log that this replica needs before it can be opened."""


class _PortTaken(Exception):
    """The server's port was in use when it tried to bind it."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
