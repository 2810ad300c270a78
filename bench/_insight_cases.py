"""What bench.insight plants in a database, and what it leaves innocent.

Each case has its own tables, `{t}` in its SQL; `traffic` is run through the pool. `expected` are the findings
that must come: a kind with the columns that are right (several answers may be). Any other finding about a
case's tables is a false one. `SEEN` was there while the advisor was built, `HELD_OUT` has other shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["HELD_OUT", "SEEN", "Case", "Expected", "Traffic"]

ROWS = 12_000
FILLER = "repeat('x', 60)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """`sql` called `calls` times with `args(n)`; `loop` names how one request repeats it, if it does."""

    sql: str
    args: Callable[[int], tuple[Any, ...]] = lambda n: ()
    calls: int = 8
    loop: str = ""

    def text(self, table: str) -> str:
        """The statement on `table`."""
        text = self.sql.replace("{t}", table)
        for name, time in MINUTES.items():
            text = text.replace(name, time)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    kind: str
    columns: tuple[tuple[str, ...], ...] = ()
    where: str | None = None
    """A word that must be in the definition after WHERE; None: none is wanted, "*": either is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    setup: str
    traffic: tuple[Traffic, ...] = ()
    expected: tuple[Expected, ...] = ()


def missing(*columns: tuple[str, ...], where: str | None = None) -> tuple[Expected, ...]:
    return (Expected(kind="missing_index", columns=columns, where=where),)


def table(columns: str, values: str, *more: str, rows: int = ROWS) -> str:
    filled = values.replace("filler", FILLER)
    return ";".join(
        [
            f"create table {{t}} (id bigint primary key, {columns})",
            f"insert into {{t}} select g, {filled} from generate_series(1, {rows}) g",
            *more,
        ]
    )


MINUTES = {f"{{at{n}}}": f"timestamptz '2025-01-01' + ${n}::int * interval '1 minute'" for n in (1, 2)}
"""`{at1}` in a statement is a time, so many minutes after the first as its argument says."""

NOW = "timestamptz '2025-01-01' + g * interval '1 minute'"

SEEN: tuple[Case, ...] = (
    # -- planted: missing indexes
    Case(
        name="single",
        setup=table("customer bigint not null, note text", "g % 3000, filler"),
        traffic=(Traffic(sql="select id, note from {t} where customer = $1", args=lambda n: (n * 7,)),),
        expected=missing(("customer",)),
    ),
    Case(
        name="composite_sort",
        setup=table(
            "author bigint not null, created timestamptz not null, body text",
            f"g % 300, {NOW}, filler",
        ),
        traffic=(
            Traffic(
                sql="select id, body from {t} where author = $1 order by created desc limit 20",
                args=lambda n: (n,),
            ),
        ),
        expected=missing(("author", "created")),
    ),
    Case(
        name="composite_equal",
        setup=table("tenant int not null, kind int not null, body text", "g % 90, (g / 90) % 80, filler"),
        traffic=(
            Traffic(
                sql="select id from {t} where tenant = $1 and kind = $2", args=lambda n: (n % 90, n % 80)
            ),
        ),
        expected=missing(("tenant", "kind"), ("kind", "tenant")),
    ),
    Case(
        name="composite_range",
        setup=table("device int not null, at timestamptz not null, value float8", f"g % 40, {NOW}, random()"),
        traffic=(
            Traffic(
                sql="select at, value from {t} where device = $1 and at > {at2}",
                args=lambda n: (n % 40, ROWS - 1500),
            ),
        ),
        expected=missing(("device", "at")),
    ),
    Case(
        name="partial_status",
        setup=table(
            "status text not null, created timestamptz not null, body text",
            f"case when g % 200 = 0 then 'pending' else 'done' end, {NOW}, filler",
        ),
        traffic=(
            Traffic(sql="select id, body from {t} where status = 'pending' order by created limit 200"),
        ),
        expected=missing(("created",), where="status"),
    ),
    Case(
        name="partial_null",
        setup=table(
            "reviewed timestamptz, author int not null",
            f"case when g % 300 = 0 then null else {NOW} end, g % 50",
        ),
        traffic=(Traffic(sql="select id, author from {t} where reviewed is null"),),
        expected=missing(("id",), ("reviewed",), where="*"),
    ),
    Case(
        name="partial_flag",
        setup=table(
            "flagged boolean not null, owner int not null, body text", "g % 150 = 0, g % 700, filler"
        ),
        traffic=(
            Traffic(
                sql="select id, body from {t} where flagged and owner = $1", args=lambda n: (n * 150 % 700,)
            ),
        ),
        expected=missing(("owner",), where="*"),
    ),
    Case(
        name="expression",
        setup=table("email text not null, body text", "'User' || g || '@Example.com', filler"),
        traffic=(
            Traffic(
                sql="select id from {t} where lower(email) = $1", args=lambda n: (f"user{n}@example.com",)
            ),
        ),
        expected=missing(("lower(email)",)),
    ),
    Case(
        name="expression_argument",
        setup=table("code text not null, body text", "'AB' || g, filler"),
        traffic=(
            Traffic(sql="select id from {t} where lower(code) = lower($1)", args=lambda n: (f"Ab{n}",)),
        ),
        expected=missing(("lower(code)",)),
    ),
    Case(
        name="wrong_order",
        setup=table(
            "account int not null, created timestamptz not null, body text",
            f"g % 900, {NOW}, filler",
            "create index {t}_old on {t} (created, account)",
        ),
        traffic=(
            Traffic(
                sql="select id, body from {t} where account = $1 order by created desc limit 50",
                args=lambda n: (n,),
            ),
        ),
        expected=(*missing(("account", "created"), ("account",)),),
    ),
    Case(
        name="wrong_order_equal",
        setup=table(
            "serial bigint not null, owner int not null, body text",
            "g, g % 2000, filler",
            "create index {t}_old on {t} (serial, owner)",
        ),
        traffic=(
            Traffic(sql="select id, body from {t} where owner = $1", args=lambda n: (n,)),
            Traffic(sql="select id from {t} where serial = $1", args=lambda n: (n,)),
        ),
        expected=missing(("owner",)),
    ),
    Case(
        name="join",
        setup="create table {t}_head (id bigint primary key, at timestamptz not null);"
        f"insert into {{t}}_head select g, {NOW} from generate_series(1, 6000) g;"
        + table("head bigint not null, price int not null", "g % 6000 + 1, g"),
        traffic=(
            Traffic(
                sql="select h.at, l.price from {t}_head h join {t} l on l.head = h.id where h.id = $1",
                args=lambda n: (n + 1,),
            ),
        ),
        expected=missing(("head",)),
    ),
    Case(
        name="foreign_key",
        setup="create table {t}_owner (id bigint primary key);"
        "insert into {t}_owner select g from generate_series(1, 3000) g;"
        + table("owner bigint not null references {t}_owner on delete cascade", "g % 2900 + 1"),
        traffic=(Traffic(sql="delete from {t}_owner where id = $1", args=lambda n: (2950 + n,)),),
        expected=(Expected(kind="foreign_key", columns=(("owner",),)),),
    ),
    Case(
        name="merged",
        setup=table("shop int not null, sku int not null, body text", "g % 60, g % 997, filler"),
        traffic=(
            Traffic(sql="select id from {t} where shop = $1 and sku = $2", args=lambda n: (n % 60, n)),
            Traffic(sql="select count(*) from {t} where shop = $1", args=lambda n: (n % 60,)),
        ),
        expected=missing(("shop", "sku")),
    ),
    Case(
        name="any_of",
        setup=table("sku bigint not null, body text", "g * 3, filler"),
        traffic=(
            Traffic(
                sql="select id, sku from {t} where sku = any($1::bigint[])",
                args=lambda n: ([3 * n + 3 * k for k in range(10)],),
            ),
        ),
        expected=missing(("sku",)),
    ),
    Case(
        name="update_where",
        setup=table("token bigint not null, seen int not null", "g * 11, 0"),
        traffic=(Traffic(sql="update {t} set seen = seen + 1 where token = $1", args=lambda n: (11 * n,)),),
        expected=missing(("token",)),
    ),
    Case(
        name="delete_range",
        setup=table("expires timestamptz not null, body text", f"{NOW}, filler"),
        traffic=(
            Traffic(
                sql="delete from {t} where expires < {at1}",
                args=lambda n: (n * 5,),
            ),
        ),
        expected=missing(("expires",)),
    ),
    Case(
        name="cursor_page",
        setup=table("created timestamptz not null, body text", f"{NOW}, filler"),
        traffic=(
            Traffic(
                sql="select id, created, body from {t} where (created, id) < ({at1}, $2::bigint)"
                " order by created desc, id desc limit 20",
                args=lambda n: (n, n),
            ),
        ),
        expected=missing(("created", "id"), ("created",)),
    ),
    # -- planted: indexes that should go
    Case(
        name="unused",
        setup=table("a int not null, b int not null", "g % 100, g", "create index {t}_b on {t} (b)"),
        traffic=(Traffic(sql="select a from {t} where id = $1", args=lambda n: (n,)),),
        expected=(Expected(kind="unused_index", columns=(("b",),)),),
    ),
    Case(
        name="duplicate",
        setup=table(
            "a int not null", "g", "create index {t}_one on {t} (a)", "create index {t}_two on {t} (a)"
        ),
        traffic=(Traffic(sql="select id from {t} where a = $1", args=lambda n: (n,)),),
        expected=(Expected(kind="duplicate_index", columns=(("a",),)),),
    ),
    Case(
        name="prefix",
        setup=table(
            "a int not null, b int not null",
            "g % 3000, g",
            "create index {t}_a on {t} (a)",
            "create index {t}_ab on {t} (a, b)",
        ),
        traffic=(
            Traffic(sql="select id from {t} where a = $1", args=lambda n: (n,)),
            Traffic(sql="select id from {t} where a = $1 and b = $2", args=lambda n: (n, n)),
        ),
        expected=(Expected(kind="duplicate_index", columns=(("a",),)),),
    ),
    # -- planted: statements in a loop, in five forms; pages; columns
    *(
        Case(
            name=f"loop_{form}",
            setup=table("name text not null", "'name ' || g", rows=4000),
            traffic=(Traffic(sql=sql, args=lambda n: (n % 4000 + 1,), calls=6, loop=form),),
            expected=(Expected(kind="repeated_statement"),),
        )
        for form, sql in (
            ("sequence", "select name from {t} where id = $1"),
            ("gather", "select name from {t} where id = $1"),
            ("orm", "select name from {t} where id = $1"),
            ("service", "select name from {t} where id = $1"),
            ("literals", "select name from {t} where id in (%d)"),
        )
    ),
    Case(
        name="deep_offset",
        setup=table("body text", "filler"),
        traffic=(
            Traffic(
                sql="select id, body from {t} order by id limit 20 offset $1", args=lambda n: (n * 1000,)
            ),
        ),
        expected=(Expected(kind="deep_offset"),),
    ),
    Case(
        name="select_star",
        setup=table(
            "a int, b int, c int, d int, e int, f int, g int, body text",
            "1, 2, 3, 4, 5, 6, 7, repeat('x', 900)",
            rows=3000,
        ),
        traffic=(Traffic(sql="select * from {t} where id = $1", args=lambda n: (n + 1,)),),
        expected=(Expected(kind="select_star"),),
    ),
    # -- innocent
    Case(
        name="ok_primary_key",
        setup=table("body text", "filler"),
        traffic=(Traffic(sql="select body from {t} where id = $1", args=lambda n: (n,)),),
    ),
    Case(
        name="ok_composite",
        setup=table(
            "author int not null, created timestamptz not null",
            f"g % 300, {NOW}",
            "create index {t}_used on {t} (author, created)",
        ),
        traffic=(
            Traffic(
                sql="select id from {t} where author = $1 order by created desc limit 20", args=lambda n: (n,)
            ),
        ),
    ),
    Case(
        name="ok_small",
        setup=table("name text", "'n' || g", rows=300),
        traffic=(Traffic(sql="select id from {t} where name = $1", args=lambda n: (f"n{n}",)),),
    ),
    Case(
        name="ok_half_of_the_rows",
        setup=table("active boolean not null, body text", "g % 2 = 0, filler"),
        traffic=(Traffic(sql="select id from {t} where active", calls=8),),
    ),
    Case(
        name="ok_written_mostly",
        setup=table("source int not null, body text", "g % 3000, 'x'"),
        traffic=(
            Traffic(
                sql="insert into {t} select $1::bigint * 100000 + g, g % 3000, 'x'"
                " from generate_series(1, 20000) g",
                args=lambda n: (n + 10,),
                calls=3,
            ),
            Traffic(sql="select id from {t} where source = $1", args=lambda n: (n,), calls=4),
        ),
    ),
    Case(
        name="ok_aggregate",
        setup=table("amount int not null", "g"),
        traffic=(Traffic(sql="select sum(amount) from {t}", calls=8),),
    ),
    Case(
        name="ok_group",
        setup=table("kind int not null, amount int not null", "g % 7, g"),
        traffic=(Traffic(sql="select kind, sum(amount) from {t} group by kind order by kind", calls=8),),
    ),
    Case(
        name="ok_unique_is_a_rule",
        setup=table("code int not null unique", "g"),
        traffic=(Traffic(sql="select code from {t} where id = $1", args=lambda n: (n,)),),
    ),
    Case(
        name="ok_prefix_with_predicate",
        setup=table(
            "a int not null, b int not null, open boolean not null",
            "g % 3000, g, g % 100 = 0",
            "create index {t}_open on {t} (a) where open",
            "create index {t}_ab on {t} (a, b)",
        ),
        traffic=(
            Traffic(sql="select id from {t} where a = $1 and open", args=lambda n: (n * 100 % 3000,)),
            Traffic(sql="select id from {t} where a = $1 and b = $2", args=lambda n: (n, n)),
        ),
    ),
    Case(
        name="ok_unique_prefix",
        setup=table(
            "a int not null, b int not null",
            "g, g % 10",
            "create unique index {t}_a on {t} (a)",
            "create index {t}_ab on {t} (a, b)",
        ),
        traffic=(
            Traffic(sql="select id from {t} where a = $1 and b = $2", args=lambda n: (n, n % 10)),
            Traffic(sql="select b from {t} where a = $1 order by b", args=lambda n: (n,)),
            Traffic(
                sql="select a, b from {t} where a between $1 and $2 order by a, b", args=lambda n: (n, n + 40)
            ),
        ),
    ),
    Case(
        name="ok_replica_identity",
        setup=table(
            "a int not null",
            "g",
            "create unique index {t}_a on {t} (a)",
            "alter table {t} replica identity using index {t}_a",
        ),
        traffic=(Traffic(sql="select a from {t} where id = $1", args=lambda n: (n,)),),
    ),
    Case(
        name="ok_key_without_deletes",
        setup="create table {t}_owner (id bigint primary key);"
        "insert into {t}_owner select g from generate_series(1, 3000) g;"
        + table("owner bigint not null references {t}_owner", "g % 2900 + 1"),
        traffic=(Traffic(sql="select owner from {t} where id = $1", args=lambda n: (n,)),),
    ),
    Case(
        name="ok_key_with_index",
        setup="create table {t}_owner (id bigint primary key);"
        "insert into {t}_owner select g from generate_series(1, 3000) g;"
        + table(
            "owner bigint not null references {t}_owner",
            "g % 2900 + 1",
            "create index {t}_owner_fk on {t} (owner)",
        ),
        traffic=(Traffic(sql="select owner from {t} where id = $1", args=lambda n: (n,)),),
    ),
    Case(
        name="ok_three_times",
        setup=table("name text", "'n' || g", rows=4000),
        traffic=(
            Traffic(
                sql="select name from {t} where id = $1", args=lambda n: (n % 4000,), calls=6, loop="thrice"
            ),
        ),
    ),
    Case(
        name="ok_many_places",
        setup=table("name text", "'n' || g", rows=4000),
        traffic=(
            Traffic(
                sql="select name from {t} where id = $1", args=lambda n: (n % 4000,), calls=6, loop="places"
            ),
        ),
    ),
    Case(
        name="ok_batch",
        setup=table("name text", "'n' || g", rows=4000),
        traffic=(
            Traffic(
                sql="select id, name from {t} where id = any($1::bigint[])",
                args=lambda n: (list(range(n, n + 30)),),
            ),
        ),
    ),
    Case(
        name="ok_first_pages",
        setup=table("body text", "filler"),
        traffic=(
            Traffic(
                sql="select id, body from {t} order by id limit 20 offset $1", args=lambda n: (n % 5 * 20,)
            ),
        ),
    ),
    Case(
        name="ok_star_of_little",
        setup=table("a int, b int", "g, g"),
        traffic=(Traffic(sql="select * from {t} where id = $1", args=lambda n: (n,)),),
    ),
    Case(
        name="ok_star_counted",
        setup=table("body text", "repeat('x', 900)", rows=3000),
        traffic=(
            Traffic(sql="select count(*) from {t} where id < $1", args=lambda n: (n,)),
            Traffic(sql="select exists (select * from {t} where id = $1)", args=lambda n: (n,)),
        ),
    ),
    Case(
        name="ok_cursor_loop",
        setup=table("name text", "'n' || g", rows=4000),
        traffic=(
            Traffic(
                sql="select id, name from {t} where id > $1 order by id limit 50",
                args=lambda n: (n * 50,),
                calls=6,
                loop="sequence",
            ),
        ),
    ),
    Case(
        name="ok_claims",
        setup=table("taken boolean not null, run_at timestamptz not null", "false, now()", rows=4000),
        traffic=(
            Traffic(
                sql="update {t} set taken = true where id = (select id from {t} where id > $1"
                " order by id limit 1 for update skip locked) returning id",
                args=lambda n: (n,),
                calls=4,
                loop="sequence",
            ),
        ),
    ),
    Case(
        name="ok_partial",
        setup=table(
            "status text not null, created timestamptz not null",
            f"case when g % 200 = 0 then 'pending' else 'done' end, {NOW}",
            "create index {t}_pending on {t} (created) where status = 'pending'",
        ),
        traffic=(Traffic(sql="select id from {t} where status = 'pending' order by created limit 200"),),
    ),
    Case(
        name="ok_expression",
        setup=table(
            "email text not null",
            "'User' || g || '@Example.com'",
            "create index {t}_lower on {t} (lower(email))",
        ),
        traffic=(
            Traffic(
                sql="select id from {t} where lower(email) = $1", args=lambda n: (f"user{n}@example.com",)
            ),
        ),
    ),
    Case(
        name="ok_contains",
        setup=table("name text not null", "'n' || g"),
        traffic=(Traffic(sql="select id from {t} where name like $1", args=lambda n: (f"%{n}7%",), calls=8),),
    ),
    # -- shapes that a first version was tried on
    Case(
        name="h_three_equal_sorted",
        setup=table(
            "org int not null, state text not null, due date not null, body text",
            "g % 60, (array['open','held','shut'])[g % 3 + 1], date '2025-01-01' + g % 700, filler",
        ),
        traffic=(
            Traffic(
                sql="select id, body from {t} where org = $1 and state = $2 order by due limit 25",
                args=lambda n: (n % 60, ("open", "held", "shut")[n % 3]),
            ),
        ),
        expected=missing(("org", "state", "due"), ("state", "org", "due"), ("org", "due"), ("org", "state")),
    ),
    Case(
        name="h_text_key",
        setup=table("slug text not null, body text", "md5(g::text), repeat('x', 90)"),
        traffic=(Traffic(sql="select id, body from {t} t where t.slug = $1", args=lambda n: (f"{n:032x}",)),),
        expected=missing(("slug",)),
    ),
    Case(
        name="h_between",
        setup=table("at timestamptz not null, amount int not null", f"{NOW}, g"),
        traffic=(
            Traffic(
                sql="select sum(amount) from {t} where at between {at1} and {at2}",
                args=lambda n: (n * 100, n * 100 + 200),
            ),
        ),
        expected=missing(("at",)),
    ),
    Case(
        name="h_partial_constant",
        setup=table(
            "kind text not null, owner int not null, body text",
            "case when g % 100 = 0 then 'invoice' else 'note' end, g % 500, filler",
        ),
        traffic=(
            Traffic(
                sql="select id from {t} where kind = 'invoice' and owner = $1",
                args=lambda n: (n * 100 % 500,),
            ),
        ),
        expected=missing(("owner",), ("owner", "kind"), where="*"),
    ),
    Case(
        name="h_upper",
        setup=table("sku text not null", "'item-' || g"),
        traffic=(Traffic(sql="select id from {t} where upper(sku) = $1", args=lambda n: (f"ITEM-{n}",)),),
        expected=missing(("upper(sku)",)),
    ),
    Case(
        name="h_join_filter",
        setup="create table {t}_shop (id int primary key, city int not null);"
        "insert into {t}_shop select g, g % 10 from generate_series(1, 200) g;"
        + table(
            "shop int not null, sold date not null, price int", "g % 200 + 1, date '2025-01-01' + g % 365, g"
        ),
        traffic=(
            Traffic(
                sql="select s.city, sum(l.price) from {t} l join {t}_shop s on s.id = l.shop"
                " where l.shop = $1 and l.sold >= $2::text::date group by s.city",
                args=lambda n: (n + 1, "2025-12-20"),
            ),
        ),
        expected=missing(("shop", "sold"), ("shop",)),
    ),
    Case(
        name="h_subquery",
        setup="create table {t}_post (id bigint primary key, title text);"
        "insert into {t}_post select g, 'p' from generate_series(1, 5000) g;"
        + table("post bigint not null, body text", "g % 5000 + 1, filler"),
        traffic=(
            Traffic(
                sql="select p.title, (select count(*) from {t} c where c.post = p.id)"
                " from {t}_post p where p.id = $1",
                args=lambda n: (n + 1,),
            ),
        ),
        expected=missing(("post",)),
    ),
    Case(
        name="h_cte",
        setup=table("parent bigint not null, body text", "g / 10, filler"),
        traffic=(
            Traffic(
                sql="with kids as (select id, body from {t} where parent = $1) select count(*) from kids",
                args=lambda n: (n,),
            ),
        ),
        expected=missing(("parent",)),
    ),
    Case(
        name="h_wrong_order_three",
        setup=table(
            "region int not null, day date not null, shop int not null",
            "g % 5, date '2024-01-01' + g % 900, g % 400",
            "create index {t}_old on {t} (day, region, shop)",
        ),
        traffic=(
            Traffic(sql="select id, day from {t} where shop = $1 and region = $2", args=lambda n: (n, n % 5)),
        ),
        expected=missing(("shop", "region"), ("shop",), ("shop", "region", "day")),
    ),
    Case(
        name="h_unused_expression",
        setup=table("name text not null", "'Name ' || g", "create index {t}_l on {t} (lower(name))"),
        traffic=(Traffic(sql="select name from {t} where id = $1", args=lambda n: (n,)),),
        expected=(Expected(kind="unused_index", columns=(("lower(name)",),)),),
    ),
    Case(
        name="h_prefix_of_unique",
        setup=table(
            "a int not null, b int not null",
            "g % 3000, g",
            "create unique index {t}_ab on {t} (a, b)",
            "create index {t}_a on {t} (a)",
        ),
        traffic=(Traffic(sql="select id from {t} where a = $1", args=lambda n: (n,)),),
        expected=(Expected(kind="duplicate_index", columns=(("a",),)),),
    ),
    Case(
        name="h_loop_write",
        setup=table("seen int not null", "0", rows=4000),
        traffic=(
            Traffic(
                sql="update {t} set seen = 1 where id = $1",
                args=lambda n: (n % 4000,),
                calls=6,
                loop="service",
            ),
        ),
        expected=(Expected(kind="repeated_statement"),),
    ),
    Case(
        name="h_loop_of_literals_at_once",
        setup=table("name text not null", "'name ' || g", rows=4000),
        traffic=(
            Traffic(
                sql="select name from {t} where id = %d", args=lambda n: (n % 4000,), calls=6, loop="literals"
            ),
        ),
        expected=(Expected(kind="repeated_statement"),),
    ),
    Case(
        name="h_literal_offset",
        setup=table("body text", "filler"),
        traffic=(
            Traffic(
                sql="select id from {t} order by id offset %d limit 10",
                args=lambda n: (n * 900,),
                loop="text",
            ),
        ),
        expected=(Expected(kind="deep_offset"),),
    ),
    # -- innocent
    Case(
        name="h_ok_hash_join",
        setup="create table {t}_kind (id int primary key, label text);"
        "insert into {t}_kind select g, 'k' from generate_series(1, 50) g;"
        + table("kind int not null, amount int not null", "g % 50 + 1, g"),
        traffic=(
            Traffic(
                sql="select k.label, sum(x.amount) from {t} x join {t}_kind k on k.id = x.kind"
                " group by k.label",
                calls=8,
            ),
        ),
    ),
    Case(
        name="h_ok_most_rows",
        setup=table(
            "state text not null, body text",
            "case when g % 10 = 0 then 'new' else 'old' end, filler",
        ),
        traffic=(Traffic(sql="select id, body from {t} where state = 'old'", calls=6),),
    ),
    Case(
        name="h_ok_reverse_order",
        setup=table(
            "owner int not null, at timestamptz not null",
            f"g % 300, {NOW}",
            "create index {t}_used on {t} (owner, at desc)",
        ),
        traffic=(
            Traffic(sql="select id from {t} where owner = $1 order by at limit 20", args=lambda n: (n,)),
        ),
    ),
    Case(
        name="h_ok_exclusion",
        setup="create table {t} (id bigint primary key, during int4range not null,"
        " exclude using gist (during with &&));"
        f"insert into {{t}} select g, int4range(g * 2, g * 2 + 1) from generate_series(1, {ROWS // 3}) g",
        traffic=(Traffic(sql="select during from {t} where id = $1", args=lambda n: (n + 1,)),),
    ),
    Case(
        name="h_ok_wide_range",
        setup=table("at timestamptz not null, amount int not null, body text", f"{NOW}, g, filler"),
        traffic=(
            Traffic(
                sql="select avg(amount), max(body) from {t} where at > {at1}",
                args=lambda n: (n,),
                calls=8,
            ),
        ),
    ),
    Case(
        name="h_ok_seven_times",
        setup=table("name text", "'n' || g", rows=4000),
        traffic=(
            Traffic(
                sql="select name from {t} where id = $1", args=lambda n: (n % 4000,), calls=6, loop="seven"
            ),
        ),
    ),
    Case(
        name="h_ok_star_in_cte",
        setup=table("body text, more text", "repeat('x', 400), 'y'", rows=3000),
        traffic=(
            Traffic(
                sql="with one as (select * from {t} where id = $1) select more from one",
                args=lambda n: (n + 1,),
            ),
        ),
    ),
    Case(
        name="h_ok_include",
        setup=table(
            "owner int not null, amount int not null",
            "g % 3000, g",
            "create index {t}_used on {t} (owner) include (amount)",
        ),
        traffic=(Traffic(sql="select sum(amount) from {t} where owner = $1", args=lambda n: (n,)),),
    ),
)

HELD_OUT: tuple[Case, ...] = (
    Case(
        name="f_union",
        setup=table("sender int not null, receiver int not null, body text", "g % 4000, g % 3700, filler"),
        traffic=(
            Traffic(
                sql="select id from {t} where sender = $1 union all select id from {t} where receiver = $1",
                args=lambda n: (n,),
            ),
        ),
        expected=(*missing(("sender",)), *missing(("receiver",))),
    ),
    Case(
        name="f_exists",
        setup="create table {t}_head (id bigint primary key);"
        "insert into {t}_head select g from generate_series(1, 5000) g;"
        + table("head bigint not null, note text", "g % 5000 + 1, filler"),
        traffic=(
            Traffic(
                sql="select h.id from {t}_head h where h.id = $1"
                " and exists (select 1 from {t} c where c.head = h.id)",
                args=lambda n: (n + 1,),
            ),
        ),
        expected=missing(("head",)),
    ),
    Case(
        name="f_left_join",
        setup="create table {t}_head (id bigint primary key);"
        "insert into {t}_head select g from generate_series(1, 5000) g;"
        + table("head bigint not null, note text", "g % 5000 + 1, filler"),
        traffic=(
            Traffic(
                sql="select h.id, c.note from {t}_head h left join {t} c on c.head = h.id"
                " where h.id = any($1::bigint[])",
                args=lambda n: ([n + 1, n + 2, n + 3],),
            ),
        ),
        expected=missing(("head",)),
    ),
    Case(
        name="f_flag_as_argument",
        setup=table("tenant int not null, active boolean not null, body text", "g % 800, g % 3 = 0, filler"),
        traffic=(
            Traffic(
                sql="select id from {t} where tenant = $1 and active = $2", args=lambda n: (n, n % 2 == 0)
            ),
        ),
        expected=missing(("tenant",), ("tenant", "active"), ("active", "tenant")),
    ),
    Case(
        name="f_latest",
        setup=table("device int not null, at timestamptz not null, value float8", f"g % 50, {NOW}, random()"),
        traffic=(Traffic(sql="select max(at) from {t} where device = $1", args=lambda n: (n,)),),
        expected=missing(("device", "at"), ("device",)),
    ),
    Case(
        name="f_newest",
        setup=table("at timestamptz not null, body text", f"{NOW}, filler"),
        traffic=(Traffic(sql="select id, at, body from {t} order by at desc limit 10"),),
        expected=missing(("at",)),
    ),
    Case(
        name="f_day",
        setup=table("day date not null, body text", "date '2020-01-01' + g % 1500, filler"),
        traffic=(
            Traffic(
                sql="select id from {t} where day = $1::text::date", args=lambda n: (f"2021-02-{n + 1:02}",)
            ),
        ),
        expected=missing(("day",)),
    ),
    Case(
        name="f_three_codes",
        setup=table("code text not null, body text", "'c' || g, filler"),
        traffic=(
            Traffic(
                sql="select id from {t} where code in ($1, $2, $3)",
                args=lambda n: (f"c{n}", f"c{n + 1}", f"c{n + 2}"),
            ),
        ),
        expected=missing(("code",)),
    ),
    Case(
        name="f_uuid",
        setup=table("key uuid not null, body text", "md5(g::text)::uuid, filler"),
        traffic=(Traffic(sql="select id, body from {t} where key = $1", args=lambda n: (f"{n:032x}",)),),
        expected=missing(("key",)),
    ),
    Case(
        name="f_tenant_pages",
        setup=table("tenant int not null, body text", "g % 400, repeat('x', 90)"),
        traffic=(
            Traffic(
                sql="select id, body from {t} where tenant = $1 and id > $2 order by id limit 20",
                args=lambda n: (n, ROWS - 4000),
            ),
        ),
        expected=missing(("tenant", "id"), ("tenant",)),
    ),
    Case(
        name="f_duplicate_expression",
        setup=table(
            "name text not null",
            "'Name ' || g",
            "create index {t}_one on {t} (lower(name))",
            "create index {t}_two on {t} (lower(name))",
        ),
        traffic=(Traffic(sql="select id from {t} where lower(name) = $1", args=lambda n: (f"name {n}",)),),
        expected=(Expected(kind="duplicate_index", columns=(("lower(name)",),)),),
    ),
    Case(
        name="f_prefix_of_descending",
        setup=table(
            "a int not null, b int not null",
            "g % 3000, g",
            "create index {t}_a on {t} (a)",
            "create index {t}_ab on {t} (a, b desc)",
        ),
        traffic=(
            Traffic(sql="select id from {t} where a = $1 order by b desc limit 5", args=lambda n: (n,)),
            Traffic(sql="select count(*) from {t} where a = $1", args=lambda n: (n,)),
        ),
        expected=(Expected(kind="duplicate_index", columns=(("a",),)),),
    ),
    Case(
        name="f_unused_gin",
        setup=table(
            "doc jsonb not null",
            "jsonb_build_object('a', g, 'b', md5(g::text))",
            "create index {t}_doc on {t} using gin (doc)",
        ),
        traffic=(Traffic(sql="select doc from {t} where id = $1", args=lambda n: (n,)),),
        expected=(Expected(kind="unused_index", columns=(("doc",),)),),
    ),
    Case(
        name="f_key_of_two",
        setup="create table {t}_owner (a int, b int, primary key (a, b));"
        "insert into {t}_owner select g / 50, g % 50 from generate_series(1, 3000) g;"
        + table(
            "a int not null, b int not null, foreign key (a, b) references {t}_owner on delete cascade",
            "(g % 2500 + 1) / 50, (g % 2500 + 1) % 50",
        ),
        traffic=(Traffic(sql="delete from {t}_owner where a = $1 and b = $2", args=lambda n: (59, n)),),
        expected=(Expected(kind="foreign_key", columns=(("a", "b"), ("b", "a"))),),
    ),
    Case(
        name="f_loop_two_keys",
        setup=table("kind int not null, name text not null", "g % 5, 'n' || g", rows=4000),
        traffic=(
            Traffic(
                sql="select name from {t} where id = $1 and kind = $2",
                args=lambda n: (n % 4000, n % 5),
                calls=6,
                loop="service",
            ),
        ),
        expected=(Expected(kind="repeated_statement"),),
    ),
    Case(
        name="f_loop_insert",
        setup=table("name text not null", "'n' || g", rows=4000),
        traffic=(
            Traffic(
                sql="insert into {t} (id, name) values ($1, $2)",
                args=lambda n: (n + 10_000, "x"),
                calls=6,
                loop="sequence",
            ),
        ),
        expected=(Expected(kind="repeated_statement"),),
    ),
    Case(
        name="f_deep_offset_filtered",
        setup=table("kind int not null, body text", "g % 2, filler"),
        traffic=(
            Traffic(
                sql="select id, body from {t} where kind = $1 order by id desc offset $2 limit $3",
                args=lambda n: (n % 2, n * 700, 20),
            ),
        ),
        expected=(Expected(kind="deep_offset"),),
    ),
    # -- innocent
    Case(
        name="f_ok_either_key",
        setup=table("body text", "filler"),
        traffic=(Traffic(sql="select body from {t} where id = $1 or id = $2", args=lambda n: (n, n + 9)),),
    ),
    Case(
        name="f_ok_wider_index",
        setup=table(
            "a int not null, b int not null, c int not null",
            "g % 50, g % 60, g",
            "create index {t}_abc on {t} (a, b, c)",
        ),
        traffic=(Traffic(sql="select id from {t} where a = $1 and b = $2", args=lambda n: (n, n)),),
    ),
    Case(
        name="f_ok_counts",
        setup=table("state text not null", "(array['a','b','c'])[g % 3 + 1]"),
        traffic=(Traffic(sql="select count(*) filter (where state = 'a'), count(*) from {t}", calls=8),),
    ),
    Case(
        name="f_ok_upsert",
        setup=table("seen int not null", "0"),
        traffic=(
            Traffic(
                sql="insert into {t} (id, seen) values ($1, 1)"
                " on conflict (id) do update set seen = {t}.seen + 1",
                args=lambda n: (n + 1,),
            ),
        ),
    ),
    Case(
        name="f_ok_any_rows",
        setup=table("body text", "filler"),
        traffic=(Traffic(sql="select id, body from {t} limit 10"),),
    ),
    Case(
        name="f_ok_begins_with",
        setup=table(
            "name text not null", "md5(g::text)", "create index {t}_name on {t} (name text_pattern_ops)"
        ),
        traffic=(Traffic(sql="select id from {t} where name like $1", args=lambda n: (f"{n:04x}%",)),),
    ),
    Case(
        name="f_ok_not_gone",
        setup=table(
            "owner int not null, gone timestamptz",
            f"g % 3000, case when g % 40 = 0 then {NOW} end",
            "create index {t}_owner_used on {t} (owner)",
        ),
        traffic=(Traffic(sql="select id from {t} where owner = $1 and gone is null", args=lambda n: (n,)),),
    ),
    Case(
        name="f_ok_unique_expression",
        setup=table("email text not null", "'U' || g", "create unique index {t}_email on {t} (lower(email))"),
        traffic=(Traffic(sql="select email from {t} where id = $1", args=lambda n: (n,)),),
    ),
    Case(
        name="f_ok_two_predicates",
        setup=table(
            "owner int not null, state text not null",
            "g % 3000, (array['a','b'])[g % 2 + 1]",
            "create index {t}_a on {t} (owner) where state = 'a'",
            "create index {t}_b on {t} (owner) where state = 'b'",
        ),
        traffic=(
            Traffic(sql="select id from {t} where owner = $1 and state = 'a'", args=lambda n: (2 * n,)),
            Traffic(sql="select id from {t} where owner = $1 and state = 'b'", args=lambda n: (2 * n + 1,)),
        ),
    ),
    Case(
        name="f_ok_four_times",
        setup=table("seen int not null", "0", rows=4000),
        traffic=(
            Traffic(
                sql="update {t} set seen = 1 where id = $1",
                args=lambda n: (n % 4000,),
                calls=6,
                loop="thrice",
            ),
        ),
    ),
)
