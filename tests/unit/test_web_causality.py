"""The causality token between a client and the application: what is read, what is answered, to whom."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, get_type_hints

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from springtide._marks import ALL, Mark
from springtide.context import DOUBT, CausalityToken, Identity, Position, current
from springtide.db.servers import RoutingSettings
from springtide.errors import ConfigurationError
from springtide.signals import CausalityChecked, Signal
from springtide.testing.clock import ManualClock
from springtide.topology import Cluster
from springtide.web._jar import MAX_READ, Jar, read_cookies
from springtide.web._seal import Sealed, Seen, new_key
from springtide.web.asgi import Layers
from springtide.web.causality import HEADER, Carrier, CausalityKeys, CausalityLayer

KEYS = CausalityKeys([new_key()])
NAME = HEADER.decode()
WITNESS = "0123456789ab"


class Recorder:
    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)

    @property
    def events(self) -> list[str]:
        return [signal.event for signal in self.signals if isinstance(signal, CausalityChecked)]


class World:
    """An application whose requests see and write what their query says; the server's clock stands still.

    `/?voided=7` invalidates with that sequence, `?missed=1` could not be told to a cache for 1.5 seconds.
    `/?wrote=5` commits at position 5, `?read=5` reads there, `?seen=...` reads of a witness, `?session=7` is
    signed in by a session, `?cache=...` is the answer's Cache-Control. `tokens` is what the requests brought.
    """

    def __init__(self, wrap: str = "layers", **options: Any) -> None:
        self.tokens: list[CausalityToken] = []
        self.unproven: list[bool] = []
        self.headers: list[list[str]] = []
        self.sink = Recorder()
        self.clock = ManualClock()
        self.carrier = Carrier(KEYS, name="shop", clock=self.clock, sink=self.sink, **options)
        app = Starlette(routes=[Route("/", self._answer, methods=["GET", "POST"])])
        self.app: Any = (
            Layers(app, causality=self.carrier) if wrap == "layers" else CausalityLayer(app, self.carrier)
        )

    async def _answer(self, request: Request) -> Response:
        context = current()
        assert context is not None
        self.unproven.append(context.unproven is not None)
        self.tokens.append(CausalityToken.decode(context.causality.encode()))
        self.headers.append([name for name in request.headers if name.startswith("springtide")])
        query = request.query_params
        if "session" in query:
            context.identity = Identity(int(query["session"]), "session")
        if "wrote" in query:
            context.causality.wrote("main", Position(1, int(query["wrote"])))
        if "read" in query:
            context.causality.observe("main", Position(1, int(query["read"])))
        if "seen" in query:
            context.causality.saw("main", query["seen"])
        if "voided" in query:
            mark = Mark("0a1b2c3d4e", int(query["voided"]), int(self.clock.now()) + 30)
            context.causality.invalidated("users", mark)
        if "missed" in query:
            context.settled = self.clock.monotonic() + 1.5
        response = Response("fine")
        if "lost" in query:
            context.causality.doubt("main")
            context.causality.written = True
        if "cache" in query:
            response.headers["cache-control"] = query["cache"]
        if "network" in query:
            response.headers["cdn-cache-control"] = "max-age=60"
        return response

    def client(self, scheme: str = "http", **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url=f"{scheme}://test", **options)


def ours(answer: httpx.Response) -> list[str]:
    return [line for line in answer.headers.get_list("set-cookie") if line.startswith("springtide-c-")]


@pytest.fixture(params=["layers", "alone"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


async def test_a_browser_brings_what_its_requests_wrote(world: World) -> None:
    """The next request asks for the position that the last one wrote, and the jar keeps one cookie."""
    http = world.client()
    for position in (5, 7, 6):
        await http.post(f"/?wrote={position}")
    await http.get("/")
    assert [token.positions.get("main") for token in world.tokens] == [
        None, Position(1, 5), Position(1, 7), Position(1, 7),
    ]  # fmt: skip
    assert len(http.cookies.jar) == 1


def test_a_lifetime_outlasts_the_longest_lag_that_is_read_from() -> None:
    """And a topology allows no `max_lag` that it would not outlast."""
    for lag in (30.1, 60.0):
        with pytest.raises(ConfigurationError, match=r"lifetime must be >= [\d.]+ s, got 60: .*3 x max_lag"):
            Carrier(KEYS, name="shop", longest_lag=lag)
    greatest = get_type_hints(Cluster, include_extras=True)["max_lag"].__metadata__[0].rule
    largest = max(lag for lag in range(1, 100) if greatest.holds(float(lag)))
    Carrier(KEYS, name="shop", longest_lag=RoutingSettings(max_lag=largest).longest_lag)
    Carrier(KEYS, name="shop", lifetime=100.0, longest_lag=60.0)


async def test_tasks_of_a_request_share_what_it_has_seen() -> None:
    """One that it starts and awaits writes for its answer. Work after the answer still sees what the request
    wrote, has no deadline, and what it writes itself reaches nobody."""
    known: list[tuple[CausalityToken, float | None]] = []

    async def write(position: int) -> None:
        context = current()
        assert context is not None
        known.append((CausalityToken.decode(context.causality.encode()), context.deadline))
        context.causality.wrote("main", Position(1, position))

    async def answer(_: Request) -> Response:
        await asyncio.create_task(write(5))
        return Response("fine", background=BackgroundTask(write, 9))

    world = World()
    app = Layers(Starlette(routes=[Route("/tasks", answer), Mount("/", world.app)]), causality=world.carrier)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        await http.get("/tasks")
        await http.get("/")
    (before, limited), (after, unlimited) = known
    assert not before and limited is not None
    assert after.positions == world.tokens[0].positions == {"main": Position(1, 5)}
    assert unlimited is None


async def test_a_client_of_the_header_is_always_answered(world: World) -> None:
    """Whoever sends one gets one, also when nothing was seen; several are merged."""
    http = world.client(cookies={})
    first, second = await http.post("/?wrote=5"), await world.client().post("/?wrote=9")
    http.cookies.clear()
    both = f"{second.headers[NAME]}, {first.headers[NAME]}"
    answer = await http.get("/", headers={NAME: both})
    assert world.tokens[-1].positions == {"main": Position(1, 9)}
    assert not ours(answer)  # who sends the header keeps it
    again = await http.get("/?read=12", headers={NAME: answer.headers[NAME]})
    assert world.tokens[-1].positions == {"main": Position(1, 9)}
    await http.get("/", headers={NAME: again.headers[NAME]})
    assert world.tokens[-1].positions == {"main": Position(1, 12)}
    assert all(not names for names in world.headers)  # the application sees no header of ours


async def test_what_is_not_ours_is_as_if_it_were_not_there(world: World) -> None:
    """A forged, foreign, malformed or expired token: the request is served, nothing believed, all counted."""
    mine = (await world.client().post("/?wrote=5")).headers[NAME]
    theirs = Carrier(CausalityKeys([new_key()]), name="shop", clock=world.clock)
    other = World()
    other.app = Layers(other.app._app, causality=theirs)
    foreign = (await other.client().post("/?wrote=5")).headers[NAME]
    flipped = mine[:-1] + ("A" if mine[-1] != "A" else "B")
    for text in (flipped, foreign, "main:1:FF"):
        answer = await world.client().get("/", headers={NAME: text})
        assert answer.status_code == 200
        assert not world.tokens[-1]
    world.clock.step(61)
    await world.client().get("/", headers={NAME: mine})
    assert not world.tokens[-1]
    assert world.sink.events == ["forged", "foreign", "malformed", "expired"]


async def test_a_forged_cookie_is_no_reason_to_answer_with_one(world: World) -> None:
    """Nor to remove it: another platform on the same host may have set it."""
    http = world.client(headers={"cookie": "springtide-c-abc1=1.x.y.z; other=1"})
    assert not ours(await http.get("/?read=5"))
    lines = ours(await http.get("/?wrote=5"))
    assert len(lines) == 1 and "abc1" not in lines[0]


async def test_a_stranger_that_only_reads_gets_nothing(world: World) -> None:
    """So its answers stay as cacheable as the application made them."""
    answer = await world.client().get("/?read=5&cache=public, max-age=60")
    assert not ours(answer) and NAME not in answer.headers
    assert answer.headers["cache-control"] == "public, max-age=60"


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ("", "private, no-cache"),
        ("public, max-age=60", "private, max-age=60"),
        ("max-age=60, s-maxage=600", "private, max-age=60"),
        ("Public, S-MaxAge=5, proxy-revalidate", "private"),
        ("private, max-age=5", "private, max-age=5"),
        ("no-store", "no-store"),
        ("max-age=60, stale-while-revalidate=5", "private, max-age=60, stale-while-revalidate=5"),
    ],
)
async def test_an_answer_with_a_token_is_for_its_client_alone(world: World, said: str, becomes: str) -> None:
    """No shared cache may keep it, and content networks are told nothing else."""
    cache = f"&cache={said}" if said else ""
    answer = await world.client().get(f"/?wrote=5&network=1{cache}")
    assert ours(answer)
    assert answer.headers.get_list("cache-control") == [becomes]
    assert "cdn-cache-control" not in answer.headers


async def test_a_known_browser_keeps_what_it_has_read(world: World) -> None:
    """Who has a cookie, or is signed in by a session, gets what it has seen, but not with a shared answer."""
    known, signed_in = world.client(), world.client()
    await known.post("/?wrote=5")
    assert not ours(await known.get("/?read=6&cache=public"))
    assert ours(await known.get("/?read=6"))
    assert not ours(await known.get("/?read=6"))  # nothing that it does not know
    assert ours(await signed_in.get("/?read=6&session=7"))
    await signed_in.get("/")
    assert world.tokens[-1].positions == {"main": Position(1, 6)}


async def test_a_witness_travels_and_is_renewed_while_the_client_comes(world: World) -> None:
    """It holds for as long as the client goes on; a position that was only carried along does not."""
    http = world.client()
    await http.get(f"/?seen={WITNESS}&session=7")
    await http.get("/?wrote=5")
    await http.get(f"/?seen={WITNESS}")
    renewed = 0
    for _ in range(20):
        world.clock.step(10)
        renewed += bool(ours(await http.get("/")))
        assert world.tokens[-1].witnesses == {"main": WITNESS}
    assert renewed == 10  # as many as quarters of a lifetime have passed between two requests


async def test_cookies_are_for_servers_alone_and_short_lived(world: World) -> None:
    """HttpOnly, SameSite, the whole site, a minute; Secure where the request was."""
    for scheme, secure in [("http", ""), ("https", "; Secure")]:
        (line,) = ours(await world.client(scheme).post("/?wrote=5"))
        assert line.endswith(f"; Max-Age=60; Path=/; HttpOnly; SameSite=Lax{secure}")


# -- answers that overtake each other


class Browser:
    """A jar by hand: answers arrive when the test says so."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.jar: dict[str, str] = {}

    def brings(self) -> dict[str, str]:
        return {"cookie": "; ".join(f"{name}={value}" for name, value in self.jar.items())}

    async def ask(self, path: str) -> Callable[[], None]:
        """Send what the jar has now; the answer arrives when what is returned is called."""
        async with self.world.client() as http:
            answer = await http.get(path, headers=self.brings())
        lines = ours(answer)

        def arrive() -> None:
            for line in lines:
                name, _, value = line.partition(";")[0].partition("=")
                if "Max-Age=0" in line:
                    self.jar.pop(name, None)
                else:
                    self.jar[name] = value

        return arrive

    async def knows(self) -> CausalityToken:
        await self.ask("/")
        return self.world.tokens[-1]


async def test_an_older_answer_that_arrives_last_takes_nothing_away() -> None:
    """The write that was acknowledged is asked for, whatever arrived before or after it."""
    browser = Browser(World())
    first, second = await browser.ask("/?wrote=90"), await browser.ask("/?wrote=100")
    second()
    assert (await browser.knows()).positions == {"main": Position(1, 100)}
    first()
    assert (await browser.knows()).positions == {"main": Position(1, 100)}
    (await browser.ask("/?wrote=110"))()
    assert len(browser.jar) == 1


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
async def test_what_is_read_beside_a_write_stays_known(order: list[int]) -> None:
    """The write's position covers what was seen before it, and not what its witness answered meanwhile to
    another request: that one's answer says so, whichever arrives first."""
    browser = Browser(World())
    (await browser.ask(f"/?seen={WITNESS}&session=7"))()
    for position in (7, 9):
        answers = [await browser.ask(f"/?wrote={position}"), await browser.ask(f"/?seen={WITNESS}")]
        for number in order:
            answers[number]()
        token = await browser.knows()
        assert token.positions == {"main": Position(1, position)}
        assert token.witnesses == {"main": WITNESS}
    (await browser.ask("/?wrote=11"))()
    assert not (await browser.knows()).witnesses
    assert len(browser.jar) == 1


async def test_however_many_read_on_at_the_same_time_the_browser_is_not_pinned() -> None:
    """All of them say the same under one name."""
    world = World()
    browser = Browser(world)
    (await browser.ask(f"/?seen={WITNESS}&session=7"))()
    for _ in range(3):
        answers = [await browser.ask(f"/?seen={WITNESS}") for _ in range(40)]
        for arrive in answers:
            arrive()
        assert len(browser.jar) == 1
    token = await browser.knows()
    assert token.witnesses == {"main": WITNESS} and not token.pinned


async def test_a_write_whose_position_is_not_known_is_told_to_a_session_in_doubt() -> None:
    """It is in doubt already, and another answer may be ending that at the same time."""
    browser = Browser(World())
    (await browser.ask("/?seen=?&session=7"))()
    covering, writing = await browser.ask("/?wrote=5"), await browser.ask("/?lost=1")
    writing()
    covering()
    assert (await browser.knows()).witnesses == {"main": DOUBT}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["write", "arrive", "wait"]), min_size=5, max_size=60), st.randoms())
async def test_no_order_of_arrival_loses_a_token(steps: list[str], chance: random.Random) -> None:
    """Over two processes, any number of requests at once, answers in any order: what has arrived is known.

    However many are under way, the jar has at most as many cookies as two processes give, and the pin.
    """
    worlds = [World(), World()]
    worlds[1].clock = worlds[0].clock
    browser = Browser(worlds[0])
    under_way: list[tuple[int, Callable[[], None]]] = []
    position = acknowledged = 0
    for step in steps:
        browser.world = chance.choice(worlds)
        if step == "write":
            position += 1
            under_way.append((position, await browser.ask(f"/?wrote={position}")))
        elif step == "arrive" and under_way:
            wrote, arrive = under_way.pop(chance.randrange(len(under_way)))
            arrive()
            acknowledged = max(acknowledged, wrote)
        token = await browser.knows()
        known = token.positions.get("main")
        assert token.pinned or (known.lsn if known else 0) >= acknowledged


async def test_a_client_brings_what_its_writes_ask_of_caches(world: World) -> None:
    """By cookie or header, for as long as it matters; one that brings nothing is unproven."""
    async with world.client() as browser, world.client() as stranger:
        answer = await browser.get("/?voided=7")
        await browser.get("/")
        await stranger.get("/", headers={"springtide-causality": answer.headers["springtide-causality"]})
        await stranger.get("/")
        world.clock.step(31)
        await browser.get("/")
    carried = {"users": Mark("0a1b2c3d4e", 7, int(world.clock.now()) - 1)}
    assert [token.marks for token in world.tokens] == [{}, carried, carried, {}, {}]
    assert world.unproven == [True, False, False, True, True]


async def test_marks_are_not_believed_from_outside(world: World) -> None:
    """Whoever could write them could keep requests from the cache, or his own from seeing his writes."""
    async with world.client() as client:
        await client.get("/", headers={"springtide-causality": "~users:?:0:ffffffff"})
        await client.get("/", headers={"cookie": "springtide-c-a1=~users:?:0:ffffffff"})
    assert [token.marks for token in world.tokens] == [{}, {}]


async def test_a_write_that_no_cache_was_told_holds_the_answer_to_who_may_bring_no_token() -> None:
    """By then nobody can have what was there before; a client with a token need not wait."""
    world = World()
    async with world.client() as client:
        waiting = asyncio.ensure_future(client.get("/?wrote=1&missed=1&session=7"))
        await world.clock.until_sleeping()
        assert not waiting.done()
        await world.clock.advance(1.5)
        answer = await waiting
        await client.get("/?wrote=2&missed=1&session=7")  # it has a cookie now
    async with world.client() as stranger:
        await stranger.get("/?wrote=2&missed=1")  # and this one no identity to be known by
    assert answer.status_code == 200


async def test_a_browser_with_too_many_answers_under_way_is_pinned() -> None:
    """It gets a bounded number of cookies, reads from the primaries instead, and that ends."""
    world = World()
    browser = Browser(world)
    (await browser.ask("/?wrote=1"))()
    answers = [await browser.ask(f"/?wrote={position}") for position in range(2, 60)]
    for arrive in reversed(answers):
        arrive()
    assert len(browser.jar) <= 13
    assert (await browser.knows()).pinned
    assert set((await browser.knows()).marks) == {ALL}  # what was not carried may have asked it of caches
    assert "pinned" in world.sink.events
    (await browser.ask("/?wrote=60"))()
    assert len(browser.jar) == 2  # the pin, and one cookie again
    world.clock.step(121)
    assert not (await browser.knows()).pinned
    assert not (await browser.knows()).marks


async def test_more_cookies_than_are_read_pin_the_request() -> None:
    """Nothing of what they say is lost, and the answer removes those that were read."""
    world = World()
    browser = Browser(world)
    for position in range(MAX_READ + 8):  # of strangers: no process can know that it is one browser
        jar, browser.jar = browser.jar, {}
        arrive = await browser.ask(f"/?wrote={position + 1}")
        browser.jar = jar
        arrive()
    assert (await browser.knows()).pinned
    (await browser.ask("/?wrote=99"))()
    assert len(browser.jar) == 9
    assert (await browser.knows()).positions == {"main": Position(1, 99)}


def test_what_is_remembered_of_browsers_is_bounded() -> None:
    """Those that came last are remembered; forgetting one costs it nothing but a bound."""
    jar = Jar(lifetime=60.0, max_waiting=2, max_clients=3)
    clients = [Sealed(f"{number:012}", {"main": Seen(Position(1, 1), 0)}) for number in range(10)]
    for sealed in clients:
        assert jar.name(sealed, 1.0) is not None
    assert len(jar._waiting) == 3
    assert jar.name(clients[9], 1.0) is not None
    assert jar.name(clients[9], 1.0) is None
    assert jar.name(clients[0], 1.0) is not None
    assert jar.name(clients[9], 62.0) is not None  # by then those that did not come back are expired


def test_cookies_are_found_among_others() -> None:
    """Also without spaces and in quotes that are not ours; other names are let be."""
    header = b"a=1; springtide-c-x1=1.a.b.c;springtide-c-pin=1.d.e.f; springtide-cx=9; zspringtide-c-y=1.a"
    assert read_cookies(header) == ([("springtide-c-x1", "1.a.b.c"), ("springtide-c-pin", "1.d.e.f")], False)
