"""SQLAlchemy sessions over a primary and a lagging replica: the same promises, models unchanged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import ForeignKey, delete, event, func, insert, literal_column, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from tests._cluster import Cluster
from tests.replicated import QUICK, members, serving, until

from springtide.context import CausalityToken, RequestContext, activate
from springtide.db import Consistency
from springtide.db._replicas import fresh
from springtide.db.members import Fixed, Member
from springtide.db.pool import Pool
from springtide.db.servers import Servers
from springtide.db.sqlalchemy import Routing
from springtide.errors import CommitUnknown, DatabaseUnavailable
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
        make, known = self.routing.engine, set()

        def watched(pool: Pool) -> Any:
            engine = make(pool)
            who = "primary" if pool is servers.primary else "replica"
            if engine in known:
                return engine
            known.add(engine)

            @event.listens_for(engine, "before_cursor_execute")
            def note(_: Any, __: Any, sql: str, *___: Any) -> None:
                if "SAVEPOINT" not in sql:
                    self.asked.append(who)

            return engine

        self.routing.engine = watched  # type: ignore[method-assign]

    def whom(self) -> list[str]:
        """Who was asked since the last call."""
        asked, self.asked = self.asked, []
        return asked


@asynccontextmanager
async def app(world: Cluster, url: str | None = None, **options: Any) -> AsyncIterator[App]:
    pool = Pool(url or world.url(), cluster="main", size=4)
    servers = Servers(
        "main",
        pool,
        Fixed(members(world)),
        replica_pool=lambda member: Pool(member.url, cluster=f"main/{member.node}", reserved=0),
        primary_url=(lambda _: url) if url else None,
        settings=QUICK,
        **options,
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
    """Who writes while there is no primary waits for the next one; without a new Routing."""
    async with app(world) as service:
        async with service.Session.begin() as session:
            session.add(User(name="before"))
        await asyncio.to_thread(world.replicas[0].catch_up)
        await asyncio.to_thread(world.primary.kill)

        async def write() -> None:
            async with service.Session.begin() as session:
                session.add(User(name="after"))

        writing = asyncio.create_task(write())
        await until(lambda: service.servers._watch.headless.is_set())
        await asyncio.to_thread(world.replicas[0].promote)
        async with asyncio.timeout(60):
            await writing
        names = world.replicas[0].query("select name from person order by id", dbname=world.dbname)
        assert names.split() == ["ann", "before", "after"]


async def test_what_is_under_way_on_a_primary_that_was_left_is_broken_off(world: Cluster) -> None:
    """It lives, and would confirm a COMMIT that nobody will ever see; a statement on it would end never."""
    async with app(world) as service, service.Session() as writer, service.Session() as waiter:
        writer.add(User(name="lost"))
        await writer.flush()
        waiting = asyncio.create_task(waiter.execute(text("select pg_advisory_lock(1) from pg_sleep(600)")))
        await asyncio.to_thread(world.replicas[0].promote)
        with pytest.raises(DBAPIError):
            async with asyncio.timeout(60):
                await waiting
        with pytest.raises(DatabaseUnavailable, match="lost before COMMIT"):
            await writer.commit()
        async with service.Session.begin() as session:
            session.add(User(name="kept"))
        assert (
            world.replicas[0].query("select name from person order by id", dbname=world.dbname) == "ann\nkept"
        )
        assert world.primary.query("select name from person", dbname=world.dbname) == "ann"


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
            async with service.Session() as session:
                session.add(User(name="swallowed"))
                await session.flush()
                with pytest.raises(DBAPIError):
                    await session.execute(text("insert into nowhere values (1)"))
                with pytest.raises(PendingRollbackError, match="rolled back at COMMIT"):
                    await session.commit()


ASKED = "select case when pg_is_in_recovery() then pg_sleep(600)::text else 'primary' end"


async def test_a_read_whose_replica_is_lost_is_answered_elsewhere(world: Cluster) -> None:
    """Under way, refused as a write, in the way of replay, or after an answer of the same transaction: its
    caller notices nothing, and what was written beside it on the primary commits."""
    create = world.primary.query
    create("create table hit (n int)", dbname=world.dbname)
    create(
        "create function hits() returns int language sql as 'insert into hit values (1) returning n';"
        "create function torn() returns int language plpgsql as $$ begin if pg_is_in_recovery() then"
        " raise serialization_failure; end if; return 1; end $$",
        dbname=world.dbname,
    )
    await asyncio.to_thread(world.replicas[0].catch_up)
    async with app(world) as service:
        for name in ("hits", "torn"):
            for before in ([], [select(User.name)]):
                context = RequestContext()
                with activate(context):
                    async with service.Session.begin() as session:
                        for statement in before:
                            assert (await session.scalars(statement)).one() == "ann"
                        assert await session.scalar(select(getattr(func, name)())) == 1
                assert service.whom() == [*["replica" for _ in before], "replica", "primary"]
        assert create("select count(*) from hit", dbname=world.dbname) == "2"
        context = RequestContext()
        with activate(context):
            async with service.Session() as reader, service.Session() as writer:
                for session in (reader, writer):
                    assert (await session.scalars(select(User.name))).one() == "ann"
                writer.add(User(name="bea"))
                await writer.flush()
                asked = asyncio.create_task(reader.scalar(text(ASKED)))
                await until(lambda: len(service.asked) >= 4)
                await asyncio.to_thread(world.replicas[0].kill)
                async with asyncio.timeout(60):
                    assert await asked == "primary"
                await writer.commit()
                assert sorted(await reader.scalars(select(User.name))) == ["ann", "bea"]
        assert all(replica.in_flight == 0 for replica in service.servers.replicas)


async def test_a_session_is_no_older_than_what_another_of_its_request_has_seen(world: Cluster) -> None:
    """Both began on a replica that stands still now; what one has committed or read on the primary, the other
    sees. A bound that cannot be proven any more is not assumed either."""
    async with app(world) as service:
        bounded = {"execution_options": {"consistency": Consistency.bounded(1.0)}}
        with activate(RequestContext()):
            async with service.Session() as one, service.Session() as two, service.Session() as third:
                for session, options in ((one, {}), (two, {}), (third, bounded)):
                    assert (await session.scalars(select(User.name), **options)).one() == "ann"
                assert service.whom() == ["replica"] * 3
                await asyncio.to_thread(world.replicas[0].hold)
                await one.execute(update(User).values(name="bea"))
                await one.commit()
                assert (await two.scalars(select(User.name))).one() == "bea"
                (replica,) = service.servers._watch.readable
                now = service.servers._clock.monotonic
                await until(lambda: not fresh([replica], 1.0, now()))
                assert (await third.scalars(select(User.name), **bounded)).one() == "bea"
        await asyncio.to_thread(world.replicas[0].release)


async def test_a_restart_of_the_server_costs_no_session_an_error(world: Cluster) -> None:
    """Connections that died unused are replaced before anything is sent on them; all of them are when the
    server takes no writes any more."""
    async with app(world) as service:

        async def read() -> int:
            async with service.Session(consistency=STRONG) as session:
                return int(await session.scalar(select(func.pg_backend_pid()).select_from(User)))

        await asyncio.gather(read(), read())
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(world.primary.restart)
        await asyncio.gather(read(), read())
        async with service.Session() as one, service.Session() as other:
            sessions = [await one.connection(), await other.connection()]
            before = {await each.scalar(select(func.pg_backend_pid())) for each in sessions}
        async with service.Session() as session:
            await session.execute(text("set transaction read only"))  # as one that was demoted answers
            with pytest.raises(DBAPIError):
                await session.execute(text("insert into person (name) values ('x')"))
        async with service.Session() as one, service.Session() as other:
            sessions = [await one.connection(), await other.connection()]
            after = {await each.scalar(select(func.pg_backend_pid())) for each in sessions}
        assert len(before) == len(after) == 2 and not before & after


async def test_commits_keep_what_quorum_promises(world: Cluster) -> None:
    """While the standby is frozen a deadline, a cancelled caller and an operator who ends the wait leave the
    outcome unknown, and COMMIT is not cancelled. A primary that waits for nobody takes no writes, also not
    the COMMIT of what was written before; reads go on."""

    def wait_for(standbys: str) -> None:
        world.primary.query(f"alter system set synchronous_standby_names = '{standbys}'")
        world.primary.query("select pg_reload_conf()")

    await asyncio.to_thread(wait_for, "ANY 1 (*)")
    async with app(world, quorum=True) as service:
        await until(lambda: not service.servers.unconfirmed)

        async def write(name: str) -> None:
            async with service.Session.begin() as session:
                session.add(User(name=name))

        async def committing(name: str) -> tuple[asyncio.Task[None], int]:
            """A COMMIT that waits for the standby, and its session of the server."""
            session = service.Session()
            session.add(User(name=name))
            pid = await session.scalar(select(func.pg_backend_pid()))
            committing = asyncio.create_task(session.commit())
            await until(lambda: waits(pid))
            committing.add_done_callback(lambda _: closing.append(asyncio.create_task(session.close())))
            return committing, pid

        def waits(pid: int) -> bool:
            sql = f"select 1 from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep'"
            return world.primary.query(sql) == "1"

        closing: list[asyncio.Task[None]] = []
        await write("confirmed")
        await asyncio.to_thread(world.replicas[0].freeze)
        late, pid = await committing("late")
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert waits(pid)
        ended, pid = await committing("ended")
        await asyncio.to_thread(world.primary.query, f"select pg_cancel_backend({pid})")
        with pytest.raises(CommitUnknown, match="standby did not confirm"):
            await ended
        with activate(RequestContext(deadline=time.monotonic() + 2.0)):
            ended, pid = await committing("ended")
            with pytest.raises(CommitUnknown, match="deadline passed while main had COMMIT"):
                await ended
        assert waits(pid)
        await asyncio.to_thread(world.replicas[0].thaw)
        await until(lambda: not waits(pid))
        await asyncio.gather(*closing)

        async with service.Session() as session:
            await session.execute(delete(Note))
            await asyncio.to_thread(wait_for, "")
            await until(lambda: service.servers.unconfirmed)
            with pytest.raises(DatabaseUnavailable, match="waits for no standby"):
                await session.commit()
        with pytest.raises(DatabaseUnavailable, match="waits for no standby"):
            await write("refused")
        async with service.Session.begin() as session:
            assert len((await session.scalars(select(User))).all()) == 5
            assert len((await session.scalars(select(Note))).all()) == 1


@pytest.mark.needs("pgbouncer")
async def test_sessions_work_through_a_pooler(world: Cluster, own_pooler: Callable[..., Any]) -> None:
    """The second transaction of a connection meets another session of the server: nothing prepared in the
    first is missed there."""
    url = own_pooler({"main": world.url()}, server_connections=2).url("main")
    pool = Pool(url, cluster="main", pooled=True)
    member = Member(node="primary", url=world.url())
    servers = Servers("main", pool, Fixed([member]), replica_pool=lambda _: pool, primary_url=lambda _: url)
    async with pool:
        await servers.start()
        routing = Routing(servers, pool_size=1)
        Session = routing.sessions()
        sessions = set()
        try:
            for _ in range(2):
                async with Session.begin() as session:
                    sessions.add(await session.scalar(text("select pg_backend_pid()")))
                    assert (await session.scalars(select(User.name))).one() == "ann"
                if len(sessions) == 1:
                    other = await asyncpg.connect(url, statement_cache_size=0)
                    holding = other.transaction()
                    await holding.start()
            await holding.rollback()
            await other.close()
        finally:
            await routing.close()
            await servers.stop()
    assert len(sessions) == 2
