"""Any one database process is killed under load: what clients see is what docs/replicas.md says."""

from __future__ import annotations

import pytest
from tests.market.mortality import market, mortal_run

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1500), pytest.mark.needs("pgbouncer")]


def test_any_database_process_dies_under_load() -> None:
    """At stage 2 with three replicas, each process of each database node in turn, its kind by its kind."""
    with market(replicas=("db-b", "db-c", "db-d")) as world:
        mortal_run(world, rate=20)
