"""Market's stores over a cache: each write makes stale what it changes, and a session reads its own writes.

Every case reads a value until it is kept, writes, and reads it again: a write that forgets to say what it
makes stale is found out, because what was kept is the answer then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests._redis import RedisServer
from tests.cached import HANGS, another, until
from tests.market import tiers
from tests.market.harness import Api, Person, one_platform, one_shard, serving
from tests.market.media import picture
from tests.market.notices import comment

from market.catalog.api import NewShop
from market.catalog.cached import CachedCatalog, Kept
from market.catalog.store import CatalogStore
from market.dashboard.cached import CachedSales
from market.dashboard.rules import day_of
from market.dashboard.store import Added, Line, SaleStore
from market.media.cached import CachedMedia
from market.media.store import Blob, MediaStore, Row
from market.notifications.api import KEPT, Notice, Notifications, Recipient
from market.notifications.cached import CachedNotifications
from market.notifications.store import NotificationStore
from market.recommendations.cached import CachedFollows, CachedPurchases
from market.recommendations.follows import Follow, FollowStore
from market.recommendations.store import PurchaseStore
from market.search.api import Document, Kind, SearchQuery
from market.search.cached import CachedSearch
from market.search.questions import beginning, question
from market.search.service import SUGGESTED, row_of
from market.search.store import SearchStore
from market.users.api import Users
from springtide.cache import Cache
from springtide.context import RequestContext, activate
from springtide.redis import Redis

pytestmark = one_platform

AT = datetime(2025, 5, 1, 12, 0, tzinfo=UTC)
ME, YOU, THEM = (7 << 10) | 5, (8 << 10) | 900, (9 << 10) | 6
"""On both of two shards."""

Read = Callable[[Any], Awaitable[Any]]
Write = Callable[[], Awaitable[Any]]


class Shelf:
    """A module's store with a cache before it (`kept`), and the same without one (`plain`)."""

    def __init__(self, cache: Cache, kept: Any, plain: Any) -> None:
        self.kept = kept
        self._cache = cache
        self.plain = plain

    async def follows(self, read: Read, *writes: Write) -> None:
        """What is read after each write is new, and what the database has, although it was kept before."""
        for write in writes:
            before = await read(self.kept)
            await until(lambda: self.keeps(read))
            assert before == await read(self.plain)
            await write()
            after = await read(self.kept)
            assert after == await read(self.plain)
            assert after != before

    async def keeps(self, read: Read) -> bool:
        loads = self._loads()
        await read(self.kept)
        return self._loads() == loads

    def _loads(self) -> int:
        return sum(cls.stats.loads for cls in self._cache.classes.values())


@asynccontextmanager
async def shelf(
    api: Api, redis_server: RedisServer, module: str, kept: Callable[..., Any], plain: type
) -> AsyncIterator[Shelf]:
    """As a session has it, which reads its own writes over replicas too."""
    db = api.platform.database(module)
    redis, own = Redis(redis_server.url, timeout=HANGS), another(db)
    cache = Cache("shelf", redis=redis)
    made = Shelf(cache, kept(own, cache), plain(another(db)))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(5 * HANGS))
        await redis.start()
        stack.push_async_callback(redis.stop)
        await stack.enter_async_context(cache)
        stack.enter_context(activate(RequestContext()))
        yield made


async def test_what_is_done_to_a_medium_is_seen(api: Api, redis_server: RedisServer) -> None:
    """It is stored, attached, taken away, settled, taken up again and deleted."""
    async with shelf(api, redis_server, "media", CachedMedia, MediaStore) as over:
        store = over.kept
        id = await store.new_id(ME)
        blob = Blob("original", f"originals/{id}.png", "image/png", 100)
        row = Row(
            id=id, owner_id=ME, kind="image", purpose="public", name="A picture", content_type="image/png",
            size=100, width=1, height=1, state="processing", note=None, blobs=(blob,), expires_at=AT,
            created_at=AT, updated_at=AT,
        )  # fmt: skip

        def inside(step: Callable[[Any], Awaitable[Any]]) -> Write:
            async def write() -> None:
                async with store.write(ME) as tx:
                    await step(tx)

            return write

        await over.follows(
            lambda of: of.shown([id]),
            inside(lambda tx: store.insert(tx, row)),
            lambda: store.attach(ME, "thing", [id], 1, AT),
            lambda: store.attach(ME, "thing", [], 2, AT),
            lambda: store.settle(id, "waiting", "no tools", None, AT),
            inside(lambda tx: store.resume(tx, id, AT)),
            lambda: store.settle(id, "ready", None, [blob, blob], AT),
            inside(lambda tx: store.delete(tx, id)),
        )


async def test_who_has_a_shop_is_decided_by_the_database(api: Api, redis_server: RedisServer) -> None:
    """Also while it is kept that he has none, which a page may show for as long as the budget allows."""

    def kept(db: Any, cache: Cache) -> CachedCatalog:
        return CachedCatalog(db, cache, Kept(db, cache))

    async with shelf(api, redis_server, "catalog", kept, CatalogStore) as over:
        await until(lambda: over.keeps(lambda of: of.shop(ME)))
        await over.plain.insert_shop(ME, "untold", NewShop(name="Untold", currency="EUR"), AT, None)
        assert await over.kept.own_shop(ME) is not None


async def test_lists_that_were_made_anew_are_given(api: Api, redis_server: RedisServer) -> None:
    async def lists(of: Any) -> Any:
        return sorted((list(ids), list(worth)) for ids, worth in await of.lists([ME, YOU]) if ids)

    async with shelf(api, redis_server, "recommendations", CachedPurchases, PurchaseStore) as over:
        await over.follows(
            lists,
            lambda: over.kept.put_list(ME, [(YOU, 0.5)], 1, AT),
            lambda: over.kept.put_list(YOU, [(ME, 0.25)], 1, AT),
            lambda: over.kept.put_list(ME, [(THEM, 0.75), (YOU, 0.5)], 2, AT),
        )


async def test_follows_and_what_is_made_of_them_are_given(api: Api, redis_server: RedisServer) -> None:
    """Somebody follows and unfollows; suggestions and the chart are made anew."""
    async with shelf(api, redis_server, "recommendations", CachedFollows, FollowStore) as over:
        store = over.kept

        async def put(following: bool, version: int) -> None:
            async with store._db.write(ME) as tx:
                assert await store.put(tx, ME, YOU, Follow(following, version), AT)

        await over.follows(
            lambda of: of.followed(ME, [YOU, THEM]), lambda: put(True, 1), lambda: put(False, 2)
        )
        await over.follows(lambda of: of.authors(ME), lambda: store.put_authors(ME, [YOU], 5, AT))
        await over.follows(lambda of: of.chart(), lambda: store.put_chart([THEM, YOU], AT))


@pytest.mark.parametrize("kind", ["listing", None])
async def test_what_enters_the_index_is_found_until_it_leaves(
    api: Api, redis_server: RedisServer, kind: Kind | None
) -> None:
    """Among its own kind and among all; its title is suggested as long."""
    query = SearchQuery(text="oak ta", kind=kind, limit=5)
    asked, begun = question(query.text, query.kind), beginning("oa", SUGGESTED)
    assert asked is not None and begun is not None

    async def found(of: Any) -> Any:
        return await of.hits(asked, query), sorted(await of.titles(begun))

    async with shelf(api, redis_server, "search", CachedSearch, SearchStore) as over:
        store = over.kept

        def put(id: int, version: int, title: str, kind: Kind = "listing") -> Write:
            made = row_of(Document(kind=kind, id=id, version=version, title=title, text="About it"))
            return lambda: store.put([made])

        await over.follows(
            found,
            put(ME, 1, "An oak table"),
            put(YOU, 1, "Another oak table"),
            put(ME, 2, "Two oak tables"),
            put(THEM, 1, "Oak Tanner", "person"),
            lambda: store.remove("listing", ME, 3, AT),
            lambda: store.remove("person", THEM, 2, AT),
        )


async def test_an_inbox_is_what_was_told_and_read(api: Api, redis_server: RedisServer) -> None:
    """Told, read, mailed, and trimmed when there is too much of it."""
    async with shelf(api, redis_server, "notifications", CachedNotifications, NotificationStore) as over:
        store = over.kept

        async def tell(*keys: int) -> None:
            async with store.write(ME) as tx:
                for key in keys:
                    number = await store.tell(tx, ME, str(key), AT)
                    notice = Notice(recipient=ME, kind="comment", key=str(key), link="/")
                    await store.insert(tx, notice, number, "queued", AT)

        await over.follows(
            lambda of: of.inbox(ME, 20, None),
            lambda: tell(1, 2),
            lambda: tell(3),
            lambda: store.read(ME, 1),
            lambda: store.settle_mail(ME, 2, "sent"),
            lambda: tell(*range(4, KEPT + 5)),
            lambda: store.tidy(AT + timedelta(days=60)),
            lambda: store.read(ME, KEPT + 4),
        )


async def test_people_are_called_in_notices_what_they_are_called_now(
    api: Api, redis_server: RedisServer
) -> None:
    async with shelf(api, redis_server, "notifications", CachedNotifications, NotificationStore) as over:

        def called(name: str, version: int) -> Write:
            return lambda: over.kept.introduce(
                Recipient(id=YOU, name=name, email="bob@example.com", version=version)
            )

        await over.follows(lambda of: of.names([ME, YOU]), called("Bob", 1), called("Robert", 2))


async def test_a_sale_and_its_end_are_in_the_figures(api: Api, redis_server: RedisServer) -> None:
    """Each day's, and what brought the most; also that a seller has sold something at all."""
    today, lines = day_of(AT), [Line(1, 1, 100)]

    async def figures(of: Any) -> Any:
        return await of.days(ME, today, today), await of.top(ME, today, today, 10)

    async with shelf(api, redis_server, "dashboard", CachedSales, SaleStore) as over:
        store = over.kept

        async def opened() -> None:
            async with store.write(ME) as tx:
                await store.lock(tx, ME, "EUR")

        async def counted(*, back: bool) -> None:
            async with store.write(ME) as tx:
                await store.count(tx, ME, Added(today, lines, back=back))

        await over.follows(
            figures,
            opened,
            lambda: counted(back=False),
            lambda: counted(back=False),
            lambda: counted(back=True),
        )


@asynccontextmanager
async def two_processes(
    api: Api, redis_server: RedisServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Api, Api]]:
    """market twice over one cache, on the databases of `api`; trusted by both."""
    urls = [api.platform.topology.cluster_url(cluster) for cluster in api.platform.topology.clusters]
    if not tiers.cached():  # else that of `api`: its relay may be the one that leads
        monkeypatch.setenv(tiers.REDIS, redis_server.url.rpartition("/")[0])
    async with serving(urls, home) as one, serving(urls, home) as other:
        for cls in [cls for each in (one, other) for cls in each.platform.cache.classes.values()]:
            await until(lambda: cls.proven > 0)  # noqa: B023
        yield one, other


async def get(api: Api, path: str, by: Person, status: int = 200) -> Any:
    answer = await api.client.get(path, headers={"Authorization": f"Bearer {by.token}"})
    assert answer.status_code == status, answer.text
    return answer.json()


@one_shard
async def test_who_reads_notices_at_one_server_has_read_them_at_another(
    api: Api, redis_server: RedisServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bearer client whose inbox both processes have in memory; it brings no token of what it has seen."""
    async with two_processes(api, redis_server, home, monkeypatch) as (one, other):
        ann = await one.person()
        id = await one.platform.service(Users).find(ann.username)
        assert id is not None
        for number in range(1, 6):
            await one.platform.service(Notifications).notify(comment(id, id, str(number)))
            for each in (one, other):
                kept = each.platform.cache.classes["inbox"]

                async def from_memory() -> bool:
                    hits = kept.stats.l1_hits  # noqa: B023
                    await get(each, "/market/notifications", ann)  # noqa: B023
                    return kept.stats.l1_hits > hits  # noqa: B023

                await until(from_memory)
            read = await one.client.post(
                "/market/notifications/read",
                json={"up_to": number},
                headers={"Authorization": f"Bearer {ann.token}"},
            )
            assert read.status_code == 200, read.text
            assert (await get(other, "/market/notifications", ann))["unread"] == 0


@one_shard
async def test_who_deletes_a_picture_at_one_server_finds_it_at_none(
    api: Api, redis_server: RedisServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bearer client whose medium both processes have in memory."""
    async with two_processes(api, redis_server, home, monkeypatch) as (one, other):
        ann = await one.person()
        headers = {"Authorization": f"Bearer {ann.token}"}
        for number in range(3):
            content = picture("PNG", (40 + number, 30))
            stored = await one.client.post("/market/media", content=content, headers=headers)
            assert stored.status_code == 201, stored.text
            path = f"/market/media/{stored.json()['id']}"
            for each in (one, other):
                kept = each.platform.cache.classes["medium"]

                async def from_memory() -> bool:
                    hits = kept.stats.l1_hits  # noqa: B023
                    await get(each, path, ann)  # noqa: B023
                    return kept.stats.l1_hits > hits  # noqa: B023

                await until(from_memory)
            assert (await one.client.delete(path, headers=headers)).status_code == 204
            await get(other, path, ann, status=404)
