"""What identities have seen, kept for clients that bring no token: on real PostgreSQL, over processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.servers import PostgresServer

from springtide.context import DOUBT, CausalityToken, Identity, Position, RequestContext, current
from springtide.db.pool import Pool
from springtide.identity.positions import Positions
from springtide.signals import CausalityChecked, Signal, StatementFinished
from springtide.testing import stress
from springtide.testing.faults import FaultProxy
from springtide.web.asgi import Layers
from springtide.web.causality import Carrier, CausalityKeys, new_key

ONE, TWO = "0123456789ab", "ba9876543210"


class Recorder:
    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)

    @property
    def events(self) -> list[str]:
        return [signal.event for signal in self.signals if isinstance(signal, CausalityChecked)]

    def statements(self, verb: str) -> int:
        return sum(
            isinstance(signal, StatementFinished) and signal.statement.lstrip().startswith(verb)
            for signal in self.signals
        )


def token(lsn: int, witness: str | None = None, *, cluster: str = "main", epoch: int = 1) -> CausalityToken:
    made = CausalityToken({cluster: Position(epoch, lsn)})
    if witness is not None:
        made.saw(cluster, witness)
    return made


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with Pool(database_url, size=4, reserved=1) as pool:
        yield pool


async def settled(pool: Pool) -> None:
    """As if the server had been running with its tables for long."""
    await pool.execute("update springtide.generation set since = since - interval '1 hour'")


@pytest.fixture
async def kept(pool: Pool) -> AsyncIterator[Callable[..., Awaitable[Positions]]]:
    """A factory of processes that keep in the same place."""
    made: list[Positions] = []

    async def start(**options: object) -> Positions:
        positions = Positions(pool, **options)
        await positions.start()
        made.append(positions)
        return positions

    first = await start()
    await first.lookup(0)
    await settled(pool)
    yield start
    for positions in made:
        await positions.stop()


async def test_what_one_process_kept_another_one_finds(kept: Callable[..., Awaitable[Positions]]) -> None:
    """Per cluster the later position, of the identity that saw it alone."""
    one, other = await kept(), await kept()
    assert not (await other.lookup(7)).token
    assert await one.keep(7, token(90), {})
    assert await other.keep(7, token(100), {})
    assert await one.keep(7, token(95), {})
    assert await one.keep(7, token(3, cluster="second"), {})
    assert await one.keep(7, token(1, epoch=2, cluster="third"), {})
    assert await one.keep(7, token(9, epoch=1, cluster="third"), {})
    found = (await other.lookup(7)).token
    assert found.positions == {"main": Position(1, 100), "second": Position(1, 3), "third": Position(2, 1)}
    assert not found.pinned and not found.written
    assert not (await other.lookup(8)).token


async def test_who_is_given_proof_of_who_he_is_is_known_by_it(
    kept: Callable[..., Awaitable[Positions]],
) -> None:
    """Registering and logging in: the request had no identity, the next one has, and may bring nothing else;
    also after requests that brought a token."""
    positions = await kept()
    carrier = Carrier(CausalityKeys([new_key()]), name="shop", positions=positions)

    async def answer(request: Request) -> Response:
        context, query = current(), request.query_params
        assert context is not None
        if "wrote" in query:
            context.causality.wrote("main", Position(1, int(query["wrote"])))
        context.granted = int(query["granted"])
        return Response("fine")

    app = Layers(Starlette(routes=[Route("/", answer)]), causality=carrier)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        await http.get("/?wrote=5&granted=7")
        assert (await positions.lookup(7)).token == token(5)
        await http.get("/?granted=8")
        assert (await positions.lookup(8)).token == token(5)
        http.cookies.clear()
        await http.get("/?granted=9")
        assert not (await positions.lookup(9)).token


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, only `later` lets time pass for witnesses."""
    monkeypatch.setattr("springtide.identity.positions.QUIET", 3600.0)
    monkeypatch.setattr("springtide.identity.positions.SETTLED", 7200.0)


async def later(pool: Pool) -> None:
    """As if the witnesses that are covered had been so for long."""
    await pool.execute("update springtide.seen set covered = covered - interval '1 day'")


@pytest.mark.usefixtures("unhurried")
async def test_a_witness_is_replaced_by_what_comes_after_every_quiet_request(
    kept: Callable[..., Awaitable[Positions]], pool: Pool
) -> None:
    """A position that covers a witness leaves it there until it has been covered for long enough, by the
    version of the row that says so; who has read on from it meanwhile puts it in force again."""
    one = await kept()
    await one.keep(7, token(90, ONE), {})
    first, second = await one.lookup(7), await one.lookup(7)
    await one.keep(7, token(95), first.versions)
    early = await one.lookup(7)
    assert early.token == token(95, ONE) and early.versions["main"].covered
    await one.keep(7, token(96), second.versions)  # it had not heard of the other
    assert (await one.lookup(7)).token == token(96, ONE)
    early = await one.lookup(7)
    await later(pool)
    await one.keep(7, token(97), early.versions)  # of a moment that was too early
    ready = await one.lookup(7)
    assert ready.token == token(97, ONE) and ready.versions["main"].settled
    await one.keep(7, token(98, ONE), ready.versions)
    again = await one.lookup(7)
    assert again.token == token(98, ONE) and not again.versions["main"].covered
    await one.keep(7, token(99, TWO), again.versions)
    doubtful = await one.lookup(7)
    assert doubtful.token == token(99, DOUBT)
    await one.keep(7, token(100), doubtful.versions)
    await later(pool)
    ready, other = await one.lookup(7), await one.lookup(7)
    await one.keep(7, token(101), ready.versions)
    assert (await one.lookup(7)).token == token(101)
    await one.keep(7, token(90, TWO), other.versions)
    assert (await one.lookup(7)).token == token(101, TWO)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("slow", [False, True])
async def test_what_one_request_read_is_not_forgotten_for_a_write_beside_it(
    kept: Callable[..., Awaitable[Positions]], pool: Pool, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """A bearer client's read is under way while another request of it, on another process, writes. What the
    read has shown may lie beyond the write's position: the next request still knows who showed it.

    A quick read keeps nothing for that; a slow one does. Once both are long over, a position is enough.
    """
    reading, go = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        context, query = current(), request.query_params
        assert context is not None
        context.identity = Identity(7, "token")
        if context.recall is not None:
            await context.recall(context)
        if "reads" in query:
            context.causality.saw("main", ONE)
        if "slow" in query:
            reading.set()
            await go.wait()
        if "covers" in query:
            context.causality.cover("main", Position(1, int(query["covers"])))
        return Response(context.causality.encode())

    if slow:
        monkeypatch.setattr("springtide.identity.positions.QUIET", -1.0)
    sink = Recorder()
    keys = CausalityKeys([new_key()])
    clients = []
    for _ in range(2):
        positions = await kept(sink=sink)
        carrier = Carrier(keys, name="shop", positions=positions)
        app = Layers(Starlette(routes=[Route("/", answer)]), causality=carrier)
        clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"))
    one, other = clients

    async def ask(client: httpx.AsyncClient, query: str) -> str:
        client.cookies.clear()
        return (await client.get(f"/?{query}")).text

    async with one, other:
        assert await ask(one, "reads") == f"main:0:0:{ONE}"
        read = asyncio.ensure_future(ask(one, "reads&slow"))
        await reading.wait()
        await ask(other, "covers=95")
        events = sink.events.count("kept")
        go.set()
        await read
        assert sink.events.count("kept") == events + slow
        assert await ask(other, "") == f"main:1:5F:{ONE}"
        await ask(other, "covers=96")
        await later(pool)
        await ask(one, "covers=97")
        assert await ask(other, "") == "main:1:61"


@pytest.mark.usefixtures("unhurried")
async def test_who_reads_on_from_a_covered_witness_says_so(
    kept: Callable[..., Awaitable[Positions]], pool: Pool
) -> None:
    """Then it is in force again, and whoever found it covered cannot take it away."""
    positions = await kept()
    carrier = Carrier(CausalityKeys([new_key()]), name="shop", positions=positions)

    async def answer(request: Request) -> Response:
        context = current()
        assert context is not None and context.recall is not None
        context.identity = Identity(7, "token")
        await context.recall(context)
        context.causality.saw("main", ONE)
        return Response("fine")

    await positions.keep(7, token(90, ONE), {})
    await positions.keep(7, token(95), (await positions.lookup(7)).versions)
    await later(pool)
    found = await positions.lookup(7)
    assert found.versions["main"].settled
    app = Layers(Starlette(routes=[Route("/", answer)]), causality=carrier)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        await http.get("/")
    await positions.keep(7, token(96), found.versions)
    known = await positions.lookup(7)
    assert known.token == token(96, ONE) and not known.versions["main"].covered


async def test_a_table_of_an_earlier_version_gets_what_it_lacks(
    kept: Callable[..., Awaitable[Positions]], pool: Pool
) -> None:
    one = await kept()
    await pool.execute("alter table springtide.seen drop column covered, drop column settled")
    assert await one.keep(7, token(5), {})
    assert (await one.lookup(7)).token == token(5)


async def test_first_sightings_of_two_processes_leave_doubt(
    kept: Callable[..., Awaitable[Positions]],
) -> None:
    """Neither had a row to follow from, whether they come in one statement or in two."""
    one, other = await kept(), await kept()
    await one.keep(7, token(90, ONE), {})
    await other.keep(7, token(90, TWO), {})
    assert (await one.lookup(7)).token.witnesses == {"main": DOUBT}
    await asyncio.gather(one.keep(8, token(90, ONE), {}), one.keep(8, token(91, TWO), {}))
    assert (await one.lookup(8)).token.witnesses == {"main": DOUBT}


async def test_sightings_expire_and_are_deleted(
    kept: Callable[..., Awaitable[Positions]], pool: Pool
) -> None:
    """What is older than the lifetime says nothing; what is older than two is gone."""
    one = await kept(lifetime=60.0)
    for subject, age in [(1, 59), (2, 61), (3, 121)]:
        await one.keep(subject, token(5, ONE), {})
        sql = "update springtide.seen set at = at - make_interval(secs => $2) where subject = $1"
        await pool.execute(sql, subject, float(age))
    found = [await one.lookup(subject) for subject in (1, 2, 3)]
    assert [bool(one.token) for one in found] == [True, False, False]
    assert 59 <= found[0].age < 60
    await one.purge()
    rows = await pool.fetch("select subject from springtide.seen order by subject")
    assert [row["subject"] for row in rows] == [1, 2]


async def test_everybody_who_waits_is_answered_by_one_statement(database_url: str) -> None:
    """A hundred requests of one tick are one lookup, and what a hundred have seen is kept by one insert."""
    sink = Recorder()
    async with Pool(database_url, size=4, reserved=1, sink=sink) as pool:
        one = Positions(pool)
        await one.start()
        await one.lookup(0)
        await settled(pool)
        before = sink.statements("SELECT s.subject")
        await asyncio.gather(*(one.lookup(subject) for subject in range(100)))
        assert sink.statements("SELECT s.subject") - before == 1
        before = sink.statements("INSERT INTO springtide.seen")
        await asyncio.gather(*(one.keep(subject, token(subject + 1), {}) for subject in range(100)))
        assert sink.statements("INSERT INTO springtide.seen") - before == 1
        await one.stop()


async def test_a_lookup_begins_after_its_request_came(
    kept: Callable[..., Awaitable[Positions]], pool: Pool
) -> None:
    """What another one kept before the request came is found, also when a statement was under way then."""
    one, other = await kept(), await kept()
    async with pool.transaction() as tx:
        await tx.execute("lock table springtide.generation in access exclusive mode")
        early = asyncio.ensure_future(one.lookup(1))
        while not await pool.fetch_value("select count(*) from pg_locks where not granted"):
            pass  # its statement has begun, and will see nothing that is kept from now on
        await other.keep(7, token(9), {})
        late = asyncio.ensure_future(one.lookup(7))
        await asyncio.sleep(0)
    await early
    assert (await late).token == token(9)


async def test_since_when_the_server_runs_is_written_once(database_url: str) -> None:
    """Not by each lookup of the first minute, which are unsure all the same."""
    recorder = Recorder()
    async with Pool(database_url, size=4, reserved=1, sink=recorder) as pool:
        positions = Positions(pool, sink=recorder)
        await positions.start()
        for _ in range(5):
            assert (await positions.lookup(7)).token.pinned
        await positions.stop()
    assert recorder.events == ["unsure"] * 5
    assert recorder.statements("INSERT") == 1


async def test_a_new_table_a_restart_and_a_crash_are_unsure(
    own_postgres: Callable[..., PostgresServer],
) -> None:
    """Where rows may have been lost, nobody is told that there are none: reads go to the primaries.

    Unlogged rows are gone after kill -9, and so is what says since when they were there.
    """
    server = own_postgres()
    async with Pool(server.url(), size=2, reserved=0) as pool:
        positions = Positions(pool, lifetime=60.0)
        await positions.start()
        assert (await positions.lookup(7)).token.pinned
        assert (await positions.lookup(7)).token.pinned  # a minute long, not once
        await settled(pool)
        assert await positions.keep(7, token(5), {})
        assert (await positions.lookup(7)).token == token(5)
        for break_it in (server.kill, server.stop):
            await asyncio.to_thread(break_it)
            assert (await positions.lookup(7)).token.pinned
            await asyncio.to_thread(server.restart)
            async with asyncio.timeout(30):
                while "unsure" not in (events := await _events_of(positions)):
                    assert events == ["not_recalled"]
            await settled(pool)
            assert not (await positions.lookup(7)).token.pinned
        await positions.stop()


async def _events_of(positions: Positions) -> list[str]:
    """What one lookup says of itself; its token is pinned either way."""
    sink = Recorder()
    positions._sink, before = sink, positions._sink
    assert (await positions.lookup(7)).token.pinned
    positions._sink = before
    return sink.events


async def test_what_could_not_be_kept_is_kept_when_the_server_is_back(
    own_postgres: Callable[..., PostgresServer],
) -> None:
    """The answer goes out after a second at most; the sighting is tried again, merged with later ones."""
    server = own_postgres()
    async with (
        FaultProxy(target=server.port) as proxy,
        Pool(server.url().replace(f":{server.port}/", f":{proxy.port}/"), size=2, reserved=0) as pool,
    ):
        positions = Positions(pool)
        await positions.start()
        await positions.lookup(7)
        await settled(pool)
        proxy.cut()
        proxy.refuse()
        assert not await positions.keep(7, token(5), {})
        assert not await positions.keep(7, token(3), {})
        assert (await positions.lookup(7)).token.pinned
        proxy.resume()
        async with asyncio.timeout(30):
            while (await positions.lookup(7)).token != token(5):
                pass
        await positions.stop()


async def test_a_frozen_server_holds_no_answer_for_longer_than_a_second(
    own_postgres: Callable[..., PostgresServer],
) -> None:
    """Both a lookup and what is kept give up, and a caller that leaves takes nothing with it."""
    server = own_postgres()
    async with Pool(server.url(), size=2, reserved=0) as pool:
        positions = Positions(pool)
        await positions.start()
        await positions.lookup(7)
        await settled(pool)
        await asyncio.to_thread(server.freeze)
        try:
            leaving = asyncio.ensure_future(positions.lookup(7))
            staying = asyncio.ensure_future(positions.lookup(7))
            await asyncio.sleep(0)
            leaving.cancel()
            async with asyncio.timeout(20):
                assert (await staying).token.pinned
                assert not await positions.keep(7, token(5), {})
        finally:
            await asyncio.to_thread(server.thaw)
        async with asyncio.timeout(30):
            while (await positions.lookup(7)).token != token(5):
                pass
        await positions.stop()


async def test_nothing_is_asked_before_somebody_asks(pool: Pool) -> None:
    """Without replicas there is no table of ours; who is not started answers that it cannot know."""
    positions = Positions(pool)
    await positions.start()
    await positions.purge()
    assert await pool.fetch_value("select to_regnamespace('springtide')") is None
    await positions.stop()
    assert (await positions.lookup(7)).token.pinned
    assert not await positions.keep(7, token(5), {})


async def test_two_processes_may_make_the_tables_at_once(pool: Pool, database_url: str) -> None:
    """Whoever is second finds them there."""
    async with Pool(database_url, size=4, reserved=1) as second:
        many = [Positions(one) for one in (pool, second) * 3]
        for positions in many:
            await positions.start()
        kept = await asyncio.gather(*(one.keep(7, token(n), {}) for n, one in enumerate(many, 1)))
        assert all(kept)
        await many[0].lookup(7)
        await settled(pool)
        assert (await many[0].lookup(7)).token == token(6)
        for positions in many:
            await positions.stop()


async def test_it_survives_storms_of_start_stop_and_cancel(pool: Pool) -> None:
    """The last call decides, and what is stopped leaves no task."""
    await stress(lambda: Positions(pool), storms=5, pause=0.005)


class Model:
    """A primary and two replicas of it as numbers, and requests of one bearer client on two processes.

    A request routes its reads as `Servers` does; what it looks up and keeps is the real thing. `floor` is the
    latest that a finished request has shown: none that begins then may show less.
    """

    def __init__(self, subject: int, carriers: list[Carrier], chance: random.Random) -> None:
        self.subject = subject
        self.carriers = carriers
        self.chance = chance
        self.primary = 1
        self.replicas = {ONE: 1, TWO: 1}
        self.floor = 0
        self.open: list[Ask] = []

    def begin(self) -> None:
        self.open.append(Ask(self, self.chance.choice(self.carriers)))

    def replay(self) -> None:
        name = self.chance.choice([ONE, TWO])
        self.replicas[name] = min(self.replicas[name] + self.chance.choice([0, 1, 50]), self.primary)


class Ask:
    """One request."""

    def __init__(self, model: Model, carrier: Carrier) -> None:
        self.model = model
        self.carrier = carrier
        self.context = RequestContext(known=Identity(model.subject, "token"))
        self.carried = carrier.take(self.context, header=None, cookie=None)
        self.least = model.floor
        self.seen = 0

    async def read(self) -> None:
        if self.context.recall is not None:
            await self.context.recall(self.context)
        model, known = self.model, self.context.causality
        need, witness = known.position("main"), known.witnesses.get("main")
        able = [name for name, lsn in model.replicas.items() if need is None or lsn >= need.lsn]
        chosen = [name for name in able if witness in (None, name)]
        if chosen:
            lean = known.leaning.get("main")
            name = lean if lean in chosen else model.chance.choice(chosen)
            known.leaning["main"] = name
            known.saw("main", name)
            self.show(model.replicas[name])
            return
        self.show(model.primary)
        if witness is not None and able:
            known.cover("main", Position(1, model.primary))
        else:
            known.doubt("main")

    def write(self) -> None:
        self.model.primary += 1
        self.context.causality.wrote("main", Position(1, self.model.primary))
        self.show(self.model.primary)
        if self.model.chance.random() < 0.8:  # else nearly everything were the primary's
            self.model.replicas = dict.fromkeys(self.model.replicas, self.model.primary)

    def show(self, lsn: int) -> None:
        assert lsn >= max(self.least, self.seen), f"{lsn} after {self.least} and {self.seen}"
        self.seen = lsn

    async def end(self) -> None:
        if self.carrier.has_news(self.carried, self.context):
            await self.carrier.give(self.carried, self.context, {}, [])
        self.model.open.remove(self)
        self.model.floor = max(self.model.floor, self.seen)


@pytest.mark.usefixtures("unhurried")
async def test_no_request_shows_less_than_one_that_had_ended(
    kept: Callable[..., Awaitable[Positions]], pool: Pool
) -> None:
    """Whatever is under way beside them, and however the replicas follow."""
    keys = CausalityKeys([new_key()])
    carriers = [Carrier(keys, name="shop", positions=await kept()) for _ in range(2)]
    by_replicas = 0
    for subject in range(1, 61):
        chance = random.Random(subject)
        model = Model(subject, carriers, chance)
        for _ in range(120):
            action = chance.choices(range(6), (5, 4, 2, 4, 3, 1))[0]
            asks = chance.choice(model.open) if model.open else None
            if action == 0 and len(model.open) < 3:
                model.begin()
                await model.open[-1].read()
            elif action == 1 and asks is not None:
                await asks.read()
                by_replicas += "main" in asks.context.causality.leaning
            elif action == 2 and asks is not None:
                asks.write()
            elif action == 3 and asks is not None:
                await asks.end()
            elif action == 4:
                model.primary += chance.randint(0, 3)  # somebody else's writes
                model.replay()
            elif action == 5:
                await later(pool)
                for ask in model.open:
                    if ask.carried is not None and ask.carried.found is not None:
                        ask.carried.found.until = 0.0
    assert by_replicas > 100
