"""How fresh a read has to be.

    STRONG      what every write that has been answered left behind
    SESSION     at least what this session has written and read; never backwards
    bounded(s)  at most `s` seconds behind
    EVENTUAL    some past state

A read is of the consistency that its call names; else of the innermost `reading` block's, the route's, the
database's default, in this order. While a cluster has no replica, its primary serves all four, and each is
as fresh as STRONG. Outside of a request there is no session to remember: SESSION is STRONG there.
"""

from __future__ import annotations

from springtide.context import Consistency, reading

__all__ = ["Consistency", "reading"]
