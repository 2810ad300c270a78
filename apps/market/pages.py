"""The page at `/`: what runs here and where to look. The storefront will take its place."""

from __future__ import annotations

from market.realworld.page import STYLE

__all__ = ["root"]

LINKS = (
    ("/docs", "the API, described"),
    ("/api/articles", "the newest articles, as the API answers them"),
    ("/health/ready", "whether this server takes requests"),
    ("/health/dependencies", "what it depends on, and how that is"),
    ("/metrics", "what it measures, for Prometheus"),
)


def root() -> str:
    links = "\n".join(f'<li><a href="{path}"><code>{path}</code></a> {says}</li>' for path, says in LINKS)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>market</title><style>{STYLE}</style></head><body>
<h1>market</h1>
<p>The reference application of Springtide. It has no shop window yet: this server answers the RealWorld API
under <code>/api</code>, and any RealWorld front end can be pointed at it.</p>
<ul>
{links}
</ul>
</body></html>
"""
