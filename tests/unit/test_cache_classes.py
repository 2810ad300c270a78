"""Definitions of cache classes: what is refused, and how the refusal reads; keys and tags."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from springtide.cache import EACH, FORBIDDEN, Cache, HttpPolicy
from springtide.cache._keys import MAX_TEXT, Pattern
from springtide.cache._tags import Tags
from springtide.cache.classes import Budget
from springtide.errors import CacheDefinitionError


class User(msgspec.Struct, frozen=True):
    id: int
    name: str
    org_id: int | None = None
    born: datetime.date | None = None
    active: bool = True


class Careless(msgspec.Struct):
    id: int


class Listed(msgspec.Struct, frozen=True):
    names: list[str]


async def load(id: int) -> User:
    raise AssertionError("never called")


async def asyncgen(id: int) -> AsyncIterator[User]:
    yield User(id, "never called")


def define(pattern: Any = "user:{id}", type: Any = User, **options: Any) -> Any:
    if "load" not in options and "load_many" not in options:
        options["load"] = load
    return Cache("app").define(pattern, type, **options)


ARGUMENTS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=2 * MAX_TEXT))


@given(st.tuples(ARGUMENTS, ARGUMENTS), st.tuples(ARGUMENTS, ARGUMENTS))
@example((7, "x"), ("7", "x"))
@example((-7, "x"), ("-7", "x"))
@example(("a:b", "c"), ("a", "b:c"))
@example(("a", "%7E"), ("a", "~"))
@example(("a" * 96, "x"), ("a" * 97, "x"))
def test_two_argument_tuples_never_make_one_key(first: Any, second: Any) -> None:
    """Whatever users type: different arguments, different keys; and no key is long."""
    pattern = Pattern("likes:{who}:of-{what}")
    keys = [pattern.key(first), pattern.key(second)]
    assert (keys[0] == keys[1]) == (first == second and [*map(type, first)] == [*map(type, second)])
    assert all(len(key) < 300 and key.isascii() and not set(key) & set(" {}\r\n\t") for key in keys)


@pytest.mark.parametrize(
    ("pattern", "arguments", "fault"),
    [
        ("user:{id}", (), "user:{id} takes id, got ()"),
        ("user:{id}", (1, 2), "user:{id} takes id, got (1, 2)"),
        ("user:{id}", (True,), "id must be int or str, got True"),
        ("user:{id}", (None,), "id must be int or str, got None"),
        ("user:{id:int}", ("7",), "id must be int, got '7'"),
        ("user:{id:str}", (7,), "id must be str, got 7"),
        ("user:{id}", (2**63,), "id must have 64 bits"),
    ],
)
def test_arguments_that_a_pattern_does_not_take_are_refused(pattern: str, arguments: Any, fault: str) -> None:
    """The message names pattern, argument and value."""
    with pytest.raises((TypeError, ValueError)) as caught:
        Pattern(pattern).key(arguments)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"pattern": ""}, "pattern must be a text of 1 to 120 characters"),
        ({"pattern": 7}, "pattern must be a text of 1 to 120 characters, got pattern = 7"),
        ({"pattern": "{id}"}, "must begin with a word"),
        ({"pattern": "User:{id}"}, "must be lower-case letters"),
        ({"pattern": "user:{id!r}"}, "must be lower-case letters"),
        ({"pattern": "user:{a}-{b}"}, "must have a colon between two arguments"),
        ({"pattern": "user:{a}:{a}"}, "must name each argument once"),
        ({"type": Careless}, "class Careless(msgspec.Struct, frozen=True)"),
        ({"type": Listed}, "must not contain a list"),
        ({"type": dict}, "must not contain a dict"),
        ({"type": User | None}, "None stands for what is not there"),
        ({"type": object}, "must be made of frozen structs"),
        ({"load": None}, "load or load_many must say how a value is loaded"),
        ({"load": lambda: None}, "load must take (id)"),
        ({"load": 7}, "load must be an async function"),
        ({"load_many": lambda source, ids: None}, "load_many must take (keys)"),
        ({"key": EACH}, "key must be None without a database"),
        ({"ttl": 0}, "ttl must be a number > 0"),
        ({"ttl": float("inf")}, "ttl must be a number > 0 and <= 2_592_000, got ttl = inf"),
        ({"ttl": True}, "ttl must be a number > 0"),
        ({"jitter": 0.6}, "jitter must be a number >= 0 and <= 0.5"),
        ({"budget": -1}, "budget must be a number > 0"),
        ({"stale_while_revalidate": -1}, "stale_while_revalidate must be a number >= 0"),
        ({"stale_if_error": -1}, "stale_if_error must be a number >= 0"),
        ({"negative": 0}, "negative must be a number > 0"),
        ({"l1": -1}, "l1 must be a number >= 0"),
        ({"hard_timeout": 0}, "hard_timeout must be a number > 0"),
        ({"soft_timeout": 9, "stale_if_error": 1}, "soft_timeout must be a number >= 0 and <= 5"),
        ({"soft_timeout": 1}, "soft_timeout needs stale_while_revalidate or stale_if_error"),
        ({"max_bytes": 63}, "max_bytes must be a whole number from 64 to 67108864, got max_bytes = 63"),
        ({"tags": "org:{org_id}"}, "tags must be a sequence of patterns"),
        ({"name": ""}, "name must be 1 to 60 letters, digits and _ . -, got name = ''"),
        ({"name": 7}, "name must be 1 to 60 letters, digits and _ . -, got name = 7"),
        ({"database": "users"}, "database must be a Database (a module's `context.db`) or None, got"),
        ({"load": asyncgen}, "load must be an async function that returns the value"),
        ({"max_bytes": 1e6}, "max_bytes must be a whole number"),
        ({"negative": False}, "negative must be a number > 0 and <= 2_592_000 (None: off), got"),
        ({"tags": None}, "tags must be a sequence of patterns"),
        ({"tags": {"of:{id}"}}, "tags must be a sequence of patterns"),
        ({"tags": (7,)}, "tags must be patterns; 7 must be a text"),
        ({"tags": lambda a, b: ()}, "tags must take (value)"),
        ({"tags": load}, "tags must be made by a function that is not async"),
        ({"tags": ("born:{born}",)}, "numbers and texts: 'born' is date; use a function"),
        ({"tags": ("active:{active}",)}, "numbers and texts: 'active' is bool; use a function"),
        ({"pattern": "user:{id:int}", "tags": ("of:{id:str}",)}, "{id} of 'of:{id:str}' is another type"),
        ({"tags": ("org:{nobody}",)}, "nothing is called 'nobody'"),
        ({"tags": ("{org_id}",)}, "tags must be patterns; '{org_id}' must begin with a word"),
        ({"tags": tuple(f"a{n}" for n in range(17))}, "tags must be at most 16"),
    ],
)
def test_what_cannot_be_kept_is_refused_when_it_is_defined(options: dict[str, Any], fault: str) -> None:
    """The message names the class, the option and its value, and the rule."""
    with pytest.raises(CacheDefinitionError) as caught:
        define(**options)
    assert fault in str(caught.value)
    assert str(caught.value).startswith("cache class ")


def test_a_budget_that_its_parts_exceed_is_refused_with_the_sum() -> None:
    """The parts read like an addition, and the message says what to change."""
    with pytest.raises(CacheDefinitionError) as caught:
        define(http=HttpPolicy(public=True, edge_max_age=60))
    assert str(caught.value) == (
        "cache class 'user': budget must be >= the sum of its parts, so raise budget to 60.5,"
        " or lower what http lets caches keep from 60 to at most 1.5 s:\n"
        "      0.00 s  relay    two rounds, until it tells what a writer that died could not\n"
        "  +   0.50 s  bus      without proof that every invalidation was heard\n"
        "  +   0.00 s  replica  loads from the primary alone\n"
        "  +  60.00 s  edge     kept by shared caches (http)\n"
        "  =  60.50 s\n"
        "got budget = 2.0"
    )


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (Budget(2.0, relay=0.5, bus=0.5, edge=0.0), 2.0),
        (Budget(1.5, relay=0.5, bus=0.5, edge=0.0), 1.5),
        (Budget(1.0, relay=0.5, bus=0.5, edge=0.0), 1.0),
        (Budget(62.0, relay=0.5, bus=0.5, edge=60.4), 1.6),
        (Budget(30.0, relay=0.5, bus=0.5, edge=0.0), 2.0),  # a bearer's write may have to wait for as long
        (Budget(2.0, relay=0.0, bus=0.5, edge=0.0), 0.5),
    ],
)
def test_kept_values_may_use_the_whole_budget(budget: Budget, kept: float) -> None:
    """What is kept needs no part for a replica; never more than leaves the process by the sum."""
    assert budget.kept == pytest.approx(kept)
    assert budget.kept <= budget.inside


def test_what_a_budget_leaves_is_for_replicas() -> None:
    """A sum below the budget leaves room for lag; no room means that the primary is read."""
    assert define(budget=2.0).definition.parts.replica == 1.5
    assert define(budget=0.5).definition.parts.replica == 0.0
    assert define(budget=0.52).definition.parts.replica == 0.0


def test_one_family_of_keys_has_one_class() -> None:
    """The same pattern, or one that makes the same keys, is refused; so is a name that is taken."""
    cache = Cache("app")
    cache.define("user:{id}", User, load=load)
    for pattern, name in (("user:{id}", None), ("user:{name}", "other"), ("user:{id}:", None)):
        with pytest.raises(CacheDefinitionError, match="user"):
            cache.define(pattern, User, name=name, load=load)
    assert list(cache.classes) == ["user"]


async def test_classes_are_defined_before_the_start() -> None:
    """What is wrong with a definition is said before anybody is served."""
    cache = Cache("app")
    async with cache:
        with pytest.raises(CacheDefinitionError, match="before 'cache app' is started"):
            cache.define("user:{id}", User, load=load)


def test_the_lives_of_a_value_in_both_levels_add_up_to_its_ttl() -> None:
    """It may go from the second to the first in its last moment; so does "nothing there"."""
    made = define(ttl=300, l1=15, negative=4).definition
    assert made.lives(User(1, "ann")) == (285.0, 15.0)
    assert made.lives(None) == (2.0, 2.0)
    assert define(l1=60, ttl=10).definition.lives(User(1, "ann")) == (5.0, 5.0)
    for off in (0, FORBIDDEN):
        made = define(ttl=300, l1=off).definition
        assert made.lives(User(1, "ann")) == (300.0, 0.0)
        assert not made.in_memory


def test_tags_come_from_the_value_and_the_key() -> None:
    """Of "nothing there" only the key is known; a part that is None makes no tag."""
    tags = Tags(("org:{org_id}", "of:{id}"), Pattern("user:{id}"), (User,))
    assert tags.of(User(7, "ann", 3), (7,)) == ("org:3", "of:7")
    assert tags.of(User(7, "ann"), (7,)) == ("of:7",)
    assert tags.of(None, (7,)) == ("of:7",)
    made = Tags(lambda user: [f"name {user.name}"], Pattern("user:{id}"), (User,))
    assert made.of(User(7, "ann"), (7,)) == ("name ann",)
    assert made.of(None, (7,)) == ()
    assert not Tags((), Pattern("user:{id}"), (User,)).any
