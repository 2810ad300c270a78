"""What the content module has to tell others, and to do later, as jobs in the transaction of the change."""

from __future__ import annotations

import msgspec

from springtide.context import Priority
from springtide.jobs import job

__all__ = ["ArticleChanged", "ArticleRemoved", "Commented", "EraseArticle"]


@job(kind="content.changed")
class ArticleChanged(msgspec.Struct, frozen=True):
    """An article was written or changed; the handler reads what is there now."""

    article_id: int


@job(kind="content.removed")
class ArticleRemoved(msgspec.Struct, frozen=True):
    """An article was deleted; `version` is higher than any that it had."""

    article_id: int
    version: int


@job(kind="content.commented")
class Commented(msgspec.Struct, frozen=True):
    """Somebody commented on an article; whoever wrote it is told, unless the comment is gone by then."""

    article_id: int
    comment_id: int


@job(kind="content.erase", priority=Priority.BULK)
class EraseArticle(msgspec.Struct, frozen=True):
    """The comments and favourites of an article that is gone."""

    article_id: int
