"""Positions in PostgreSQL's write-ahead log: text, integer, and the one a replica can report.

`pg_current_wal_insert_lsn()` names where the *next* record will begin. When the last record ended exactly at
the end of a page, that is behind the header of the next page (24 bytes; 40 at the start of a segment),
although nothing has been written there. Replay reports the end of the last record, so it would never reach
that position while the cluster is idle: `normalise` takes the header off again.
Pure: nothing here does I/O.
"""

from __future__ import annotations

import re

from springtide.context import Position

__all__ = ["format_lsn", "normalise", "parse_lsn", "position_of"]

PAGE_BYTES = 8192
SEGMENT_BYTES = 16 * 1024 * 1024
SHORT_HEADER_BYTES = 24
LONG_HEADER_BYTES = 40

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


def normalise(position: int, *, segment_bytes: int = SEGMENT_BYTES, page_bytes: int = PAGE_BYTES) -> int:
    """The end of the last record, given the insert position: what replay reports when it has caught up."""
    if position % segment_bytes == LONG_HEADER_BYTES:
        return position - LONG_HEADER_BYTES
    if position % page_bytes == SHORT_HEADER_BYTES and position % segment_bytes > page_bytes:
        return position - SHORT_HEADER_BYTES
    return position


def position_of(insert_lsn: str, wal_file: str, *, segment_bytes: int = SEGMENT_BYTES) -> Position:
    """Where a primary's log stands, given its insert position and the name of the file that is in: the first
    eight digits of that are the timeline."""
    return Position(int(wal_file[:8], 16), normalise(parse_lsn(insert_lsn), segment_bytes=segment_bytes))
