"""Everything else of the API, as FastAPI endpoints: who asks and what they send come in as dependencies.

The token is looked at before the body, so a stranger learns nothing about what a body must look like. Tokens
are good without a look-up, so one may be left over from a database that is gone: what would be written in
the name of an account that is not there is refused before anything is written.
"""

# Annotations are values here: FastAPI reads them.
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from market.content.api import ArticleChanges, NewArticle
from market.faults import Invalid, NotFound, Taken
from market.realworld import shapes
from market.realworld.answers import Unauthorized, answer, nothing
from market.realworld.composing import public
from market.realworld.forms import Form, read_form
from market.realworld.rim import Rim, rim_of
from market.users.api import Account, AccountChanges, NewAccount, Profile

__all__ = [
    "add_comment",
    "create_article",
    "current_user",
    "delete_article",
    "delete_comment",
    "favorite",
    "follow",
    "get_comments",
    "login",
    "register",
    "unfavorite",
    "unfollow",
    "update_article",
    "update_user",
]


async def _required(request: Request) -> int:
    return rim_of(request).viewers.required(request)


async def _optional(request: Request) -> int | None:
    return rim_of(request).viewers.optional(request)


def _form(wrapper: str) -> Callable[[Request], Awaitable[Form]]:
    async def read(request: Request) -> Form:
        return await read_form(request, wrapper)

    return read


async def _rim(request: Request) -> Rim:
    return rim_of(request)


TheRim = Annotated[Rim, Depends(_rim)]
Somebody = Annotated[int, Depends(_required)]
Anybody = Annotated[int | None, Depends(_optional)]
UserForm = Annotated[Form, Depends(_form("user"))]
ArticleForm = Annotated[Form, Depends(_form("article"))]
CommentForm = Annotated[Form, Depends(_form("comment"))]


def _user(rim: Rim, account: Account, status: int = 200) -> Response:
    user = shapes.User(
        email=account.email,
        token=rim.viewers.token(account.id),
        username=account.username,
        bio=account.bio,
        image=account.image,
    )
    return answer(shapes.UserAnswer(user=user), status)


async def _member(rim: Rim, viewer: int) -> Profile:
    """The profile of who writes. Raises Unauthorized when there is no such account."""
    found = await rim.users.profiles([viewer], None)
    if not found:
        raise Unauthorized("token", "is invalid")
    return found[0]


async def register(rim: TheRim, form: UserForm) -> Response:
    new = NewAccount(username=form.text("username"), email=form.text("email"), password=form.text("password"))
    form.finish()
    return _user(rim, await rim.users.register(new), 201)


async def login(rim: TheRim, form: UserForm) -> Response:
    email, password = form.text("email"), form.text("password")
    form.finish()
    account = await rim.users.authenticate(email, password)
    if account is None:
        raise Unauthorized("credentials", "invalid")
    return _user(rim, account)


async def current_user(rim: TheRim, viewer: Somebody) -> Response:
    account = await rim.users.account(viewer)
    if account is None:  # a token of ours for somebody who is no longer there
        raise Unauthorized("token", "is invalid")
    return _user(rim, account)


async def update_user(rim: TheRim, viewer: Somebody, form: UserForm) -> Response:
    changes = AccountChanges(
        username=form.change("username"),
        email=form.change("email"),
        password=form.change("password"),
        bio=form.clearable("bio"),
        image=form.clearable("image"),
    )
    form.some("username", "email", "password", "bio", "image")
    form.finish()
    try:
        account = await rim.users.update(viewer, changes)
    except NotFound as error:
        raise Unauthorized("token", "is invalid") from error
    except Taken as error:  # the specification knows no conflict here
        raise Invalid(error.errors) from error
    return _user(rim, account)


async def follow(rim: TheRim, viewer: Somebody, username: str) -> Response:
    await _member(rim, viewer)
    return answer(shapes.ProfileAnswer(profile=public(await rim.users.follow(viewer, username))))


async def unfollow(rim: TheRim, viewer: Somebody, username: str) -> Response:
    await _member(rim, viewer)
    return answer(shapes.ProfileAnswer(profile=public(await rim.users.unfollow(viewer, username))))


async def create_article(rim: TheRim, viewer: Somebody, form: ArticleForm) -> Response:
    tags = form.texts("tagList")
    new = NewArticle(
        title=form.text("title"),
        description=form.text("description"),
        body=form.text("body"),
        tags=[] if tags is UNSET else tags,
    )
    form.finish()
    author = await _member(rim, viewer)
    article = await rim.content.create(viewer, new)
    return answer(rim.composer.article_by(author, article), 201)


async def update_article(rim: TheRim, viewer: Somebody, slug: str, form: ArticleForm) -> Response:
    changes = ArticleChanges(
        title=form.change("title"),
        description=form.change("description"),
        body=form.change("body"),
        tags=form.texts("tagList"),
    )
    form.some("title", "description", "body", "tagList")
    form.finish()
    article = await rim.content.update(slug, viewer, changes)
    return answer(await rim.composer.article(article, viewer))


async def delete_article(rim: TheRim, viewer: Somebody, slug: str) -> Response:
    await rim.content.delete(slug, viewer)
    return nothing()


async def favorite(rim: TheRim, viewer: Somebody, slug: str) -> Response:
    await _member(rim, viewer)
    article = await rim.content.favorite(slug, viewer)
    return answer(await rim.composer.article(article, viewer))


async def unfavorite(rim: TheRim, viewer: Somebody, slug: str) -> Response:
    await _member(rim, viewer)
    article = await rim.content.unfavorite(slug, viewer)
    return answer(await rim.composer.article(article, viewer))


async def get_comments(rim: TheRim, viewer: Anybody, slug: str) -> Response:
    return answer(await rim.composer.comments(await rim.content.comments(slug), viewer))


async def add_comment(rim: TheRim, viewer: Somebody, slug: str, form: CommentForm) -> Response:
    body = form.text("body")
    form.finish()
    author = await _member(rim, viewer)
    comment = await rim.content.comment(slug, viewer, body)
    return answer(rim.composer.comment_by(author, comment), 201)


async def delete_comment(rim: TheRim, viewer: Somebody, slug: str, id: str) -> Response:
    digits = id.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 18):
        raise Invalid({"id": ["must be a whole number"]})
    await rim.content.delete_comment(slug, int(id), viewer)
    return nothing()
