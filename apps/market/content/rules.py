"""What an article, a comment and a tag may be, and which slug a title gives. Pure.

A slug is the title in lower case, Latin letters without accents, letters and digits of any script kept, and
everything else turned into single hyphens: `Über “Größe”!` -> `uber-grosse`. A slug that somebody else's
article has already, that is empty or that is part of another address (`feed`) gets the article's id added.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from msgspec import UNSET

from market.checks import Checks, storable
from market.content.api import (
    BODY_LENGTH,
    COMMENT_LENGTH,
    DESCRIPTION_LENGTH,
    MAX_IDS,
    MAX_LIMIT,
    MAX_TAGS,
    TAG_LENGTH,
    TITLE_LENGTH,
    ArticleChanges,
    ArticleQuery,
    NewArticle,
)

__all__ = [
    "check_changes",
    "check_comment",
    "check_ids",
    "check_new",
    "check_window",
    "excerpt",
    "is_slug",
    "is_tag",
    "matches_nothing",
    "same_slug",
    "slugs",
]

_SLUG_LENGTH = 100
_LONGEST_SLUG = _SLUG_LENGTH + 12
_ADDRESSES = frozenset({"feed"})
_ACCENTS = re.compile("[\u0300-\u036f]+")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def check_new(new: NewArticle) -> NewArticle:
    """The article to create, its title and tags trimmed. Raises Invalid."""
    checks = Checks()
    title = new.title.strip()
    checks.text("title", title, max_length=TITLE_LENGTH)
    checks.text("description", new.description, max_length=DESCRIPTION_LENGTH)
    checks.text("body", new.body, max_length=BODY_LENGTH)
    tags = _tags(checks, new.tags)
    checks.finish()
    return NewArticle(title=title, description=new.description, body=new.body, tags=tags)


def check_changes(changes: ArticleChanges) -> ArticleChanges:
    """The changes to make, trimmed as `check_new` does. Raises Invalid."""
    checks = Checks()
    title, tags = changes.title, changes.tags
    if title is not UNSET:
        title = title.strip()
        checks.text("title", title, max_length=TITLE_LENGTH)
    if changes.description is not UNSET:
        checks.text("description", changes.description, max_length=DESCRIPTION_LENGTH)
    if changes.body is not UNSET:
        checks.text("body", changes.body, max_length=BODY_LENGTH)
    if tags is not UNSET:
        tags = _tags(checks, tags)
    checks.finish()
    return ArticleChanges(title=title, description=changes.description, body=changes.body, tags=tags)


def check_comment(body: str) -> None:
    checks = Checks()
    checks.text("body", body, max_length=COMMENT_LENGTH)
    checks.finish()


def excerpt(body: str, length: int) -> str:
    """How a comment begins, in at most `length` characters."""
    text = body.strip()
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def check_window(limit: int, offset: int) -> None:
    """The part of a list that is asked for; how deep it may lie depends on the list and is checked there."""
    checks = Checks()
    if not 1 <= limit <= MAX_LIMIT:
        checks.fault("limit", f"must be between 1 and {MAX_LIMIT}")
    if offset < 0:
        checks.fault("offset", "must be 0 or more")
    checks.finish()


def check_ids(ids: Sequence[int]) -> None:
    checks = Checks()
    if len(ids) > MAX_IDS:
        checks.fault("ids", f"are too many (maximum is {MAX_IDS})")
    checks.finish()


def matches_nothing(query: ArticleQuery) -> bool:
    """Whether no article can have the tag that is asked for."""
    return query.tag is not None and not is_tag(query.tag)


def is_tag(value: str) -> bool:
    return 0 < len(value) <= TAG_LENGTH and storable(value)


def is_slug(value: str) -> bool:
    return 0 < len(value) <= _LONGEST_SLUG and storable(value)


def slugs(title: str, id: int) -> list[str]:
    """The slugs that an article may have, the nicest first; the last one is no other article's."""
    plain = _slugify(title)
    unique = f"{plain or 'article'}-{_base36(id)}"
    return [unique] if not plain or plain in _ADDRESSES else [plain, unique]


def same_slug(one: str, other: str) -> bool:
    """Whether two titles ask for the same slug, so that going from one to the other changes no address."""
    return _slugify(one) == _slugify(other)


def _slugify(title: str) -> str:
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", title.casefold()))
    kept = [c if unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFKC", plain)]
    words = "".join(kept).split()
    return "-".join(words)[:_SLUG_LENGTH].strip("-")


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"


def _tags(checks: Checks, tags: Sequence[str]) -> list[str]:
    """In the author's order, trimmed, blank and repeated ones left out."""
    kept = list(dict.fromkeys(tag for tag in (tag.strip() for tag in tags) if tag))
    if len(kept) > MAX_TAGS:
        checks.fault("tags", f"are too many (maximum is {MAX_TAGS})")
    for tag in kept[: MAX_TAGS + 1]:
        checks.text("tags", tag, max_length=TAG_LENGTH)
    return kept
