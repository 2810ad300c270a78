"""Put together what the modules know: an article and its author are two modules' facts.

All people of an answer are asked for in one call, however many articles or comments there are.
"""

from __future__ import annotations

from collections.abc import Iterable

from market.content import api as content
from market.moments import iso
from market.realworld import shapes
from market.users import api as users

__all__ = ["Composer", "public"]


class Composer:
    def __init__(self, people: users.Users) -> None:
        self._people = people

    async def article(self, article: content.Article, viewer: int | None) -> shapes.ArticleAnswer:
        authors = await self._profiles([article.author_id], viewer)
        return shapes.ArticleAnswer(
            article=shapes.Article(
                slug=article.slug,
                title=article.title,
                description=article.description,
                body=article.body,
                tag_list=article.tags,
                created_at=iso(article.created_at),
                updated_at=iso(article.updated_at),
                favorited=article.favorited,
                favorites_count=article.favorites,
                author=authors[article.author_id],
            )
        )

    async def articles(self, page: content.ArticlePage, viewer: int | None) -> shapes.ArticlesAnswer:
        authors = await self._profiles([article.author_id for article in page.articles], viewer)
        summaries = [
            shapes.ArticleSummary(
                slug=article.slug,
                title=article.title,
                description=article.description,
                tag_list=article.tags,
                created_at=iso(article.created_at),
                updated_at=iso(article.updated_at),
                favorited=article.favorited,
                favorites_count=article.favorites,
                author=authors[article.author_id],
            )
            for article in page.articles
        ]
        return shapes.ArticlesAnswer(articles=summaries, articles_count=page.count)

    async def comment(self, comment: content.Comment, viewer: int | None) -> shapes.CommentAnswer:
        answer = await self.comments([comment], viewer)
        return shapes.CommentAnswer(comment=answer.comments[0])

    async def comments(self, comments: list[content.Comment], viewer: int | None) -> shapes.CommentsAnswer:
        authors = await self._profiles([comment.author_id for comment in comments], viewer)
        return shapes.CommentsAnswer(
            comments=[
                shapes.Comment(
                    id=comment.id,
                    created_at=iso(comment.created_at),
                    updated_at=iso(comment.updated_at),
                    body=comment.body,
                    author=authors[comment.author_id],
                )
                for comment in comments
            ]
        )

    async def _profiles(self, ids: Iterable[int], viewer: int | None) -> dict[int, shapes.Profile]:
        """Everybody in `ids`; whom the users module does not know is shown as NOBODY."""
        wanted = list(dict.fromkeys(ids))
        found = await self._people.profiles(wanted, viewer) if wanted else []
        shown = dict.fromkeys(wanted, NOBODY)
        shown.update((profile.id, public(profile)) for profile in found)
        return shown


NOBODY = shapes.Profile(username="[unknown]", bio=None, image=None, following=False)


def public(profile: users.Profile) -> shapes.Profile:
    return shapes.Profile(
        username=profile.username, bio=profile.bio, image=profile.image, following=profile.following
    )
