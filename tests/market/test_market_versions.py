"""Versions of people and articles: they grow with each change of their owner, and with nothing else."""

from __future__ import annotations

import pytest
from tests.market import tiers
from tests.market.harness import Api, one_platform

from market.content.api import MAX_IDS, Content
from market.faults import Invalid
from market.users.api import Users

pytestmark = one_platform


async def test_every_change_of_an_account_counts(api: Api) -> None:
    """Names, the address, the bio; not a follower, and not a change that was refused."""
    users = api.service(Users)
    jake, anna = await api.person("jake"), await api.person("anna")
    id = await users.find("jake")
    assert id is not None

    async def version() -> int:
        return (await users.profiles([id], None))[0].version

    assert await version() == 1
    for number, change in enumerate(({"bio": "b"}, {"email": "j@x.y"}, {"username": "jacob"}), 2):
        await api.call("PUT", "/user", {"user": change}, by=jake, expect=200)
        assert await version() == number
    await api.call("PUT", "/user", {"user": {"username": "anna"}}, by=jake, expect=422)
    await api.call("POST", "/profiles/jacob/follow", by=anna, expect=200)
    assert await version() == 4


async def test_every_change_of_an_article_counts(api: Api) -> None:
    """Also one of its title, which is another transaction; not a favourite, not a comment."""
    content = api.service(Content)
    jake = await api.person("jake")
    slug = (await api.article(jake, "One"))["slug"]
    assert (await content.article(slug, None)).version == 1
    for number, change in enumerate(({"body": "b"}, {"tagList": ["x"]}, {"title": "Two"}), 2):
        await api.call("PUT", f"/articles/{slug}", {"article": change}, by=jake, expect=200)
        assert (await content.article(slug, None)).version == number
    await api.call("POST", "/articles/two/favorite", by=jake, expect=200)
    await api.comment(jake, "two")
    assert (await content.article("two", None)).version == 4


async def test_summaries_come_in_the_order_of_their_ids(api: Api) -> None:
    """As they are in a list; nothing for ids of nothing; one statement per shard whatever their number, and
    one more where what is the same for everybody is kept apart from what is the viewer's."""
    content = api.service(Content)
    authors = [await api.person() for _ in range(8)]
    slugs = [(await api.article(author, tagList=["t"]))["slug"] for author in authors]
    await api.call("POST", f"/articles/{slugs[3]}/favorite", by=authors[0], expect=200)
    viewer = await api.service(Users).find(authors[0].username)
    ids = [(await content.article(slug, None)).id for slug in slugs][::-1]
    api.recorder.statements.clear()
    found = await content.summaries([*ids, 12345, -1, ids[0]], viewer)
    parts = 2 if tiers.cached() else 1
    assert len(api.recorder.statements) <= parts * len(api.platform.database("content").shards.shards)
    assert [row.slug for row in found] == slugs[::-1]
    assert [row.favorited for row in found] == [slug == slugs[3] for slug in slugs[::-1]]
    assert await content.summaries([], None) == []
    with pytest.raises(Invalid):
        await content.summaries(list(range(MAX_IDS + 1)), None)
