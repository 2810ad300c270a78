"""Keys, buckets and shards: stable for ever, even, and pure."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.db import BUCKETS, Bucket, ShardMap, bucket_of

NAMES = st.lists(st.text("abcdefgh", min_size=1), min_size=1, max_size=64, unique=True)


@pytest.mark.parametrize(
    ("key", "bucket"),
    [
        ("", 692),
        ("alice", 649),
        ("Grüße", 914),
        ("a@example.com", 872),
        (b"alice", 649),
        (b"\x00\xff", 228),
        (0, 0),
        (1023, 1023),
        (7 << 10 | 41, 41),
        ((1 << 53) - 1, 1023),
        (Bucket(17), 17),
    ],
)
def test_the_bucket_of_a_key_never_changes(key: int | str | bytes | Bucket, bucket: int) -> None:
    """Rows are stored under these numbers: a change of the hash would lose them."""
    assert bucket_of(key) == bucket


def test_buckets_do_not_depend_on_the_process() -> None:
    """Another process, with another seed for Python's hash, computes the same buckets."""
    code = "from springtide.db import bucket_of; print([bucket_of(str(n)) for n in range(50)])"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str([bucket_of(str(n)) for n in range(50)])


def test_texts_spread_evenly() -> None:
    """20,000 names: no bucket has more than three times its share."""
    counts = Counter(bucket_of(f"user{n}") for n in range(20_000))
    assert len(counts) == BUCKETS
    assert max(counts.values()) < 60


@given(st.integers(min_value=0), st.integers(0, BUCKETS - 1))
def test_an_id_carries_its_bucket(counter: int, bucket: int) -> None:
    assert bucket_of(counter << 10 | bucket) == bucket


@pytest.mark.parametrize("key", [-1, True, False])
def test_what_is_no_id_is_refused(key: int) -> None:
    with pytest.raises(ValueError, match="must be an integer >= 0"):
        bucket_of(key)


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        bucket_of(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, 1024])
def test_a_bucket_is_one_of_1024(number: int) -> None:
    with pytest.raises(ValueError, match=str(number)):
        Bucket(number)


@given(NAMES)
def test_an_even_map_gives_every_bucket_to_one_shard(names: list[str]) -> None:
    """Consecutive ranges whose sizes differ by at most one, in the order of the names."""
    shards = ShardMap.even(names)
    owned = [shards.buckets_of(name) for name in names]
    assert [bucket for buckets in owned for bucket in buckets] == list(range(BUCKETS))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    assert shards.shards == tuple(names)


@given(NAMES, st.lists(st.integers(0, 1 << 53)))
def test_grouping_keeps_every_key_and_its_order(names: list[str], keys: list[int]) -> None:
    shards = ShardMap.even(names)
    groups = shards.group(keys)
    assert sorted(key for group in groups.values() for key in group) == sorted(keys)
    for shard, group in groups.items():
        assert group == [key for key in keys if shards.shard_of(key) == shard]


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ([], "1 to 1024 shards, got 0"),
        (["a", "a"], "listed once"),
        ([str(n) for n in range(1025)], "got 1025"),
    ],
)
def test_a_map_that_cannot_be_is_refused(names: list[str], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        ShardMap.even(names)


def test_a_map_has_an_epoch_and_an_owner_for_each_bucket() -> None:
    with pytest.raises(ValueError, match="got 2"):
        ShardMap(["a", "b"])
    with pytest.raises(ValueError, match="epoch must be >= 1, got 0"):
        ShardMap.even(["a"], epoch=0)
    assert ShardMap.even(["a"], epoch=2) != ShardMap.even(["a"], epoch=1)
    assert repr(ShardMap.even(["a", "b"], epoch=3)) == "ShardMap(epoch=3, a: 512, b: 512)"
