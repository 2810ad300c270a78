"""Log positions: text, number, and what replay can report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.context import Position
from springtide.db.causality import format_lsn, parse_lsn, position_of
from springtide.db.causality import normalise as normalise_on

SEGMENT = 16 * 1024 * 1024


def normalise(position: int, segment: int = SEGMENT) -> int:
    return normalise_on(position, segment_bytes=segment, page_bytes=8192)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0/0", 0), ("0/16B3748", 0x16B3748), ("16/B374D848", 0x16_B374D848), ("ffffffff/FFFFFFFF", 2**64 - 1)],
)
def test_known_positions(text: str, number: int) -> None:
    assert parse_lsn(text) == number
    assert format_lsn(number) == text.upper()


@given(st.integers(0, 2**64 - 1))
def test_text_and_number_are_inverse(position: int) -> None:
    assert parse_lsn(format_lsn(position)) == position


@pytest.mark.parametrize(
    "text", ["", "0", "0/", "/0", "0/0/0", "g/0", "0/123456789", " 0/0", "-1/0", "0x1/0", "0/0\n"]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="two hexadecimal numbers"):
        parse_lsn(text)


@pytest.mark.parametrize("position", [-1, 2**64])
def test_numbers_that_are_no_position_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match=str(position)):
        format_lsn(position)


@given(st.integers(1, 10_000))
def test_an_insert_position_behind_a_page_header_is_the_end_of_the_page_before(page: int) -> None:
    """What pg_current_wal_insert_lsn() says at a page boundary is taken back to what replay will report."""
    boundary = page * 8192
    header = 40 if boundary % SEGMENT == 0 else 24
    assert normalise(boundary + header) == boundary
    assert normalise(boundary) == boundary


@given(st.integers(0, 2**48))
def test_every_other_position_stays_and_none_grows(position: int) -> None:
    result = normalise(position)
    assert result == position or position - result in (24, 40)
    if position % 8192 not in (24, 40):
        assert result == position
    assert normalise(result) == result


def test_offset_24_of_a_segments_first_page_is_inside_its_header() -> None:
    """The first page of a segment has the long header, so 24 is no boundary there; 40 is none elsewhere."""
    assert normalise(SEGMENT + 24) == SEGMENT + 24
    assert normalise(SEGMENT + 8192 + 40) == SEGMENT + 8192 + 40


def test_segments_of_another_size() -> None:
    assert normalise(SEGMENT * 4 + 40, SEGMENT * 4) == SEGMENT * 4
    assert normalise(SEGMENT + 24, SEGMENT * 4) == SEGMENT


@pytest.mark.parametrize(
    ("lsn", "segment", "page", "stands"),
    [
        ("0/100028", 2**20, 8192, 0x100000),
        ("0/1000028", 2**26, 8192, 0x1000028),  # the end of a record, inside a segment
        ("0/1000018", 2**26, 8192, 0x1000000),
        ("0/1004018", 2**24, 16384, 0x1004000),
        ("0/1002018", 2**24, 16384, 0x1002018),
    ],
)
def test_a_position_is_read_by_the_sizes_of_the_server_that_tells_it(
    lsn: str, segment: int, page: int, stands: int
) -> None:
    row = {"lsn": lsn, "wal": "0000000A0000000000000001", "segment": segment, "page": page}
    assert position_of(row) == Position(10, stands)
