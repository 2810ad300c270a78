"""Every operation of the API, once: routes are mounted from this table, and /docs is written from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import Response

from market.realworld import reads, shapes, writes

__all__ = ["OPERATIONS", "PREFIX", "Operation"]

PREFIX = "/api"

Auth = Literal["none", "optional", "required"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`plain` endpoints take the request and are mounted as Starlette routes, the others as FastAPI's.

    `id` is the operation's name in the specification, `body` the name of the request schema, `answer` None
    for an answer without a body, `errors` the refusals beside 422, which any request may meet.
    """

    id: str
    method: str
    path: str
    endpoint: Callable[..., Awaitable[Response]]
    plain: bool = False
    tag: str
    summary: str
    says: str = ""
    auth: Auth = "none"
    body: str | None = None
    parameters: tuple[str, ...] = ()
    status: int = 200
    answer: type[shapes.Shape] | None
    errors: tuple[int, ...] = ()


ACCOUNTS, PROFILE, ARTICLES = "User and Authentication", "Profile", "Articles"
COMMENTS, FAVORITES, TAGS = "Comments", "Favorites", "Tags"


def _operation(id: str, method: str, path: str, endpoint: Any, **rest: Any) -> Operation:
    return Operation(id=id, method=method, path=path, endpoint=endpoint, **rest)


OPERATIONS: tuple[Operation, ...] = (
    _operation(
        "Login", "POST", "/users/login", writes.login,
        tag=ACCOUNTS, summary="Sign in", body="LoginUser", answer=shapes.UserAnswer, errors=(401,),
        says="One answer for an unknown address and a wrong password, after the same amount of work.",
    ),
    _operation(
        "CreateUser", "POST", "/users", writes.register,
        tag=ACCOUNTS, summary="Register", body="NewUser", status=201, answer=shapes.UserAnswer, errors=(409,),
        says="Usernames and addresses are compared without regard to case.",
    ),
    _operation(
        "GetCurrentUser", "GET", "/user", writes.current_user,
        tag=ACCOUNTS, summary="The signed-in user", auth="required", answer=shapes.UserAnswer, errors=(401,),
    ),
    _operation(
        "UpdateCurrentUser", "PUT", "/user", writes.update_user,
        tag=ACCOUNTS, summary="Change the signed-in user", auth="required", body="UpdateUser",
        answer=shapes.UserAnswer, errors=(401,),
        says="At least one field; one that is left out stays. null or an empty text clears bio and image. A"
        " username or an address that is somebody else's is a value that breaks a rule: 422.",
    ),
    _operation(
        "GetProfileByUsername", "GET", "/profiles/{username}", reads.get_profile,
        plain=True, tag=PROFILE, summary="A profile", auth="optional", parameters=("username",),
        answer=shapes.ProfileAnswer, errors=(401, 404),
    ),
    _operation(
        "FollowUserByUsername", "POST", "/profiles/{username}/follow", writes.follow,
        tag=PROFILE, summary="Follow somebody", auth="required", parameters=("username",),
        answer=shapes.ProfileAnswer, errors=(401, 404),
        says="Following twice is following once. Nobody follows themselves (422).",
    ),
    _operation(
        "UnfollowUserByUsername", "DELETE", "/profiles/{username}/follow", writes.unfollow,
        tag=PROFILE, summary="Stop following somebody", auth="required", parameters=("username",),
        answer=shapes.ProfileAnswer, errors=(401, 404),
    ),
    _operation(
        "GetArticlesFeed", "GET", "/articles/feed", reads.get_feed,
        plain=True, tag=ARTICLES, summary="Newest articles of those you follow", auth="required",
        parameters=("limit", "offset"), answer=shapes.ArticlesAnswer, errors=(401,),
    ),
    _operation(
        "GetArticles", "GET", "/articles", reads.get_articles,
        plain=True, tag=ARTICLES, summary="Newest articles", auth="optional",
        parameters=("tag", "author", "favorited", "limit", "offset"),
        answer=shapes.ArticlesAnswer, errors=(401,),
        says="Every filter that is given must hold. Articles in lists have no body.",
    ),
    _operation(
        "CreateArticle", "POST", "/articles", writes.create_article,
        tag=ARTICLES, summary="Write an article", auth="required", body="NewArticle", status=201,
        answer=shapes.ArticleAnswer, errors=(401, 409),
        says="409 when you have an article of that title already, in whatever case.",
    ),
    _operation(
        "GetArticle", "GET", "/articles/{slug}", reads.get_article,
        plain=True, tag=ARTICLES, summary="An article", auth="optional", parameters=("slug",),
        answer=shapes.ArticleAnswer, errors=(404,),
        says="A slug that the article had before its title was changed leads to it, too. A token that does"
        " not pass counts as none.",
    ),
    _operation(
        "UpdateArticle", "PUT", "/articles/{slug}", writes.update_article,
        tag=ARTICLES, summary="Change an article", auth="required", parameters=("slug",),
        body="UpdateArticle", answer=shapes.ArticleAnswer, errors=(401, 403, 404),
        says="At least one field; one that is left out stays. A new title gives a new slug.",
    ),
    _operation(
        "DeleteArticle", "DELETE", "/articles/{slug}", writes.delete_article,
        tag=ARTICLES, summary="Delete an article", auth="required", parameters=("slug",), status=204,
        answer=None, errors=(401, 403, 404), says="With its comments and favourites.",
    ),
    _operation(
        "GetArticleComments", "GET", "/articles/{slug}/comments", writes.get_comments,
        tag=COMMENTS, summary="Comments of an article", auth="optional", parameters=("slug",),
        answer=shapes.CommentsAnswer, errors=(401, 404), says="The newest first, at most 1,000.",
    ),
    _operation(
        "CreateArticleComment", "POST", "/articles/{slug}/comments", writes.add_comment,
        tag=COMMENTS, summary="Comment on an article", auth="required", parameters=("slug",),
        body="NewComment", status=201, answer=shapes.CommentAnswer, errors=(401, 404),
    ),
    _operation(
        "DeleteArticleComment", "DELETE", "/articles/{slug}/comments/{id}", writes.delete_comment,
        tag=COMMENTS, summary="Delete a comment of yours", auth="required", parameters=("slug", "id"),
        status=204, answer=None, errors=(401, 403, 404),
    ),
    _operation(
        "CreateArticleFavorite", "POST", "/articles/{slug}/favorite", writes.favorite,
        tag=FAVORITES, summary="Favourite an article", auth="required", parameters=("slug",),
        answer=shapes.ArticleAnswer, errors=(401, 404),
    ),
    _operation(
        "DeleteArticleFavorite", "DELETE", "/articles/{slug}/favorite", writes.unfavorite,
        tag=FAVORITES, summary="Take a favourite back", auth="required", parameters=("slug",),
        answer=shapes.ArticleAnswer, errors=(401, 404),
    ),
    _operation(
        "GetTags", "GET", "/tags", reads.get_tags,
        plain=True, tag=TAGS, summary="Tags", answer=shapes.TagsAnswer,
        says="The most used first, at most 100.",
    ),
)  # fmt: skip
