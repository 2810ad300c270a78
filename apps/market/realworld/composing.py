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
        return _article(article, authors[article.author_id])

    def article_by(self, author: users.Profile, article: content.Article) -> shapes.ArticleAnswer:
        """For who wrote it and is known already: nobody has to be asked."""
        return _article(article, public(author))

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

    def comment_by(self, author: users.Profile, comment: content.Comment) -> shapes.CommentAnswer:
        """For who wrote it and is known already: nobody has to be asked."""
        return shapes.CommentAnswer(comment=_comment(comment, public(author)))

    async def comments(self, comments: list[content.Comment], viewer: int | None) -> shapes.CommentsAnswer:
        authors = await self._profiles([comment.author_id for comment in comments], viewer)
        return shapes.CommentsAnswer(
            comments=[_comment(comment, authors[comment.author_id]) for comment in comments]
        )

    async def _profiles(self, ids: Iterable[int], viewer: int | None) -> dict[int, shapes.Profile]:
        """Everybody in `ids`; whom the users module does not know is shown as NOBODY."""
        wanted = list(dict.fromkeys(ids))
        found = await self._people.profiles(wanted, viewer) if wanted else []
        shown = dict.fromkeys(wanted, NOBODY)
        shown.update((profile.id, public(profile)) for profile in found)
        return shown


def _article(article: content.Article, author: shapes.Profile) -> shapes.ArticleAnswer:
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
            author=author,
        )
    )


def _comment(comment: content.Comment, author: shapes.Profile) -> shapes.Comment:
    return shapes.Comment(
        id=comment.id,
        created_at=iso(comment.created_at),
        updated_at=iso(comment.updated_at),
        body=comment.body,
        author=author,
    )


NOBODY = shapes.Profile(username="[unknown]", bio=None, image=None, following=False)


def public(profile: users.Profile) -> shapes.Profile:
    return shapes.Profile(
        username=profile.username, bio=profile.bio, image=profile.image, following=profile.following
    )
