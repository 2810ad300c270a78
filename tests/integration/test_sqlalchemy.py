"""SQLAlchemy sessions over a primary and a lagging replica: the same promises, models unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import ForeignKey, delete, event, func, insert, literal_column, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from tests._cluster import Cluster
from tests.replicated import QUICK, members, serving, until

from springtide.context import CausalityToken, RequestContext, activate
from springtide.db import Consistency
from springtide.db.members import Fixed
from springtide.db.pool import Pool
from springtide.db.servers import Servers
from springtide.db.sqlalchemy import Routing
from springtide.errors import CommitUnknown
from springtide.testing.faults import FaultProxy

EVENTUAL, STRONG = Consistency.EVENTUAL, Consistency.STRONG


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[list[Note]] = relationship(back_populates="user")


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    text: Mapped[str]
    user: Mapped[User] = relationship(back_populates="notes")


class App:
    """One process of an application. `asked` has the server of each statement that SQLAlchemy sent."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.routing = Routing(servers, pool_size=2)
        self.Session = self.routing.sessions()
        self.asked: list[str] = []
        make = self.routing._engine

        def watched(pool: Pool, dsn: str) -> Any:
            engine = make(pool, dsn)
            who = "primary" if pool is servers.primary else "replica"

            @event.listens_for(engine.sync_engine, "before_cursor_execute")
            def note(_: Any, __: Any, sql: str, *___: Any) -> None:
                if "SAVEPOINT" not in sql:
                    self.asked.append(who)

            return engine

        self.routing._engine = watched  # type: ignore[method-assign]

    def whom(self) -> list[str]:
        """Who was asked since the last call."""
        asked, self.asked = self.asked, []
        return asked


@asynccontextmanager
async def app(world: Cluster, url: str | None = None) -> AsyncIterator[App]:
    pool = Pool(url or world.url(), cluster="main", size=4)
    servers = Servers(
        "main",
        pool,
        Fixed(members(world)),
        replica_pool=lambda member: Pool(member.url, cluster=f"main/{member.node}", reserved=0),
        primary_url=(lambda _: url) if url else None,
        settings=QUICK,
    )
    async with pool:
        await servers.start()
        made = App(servers)
        try:
            await serving(servers, len(world.replicas))
            yield made
        finally:
            await made.routing.close()
            await servers.stop()


@pytest.fixture
def world(own_cluster: Callable[..., Cluster]) -> Cluster:
    made = own_cluster(replicas=1)
    made.primary.query(
        "create table person (id serial primary key, name text not null);"
        "create table note (id serial primary key, user_id int references person, text text not null);"
        "insert into person (name) values ('ann'); insert into note (user_id, text) values (1, 'first')",
        dbname=made.dbname,
    )
    made.replicas[0].catch_up()
    return made


class Client:
    """One client of the application: its token travels from request to request, whoever answers."""

    def __init__(self) -> None:
        self.token = ""

    @asynccontextmanager
    async def request(self, app: App) -> AsyncIterator[AsyncSession]:
        context = RequestContext(causality=CausalityToken.decode(self.token))
        with activate(context):
            async with app.Session() as session:
                yield session
        self.token = context.causality.encode()


async def test_reads_go_to_the_replica_and_a_unit_of_work_stays_on_the_primary(world: Cluster) -> None:
    """Nothing is sent to a replica from the first write of a transaction on: flush, DML, locks, text that may
    write, savepoints, `connection()`, and what is read back after them."""
    async with app(world) as service:
        client = Client()

        async def asked(*statements: Any) -> list[str]:
            async with client.request(service) as session:
                for statement in statements:
                    if callable(statement):
                        await statement(session)
                    else:
                        await session.execute(statement)
                await session.rollback()
            token = CausalityToken.decode(client.token)
            await until(lambda: service.servers.choose(Consistency.SESSION, token).health is not None)
            return service.whom()

        read = select(User).where(User.id == 1)
        assert await asked(read, read) == ["replica"] * 2
        assert await asked(text("select 1"), select(func.count()).select_from(User)) == ["replica"] * 2
        assert await asked(read, insert(User).values(name="x"), read) == ["replica", "primary", "primary"]
        for write in (
            update(User).values(name="x"),
            delete(Note),
            read.with_for_update(),
            read.with_for_update(read=True),
            text("insert into person (name) values ('x')"),
            text("select * from person for share"),
            text("select nextval('note_id_seq')"),
            select(func.nextval("note_id_seq")),
            select(insert(User).values(name="x").returning(User.id).cte("made").c.id),
            select(User).from_statement(text("select * from person for update")),
            select(literal_column("1")).where(text("pg_advisory_xact_lock(1) is not null")),
        ):
            assert await asked(write, read) == ["primary"] * 2, str(write)

        async def flush(session: AsyncSession) -> None:
            session.add(User(name="new"))  # the next statement flushes it

        async def raw(session: AsyncSession) -> None:
            await (await session.connection()).exec_driver_sql("select 1")

        async def nested(session: AsyncSession) -> None:
            async with session.begin_nested():
                await session.execute(read)

        assert await asked(flush, read) == ["primary"] * 2
        assert await asked(raw, read) == ["primary"] * 2
        assert await asked(read, nested, read) == ["replica", "primary", "primary"]


async def test_a_session_reads_its_writes_on_any_process(world: Cluster) -> None:
    """Written through one process, read through another, while the replica stands still; and on the replica
    again when that has caught up. The same read without the token is stale."""
    async with app(world) as one, app(world) as two:
        client, stranger = Client(), Client()
        await asyncio.to_thread(world.replicas[0].hold)
        async with client.request(one) as session:
            user = await session.get_one(User, 1)
            user.name = "bea"
            await session.commit()
            await session.refresh(user)  # expired by the commit: read again
            assert user.name == "bea"
        assert one.whom() == ["replica", "primary", "primary"]
        async with client.request(two) as session:
            assert (await session.get_one(User, 1)).name == "bea"
        assert two.whom() == ["primary"]
        async with stranger.request(two) as session:
            assert (await session.get_one(User, 1)).name == "ann"
        assert two.whom() == ["replica"]
        await asyncio.to_thread(world.replicas[0].release)
        await asyncio.to_thread(world.replicas[0].catch_up)
        async with asyncio.timeout(30):
            while two.whom() != ["replica"]:
                async with client.request(two) as session:
                    assert (await session.get_one(User, 1)).name == "bea"


async def test_reads_never_go_backwards(world: Cluster) -> None:
    """Who has read on the primary sees no older state on a replica afterwards."""
    async with app(world) as service:
        client = Client()
        await asyncio.to_thread(world.replicas[0].hold)
        await asyncio.to_thread(world.primary.query, "update person set name = 'cis'", dbname=world.dbname)
        strong = {"execution_options": {"consistency": STRONG}}
        async with client.request(service) as session:
            assert (await session.scalars(select(User.name), **strong)).one() == "cis"
        async with client.request(service) as session:
            assert (await session.scalars(select(User.name))).one() == "cis"
        assert service.whom() == ["primary"] * 2
        eventual = {"execution_options": {"consistency": EVENTUAL}}
        async with client.request(service) as session:
            assert (await session.scalars(select(User.name), **eventual)).one() == "ann"
            assert (await session.scalars(select(User.name))).one() == "cis"  # asks for more: not from there
        assert service.whom() == ["replica", "primary"]
        await asyncio.to_thread(world.replicas[0].release)


async def test_without_a_request_reads_go_to_the_primary(world: Cluster) -> None:
    """There is no session to remember; a session that says EVENTUAL needs none."""
    async with app(world) as service:
        async with service.Session() as session:
            await session.scalars(select(User))
        async with service.Session(consistency=EVENTUAL) as session:
            await session.scalars(select(User))
        assert service.whom() == ["primary", "replica"]
        assert [replica.in_flight for replica in service.servers.replicas] == [0]


async def test_sessions_follow_the_primary(world: Cluster) -> None:
    """After a promotion writes go to the new primary, without a new Routing."""
    async with app(world) as service:
        async with service.Session.begin() as session:
            session.add(User(name="before"))
        await asyncio.to_thread(world.replicas[0].catch_up)
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(world.replicas[0].promote)
        new = world.url(world.replicas[0])
        async with asyncio.timeout(60):
            while service.servers.primary.dsn != new:
                await asyncio.sleep(0.02)
        async with service.Session.begin() as session:
            session.add(User(name="after"))
        names = world.replicas[0].query("select name from person order by id", dbname=world.dbname)
        assert names.split() == ["ann", "before", "after"]


async def test_a_commit_whose_answer_is_lost_is_unknown(world: Cluster) -> None:
    """The connection is cut while COMMIT is under way; a refused commit is the error that it is."""
    async with FaultProxy(target=world.primary.port) as proxy:
        url = world.url().replace(f":{world.primary.port}/", f":{proxy.port}/")
        async with app(world, url) as service:
            session = service.Session()
            session.add(User(name="x"))
            await session.flush()
            proxy.on(b"COMMIT", "cut")
            with pytest.raises(CommitUnknown):
                await session.commit()
            await session.close()
            async with service.Session() as session:
                await session.execute(text("create table late (n int unique deferrable initially deferred)"))
                await session.execute(text("insert into late values (1), (1)"))
                with pytest.raises(IntegrityError):
                    await session.commit()
