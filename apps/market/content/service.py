"""Articles, comments, favourites, tags and feeds, over the module's own tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote

import msgspec
from msgspec import UNSET

from market.checks import Checks
from market.content import rules
from market.content.api import (
    MAX_COMMENTS,
    MAX_OFFSET,
    Article,
    ArticleChanges,
    ArticlePage,
    ArticleQuery,
    ArticleSummary,
    Comment,
    NewArticle,
)
from market.content.indexing import document
from market.content.jobs import ArticleChanged, ArticleRemoved, Commented, EraseArticle
from market.content.lists import listing
from market.content.store import ContentStore, Gone, Renamed, TitleTaken
from market.content.tags import PopularTags
from market.faults import Forbidden, Invalid, NotFound, Taken
from market.indexing import Sweep
from market.moments import moment
from market.notifications.api import EXCERPT_LENGTH, Notice, Notifications
from market.search.api import Document, Search
from springtide.clock import Clock
from springtide.context import Consistency, reading
from springtide.db import WriteTransaction
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.errors import AlreadyReserved, Unavailable
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["ContentService", "build"]

MAX_FORMER_SLUGS = 10
MAX_ID = (1 << 53) - 1
ATTEMPTS = 5
MAX_ANSWER_BYTES = 131_072
"""A comment as it is kept: 20,000 characters of up to six bytes each as JSON, and a frame around them."""


def build(context: ModuleContext) -> ContentService:
    return ContentService(
        _store(context),
        clock=context.clock,
        keys=Idempotency(context.db, max_answer_bytes=MAX_ANSWER_BYTES, sink=context.sink),
        search=context.service(Search),
        notifications=context.service(Notifications),
    )


def _store(context: ModuleContext) -> ContentStore:
    if not context.cached:
        return ContentStore(context.db)
    from market.content.cached import CachedContent

    return CachedContent(context.db, context.cache)


class ContentService:
    """Implements `market.content.api.Content`."""

    def __init__(
        self,
        store: ContentStore,
        *,
        clock: Clock,
        keys: Idempotency,
        search: Search,
        notifications: Notifications,
    ) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._tags = PopularTags(store.tags, clock=clock)
        self._search = search
        self._notifications = notifications
        self._index = Sweep(search, "article", page=store.versions, documents=self._documents)

    async def create(self, author: int, new: NewArticle) -> Article:
        new = rules.check_new(new)
        id = await self._store.new_id(author)
        reserved: AlreadyReserved | None = None
        for slug in rules.slugs(new.title, id):
            try:
                article = await self._store.insert(
                    id=id,
                    author=author,
                    slug=slug,
                    title=new.title,
                    description=new.description,
                    body=new.body,
                    tags=new.tags,
                    at=moment(self._clock),
                )
            except AlreadyReserved as error:
                reserved = error
            except TitleTaken:
                raise Taken("title") from None
            else:
                return article
        raise Taken("slug") from reserved

    async def article(self, slug: str, viewer: int | None) -> Article:
        article = await self._store.named(slug, viewer) if rules.is_slug(slug) else None
        if article is None:
            raise NotFound("article")
        return article

    async def update(self, slug: str, author: int, changes: ArticleChanges) -> Article:
        changes = rules.check_changes(changes)
        for _ in range(ATTEMPTS):
            known = await self._own(slug, author)
            try:
                return await self._update(known, changes)
            except TitleTaken:
                raise Invalid({"title": ["has already been taken"]}) from None
            except (Gone, Renamed):
                continue  # renamed or deleted since it was read; the next look tells
        raise Unavailable("the article was being renamed at the same time", retry_after=1.0)

    async def delete(self, slug: str, author: int) -> None:
        for _ in range(ATTEMPTS):
            known = await self._own(slug, author)
            former = await self._store.former_slugs(known.id)
            try:
                await self._store.delete(known, former)
                return
            except Gone:
                continue  # renamed or deleted since it was read; the next look tells
        raise Unavailable("the article was being renamed at the same time", retry_after=1.0)

    async def articles(self, query: ArticleQuery, viewer: int | None) -> ArticlePage:
        rules.check_window(query.limit, query.offset)
        if rules.matches_nothing(query):
            return ArticlePage(articles=[], count=0)
        statement = listing(query, viewer)
        count = await self._store.count(statement)
        if query.offset >= count:
            return ArticlePage(articles=[], count=count)
        _check_depth(query.offset)
        return ArticlePage(articles=await self._store.page(statement, query.limit, query.offset), count=count)

    async def feed(self, authors: list[int], viewer: int, limit: int, offset: int) -> ArticlePage:
        rules.check_window(limit, offset)
        count = await self._store.count_feed(authors) if authors else 0
        if offset >= count:
            return ArticlePage(articles=[], count=count)
        _check_depth(offset)
        return ArticlePage(articles=await self._store.feed(authors, viewer, limit, offset), count=count)

    async def summaries(self, ids: list[int], viewer: int | None) -> list[ArticleSummary]:
        rules.check_ids(ids)
        wanted = [id for id in dict.fromkeys(ids) if 0 <= id <= MAX_ID]
        found = {row.id: row for row in await self._store.summaries(wanted, viewer)} if wanted else {}
        return [found[id] for id in wanted if id in found]

    async def favorite(self, slug: str, user: int) -> Article:
        return await self._favorite(slug, user, wanted=True)

    async def unfavorite(self, slug: str, user: int) -> Article:
        return await self._favorite(slug, user, wanted=False)

    async def comment(self, slug: str, author: int, body: str, once: Once | None = None) -> Comment:
        rules.check_comment(body)
        article = await self._find(slug)
        if once is None:
            return await self._comment(article, author, body)

        async def kept(tx: WriteTransaction) -> Answer:
            return Answer(201, body=msgspec.json.encode(await self._comment(article, author, body)))

        outcome = await self._keys.run(once, kept, home=article)
        return msgspec.json.decode(outcome.answer.body, type=Comment)

    async def _comment(self, article: int, author: int, body: str) -> Comment:
        id = await self._store.new_id(article)
        try:
            return await self._store.comment(article, id, author, body, moment(self._clock))
        except Gone:
            raise NotFound("article") from None

    async def tell_commented(self, job: Commented, run: Run) -> None:
        """A job's handler: whoever wrote the article is told of others' comments."""
        said = await self._store.commented(job.article_id, job.comment_id)
        if said is None or said.by_whom == said.to_whom:
            return
        excerpt = rules.excerpt(said.body, EXCERPT_LENGTH)
        notice = Notice(
            recipient=said.to_whom,
            kind="comment",
            key=f"comment-{job.comment_id}",
            data={"actor": str(said.by_whom), "article": said.title, "excerpt": excerpt},
            link=f"/articles/{quote(said.slug)}#comment-{job.comment_id}",
        )
        await self._notifications.notify(notice)

    async def comments(self, slug: str) -> list[Comment]:
        return await self._store.comments(await self._find(slug), MAX_COMMENTS)

    async def delete_comment(self, slug: str, id: int, author: int) -> None:
        article = await self._find(slug)
        if not 0 <= id <= MAX_ID:
            raise NotFound("comment")
        if await self._store.delete_comment(article, id, author):
            return
        if await self._store.comment_author(article, id) is None:
            raise NotFound("comment")
        raise Forbidden("comment")

    async def tags(self) -> list[str]:
        return await self._tags.most_used()

    async def changed(self, job: ArticleChanged, run: Run) -> None:
        """A job's handler. An article that is gone by now has another job for that."""
        await self._search.put(await self._documents([job.article_id]))

    async def removed(self, job: ArticleRemoved, run: Run) -> None:
        """A job's handler."""
        await self._search.remove("article", job.article_id, job.version)

    async def erase(self, job: EraseArticle, run: Run) -> None:
        """A job's handler."""
        await self._store.erase(job.article_id)

    async def index(self) -> None:
        """For the workers, periodically."""
        await self._index.round()

    async def _documents(self, ids: list[int]) -> list[Document]:
        return [document(**dict(row)) for row in await self._store.texts(ids)]

    async def _find(self, slug: str) -> int:
        id = await self._store.find(slug) if rules.is_slug(slug) else None
        if id is None:
            raise NotFound("article")
        return id

    async def _own(self, slug: str, author: int) -> Article:
        with reading(Consistency.STRONG):  # one that is old by now would change nothing
            article = await self.article(slug, author)
        if article.author_id != author:
            raise Forbidden("article")
        return article

    async def _favorite(self, slug: str, user: int, *, wanted: bool) -> Article:
        id = await self._find(slug)
        try:
            return await self._store.favorite(id, user, wanted=wanted)
        except Gone:
            raise NotFound("article") from None

    async def _update(self, known: Article, changes: ArticleChanges) -> Article:
        title = None if changes.title is UNSET else changes.title

        async def write(slug: str | None = None, forget: Sequence[str] = ()) -> Article:
            return await self._store.update(
                known,
                slug=slug,
                forget=forget,
                title=title,
                description=None if changes.description is UNSET else changes.description,
                body=None if changes.body is UNSET else changes.body,
                tags=None if changes.tags is UNSET else changes.tags,
                at=moment(self._clock),
            )

        if title is None or rules.same_slug(title, known.title):
            return await write()
        return await self._rename(known, title, write)

    async def _rename(
        self, known: Article, title: str, write: Callable[[str, Sequence[str]], Awaitable[Article]]
    ) -> Article:
        """Write with the first slug of the new title that is free, or was this article's before."""
        former = await self._store.former_slugs(known.id)
        surplus = len(former) + 1 - MAX_FORMER_SLUGS
        reserved: AlreadyReserved | None = None
        for slug in rules.slugs(title, known.id):
            try:
                return await write(slug, [old for old in former[: max(surplus, 0)] if old != slug])
            except AlreadyReserved as error:
                reserved = error
        raise Invalid({"title": ["has already been taken"]}) from reserved


def _check_depth(offset: int) -> None:
    checks = Checks()
    if offset > MAX_OFFSET:
        checks.fault("offset", f"must be at most {MAX_OFFSET}; narrow the list by author or tag")
    checks.finish()
