"""Rows written in the caller's transaction, and what follows their commit.

envelope   what a row carries of the request that wrote it, and the context made of it when it is worked on
bell       wakes workers after commits: one coalesced NOTIFY, never inside a producer's transaction
listener   hears the bell on a connection of its own
kinds      what rows are stored as, and how older versions of it are read
days       tables in partitions of a day, made ahead and dropped

Nothing depends on the bell: whoever reads rows also polls for them. Jobs and events write their rows
through this layer; the database layer below knows only that something can be enqueued and published.
"""

from springtide.outbox.bell import Bell
from springtide.outbox.envelope import Envelope
from springtide.outbox.listener import Listener

__all__ = ["Bell", "Envelope", "Listener"]
