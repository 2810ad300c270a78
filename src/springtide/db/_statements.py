"""What a statement's text says about it: a short name, whether it only reads, what it leaves behind.

The text is all there is to go by. A function that is called may write, lock or set anything without its
name showing it: such a call is a write (use `execute`), and what it leaves in the session is declared with
`Connection.mark_dirty`. Pure; the answers are cached per text, and the cache is bounded.
"""

from __future__ import annotations

import enum
import hashlib
import re
from typing import NamedTuple

__all__ = ["Dirt", "Statement", "Statements", "describe"]

MAX_LABEL = 96
MAX_CACHED = 1024
MAX_CACHED_CHARS = 8_192
MAX_LOOKED_AT = 20_000
"""Characters that are looked at; what a longer text may do is not known, so the worst is assumed."""


class Dirt(enum.IntEnum):
    """What a session needs before somebody else may use it."""

    NONE = 0
    RESET = 1
    """Settings, locks, temporary tables: undone by SQL."""
    REPLACE = 2
    """Prepared statements or client-side codecs: only a new connection is certain."""


class Statement(NamedTuple):
    """`label` is the fingerprint, `read` means running it twice is harmless."""

    label: str
    read: bool
    dirt: Dirt
    session: str = ""
    """What it keeps in its session on purpose, as one word of SQL; "" when nothing is seen."""


TOKENS = re.compile(
    # one without its end, in a text that is not looked at to the end, reaches to there
    r"""
      (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<literal>(?<![\w$])\$(?P<tag>[A-Za-z_]\w*|)\$.*?(?:\$(?P=tag)\$|\Z)
        | (?<!\w)[eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z) | '(?:[^']|'')*(?:'|\Z))
    | (?P<name>"(?:[^"]|"")*")
    | (?P<argument>\$\d+)
    | (?P<number>(?<![\w.])\d+(?:\.\d+)?(?:[eE][+-]?\d+)?\b)
    """,
    re.DOTALL | re.VERBOSE,
)
_SPACE = re.compile(r"\s+")
_LISTS = re.compile(r"\b(IN\s*)\(\s*\?(?:\s*,\s*\?)*\s*\)", re.IGNORECASE)
_ROWS = re.compile(r"\b(VALUES\s*\([^()]*\))(?:\s*,\s*\([^()]*\))+", re.IGNORECASE)

_READ = re.compile(r"(SELECT|WITH|VALUES|TABLE|SHOW)\b")
_EFFECT = re.compile(
    r"\b(INSERT|UPDATE|DELETE|MERGE|INTO|CALL)\b"
    r"|\b(NEXTVAL|SETVAL|SET_CONFIG|SETSEED|PG_NOTIFY|PG_(TRY_)?ADVISORY\w*|PG_(CANCEL|TERMINATE)_BACKEND"
    r"|PG_LOGICAL\w*|PG_REPLICATION\w*|PG_(CREATE|DROP|SWITCH|PROMOTE|RELOAD|ROTATE|BACKUP)\w*"
    r"|DBLINK\w*|LO_\w+|LOWRITE|TXID_CURRENT|PG_CURRENT_XACT_ID)\s*\("
)
_RESET = re.compile(
    r"^(SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|RESET\b|LISTEN\b|LOAD\b|DO\b|CALL\b"
    r"|CREATE\s+(OR\s+REPLACE\s+)?(GLOBAL\s+|LOCAL\s+)?(TEMP|TEMPORARY)\b|CREATE\b.*\bPG_TEMP\s*\.)"
    r"|\bPG_(TRY_)?ADVISORY_LOCK(_SHARED)?\s*\(|\bINTO\s+(LOCAL\s+|GLOBAL\s+)?(TEMP|TEMPORARY)\b"
    r"|^DECLARE\b.*\bWITH\s+HOLD\b|\bSETSEED\s*\("
)
_SET_CONFIG = re.compile(r"\bSET_CONFIG\s*\(")
_SET_CONFIG_LOCAL = re.compile(r"\bSET_CONFIG\s*\([^()]*,\s*TRUE\s*\)")
_REPLACE = re.compile(r"^(PREPARE\s+(?!TRANSACTION\b)|DEALLOCATE\b|DISCARD\b)")

_SESSION = re.compile(
    r"^(?P<verb>SET(?=\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b))|RESET|LISTEN|UNLISTEN|LOAD|DEALLOCATE|DISCARD"
    r"|PREPARE(?=\s+(?!TRANSACTION\b)))\b"
    r"|^CREATE\s+(OR\s+REPLACE\s+)?(GLOBAL\s+|LOCAL\s+)?(?P<temp>TEMP|TEMPORARY)\b(?!.*\bON\s+COMMIT\s+DROP\b)"
    r"|^CREATE\b.*\b(?P<pg_temp>PG_TEMP)\s*\.|\bINTO\s+(LOCAL\s+|GLOBAL\s+)?(?P<into>TEMP|TEMPORARY)\b"
    r"|^DECLARE\b.*\bWITH\s+(?P<hold>HOLD)\b"
    r"|\b(?P<function>PG_(TRY_)?ADVISORY_(LOCK|UNLOCK)(_SHARED|_ALL)?|SETSEED)\s*\("
)


def _mask(match: re.Match[str]) -> str:
    if match["comment"] is not None:
        return " "
    return match[0] if match["name"] is not None else "?"


def describe(sql: str) -> Statement:
    """Look at `sql` once. Literals, arguments and comments never reach the label."""
    cut = len(sql) > MAX_LOOKED_AT
    masked = _SPACE.sub(" ", TOKENS.sub(_mask, sql[:MAX_LOOKED_AT])).strip().rstrip("; ")
    label = _ROWS.sub(r"\1", _LISTS.sub(r"\1(...)", masked))
    if len(label) > MAX_LABEL:
        mark = hashlib.blake2b(label.encode(), digest_size=4).hexdigest()
        label = f"{label[: MAX_LABEL - 13].rstrip()}... #{mark}"
    upper = masked.upper()
    parts = [part.strip() for part in upper.split(";")]
    read = len(parts) == 1 and _READ.match(upper) is not None and _EFFECT.search(upper) is None
    dirt = max(map(_dirt, parts))
    session = next(filter(None, map(_session, parts)), "")
    return Statement(label or "(empty)", read and not cut, max(dirt, Dirt.RESET) if cut else dirt, session)


def _session(upper: str) -> str:
    if found := _SESSION.search(upper):
        if found["verb"] or found["function"]:
            return found["verb"] or found["function"].lower()
        return "WITH HOLD" if found["hold"] else "TEMP"
    return "set_config" if _sets_for_the_session(upper) else ""


def _sets_for_the_session(upper: str) -> bool:
    return len(_SET_CONFIG.findall(upper)) > len(_SET_CONFIG_LOCAL.findall(upper))


def _dirt(upper: str) -> Dirt:
    if _REPLACE.search(upper):
        return Dirt.REPLACE
    if _RESET.search(upper):
        return Dirt.RESET
    if _sets_for_the_session(upper):
        return Dirt.RESET
    return Dirt.NONE


class Statements:
    """`describe`, remembered for the texts seen last; long texts are looked at every time."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, Statement] = {}

    def get(self, sql: str) -> Statement:
        known = self._known.get(sql)
        return known if known is not None else self._learn(sql)

    def _learn(self, sql: str) -> Statement:
        statement = describe(sql)
        if len(sql) <= MAX_CACHED_CHARS:
            if len(self._known) >= MAX_CACHED:
                del self._known[next(iter(self._known))]
            self._known[sql] = statement
        return statement

    def __len__(self) -> int:
        return len(self._known)
