"""What tells whom: registrations, changed names and comments reach the inbox, and mails, once each."""

from __future__ import annotations

from typing import Any

import pytest
from tests import jobs_support
from tests.market.harness import Api, Person, one_platform
from tests.market.working import work

from market.notifications.api import Notifications, Told
from market.users.api import Users

pytestmark = one_platform

TELLING = ("users", "content", "notifications")


async def inbox(api: Api, of: Person) -> list[Told]:
    id = await api.service(Users).find(of.username)
    assert id is not None
    return (await api.service(Notifications).inbox(id)).items


async def again(api: Api, kind: str) -> None:
    """Jobs of that kind, done already, are run once more, as after a crash before their end was written."""
    module = kind.split(".")[0]
    for pool in api.platform.database(module).pools.values():
        await pool.execute(jobs_support.again(module, "kind = $1"), kind)
    assert await work(api.platform, TELLING) >= 1


async def test_who_registers_is_welcome_once(api: Api) -> None:
    ann = await api.person("Ann")
    await work(api.platform, TELLING)
    await again(api, "users.joined")
    (notice,) = await inbox(api, ann)
    assert (notice.kind, notice.title) == ("welcome", "Welcome to market")


async def test_a_comment_is_told_to_the_author_once(api: Api) -> None:
    """With the name of whoever wrote it, as it is now; the job may run twice, and names may change."""
    ann, bob = await api.person("Ann"), await api.person("Bob")
    article = await api.article(ann, "Über Gezeiten")
    comment = await api.comment(bob, article["slug"], "  Well\n\nsaid  ")
    await work(api.platform, TELLING)
    await again(api, "content.commented")
    (notice, _) = await inbox(api, ann)
    assert notice.title == "Bob commented on “Über Gezeiten”"
    assert notice.text == "Well\nsaid"
    assert notice.link == f"/articles/{article['slug']}#comment-{comment['id']}"
    await api.call("PUT", "/user", {"user": {"username": "Robert"}}, by=bob, expect=200)
    await work(api.platform, TELLING)
    assert (await inbox(api, ann))[0].title == "Robert commented on “Über Gezeiten”"
    assert [item.kind for item in await inbox(api, Person(bob.token, "Robert", bob.email))] == ["welcome"]


async def test_nobody_is_told_of_their_own_comment_or_of_one_that_is_gone(api: Api) -> None:
    ann, bob = await api.person("Ann"), await api.person("Bob")
    slug = (await api.article(ann))["slug"]
    await api.comment(ann, slug)
    gone = await api.comment(bob, slug)
    await api.call("DELETE", f"/articles/{slug}/comments/{gone['id']}", by=bob, expect=204)
    await work(api.platform, TELLING)
    assert [item.kind for item in await inbox(api, ann)] == ["welcome"]


@pytest.mark.parametrize("change", [{"email": "new@example.com"}, {"username": "ANN"}, {"bio": "b"}])
async def test_mails_go_to_the_address_that_somebody_has_now(api: Api, change: dict[str, Any]) -> None:
    """A name that only changes its case is another one; a bio is nobody's business here."""
    ann = await api.person("Ann")
    await api.call("PUT", "/user", {"user": change}, by=ann, expect=200)
    jobs = await api.platform.database("users").scatter("select kind from users._job")
    assert ("users.renamed" in {row[0] for row in jobs}) == ("bio" not in change)
    await work(api.platform, TELLING)
    rows = await api.platform.database("notifications").scatter(
        "select name, email from notifications.recipient"
    )
    wanted = (change.get("username", "Ann"), change.get("email", ann.email))
    assert [tuple(row) for row in rows] == [wanted]


async def test_a_huge_comment_is_told_by_its_beginning(api: Api) -> None:
    ann, bob = await api.person("Ann"), await api.person("Bob")
    slug = (await api.article(ann, "T" * 255))["slug"]
    await api.comment(bob, slug, "\n" + "long " * 3_999)
    await work(api.platform, TELLING)
    (notice, _) = await inbox(api, ann)
    assert notice.text.startswith("long long")
    assert notice.text.endswith("long…")
    assert len(notice.text) <= 500
