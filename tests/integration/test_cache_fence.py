"""The fence: nothing that is read from the second level lacks a write whose void has been applied.

Each rule has a scene in which it alone stands between an old value and its readers: with the rule the value
is refused, and without it the value comes back. Then worlds are made at random (tests/_fence_model.py), with
transactions, standbys, relays and losses in any order; and without the fence the same worlds break.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from tests._fence_model import CALM, Broken, Explorer, patched
from tests._level2 import Thing, level2, linked, primary, stand, standby
from tests._redis import RedisServer

from springtide.cache._fence import Known, Refusal, Rounds
from springtide.cache._level2 import Entry, Leased, Level2
from springtide.db.seeing import Seen
from springtide.redis import Link

pytestmark = pytest.mark.needs("redis-server")

OLD = Thing(1, "old")

Scene = Callable[[Link], Awaitable[Refusal | None]]


async def keep(
    level: Level2[Thing], seen: Seen, *, tags: tuple[str, ...] = (), name: str = "1"
) -> Refusal | None:
    """What becomes of an old value that somebody has loaded, who takes the lease just now."""
    return await fill(level, await level.lease([name], 30, refresh=True), seen, tags=tags, name=name)


async def fill(
    level: Level2[Thing], lease: Leased[Thing], seen: Seen, *, tags: tuple[str, ...] = (), name: str = "1"
) -> Refusal | None:
    known = lease.known[0] if lease.known else None
    entry = Entry(name, OLD, 60, lease.token, tags, known)
    return (await level.fill(entry, seen=seen, since=lease.sequence)).refusal


async def beats(level: Level2[Thing], xmax: int, *running: int, rounds: Rounds, times: int = 1) -> None:
    """Rounds of a relay, each with a snapshot of the primary after it."""
    for _ in range(times):
        await level.beat(rounds, "relay", now=0.0)
        rounds.marked(xmax, running, 0.0)


async def forget(link: Link, level: Level2[Thing], what: str) -> None:
    await link.send("DEL", level.names.prefix + what)


async def voids(level: Level2[Thing], field: str, *xids: int) -> None:
    for xid in xids:
        await level.void([field], xid=xid)


# -- scenes --------------------------------------------------------------------------------------------------


async def unseen_by_a_primary(link: Link) -> Refusal | None:
    """105 was open when the load began, and has been voided since."""
    level = level2(link)
    await stand(level, 100)
    await voids(level, "k:1", 105)
    return await keep(level, primary(104, 107, 105))


async def unseen_by_a_standby(link: Link) -> Refusal | None:
    """A standby has replayed 106, not 105, and lists nobody as running."""
    level = level2(link)
    await stand(level, 100)
    await voids(level, "k:1", 105)
    return await keep(level, standby(105, 107))


async def unseen_of_a_tag(link: Link) -> Refusal | None:
    """The tag was voided, not the key."""
    level = level2(link, tagged=True)
    await stand(level, 100)
    await voids(level, "t:x", 105)
    return await keep(level, primary(104, 107, 105), tags=("y", "x"))


async def unseen_by_the_writer(link: Link) -> Refusal | None:
    """105 puts what it wrote; 106, which it did not see, has been voided before."""
    level = level2(link)
    await stand(level, 100)
    await voids(level, "k:1", 106, 105)
    seen = primary(105, 107, 105, 106)
    return (await level.put(Entry("1", OLD, 60), seen=seen, xid=105)).refusal


async def one_of_two_writers(link: Link) -> Refusal | None:
    """105 and 104 have both been voided, 104 last; the load has not seen 105."""
    level = level2(link)
    await stand(level, 100)
    await voids(level, "k:1", 105, 104)
    return await keep(level, primary(105, 106, 105))


async def many_writers(link: Link) -> Refusal | None:
    """Nine writers are collapsed into the greatest; then one of the lesser ones is voided again."""
    level = level2(link)
    await stand(level, 100)
    await voids(level, "k:1", *range(101, 110), 101)
    return await keep(level, primary(106))


async def many_writers_since_the_mark(link: Link) -> Refusal | None:
    """They came in the round of the newest mark, which therefore says nothing about them."""
    level = level2(link)
    await beats(level, 101, 100, rounds=await stand(level, 101, 100))
    await voids(level, "k:1", *range(101, 110))
    return await keep(level, primary(100, 105, 100))


async def many_writers_before_the_mark(link: Link) -> Refusal | None:
    """The newest mark has them all; the load is older than the mark."""
    level = level2(link)
    rounds = await stand(level, 101, 100)
    await voids(level, "k:1", *range(101, 110))
    rounds.delay = 1e9  # the horizon stays
    await beats(level, 110, 100, rounds=rounds, times=2)
    return await keep(level, primary(100, 105, 100))


async def the_last_of_many_writers(link: Link) -> Refusal | None:
    """100 is open while many others are collapsed and in the newest mark too, which a load covers that has
    not seen it either. What that load keeps goes when 100 is voided at last, and is not kept again."""
    level = level2(link)
    rounds = await stand(level, 101, 100)
    await voids(level, "k:1", *range(101, 110))
    rounds.delay = 1e9  # the horizon stays
    await beats(level, 110, 100, rounds=rounds, times=2)
    assert await keep(level, primary(100, 110, 100)) is None
    await voids(level, "k:1", 100)
    return None if (await level.read(["1"])).found != [None] else await keep(level, primary(100, 110, 100))


async def no_horizon(link: Link) -> Refusal | None:
    """Tombstones were evicted, all of them, and the relay has not been there since."""
    level = level2(link)
    await stand(level, 100)
    await voids(level, "k:1", 105)
    await forget(link, level, "T")
    return await keep(level, primary(105, 106, 105))


async def forgotten_tombstone(link: Link) -> Refusal | None:
    """The relay has dropped the tombstone; the load is a slow one, of before."""
    level = level2(link)
    rounds = await stand(level, 100)
    await voids(level, "k:1", 105)
    await beats(level, 106, rounds=rounds, times=4)
    return await keep(level, primary(105, 106, 105))


async def forgotten_with_the_same_xmax(link: Link) -> Refusal | None:
    """No transaction began after 105 had committed, so the horizon's xmax is that of the load."""
    level = level2(link)
    rounds = await stand(level, 107, 105)
    await voids(level, "k:1", 105)
    await beats(level, 107, rounds=rounds, times=4)
    return await keep(level, primary(105, 107, 105))


async def older_generation(link: Link) -> Refusal | None:
    """The tombstone is in the older generation, whose horizon does not stand yet."""
    level = level2(link)
    rounds = await stand(level, 100)
    rounds.marked(100, (), 0.0)
    await voids(level, "k:1", 105)
    await beats(level, 106, rounds=rounds)
    return await keep(level, primary(105, 106, 105))


async def older_generation_lost(link: Link) -> Refusal | None:
    """The same, and it was evicted."""
    level = level2(link)
    rounds = await stand(level, 100)
    rounds.marked(100, (), 0.0)
    await voids(level, "k:1", 105)
    await beats(level, 106, rounds=rounds)
    await forget(link, level, "O")
    return await keep(level, primary(105, 106, 105))


async def mark_of_an_ended_life(link: Link) -> Refusal | None:
    """One relay asked the primary, then all tombstones were lost, then another began the next life."""
    level = level2(link)
    sleeper = await stand(level, 100)
    sleeper.marked(100, (), 0.0)
    await voids(level, "k:1", 105)
    await forget(link, level, "T")
    await level.beat(Rounds(0.0), "another", now=0.0)
    await level.beat(sleeper, "the sleeper", now=0.0)
    return await keep(level, primary(105, 106, 105))


async def mark_of_an_earlier_round(link: Link) -> Refusal | None:
    """One relay slept with its mark, while another has dropped a generation."""
    level = level2(link)
    sleeper, relay = await stand(level, 100), Rounds(0.0)
    sleeper.marked(100, (), 0.0)
    await beats(level, 100, rounds=relay, times=3)
    await voids(level, "k:1", 105)
    await beats(level, 106, rounds=relay)
    await level.beat(sleeper, "the sleeper", now=0.0)
    return await keep(level, primary(105, 106, 105))


async def void_after_the_lease(link: Link) -> Refusal | None:
    """When the lease was taken, nobody had voided anything; 105 was open then, and in the load."""
    level = level2(link)
    await stand(level, 100)
    lease = await level.lease(["1"], 30)
    await voids(level, "k:1", 105)
    return await fill(level, lease, primary(104, 107, 105))


async def void_between_two_leases(link: Link) -> Refusal | None:
    """The same, and another has the lease by now."""
    level = level2(link)
    await stand(level, 100)
    lease = await level.lease(["1"], 30)
    await voids(level, "k:1", 105)
    assert (await level.lease(["1"], 30)).found == [True]
    return await fill(level, lease, primary(104, 107, 105))


async def void_after_the_lease_and_a_loss(link: Link) -> Refusal | None:
    """Tombstones and horizon are lost between, which the void therefore does not find."""
    level = level2(link)
    await stand(level, 100)
    lease = await level.lease(["1"], 30)
    await forget(link, level, "T")
    await voids(level, "k:1", 105)
    return await fill(level, lease, primary(104, 107, 105))


async def clear_after_the_lease(link: Link) -> Refusal | None:
    """All is invalidated by hand, for a write that the load has not seen."""
    level = level2(link)
    await stand(level, 100)
    lease = await level.lease(["1"], 30)
    await level.clear(xid=105)
    return await fill(level, lease, primary(104, 107, 105))


async def lease_of_another_with_tags(link: Link) -> Refusal | None:
    """As below, and the script looks at more than the lease."""
    return await lease_of_another(link, tagged=True)


async def lease_of_another(link: Link, tagged: bool = False) -> Refusal | None:
    """Without a database: the lease ended, another took it, the value was voided in between."""
    level = level2(link, fenced=False, tagged=tagged)
    lease = await level.lease(["1"], 30)
    await forget(link, level, "l:1")
    await level.void(["k:1"])
    await level.lease(["1"], 30)
    return (await level.fill(Entry("1", OLD, 60, lease.token), since=lease.sequence)).refusal


async def lease_before_the_void(link: Link) -> Refusal | None:
    """Without a database: the value was voided while it was loaded."""
    level = level2(link, fenced=False)
    lease = await level.lease(["1"], 30)
    await level.void(["k:1"])
    return (await level.fill(Entry("1", OLD, 60, lease.token), since=lease.sequence)).refusal


async def lease_before_the_void_of_a_tag(link: Link) -> Refusal | None:
    level = level2(link, fenced=False, tagged=True)
    lease = await level.lease(["1"], 30)
    await level.void(["t:x"])
    return (await level.fill(Entry("1", OLD, 60, lease.token, ("x",)), since=lease.sequence)).refusal


async def lost_version_of_a_tag(link: Link) -> Refusal | None:
    """The same, and the tag's version was evicted."""
    level = level2(link, fenced=False, tagged=True)
    lease = await level.lease(["1"], 30)
    await level.void(["t:x"])
    await forget(link, level, "g:x")
    return (await level.fill(Entry("1", OLD, 60, lease.token, ("x",)), since=lease.sequence)).refusal


async def voided_tag(link: Link) -> Refusal | None:
    """A value that was kept before its tag was voided; here nothing is filled, it is read."""
    level = level2(link, tagged=True)
    await stand(level, 100)
    assert await keep(level, primary(100), tags=("x",)) is None
    await voids(level, "t:x", 100)
    return Refusal.UNSEEN if (await level.read(["1"])).found == [None] else None


async def version_that_comes_again(link: Link) -> Refusal | None:
    """The tag's version was evicted after the void, and another value has made a new one."""
    level = level2(link, tagged=True)
    await stand(level, 100)
    assert await keep(level, primary(100), tags=("x",)) is None
    await voids(level, "t:x", 100)
    await forget(link, level, "g:x")
    assert await keep(level, primary(101), tags=("x",), name="2") is None
    return Refusal.UNSEEN if (await level.read(["1"])).found == [None] else None


@dataclass(frozen=True)
class Rule:
    """`scene` is refused for `why`; with `old` of a script replaced by `new` it is not."""

    scene: Scene
    why: Refusal
    script: str
    old: str
    new: str = ""


TAGS_TOMBSTONES = "    for place = 3, 3 + count do\n      if young[place]"

LEASE_GOES = "call('DEL', p .. 'l:' .. name, value)"

RULES = (
    Rule(unseen_by_a_primary, Refusal.UNSEEN, "fill", "or among(ARGV[4], one)"),
    Rule(unseen_by_a_standby, Refusal.UNSEEN, "fill", "(standby or xid >= xmax", "(xid >= xmax"),
    Rule(unseen_of_a_tag, Refusal.UNSEEN, "fill", TAGS_TOMBSTONES, TAGS_TOMBSTONES.replace(" + count", "")),
    Rule(unseen_by_the_writer, Refusal.UNSEEN, "fill", "if one ~= own and", "if own == '' and"),
    Rule(one_of_two_writers, Refusal.UNSEEN, "void", "return old .. ',' .. xid", "return xid"),
    Rule(many_writers, Refusal.UNSEEN, "void", "if X > tonumber(most) then", "if true then"),
    Rule(many_writers_since_the_mark, Refusal.UNSEEN, "fill", "tonumber(round) < tonumber(now) and"),
    Rule(many_writers_before_the_mark, Refusal.UNSEEN, "fill", " and covers(tonumber(high), open)"),
    Rule(the_last_of_many_writers, Refusal.UNSEEN, "void", "tonumber(round or 0) <= came + 1", "true"),
    Rule(no_horizon, Refusal.HORIZON, "fill", "rule = 'horizon'", "rule = nil"),
    Rule(forgotten_tombstone, Refusal.EARLY, "fill", "rule = 'early'", "rule = nil"),
    Rule(
        forgotten_with_the_same_xmax, Refusal.EARLY, "fill",
        "if tonumber(xid) < high and not among(open, xid) then return false end",
    ),
    Rule(older_generation, Refusal.UNSEEN, "fill", "if old[place] and not seen(old[place])", "if false"),
    Rule(older_generation_lost, Refusal.HORIZON, "fill", "if old[1] ~= young[2] then why = 'horizon' end"),
    Rule(mark_of_an_ended_life, Refusal.HORIZON, "beat", "if life == ARGV[2] then", "if true then"),
    Rule(mark_of_an_earlier_round, Refusal.UNSEEN, "beat", "of and tonumber(of) >= tonumber(born)", "of"),
    Rule(void_after_the_lease, Refusal.LEASE, "void", LEASE_GOES, "call('DEL', value)"),
    Rule(void_between_two_leases, Refusal.LEASE, "keep", "== ARGV[at]"),
    Rule(void_after_the_lease_and_a_loss, Refusal.LEASE, "void", LEASE_GOES, "call('DEL', value)"),
    Rule(lease_of_another, Refusal.LEASE, "keep", "== ARGV[at]"),
    Rule(lease_of_another_with_tags, Refusal.LEASE, "fill", "there[2] ~= lease", "not there[2]"),
    Rule(lease_before_the_void, Refusal.LEASE, "void", LEASE_GOES, "call('DEL', value)"),
    Rule(lease_before_the_void_of_a_tag, Refusal.UNSEEN, "fill", "why or 'unseen' end", "why end"),
    Rule(lost_version_of_a_tag, Refusal.UNSEEN, "fill", "version = sequence .. '.'", "version = '0.'"),
    Rule(voided_tag, Refusal.UNSEEN, "get", "if now[place] ~= version then ends = nil end"),
    Rule(
        version_that_comes_again, Refusal.UNSEEN, "fill",
        "version = sequence .. '.' .. (lease ~= '' and lease or own)", "version = '0'",
    ),
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.scene.__name__)
async def test_each_rule_refuses_what_nothing_else_would(redis_server: RedisServer, rule: Rule) -> None:
    """The scene is refused, for the reason that it is about; without the rule the old value is kept."""
    async with linked(redis_server) as link:
        assert await rule.scene(link) is rule.why
        await link.send("FLUSHALL")
        with patched(rule.script, (rule.old, rule.new)):
            assert await rule.scene(link) is None


BEFORE_THE_LEASE = (
    unseen_by_a_primary, unseen_by_a_standby, one_of_two_writers, many_writers, many_writers_since_the_mark,
    many_writers_before_the_mark, the_last_of_many_writers, forgotten_tombstone, forgotten_with_the_same_xmax,
    older_generation,
)  # fmt: skip


@pytest.mark.parametrize("scene", BEFORE_THE_LEASE, ids=lambda scene: scene.__name__)
async def test_what_came_with_the_lease_is_judged(
    redis_server: RedisServer, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was voided before the lease still refuses when it is all that is looked at; else it would not."""
    admits = Known.admits
    asked: list[bool] = []

    def noted(known: Known, seen: Seen) -> bool:
        asked.append(admits(known, seen))
        return asked[-1]

    async with linked(redis_server) as link:
        monkeypatch.setattr(Known, "admits", noted)
        assert await scene(link) is not None
        assert asked[-1] is False
        await link.send("FLUSHALL")
        monkeypatch.setattr(Known, "admits", lambda known, seen: True)
        assert await scene(link) is None


async def test_a_slot_that_is_cleared_has_no_leases(redis_server: RedisServer) -> None:
    """Nobody voids the keys one by one then; so the leases go too."""
    async with linked(redis_server) as link:
        assert await clear_after_the_lease(link) is Refusal.LEASE


@pytest.mark.parametrize("scene", [no_horizon, older_generation_lost], ids=lambda scene: scene.__name__)
async def test_without_a_horizon_a_lease_comes_with_nothing(redis_server: RedisServer, scene: Scene) -> None:
    """What was lost before the lease cannot be judged, and refuses."""
    async with linked(redis_server) as link:
        assert await scene(link) is Refusal.HORIZON
        assert (await level2(link).lease(["2"], 30)).known == ()


async def test_a_load_under_a_lease_does_not_look_at_tombstones(redis_server: RedisServer) -> None:
    """What has become of them since the lease does not matter: they are lost, or the horizon has passed the
    load."""
    async with linked(redis_server) as link:
        level = level2(link)
        rounds = await stand(level, 100)
        leases = [await level.lease([name], 30) for name in "12"]
        await beats(level, 110, rounds=rounds, times=4)
        assert await fill(level, leases[0], standby(100), name="1") is None
        await forget(link, level, "T")
        assert await fill(level, leases[1], primary(100), name="2") is None


async def test_a_superseded_timeline_fills_nothing(redis_server: RedisServer) -> None:
    """Numbers of another timeline are not compared: these would pass, and mean something else."""
    async with linked(redis_server) as link:
        level = level2(link, epoch=2)
        await stand(level, 100)
        await level.void(["k:1", "k:2"], xid=105)
        assert await keep(level, primary(200, epoch=1), name="1") is Refusal.SCOPE
        assert await keep(level, primary(200, epoch=2), name="2") is None


async def test_a_write_that_stays_open_stops_no_fill_from_the_primary(redis_server: RedisServer) -> None:
    """A transaction that has been open for many rounds, over dropped tombstones and collapsed ones: what the
    primary shows is kept, what a standby shows is refused, because it cannot be told there."""
    async with linked(redis_server) as link:
        level = level2(link)
        rounds = await stand(level, 101, 100)
        await voids(level, "k:1", *range(101, 120))
        await beats(level, 120, 100, rounds=rounds, times=6)
        await voids(level, "k:2", *range(120, 140))
        await beats(level, 140, 100, rounds=rounds)
        await level.beat(rounds, "relay", now=0.0)
        for name in ("1", "2"):
            assert await keep(level, primary(100, 140, 100), name=name) is None
            assert await keep(level, standby(100, 140), name=name) is Refusal.EARLY


# -- worlds --------------------------------------------------------------------------------------------------

COLLAPSING = ("void", ("if count <= 8 then", "if count <= 1 then"))
"""Two writers of one field are many: so that short runs come to it."""


async def explored(
    server: RedisServer, seeds: range, *, calm: bool, collapsing: bool, **options: Any
) -> Explorer:
    async with linked(server) as link:
        explorer = Explorer(link, **options)
        with patched(*COLLAPSING) if collapsing else nullcontext():
            await explorer.explore(seeds, 60, **(CALM if calm else {}))
        return explorer


WORLDS = [
    pytest.param(fenced, calm, collapsing, tagged, id=f"{fenced=}-{calm=}-{collapsing=}-{tagged=}")
    for tagged in (True, False)
    for fenced, calm, collapsing in (
        (True, False, False), (True, True, False), (True, True, True), (False, False, False)
    )
]  # fmt: skip


@pytest.mark.parametrize(("fenced", "calm", "collapsing", "tagged"), WORLDS)
async def test_nothing_old_is_read_in_any_world(
    redis_server: RedisServer, fenced: bool, calm: bool, collapsing: bool, tagged: bool
) -> None:
    """Whatever happens in whatever order: what is read has every write that was voided before, and after a
    relay's round every write that had committed before it. And values are kept: a fence that refuses all
    is none."""
    explorer = await explored(
        redis_server, range(40), calm=calm, collapsing=collapsing, fenced=fenced, tagged=tagged
    )
    assert explorer.kept > 20


@pytest.mark.stress
@pytest.mark.parametrize(("fenced", "calm", "collapsing", "tagged"), WORLDS)
async def test_nothing_old_is_read_in_many_worlds(
    redis_server: RedisServer, fenced: bool, calm: bool, collapsing: bool, tagged: bool
) -> None:
    """The same, in 5,000 of them."""
    options = {"calm": calm, "collapsing": collapsing, "fenced": fenced, "tagged": tagged}
    await explored(redis_server, range(1000, 6000), **options)


KEEPS = "  if not why then\n    call('SET', p .. 'v:'"

MISTAKES = {
    "a plain set": ("", ("fill", (KEEPS, "  why = nil\n" + KEEPS)), {}),
    "leases alone": ("", ("fill", (KEEPS, "  why = there[2] ~= lease and 'lease' or nil\n" + KEEPS)), {}),
    "the visible-test on a standby": ("standby", None, {**CALM, "round": 10}),
    "no horizon": (
        "",
        ("fill", ("rule = 'horizon'", "rule = nil"), ("rule = 'early'", "rule = nil"),
         ("if old[1] ~= young[2] then why = 'horizon' end", "")),
        {},
    ),
    "a horizon that no load is too old for": ("", ("fill", ("rule = 'early'", "rule = nil")), {}),
    "keys that do not name the Redis process": ("run", None, {"save": 4, "restart": 6}),
}  # fmt: skip

LEASES = {
    "leases that no void ends": ("void", (LEASE_GOES, "call('DEL', value)")),
    "another's lease": ("keep", ("call('GET', KEYS[key]) == ARGV[at]", "call('GET', KEYS[key])")),
    "a lease that comes without tombstones": ("get", ("= young[at]", "= false")),
    "a lease that comes without those of the older generation": ("get", ("= old[at] or false", "= false")),
}


@pytest.mark.parametrize("mistake", LEASES)
async def test_without_a_part_of_what_leases_prove_worlds_break(
    redis_server: RedisServer, mistake: str
) -> None:
    """Where values have no tags, nothing but the lease and what came with it is looked at."""
    async with linked(redis_server) as link:
        with patched(*LEASES[mistake]), pytest.raises(Broken):
            await Explorer(link, tagged=False).explore(range(2000), 60)


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_without_the_fence_worlds_break(redis_server: RedisServer, mistake: str) -> None:
    """What others do, or what the fence does without one of its parts, brings old values back."""
    believes, patch, weights = MISTAKES[mistake]
    async with linked(redis_server) as link:
        with patched(patch[0], *patch[1:]) if patch else nullcontext(), pytest.raises(Broken):
            await Explorer(link, believes=believes).explore(range(2000), 60, **weights)
