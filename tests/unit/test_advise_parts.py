"""The advisor's pure parts: what a statement asks, which indexes are worth a trial, what else is told."""

from __future__ import annotations

from typing import Any

import pytest

from springtide.db.insight import Snapshot, StatementTotals
from springtide.errors import ConfigurationError
from springtide.ops.advise.advisor import Settings
from springtide.ops.advise.asking import deep_offsets, loops, stars
from springtide.ops.advise.candidates import Candidate, candidates, combined
from springtide.ops.advise.catalog import Catalog, Column, ForeignKey, Index, Table
from springtide.ops.advise.indexing import Asked, ask
from springtide.ops.advise.observed import Observed, Window, from_snapshots, merged
from springtide.ops.advise.present import duplicates, keys_without_index, unused
from springtide.ops.advise.probing import probe
from springtide.ops.advise.reading import Reading, read
from springtide.ops.advise.server import MachineFacts, machine


def column(name: str, type: str = "bigint", **options: Any) -> Column:
    return Column(name=name, type=type, **{"width": 8, "distinct": 5000.0, **options})


def table(name: str = "thing", *indexes: Index, rows: float = 50_000, **options: Any) -> Table:
    columns = [
        column("id", bounds=tuple(map(str, range(0, 50_000, 500)))),
        column("owner", distinct=700.0, bounds=tuple(map(str, range(700)))),
        column("at", "timestamp with time zone", bounds=("2025-01-01", "2025-02-01", "2025-03-01")),
        column("state", "text", distinct=2.0, common=(("done", 0.98), ("new", 0.02))),
        column("email", "text"),
        column("gone", "timestamp with time zone", null_share=0.97),
        column("doc", "jsonb"),
    ]
    key = Index(name=f"{name}_pkey", keys=("id",), needed="primary key")
    return Table(
        schema="public", name=name, rows=rows, pages=1000, columns={one.name: one for one in columns},
        indexes=(key, *indexes), **options,
    )  # fmt: skip


def catalog(*tables: Table, keys: tuple[ForeignKey, ...] = (), age: float = 1e7) -> Catalog:
    known = {one.key: one for one in tables or (table(), table("other"))}
    return Catalog(version=15, tables=known, foreign_keys=keys, path=("public",), age=age)


def understood(sql: str, known: Catalog | None = None) -> Reading:
    reading = read(sql, known or catalog())
    assert reading is not None
    return reading


def observed(text: str, **options: Any) -> Observed:
    return Observed(text=text, **{"calls": 10, "seconds": 1.0, "slowest": 0.2, "rows": 10, **options})


def asked(text: str, known: Catalog | None = None, **options: Any) -> Asked:
    known = known or catalog()
    return ask(observed(text, **options), understood(text, known), known)


def tried(sql: str) -> list[tuple[tuple[str, ...], str]]:
    return [(one.keys, one.where) for use in understood(sql).uses for one in candidates(use)]


# -- reading


def test_conditions_are_sorted_by_what_an_index_can_do() -> None:
    """Equality, constants, ranges, the wanted order and joins of each table."""
    reading = understood(
        "select t.email from thing t join other o on o.owner = t.id"
        " where t.owner = $1 and t.state = 'new' and t.at > $2 and t.gone is null and lower(t.email) = $3"
        " order by t.at desc limit 20"
    )
    first, second = reading.uses
    assert first.equal == {"owner", "lower(email)"}
    assert first.constants == {"state": "'new'", "gone": "null"}
    assert (first.ranges, first.order, first.limited) == (["at"], [("at", True)], True)
    assert second.joined == {"owner"}


@pytest.mark.parametrize(
    "condition",
    ["owner = 1 or at > $1", "owner + 1 = $1", "owner = id", "date_trunc('day', at) = $1", "email like $1",
     "owner <> $1", "owner::text = $1"],
)  # fmt: skip
def test_what_no_usual_index_serves_is_not_read(condition: str) -> None:
    """OR, arithmetic, casts, functions and comparisons within a row ask for nothing."""
    (use,) = understood(f"select id from thing where {condition}").uses
    assert (use.equal, use.joined, use.ranges, use.constants) == (set(), set(), [], {})


def test_what_cannot_be_parsed_is_not_guessed_at() -> None:
    """Nonsense, other commands and very long texts."""
    assert read("selec * frm", catalog()) is None
    assert read("begin", catalog()) is None
    assert read("select id from thing where owner = $1; drop table thing", catalog()) is None
    assert read("select " + "1, " * 5000 + "1", catalog()) is None


def test_an_outer_name_is_a_join() -> None:
    """A correlated subquery asks for its row by a value of the outer one."""
    sql = "select (select count(*) from other c where c.owner = p.id) from thing p where p.id = $1"
    assert {use.table.name: use.joined for use in understood(sql).uses}["other"] == {"owner"}


@pytest.mark.parametrize("order", ["lower(email) || 'x'", "count(*)", "owner + 1, at", "at, 1 + 1", "2 desc"])
def test_an_order_that_no_column_has_asks_for_nothing(order: str) -> None:
    """The statement is read, whatever it is ordered by."""
    (use,) = understood(f"select owner, id from thing where owner = $1 order by {order} limit 5").uses
    assert (use.equal, use.order, use.limited) == ({"owner"}, [], False)


def test_the_largest_is_the_first_backwards() -> None:
    """min and max of one key want its order, unless groups, other sums or other columns are asked for too."""
    for selected, order in (
        ("max(at)", [("at", True)]),
        ("min(at) as first", [("at", False)]),
        ("coalesce(max(at), now())", [("at", True)]),
        ("min(at), max(at)", [("at", False)]),
        ("max(at), count(*)", []),
        ("max(at), min(owner)", []),
    ):
        (use,) = understood(f"select {selected} from thing where owner = $1").uses
        assert (use.order, use.limited) == (order, bool(order)), selected
    (use,) = understood("select owner, max(at) from thing where state = $1 group by owner").uses
    assert use.order == []
    assert (("owner", "at"), "") in tried("select max(at) from thing where owner = $1")


@pytest.mark.parametrize(
    ("condition", "key"),
    [
        ("t.doc ->> 'number' = $1", "(doc ->> 'number')"),
        ("$1 = doc -> 'a' ->> 'b'", "(doc -> 'a' ->> 'b')"),
        ("(at at time zone 'UTC')::date = $1", "((at AT TIME ZONE 'UTC')::date)"),
        ("doc ->> 'kind' = 'new'", None),
        ("doc ->> $1 = $2", None),
        ("at::date = $1", None),
        ("(at at time zone $2)::date = $1", None),
        ("doc ->> 'number' = email", None),
    ],
)
def test_an_expression_is_a_key_where_it_never_changes(condition: str, key: str | None) -> None:
    """A text out of a document, the day in a named zone: with a value from outside, nothing else."""
    (use,) = understood(f"select id from thing t where {condition}").uses
    assert use.equal == ({key} if key else set())
    wanted = [((key,), "")] if key else []
    assert [one for one in tried(f"select id from thing t where {condition}") if "(" in one[0][0]] == wanted


def test_a_writing_statement_names_what_it_writes() -> None:
    """Target and columns of each kind; what it looks for is read as well."""
    update = understood("update thing set state = $1 where owner = $2")
    assert (update.kind, update.target and update.target.name, update.written) == (
        "update",
        "thing",
        {"state"},
    )
    assert update.uses[0].equal == {"owner"}
    insert = understood("insert into thing (id, owner) values ($1, $2)")
    assert (insert.kind, insert.target and insert.target.name) == ("insert", "thing")
    assert understood("delete from thing where at < $1").uses[0].ranges == ["at"]


# -- candidates


def test_equality_comes_first_then_range_or_order() -> None:
    """The classic composite, and its simpler forms for comparison."""
    found = tried("select id from thing where owner = $1 order by at desc limit 20")
    assert (("owner", "at"), "") in found
    assert (("owner",), "") in found
    assert (("at", "owner"), "") not in found


def test_a_rare_constant_makes_it_partial() -> None:
    """2 % of the rows are new; 98 % are done, and those get no special case."""
    assert (("at",), "state = 'new'") in tried("select id from thing where state = 'new' order by at limit 9")
    found = tried("select id from thing where state = 'done' order by at limit 9")
    assert all(not where for _, where in found)


def test_no_index_is_tried_on_small_tables_or_documents() -> None:
    """Reading a small table whole is as quick; a B-tree on jsonb answers nothing."""
    small = catalog(table(rows=300))
    assert [
        one
        for use in understood("select id from thing where owner = $1", small).uses
        for one in candidates(use)
    ] == []
    assert tried("select id from thing where doc = $1") == []


def test_one_index_serves_two_statements() -> None:
    """A prefix is part of the longer one; equality columns change places for it; predicates must agree."""
    thing = table()

    def made(*keys: str, free: int, where: str = "") -> Candidate:
        return Candidate(table=thing, keys=keys, free=free, where=where)

    both = combined(made("owner", free=1), made("state", "owner", "at", free=2))
    assert both is not None
    assert both.keys == ("owner", "state", "at")
    assert combined(made("at", free=0), made("owner", "at", free=1)) is None
    assert combined(made("at", free=0), made("at", free=0, where="state = 'new'")) is None


# -- probing


def test_a_parameter_gets_a_typical_value() -> None:
    """From the middle of the column's values; a range as wide as the rows that came back."""
    made = probe(
        observed("select id from thing where owner = $2 and email = $7", rows=10),
        understood("select id from thing where owner = $2"), catalog(),
    )  # fmt: skip
    assert (made.text, made.values) == ("select id from thing where owner = $1 and email = $2", None)
    sql = "select id from thing where id > $1"
    wide, narrow = (
        probe(observed(sql, calls=1, rows=rows), understood(sql), catalog()).values for rows in (40_000, 100)
    )
    assert wide is not None
    assert narrow is not None
    assert int(wide[0].strip("'")) < 20_000 < 45_000 < int(narrow[0].strip("'"))


# -- what is there


def index(name: str, *keys: str, **options: Any) -> Index:
    options.setdefault("same", tuple(("1", "0") for _ in keys))
    return Index(name=name, keys=keys, **{"bytes": 2**20, **options})


def names(findings: Any) -> list[str]:
    return [finding.index for finding in findings]


def test_duplicates_and_beginnings_are_told() -> None:
    """The unused one of two equals; the shorter one; never one that is a rule or serves something else."""
    assert names(
        duplicates(catalog(table("t", index("a", "owner", scans=9), index("b", "owner"))), total=1)
    ) == ["b"]
    assert names(
        duplicates(catalog(table("t", index("a", "owner"), index("b", "owner", "at"))), total=1)
    ) == ["a"]
    for innocent in (
        index("a", "owner", needed="unique"),
        index("a", "owner", predicate="gone IS NULL"),
        index("a", "owner desc"),
        index("a", "owner", same=(("2", "0"),)),
        index("a", "owner", include=("state",)),
        index("a", "owner", method="hash"),
    ):
        assert names(duplicates(catalog(table("t", innocent, index("b", "owner", "at"))), total=1)) == []


def test_a_unique_index_goes_only_beside_one_that_is_unique_just_so() -> None:
    """Same keys, same rule, and nothing that refers to it."""
    unique = {"needed": "unique", "rule": "unique"}
    key = index("key", "owner", needed="primary key", rule="unique")
    for other, gone in (
        (index("a", "owner", **unique), ["a"]),
        (index("a", "owner", needed="unique", rule="unique, nulls too"), []),
        (index("a", "owner", needed="foreign key", rule="unique"), []),
        (index("a", "owner", needed="partitioned index"), []),
        (index("a", "owner", "at", **unique), []),
        (index("a", "owner", predicate="gone IS NULL", **unique), []),
    ):
        assert names(duplicates(catalog(table("t", other, key)), total=1)) == gone
    twice = table("t", index("a", "owner", scans=3, **unique), index("b", "owner", **unique))
    assert names(duplicates(catalog(twice), total=1)) == ["b"]
    assert names(
        duplicates(catalog(table("t", index("a", "owner", **unique), index("b", "owner"))), total=1)
    ) == ["b"]


def lazy(known: Catalog, elsewhere: dict[str, int] | None = None, min_age: float = 0) -> list[str]:
    return names(unused(known, elsewhere or {}, replicas=0, min_age=min_age, told=set(), total=1)[0])


def test_unused_means_nowhere_long_enough_and_for_nothing() -> None:
    """Not one that a replica reads, a rule needs, a foreign key needs, or that was counted for too short."""
    key = ForeignKey(name="k", table="public.t", columns=("owner",), target="public.other")
    used = table("t", index("a", "at"), read=5)
    assert lazy(catalog(used)) == ["a"]
    assert lazy(catalog(used), {"public.a": 3}) == []
    assert lazy(catalog(used, age=60), min_age=86_400) == []
    assert lazy(catalog(table("t", index("a", "at")))) == []
    assert lazy(catalog(table("t", index("a", "at", bytes=8192), read=5))) == []
    assert lazy(catalog(table("t", index("a", "at", needed="replica identity"), read=5))) == []
    assert lazy(catalog(table("t", index("a", "at", needed="partitioned index"), read=5))) == []
    assert lazy(catalog(table("t", index("a", "owner"), read=5), keys=(key,))) == []


def test_a_foreign_key_needs_an_index_where_rows_go() -> None:
    """Without deletes from the referenced table nothing is told; an index that begins with it will do."""
    key = ForeignKey(name="k", table="public.t", columns=("owner",), target="public.other")
    bare, served = table("t"), table("t", index("a", "owner", "at"))
    assert keys_without_index(catalog(bare, table("other"), keys=(key,)), {"public.other"}) == [key]
    assert keys_without_index(catalog(bare, table("other", deleted=9), keys=(key,)), set()) == [key]
    assert keys_without_index(catalog(bare, table("other"), keys=(key,)), set()) == []
    assert keys_without_index(catalog(served, table("other"), keys=(key,)), {"public.other"}) == []


# -- how it is asked


def loop(sql: str) -> str | None:
    found = loops([asked(sql, repeated_requests=2, repeated_calls=20, sites={"a.py:1 f": 2})], total=1)
    return found[0].sql[0] if found else None


@pytest.mark.parametrize(
    ("sql", "batch"),
    [
        (
            "select email from thing where id = $1",
            "select id, email from thing where id = any($1::bigint[])",
        ),
        (
            "select t.email from thing t where t.id in ($1)",
            "select t.id, t.email from thing t where t.id = any($1::bigint[])",
        ),
        (
            "select id, at from thing where owner = $1::INTEGER",
            "select owner, id, at from thing where owner = any($1::bigint[])",
        ),
        (
            "update thing set at = $2 where id = $1",
            "update thing set at = $2 where id = any($1::bigint[])",
        ),
        ("insert into thing (id) values ($1)", "insert into thing (id) values ($1)"),
        ("select id from thing where id > $1 order by id limit 50", None),
        ("select id, at from thing where id = any($1::bigint[])", None),
        (
            "select at from thing where (owner = $1) and (id in ($2))",
            "select id, at from thing where (owner = $1) and (id = any($2::bigint[]))",
        ),
        (
            "select count(*) from thing where owner = $1::int and at > $2",
            "select k.key, each.* from unnest($1::bigint[]) as k (key) cross join lateral"
            " (select count(*) from thing where owner = k.key and at > $2) as each",
        ),
        (
            "select at from thing where owner = $1 and state = any($2)",
            "select owner, at from thing where owner = any($1::bigint[]) and state = any($2)",
        ),
        (
            "update thing set at = $1 where id ="
            " (select id from thing order by id limit 1 for update skip locked)",
            None,
        ),
    ],
)
def test_a_loop_comes_with_the_statement_for_all(sql: str, batch: str | None) -> None:
    """Pages behind a cursor, claims of a queue and chunks of keys are no loops."""
    assert loop(sql) == batch


def test_deep_pages_come_with_a_cursor() -> None:
    """The order is made unique for it; first pages are left alone."""
    sql = "select id, at from thing where owner = $1 order by at desc limit 20 offset $2"
    (found,) = deep_offsets([asked(sql, deepest_offset=5000)], total=1)
    assert found.sql == (
        "select id, at from thing where (at, id) < (:last_at, :last_id) and owner = $1"
        " order by at desc, id desc limit 20",
    )
    assert deep_offsets([asked(sql, deepest_offset=40)], total=1) == []
    either = "select id from thing where owner = $1 or state = $2 order by id offset $3"
    (found,) = deep_offsets([asked(either, deepest_offset=5000)], total=1)
    assert "where (id) > (:last_id) and (owner = $1 or state = $2) order by id" in found.sql[0]
    mixed = "select id from thing order by at desc, owner, id limit 20 offset $1"
    (found,) = deep_offsets([asked(mixed, deepest_offset=5000)], total=1)
    assert found.sql == (
        "select id from thing where"
        " (at < :last_at or (at = :last_at and (owner, id) > (:last_owner, :last_id)))"
        " order by at desc, owner, id limit 20",
    )


def test_a_star_is_told_where_rows_are_wide() -> None:
    """Not in count(*), exists or a common table expression."""
    wide = Column(name="body", type="text", width=900)
    big = table()
    known = catalog(
        Table(
            schema="public",
            name="thing",
            rows=9e4,
            pages=900,
            columns={**big.columns, "body": wide},
            indexes=(),
        )
    )
    (found,) = stars([asked("select * from thing where id = $1", known)], known, total=1)
    assert "select id, owner, at, state, email, gone, doc, body from thing" in found.sql[0]
    (found,) = stars([asked("select 2 * 3, count(*) over (), t.* from thing t", known)], known, total=1)
    assert "select 2 * 3, count(*) over (), t.id, t.owner, t.at," in found.sql[0]
    for innocent in ("select count(*) from thing", "select exists (select * from thing)",
                     "with x as (select * from thing) select id from x"):  # fmt: skip
        assert stars([asked(innocent, known)], known, total=1) == []


# -- the machine


def facts(**options: Any) -> MachineFacts:
    calm: dict[str, Any] = {
        "hit": 10**7, "read": 10, "temp_files": 0, "temp_bytes": 0, "database_bytes": 2**33,
        "shared_buffers": 2**27, "work_mem": 2**22, "max_connections": 100, "connections": 9,
        "running": 1, "cores": 4,
    }  # fmt: skip
    return MachineFacts(**{**calm, **options})


def test_a_larger_machine_is_told_only_where_the_figures_point_there() -> None:
    """Memory for misses, work_mem for spills, cores for a crowd; each with where it ends."""
    assert machine(facts()) == []
    assert [one.form for one in machine(facts(read=10**7))] == ["memory"]
    assert machine(facts(read=10**7, database_bytes=2**26)) == []
    assert [one.form for one in machine(facts(temp_files=9, temp_bytes=2**32))] == ["work_mem"]
    assert [one.form for one in machine(facts(running=20))] == ["cpu"]
    assert machine(facts(running=20, cores=None)) == []
    assert all("ceiling" in one.evidence for one in machine(facts(read=10**7, running=20)))


# -- where figures come from


def totals(label: str, **options: Any) -> StatementTotals:
    given = {"text": label, "calls": 2, "seconds": 0.5, "slowest": 0.3, "rows": 4, "errors": 0}
    return StatementTotals(label=label, **{**given, **options})


def test_processes_are_added_up_and_constants_put_back() -> None:
    """Replicas included; a literal counts as the program's only where every process says so."""
    same = totals(
        "q", text="select 1 from thing where state = $1 and owner = $2", constants={"1": "'new'", "2": "7"}
    )
    other = totals("q", text=same.text, constants={"1": "'new'", "2": "8"}, repeated_most=9)
    snapshots = [
        Snapshot(node=node, since=0, written=60, clusters={cluster: [one]})
        for node, cluster, one in (("a", "main", same), ("b", "main/replica-1", other))
    ]
    window = from_snapshots(snapshots, "main")
    assert window is not None
    (found,) = window.statements
    assert found.text == "select 1 from thing where state = 'new' and owner = $2"
    assert (found.calls, found.seconds, found.repeated_most) == (4, 1.0, 9)
    assert from_snapshots(snapshots, "elsewhere") is None


def test_a_statement_that_both_know_counts_once() -> None:
    """The process's figures hold, with the blocks that only the server knows."""
    ours = observed("select id from thing where owner = $1")
    theirs = observed("select id from thing where owner = $1", calls=100, blocks=1000)
    alone = observed("select 1 from other", blocks=5)
    both = merged([Window((ours,), 60, "processes"), Window((theirs, alone), 90, "pg_stat_statements")])
    assert [(one.calls, one.blocks) for one in both.statements] == [(10, 100), (10, 5)]


@pytest.mark.parametrize(("option", "value"), [("min_gain", 0), ("min_gain", 1), ("unused_after", -1)])
def test_settings_that_cannot_work_are_refused(option: str, value: float) -> None:
    """With the option's name on the command line."""
    options: Any = {option: value}
    with pytest.raises(ConfigurationError, match=f"--{option.replace('_', '-')} must be"):
        Settings(**options)
