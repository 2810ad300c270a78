"""CSV that no spreadsheet takes for a formula."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from market.dashboard import sheet
from market.dashboard.sheet import Row

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the same signs in full width."""

BEGINNINGS = ("", *FORMULA, "\t", "\r", "\n", " =", '"=', "\u00a0+", "'=")
TITLES = st.builds(
    str.__add__,
    st.sampled_from(BEGINNINGS),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)


@given(title=TITLES, price=st.integers(0, 1 << 40))
def test_no_cell_begins_a_formula_and_every_title_is_kept(title: str, price: int) -> None:
    """One row stays one row of nine cells, whatever quotes, commas and ends of lines the title has."""
    row = Row(datetime(2026, 1, 1, tzinfo=UTC), "refund", 1, 2, title, 3, price)
    written = sheet.lines([row], "EUR")
    assert written.endswith(b"\r\n")
    [read] = csv.reader(io.StringIO(written.decode(), newline=""))
    assert len(read) == 9
    assert read[4] in (title, f"'{title}")
    for cell in read:
        assert not cell.lstrip().startswith(FORMULA)
        assert not cell.startswith(("\t", "\r", "\n"))
