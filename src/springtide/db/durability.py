"""What a commit that was acknowledged survives, and whether the server is set up to keep that promise.

    async    the primary has it on disk. When the primary dies for good, what no replica had received is lost.
    quorum   one replica has it on disk too. Any single server may die for good.

`quorum` is the server's doing (`synchronous_standby_names`, `synchronous_commit`): a client can only ask for
less. So a server that would acknowledge without a replica is refused before the first write, not found out
when its disk is gone.
"""

from __future__ import annotations

from springtide.db.pool import Pool
from springtide.errors import ConfigurationError

__all__ = ["check_quorum"]

WAITING = ("on", "remote_apply")
"""Values of synchronous_commit with which a confirmed commit is on the disk of a standby."""

_SETTINGS = "SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit')"


async def check_quorum(pool: Pool, *, database: str) -> None:
    """Raise ConfigurationError when the server of `pool` does not wait for a standby at COMMIT."""
    row = await pool.fetch_one(_SETTINGS)
    assert row is not None
    standbys, commit = row
    asked = f'databases.{database}.durability is "quorum", but the server of cluster {pool.cluster}'
    if not standbys.strip():
        raise ConfigurationError(
            f"{asked} waits for no standby: set its synchronous_standby_names, such as"
            " 'ANY 1 (*)', or durability = \"async\""
        )
    if commit not in WAITING:
        raise ConfigurationError(
            f"{asked} acknowledges earlier, its synchronous_commit is {commit!r}: set it to 'on' for the"
            ' account of the application, or durability = "async"'
        )
