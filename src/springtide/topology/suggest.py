"""The nearest known name for one that was probably mistyped."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, None when none is alike; a name cut off or run together counts too."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    wanted = name[:100].lower().replace("-", "_")
    close = get_close_matches(wanted, folded, n=1, cutoff=0.6)
    if not close and len(wanted) >= 3:
        close = [candidate for candidate in folded if wanted in candidate or candidate in wanted][:1]
    return folded[close[0]] if close else None
