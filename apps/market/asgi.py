"""`market.asgi:app`: what an ASGI server runs. Importing it reads the topology; nothing connects."""

from __future__ import annotations

from market.application import served
from market.platform import modules
from market.settings import Settings
from springtide.platform import Platform

__all__ = ["app"]

platform = Platform.from_topology(modules=modules())
app = served(platform, Settings.from_environment())
