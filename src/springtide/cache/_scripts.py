"""The scripts that Redis runs for a slot, one file each in lua/. Each is atomic and touches one slot."""

from __future__ import annotations

import pkgutil

from springtide.redis import Script

__all__ = ["BEAT", "FILL", "FOLLOW", "GET", "HOT", "KEEP", "RELEASE", "VOID"]


def _script(name: str) -> Script:
    text = pkgutil.get_data(__name__, f"lua/{name}.lua")
    if text is None:
        raise FileNotFoundError(f"springtide/cache/lua/{name}.lua is not installed")
    return Script(name, text.decode())


BEAT = _script("beat")
FILL = _script("fill")
FOLLOW = _script("follow")
GET = _script("get")
HOT = _script("hot")
KEEP = _script("keep")
RELEASE = _script("release")
VOID = _script("void")
