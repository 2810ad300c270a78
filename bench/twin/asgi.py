"""`bench.twin.asgi:app`: what an ASGI server runs; importing it reads the environment."""

from __future__ import annotations

from bench.twin.app import application
from bench.twin.settings import Settings

__all__ = ["app"]

app = application(Settings.from_environment())
