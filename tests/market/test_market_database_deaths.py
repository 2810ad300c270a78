"""A database process dies under load, as docs/replicas.md says; all of them do in tests/stress."""

from __future__ import annotations

import pytest
from tests.market.mortality import market, mortal_run


@pytest.mark.needs("pgbouncer")
def test_a_server_a_backend_a_replica_and_the_pooler_die_under_load() -> None:
    """Reads that a replica can serve do not fail, nothing acknowledged is lost, everything comes back."""
    with market(replicas=("db-b",)) as world:
        mortal_run(world, rate=10, only=("postmaster", "backend", "walreceiver", "pgbouncer"))
