"""The world that the tests of replicas break: it streams, lags, dies, comes back and is promoted."""

from __future__ import annotations

from collections.abc import Callable

from tests._cluster import Cluster, eventually

Clusters = Callable[..., Cluster]


def test_a_world_of_replicas_streams_lags_dies_and_is_promoted(own_cluster: Clusters) -> None:
    """Replicas stream, stand still when told to, survive kill -9, and follow who is promoted."""
    world = own_cluster(replicas=2)
    first, second = world.replicas

    def count(server: object) -> str:
        return server.query("select count(*) from t", dbname=world.dbname)  # type: ignore[attr-defined]

    world.primary.query("create table t (n int); insert into t values (1)", dbname=world.dbname)
    first.catch_up()
    second.catch_up()
    assert count(first) == count(second) == "1"

    first.hold()
    world.primary.query("insert into t values (2)", dbname=world.dbname)
    second.catch_up()
    assert (count(first), count(second)) == ("1", "2")
    first.release()
    first.catch_up()
    assert count(first) == "2"

    first.delay(3600)
    world.primary.query("insert into t values (3)", dbname=world.dbname)
    second.catch_up()
    assert (count(first), count(second)) == ("2", "3")
    first.delay(0)
    first.catch_up()
    assert count(first) == "3"

    second.kill()
    second.restart()
    second.catch_up()
    assert count(second) == "3"

    world.primary.kill()
    first.promote()
    second.follow(first)
    first.query("insert into t values (4)", dbname=world.dbname)
    second.catch_up()
    assert count(second) == "4"
    timeline = "select received_tli from pg_stat_wal_receiver"
    assert eventually(lambda: second.query(timeline)) == "2"


def test_a_replica_that_was_killed_comes_back_at_an_older_position(own_cluster: Clusters) -> None:
    """What makes cached positions dangerous: rows that were readable are gone for a time."""
    world = own_cluster(replicas=1)
    (replica,) = world.replicas
    world.primary.query("create table t (n int)", dbname=world.dbname)
    replica.catch_up()
    replica.query("checkpoint")
    world.primary.query("insert into t values (1)", dbname=world.dbname)
    replica.catch_up()
    assert replica.query("select count(*) from t", dbname=world.dbname) == "1"
    before = replica.replayed
    replica.delay(3600)
    replica.kill()
    replica.restart()
    assert replica.query(f"select pg_last_wal_replay_lsn() < '{before}'") == "t"
    assert replica.query("select count(*) from t", dbname=world.dbname) == "0"
