"""A platform on real PostgreSQL: built, migrated, started, wrapped around an application, stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
import pytest

from springtide.context import RequestContext, activate, current
from springtide.db.servers import RoutingSettings
from springtide.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    MigrationError,
    StageNotBuilt,
    Unavailable,
)
from springtide.lifecycle import Group
from springtide.platform import Platform, load_modules
from springtide.services import Background, Module, ModuleContext
from springtide.telemetry.prometheus import render
from springtide.testing import stress
from springtide.topology import Addresses, Topology, loads
from springtide.topology.layers import BackupSpec


class Note(msgspec.Struct, frozen=True):
    id: int
    text: str


class Notes(Protocol):
    async def add(self, text: str) -> Note: ...

    async def find(self, id: int) -> Note | None: ...


class Greeter(Protocol):
    async def greet(self, id: int) -> str: ...


class NoteService:
    """Also a lifecycle service: the platform starts and stops it."""

    name = "notes"

    def __init__(self, context: ModuleContext) -> None:
        self._db = context.db
        self.log: list[str] = []

    async def start(self) -> None:
        self.log.append(f"start with {await self._db.scatter_sum('select count(*) from notes.note')} notes")

    async def stop(self) -> None:
        self.log.append("stop")

    async def add(self, text: str) -> Note:
        id = await self._db.ids.take(text)
        async with self._db.write(id) as tx:
            await tx.execute(
                "insert into notes.note (bucket, id, text) values ($1, $2, $3)", id & 1023, id, text
            )
        return Note(id, text)

    async def find(self, id: int) -> Note | None:
        row = await self._db.read(id).fetch_one(
            "select id, text from notes.note where bucket = $1 and id = $2", id & 1023, id
        )
        return Note(row["id"], row["text"]) if row is not None else None

    async def sweep(self) -> None:
        self.log.append("sweep")


class GreeterService:
    def __init__(self, context: ModuleContext) -> None:
        self._notes = context.service(Notes)
        self.deadline: object = "never asked"

    async def greet(self, id: int) -> str:
        note = await self._notes.find(id)
        return "Hello " + ("nobody" if note is None else note.text)


@pytest.fixture
def modules(tmp_path: Path) -> list[Module]:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_note.sql").write_text(
        "create table notes.note (bucket smallint not null, id bigint not null, text text not null,"
        " primary key (bucket, id));\n"
    )
    return [
        Module("greeter", migrations=None, provides=Greeter, factory=GreeterService, requires=(Notes,)),
        Module(
            "notes",
            migrations=folder,
            provides=Notes,
            factory=NoteService,
            background=[Background(name="sweep", every=0.01, method=NoteService.sweep)],
        ),
    ]


@pytest.fixture
def topology(database_urls: tuple[str, str]) -> Topology:
    return topology_of(*database_urls)


def topology_of(first: str, second: str) -> Topology:
    return loads(
        f"""
        name = "notes"
        app = "notes:app"
        [pool]
        size = 4
        reserved = 1
        [nodes.db]
        kind = "postgres"
        url = "{first}"
        [nodes.other]
        kind = "postgres"
        url = "{second}"
        [clusters.main]
        primary = "db"
        [clusters.second]
        primary = "other"
        [databases.default]
        shards = ["main", "second"]
        """
    )


async def test_modules_work_on_their_migrated_shards(topology: Topology, modules: list[Module]) -> None:
    """Migrate, start, call across modules, stop; both shards are used, the order follows requirements."""
    platform = Platform(topology, modules=modules)
    assert [module.name for module in platform.modules] == ["notes", "greeter"]
    applied = await platform.migrate()
    assert [name for name in applied if "0001_note" in name] == [
        "notes/0001_note.sql on main",
        "notes/0001_note.sql on second",
    ]
    assert await platform.migrate() == []
    async with platform:
        notes = [await platform.service(Notes).add(f"note {number}") for number in range(20)]
        assert await platform.service(Greeter).greet(id=notes[3].id) == "Hello note 3"
        shards = {platform.database("notes").shards.shard_of(note.id) for note in notes}
        assert shards == {"main", "second"}
        made: Any = platform.service(Notes)
        assert made.log == ["start with 0 notes"]
    assert made.log[-1] == "stop"
    assert platform.state == "stopped"
    with pytest.raises(Unavailable):
        await made.find(1)


async def test_calls_of_the_modules_could_cross_a_network(topology: Topology, modules: list[Module]) -> None:
    """The same with every call encoded and decoded."""
    platform = Platform(topology, modules=modules, check_calls=True)
    await platform.migrate()
    async with platform:
        note = await platform.service(Notes).add("wired")
        assert await platform.service(Greeter).greet(note.id) == "Hello wired"


async def test_pending_migrations_keep_a_platform_from_starting(
    topology: Topology, modules: list[Module]
) -> None:
    """The error names them and the command; nothing is left open, and after migrating it starts."""
    platform = Platform(topology, modules=modules)
    with pytest.raises(MigrationError, match=r"notes/0001_note\.sql on main.*springtide db migrate"):
        await platform.start()
    assert platform.state == "failed"
    assert {pool.state for pool in platform.pools.values()} == {"stopped"}
    await platform.migrate()
    async with platform:
        assert platform.state == "running"


async def test_a_platform_is_not_started_while_it_is_migrated(topology: Topology) -> None:
    """The end of the migration would close the pools under it."""
    platform = Platform(topology)
    migration = asyncio.create_task(platform.migrate())
    await asyncio.sleep(0)
    for call in (platform.start, platform.migrate):
        with pytest.raises(ConfigurationError, match="is being migrated"):
            await call()
    await migration
    async with platform:
        assert await platform.migrate() == []
        assert platform.state == "running"
        assert await platform.pools["main"].fetch_value("select 1") == 1


def test_a_platform_shows_the_backups_that_its_runner_notes(topology: Topology, tmp_path: Path) -> None:
    """Where the topology asks for backups: in `/metrics`, from the runner's folder."""
    notes = tmp_path / "run" / "backups.json"
    notes.parent.mkdir()
    notes.write_text('{"main": {"last": {"ended": 100.5}}}')
    shown = b'springtide_backup_last_timestamp_seconds{cluster="main"} 100.5'
    assert shown not in render(Platform(topology, home=tmp_path).metrics)[0]
    asked = replace(topology, backups=BackupSpec())
    assert shown in render(Platform(asked, home=tmp_path).metrics)[0]


async def test_background_work_runs_beside_a_started_platform(
    topology: Topology, modules: list[Module]
) -> None:
    """A worker starts the modules' periodic work, each task by its module's name."""
    platform = Platform(topology, modules=modules)
    await platform.migrate()
    async with platform:
        work = platform.background()
        assert [service.name for service in work] == [
            "notes.sweep",
            "notes.reconcile",
            "notes.idempotency",
        ]
        group = Group("background", work)
        await group.start()
        made: Any = platform.service(Notes)
        while "sweep" not in made.log:
            await asyncio.sleep(0.005)
        await group.stop()


def test_replicas_are_read_as_their_cluster_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never so that one may serve what a client's token does not remember any more."""
    monkeypatch.setenv("SPRINGTIDE_ZONE", "west")
    topology = loads(
        """
        name = "shop"
        app = "shop:app"
        [nodes]
        one.url = "postgresql://u@h1/x"
        two.url = "postgresql://u@h2/x"
        [clusters.main]
        primary = "one"
        replicas = ["two"]
        max_lag = 3
        min_serving = 2
        look_every = 0.5
        [databases.default]
        shards = ["main"]
        """
    )
    settings = RoutingSettings(zone="west", max_lag=3, min_serving=2, look_every=0.5)
    assert Platform(topology).servers["main"].settings == settings
    with pytest.raises(ConfigurationError, match="3 x max_lag"):
        Platform(topology, routing=RoutingSettings(max_lag=11))


async def test_an_unreachable_cluster_keeps_a_platform_from_starting(modules: list[Module]) -> None:
    """DatabaseUnavailable, soon, and nothing is left."""
    gone = "postgresql://nobody@127.0.0.1:1/"
    platform = Platform(topology_of(f"{gone}one", f"{gone}two"), modules=modules)
    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnavailable):
            await platform.start()
    assert platform.state == "failed"


async def test_a_cancelled_start_is_stopped(topology: Topology) -> None:
    """`async with` whose start is cancelled leaves nothing running."""
    platform = Platform(topology)
    task = asyncio.create_task(platform.__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert platform.state in ("new", "stopped")


async def test_storms_of_start_stop_and_cancel(topology: Topology, modules: list[Module]) -> None:
    """The platform keeps the contract of every service."""
    await Platform(topology, modules=modules).migrate()

    def factory() -> Platform:
        platform = Platform(topology, modules=modules)
        assert platform.passwords.state == "new"
        return platform

    await stress(factory, storms=5, pause=0.02)


def test_a_platform_belongs_to_one_event_loop(topology: Topology) -> None:
    """Used in a second one it says so, instead of hanging on the first one's connections."""
    platform = Platform(topology)

    async def use() -> None:
        async with platform:
            pass

    asyncio.run(use())
    with pytest.raises(ConfigurationError, match="belongs to another event loop"):
        asyncio.run(use())


async def test_identity_is_made_on_demand(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for before the start it runs with the platform; later it is refused."""
    monkeypatch.delenv("SPRINGTIDE_TOKEN_KEY", raising=False)
    platform = Platform(topology, home=tmp_path)
    tokens = platform.tokens
    async with platform:
        assert tokens.verify(tokens.issue(7)).aud == "notes/api"
        with pytest.raises(ConfigurationError, match="passwords were first asked for after the start"):
            _ = platform.passwords
    assert (tmp_path / "secrets" / "token.key").is_file()


async def test_the_token_key_may_come_from_the_environment(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then no file is made; a faulty key is named without being shown."""
    monkeypatch.setenv("SPRINGTIDE_TOKEN_KEY", "ed25519 " + "A" * 43)
    platform = Platform(topology, home=tmp_path)
    tokens = platform.tokens
    async with platform:
        tokens.verify(tokens.issue(1))
    assert not (tmp_path / "secrets").exists()
    monkeypatch.setenv("SPRINGTIDE_TOKEN_KEY", "ed25519 secret")
    platform = Platform(topology, home=tmp_path)
    assert platform.tokens.state == "new"
    with pytest.raises(ConfigurationError, match="SPRINGTIDE_TOKEN_KEY: line 1") as caught:
        await platform.start()
    assert "secret" not in str(caught.value)


# --- from a file


@pytest.fixture
def project(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("SPRINGTIDE_TOPOLOGY", "SPRINGTIDE_HOME", "SPRINGTIDE_NODE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "springtide.toml"
    file.write_text(
        'name = "demo"\napp = "demo_app:app"\nmodules = "demo_modules:modules"\n'
        '[nodes.db]\nkind = "postgres"\n[clusters.main]\nprimary = "db"\n'
        f'dbname = "{database_url.rpartition("/")[2]}"\n[databases.default]\nshards = ["main"]\n'
    )
    (tmp_path / "demo_modules.py").write_text("def modules():\n    return []\n")
    run = tmp_path / ".springtide" / "run"
    run.mkdir(parents=True)
    (run / "addresses.json").write_text(
        Addresses(nodes={"db": database_url, "gone": "postgresql://x/y"}).to_json()
    )
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    yield file


def test_a_platform_finds_its_file_and_the_runners_addresses(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By argument, by the runner's variables, or in the working folder."""

    async def use(platform: Platform) -> None:
        async with platform:
            assert platform.name == "demo"

    asyncio.run(use(Platform.from_topology(project)))
    monkeypatch.chdir(project.parent)
    asyncio.run(use(Platform.from_topology()))
    monkeypatch.chdir("/")
    monkeypatch.setenv("SPRINGTIDE_TOPOLOGY", str(project))
    monkeypatch.setenv("SPRINGTIDE_HOME", str(project.parent / ".springtide"))
    asyncio.run(use(Platform.from_topology()))


def test_a_node_without_an_address_is_named(project: Path) -> None:
    """And what to do about it."""
    (project.parent / ".springtide" / "run" / "addresses.json").unlink()
    with pytest.raises(ConfigurationError, match=r"node 'db' has no address.*springtide up"):
        Platform.from_topology(project)
    (project.parent / ".springtide" / "run" / "addresses.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"addresses\.json: the runner's addresses cannot be read"):
        Platform.from_topology(project)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be imported"),
        ("import nowhere_at_all", "cannot be imported: No module named 'nowhere_at_all'"),
        ("modules = [1]", "must give a list of Module"),
        ("def modules(): return None", "must give a list of Module, got None"),
    ],
)
def test_a_faulty_modules_key_is_named(project: Path, text: str, says: str) -> None:
    """Key and value, and what is wrong with it."""
    name = f"demo_modules_{abs(hash((text, str(project))))}"
    (project.parent / f"{name}.py").write_text(text)
    topology = loads(project.read_text().replace("demo_modules", name), source=project)
    with pytest.raises(ConfigurationError, match=f"modules = '{name}:modules' .*{says}"):
        load_modules(topology)


def test_a_stage_that_is_not_built_is_refused(topology: Topology) -> None:
    """With the parts that are missing."""
    text = 'name = "big"\nstage = 7\napp = "a:b"\n'
    with pytest.raises(StageNotBuilt):
        Platform(loads(text))


# --- around an application


class Server:
    """Speaks the lifespan to an application as a server does."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: list[dict[str, Any]] = []
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._news = asyncio.Event()

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self._news.set()

    async def say(self, verb: str) -> dict[str, Any]:
        if verb == "startup":
            scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
            self._task = asyncio.ensure_future(self.app(scope, self._inbox.get, self._send))
        self._news.clear()
        await self._inbox.put({"type": f"lifespan.{verb}"})
        await self._news.wait()
        return self.sent[-1]

    async def end(self) -> None:
        await self._task

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://test")


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """An application that knows no lifespan."""
    assert scope["type"] == "http"
    context = current()
    body = json.dumps({"path": scope["path"], "request": context is not None}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_an_application_is_served_between_start_and_stop(topology: Topology) -> None:
    """Layers around it, metrics and health beside it, whether it knows the lifespan or not."""
    platform = Platform(topology)
    server = Server(platform.wrap(plain))
    async with server.client() as client:
        assert (await client.get("/health/ready")).status_code == 503
        assert (await server.say("startup"))["type"] == "lifespan.startup.complete"
        assert platform.state == "running"
        answer = await client.get("/hello")
        assert answer.json() == {"path": "/hello", "request": True}
        assert answer.headers["x-request-id"] and "server-timing" in answer.headers
        assert (await client.get("/health/ready")).status_code == 200
        dependencies = (await client.get("/health/dependencies")).json()["dependencies"]
        assert {name: state["ok"] for name, state in dependencies.items()} == {"main": True, "second": True}
        assert (await client.get("/health/other")).json()["path"] == "/health/other"
        metrics = (await client.get("/metrics")).text
        assert 'springtide_pool_connections{cluster="second",state="open"} 1.0' in metrics
        assert f'springtide_pool_connections_limit{{cluster="second"}} {topology.pool.size}.0' in metrics
        assert 'route="/health/ready"' in metrics
        assert (await server.say("shutdown"))["type"] == "lifespan.shutdown.complete"
        await server.end()
        assert (await client.get("/health/ready")).status_code == 503
    assert platform.state == "stopped"


def living(log: list[str], platform: Platform, *, fails: str = "") -> Callable[..., Awaitable[None]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for verb in ("startup", "shutdown"):
            message = await receive()
            assert message["type"] == f"lifespan.{verb}"
            log.append(f"{verb} while {platform.state}")
            if fails == f"{verb} politely":
                await send({"type": f"lifespan.{verb}.failed", "message": "no"})
                return
            if fails == verb:
                raise OSError(f"cannot {verb}")
            await send({"type": f"lifespan.{verb}.complete"})

    return app


async def test_an_application_that_takes_a_lifespan_for_a_request_is_served(topology: Topology) -> None:
    """Its nonsense does not reach the server, and the platform runs."""

    async def blind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

    platform = Platform(topology)
    server = Server(platform.wrap(blind))
    assert (await server.say("startup"))["type"] == "lifespan.startup.complete"
    assert platform.state == "running"
    async with server.client() as client:
        assert (await client.get("/")).text == "here"
    assert (await server.say("shutdown"))["type"] == "lifespan.shutdown.complete"
    await server.end()
    assert [message["type"].partition(".")[0] for message in server.sent] == ["lifespan", "lifespan"]


async def test_the_applications_own_lifespan_runs_inside(topology: Topology) -> None:
    """Its startup finds the platform running, its shutdown too."""
    platform, log = Platform(topology), list[str]()
    server = Server(platform.wrap(living(log, platform)))
    assert (await server.say("startup"))["type"] == "lifespan.startup.complete"
    assert (await server.say("shutdown"))["type"] == "lifespan.shutdown.complete"
    await server.end()
    assert log == ["startup while running", "shutdown while running"]
    assert platform.state == "stopped"
    assert len(server.sent) == 2


async def test_an_application_that_cannot_start_stops_the_platform(topology: Topology) -> None:
    """The server hears the application's own words, after the platform was stopped."""
    platform = Platform(topology)
    server = Server(platform.wrap(living([], platform, fails="startup politely")))
    assert await server.say("startup") == {"type": "lifespan.startup.failed", "message": "no"}
    await server.end()
    assert platform.state == "stopped"


async def test_an_application_that_fails_at_shutdown_is_heard(topology: Topology) -> None:
    """The platform is stopped, the server told, the error raised."""
    platform = Platform(topology)
    server = Server(platform.wrap(living([], platform, fails="shutdown")))
    await server.say("startup")
    assert await server.say("shutdown") == {"type": "lifespan.shutdown.failed", "message": "cannot shutdown"}
    with pytest.raises(OSError, match="cannot shutdown"):
        await server.end()
    assert platform.state == "stopped"


@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_an_application_whose_lifespan_ends_early_is_served_on(topology: Topology, how: str) -> None:
    """The platform runs until the server says shutdown; an error is told then."""

    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        if how == "raises":
            raise OSError("lost")

    platform = Platform(topology)
    server = Server(platform.wrap(hasty))
    await server.say("startup")
    for _ in range(20):
        await asyncio.sleep(0)
    assert platform.state == "running"
    word = await server.say("shutdown")
    if how == "returns":
        assert word == {"type": "lifespan.shutdown.complete"}
        await server.end()
    else:
        assert word == {"type": "lifespan.shutdown.failed", "message": "lost"}
        with pytest.raises(OSError, match="lost"):
            await server.end()
    assert platform.state == "stopped"


async def test_a_platform_that_cannot_start_tells_the_server(
    topology: Topology, modules: list[Module]
) -> None:
    """The message is the error's one sentence, and the application is not asked."""
    platform, log = Platform(topology, modules=modules), list[str]()
    server = Server(platform.wrap(living(log, platform)))
    message = await server.say("startup")
    assert message["type"] == "lifespan.startup.failed"
    assert "springtide db migrate" in message["message"]
    await server.end()
    assert log == []


async def test_a_server_that_is_cancelled_stops_the_platform(topology: Topology) -> None:
    """Ctrl-C during the lifespan leaves nothing."""
    platform = Platform(topology)
    server = Server(platform.wrap(living([], platform)))
    await server.say("startup")
    server._task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server.end()
    assert platform.state == "stopped"


async def test_a_platform_wraps_one_application(topology: Topology) -> None:
    """Two would stop it under each other."""
    platform = Platform(topology)
    platform.wrap(plain)
    with pytest.raises(ConfigurationError, match="wraps an application already"):
        platform.wrap(plain)


async def test_a_platform_started_within_a_request_is_not_part_of_it(topology: Topology) -> None:
    """A deadline that has passed for its starter does not fail its connections."""
    platform = Platform(topology)
    with activate(RequestContext(deadline=0.0)):
        await platform.start()
    async with asyncio.timeout(5):
        assert await platform.pools["main"].fetch_value("select 1") == 1
    await platform.stop()
