"""Positions in PostgreSQL's write-ahead log: text, integer, and the one a replica can report.

`pg_current_wal_insert_lsn()` names where the *next* record will begin. When the last record ended exactly at
the end of a page, that is behind the header of the next page (24 bytes; 40 at the start of a segment),
although nothing has been written there. Replay reports the end of the last record, so it would never reach
that position while the cluster is idle: `normalise` takes the header off again. How large pages and segments
are, the server says with every position: a guess would take a record's own end for a header.
Pure: nothing here does I/O.
"""

from __future__ import annotations

import re
from typing import Any

from springtide.context import Position

__all__ = ["PLACE", "format_lsn", "normalise", "parse_lsn", "position_of"]

SHORT_HEADER_BYTES = 24
LONG_HEADER_BYTES = 40

PLACE = """pg_current_wal_insert_lsn()::text AS lsn, pg_walfile_name(pg_current_wal_insert_lsn()) AS wal,
    pg_size_bytes(current_setting('wal_segment_size')) AS segment,
    pg_size_bytes(current_setting('wal_block_size')) AS page"""
"""What a statement selects to learn where a primary's log stands; fails on a standby. See `position_of`."""

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def parse_lsn(text: str) -> int:
    """`16/B374D848` -> an integer that orders like the log. Raises ValueError for anything else."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"a log position is two hexadecimal numbers with a slash between, got {text!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(position: int) -> str:
    """The inverse of `parse_lsn`, written as PostgreSQL does."""
    if not 0 <= position < 1 << 64:
        raise ValueError(f"a log position is an unsigned 64-bit number, got {position}")
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def normalise(position: int, *, segment_bytes: int, page_bytes: int) -> int:
    """The end of the last record, given the insert position: what replay reports when it has caught up."""
    if position % segment_bytes == LONG_HEADER_BYTES:
        return position - LONG_HEADER_BYTES
    if position % page_bytes == SHORT_HEADER_BYTES and position % segment_bytes > page_bytes:
        return position - SHORT_HEADER_BYTES
    return position


def position_of(row: Any) -> Position:
    """Where a primary's log stood, from a row with the columns of `PLACE`. The first eight digits of a log
    file's name are the timeline."""
    lsn = normalise(parse_lsn(row["lsn"]), segment_bytes=row["segment"], page_bytes=row["page"])
    return Position(int(row["wal"][:8], 16), lsn)
