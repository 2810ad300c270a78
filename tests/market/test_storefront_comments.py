"""A comment is posted once, however often its form is sent."""

from __future__ import annotations

import asyncio

from tests.market.harness import Api, one_platform
from tests.market.pages import browser

from market.content.api import Content

pytestmark = one_platform


async def test_a_form_that_is_sent_twice_is_one_comment(api: Api) -> None:
    """At once (a double click without scripts) and later: each sending leads to the one comment.

    Written anew, or with another text by who came back to the page, it is another comment.
    """
    slug = (await api.article(await api.person("Anna")))["slug"]
    reader = await browser(api).sign_up("Jake")
    where, action = f"/articles/{slug}", f"/articles/{slug}/comments"
    form = (await reader.get(where)).form(action) | {"body": "Well said\r\n\r\nindeed"}
    both = await asyncio.gather(*(reader.client.post(action, data=form) for _ in range(3)))
    both.append(await reader.client.post(action, data=form))
    content = api.service(Content)
    (comment,) = await content.comments(slug)
    assert {answer.status_code for answer in both} == {303}
    assert {answer.headers["location"] for answer in both} == {f"{where}?done=commented#comment-{comment.id}"}
    told = "select count(*) from content._job where kind like 'content.commented%'"
    assert await api.platform.database("content").scatter_sum(told) == 1
    await reader.client.post(action, data=form | {"body": "On second thought"})
    await reader.get(where)
    await reader.send(action, {"body": "Well said\n\nindeed"})
    assert [one.body for one in await content.comments(slug)] == [
        "Well said\n\nindeed", "On second thought", "Well said\n\nindeed",
    ]  # fmt: skip


async def test_the_longest_comment_is_kept_with_its_record(api: Api) -> None:
    """In the characters that take most room in the record; a form without a key of ours is refused."""
    slug = (await api.article(await api.person("Anna")))["slug"]
    reader = await browser(api).sign_up("Jake")
    await reader.get(f"/articles/{slug}")
    body = "x" + "\x01" * 19_999
    await reader.send(f"/articles/{slug}/comments", {"body": body})
    (comment,) = await api.service(Content).comments(slug)
    assert comment.body == body
    await reader.send(f"/articles/{slug}/comments", {"body": " "}, expect=422)
    await reader.send(f"/articles/{slug}/comments", {"key": "x"}, expect=400)
