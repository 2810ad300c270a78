"""Sales per day as a drawing. Pure. The same figures stand in a table beside it, for everybody who reads."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from market.dashboard.api import Day
from market.money import Money

__all__ = ["chart"]

WIDTH, HEIGHT, FOOT, LEFT = 640, 200, 24, 4
GAP = 0.3
"""Of a bar's place, what stays empty."""

ROUND = (1, 2, 5, 10)


def chart(days: Sequence[Day]) -> Markup:
    """Bars of revenue; the highest mark is a round amount. Colours come from the style sheet's classes."""
    highest = max((day.revenue.amount for day in days), default=0)
    top = _round_up(highest)
    step = (WIDTH - LEFT) / max(len(days), 1)
    space = HEIGHT - FOOT - 16
    currency = days[0].revenue.currency if days else "EUR"
    parts = []
    for share in (0.5, 1.0):
        y = HEIGHT - FOOT - space * share
        mark = Money(int(top * share), currency)
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="label" x="{LEFT}" y="{y - 4:.1f}">{escape(str(mark))}</text>')
    for place, day in enumerate(days):
        tall = space * day.revenue.amount / top
        x, wide = LEFT + step * (place + GAP / 2), step * (1 - GAP)
        says = f"{day.day.day} {day.day:%B}: {day.revenue}"
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{HEIGHT - FOOT - tall:.1f}" width="{wide:.1f}"'
            f' height="{tall:.1f}" rx="2"><title>{escape(says)}</title></rect>'
        )
        if place % 7 == len(days) % 7 or place == len(days) - 1:
            last = place == len(days) - 1
            at, anchor = (x + wide, "end") if last else (x + wide / 2, "middle")
            parts.append(
                f'<text class="label" x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
                f"{day.day.day} {day.day:%b}</text>"
            )
    said = f"Revenue per day, at most {Money(highest, currency)}; the table below has every figure."
    return Markup(  # noqa: S704 - numbers, and texts that are escaped
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">'
        f'<line class="foot" x1="{LEFT}" x2="{WIDTH}" y1="{HEIGHT - FOOT}" y2="{HEIGHT - FOOT}"/>'
        f"{''.join(parts)}</svg>"
    )


def _round_up(amount: int) -> int:
    """The next 1, 2 or 5 with zeros; 2 at least, so that its half is a whole number."""
    scale = 1
    while scale * 10 < amount:
        scale *= 10
    return max(next((scale * factor for factor in ROUND if scale * factor >= amount), amount), 2)
