"""Tables, columns, indexes and their use, as the server knows them; values, read once.

Statistics are those of ANALYZE: a column that was never analyzed has none, and nothing is concluded from it.
A table that somebody has locked exclusively is left out: describing its indexes would wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["AGE", "Catalog", "Column", "ForeignKey", "Index", "Table", "read_catalog"]

MAX_PARTS = 100
"""A table of more partitions, or of parts that have parts, is not looked at as a whole."""

OWN_SCHEMAS = ("pg_catalog", "information_schema", "pg_toast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`distinct` is a number of values, 0 when unknown; `common` are values with their frequency."""

    name: str
    type: str
    width: int = 0
    distinct: float = 0.0
    null_share: float = 0.0
    common: tuple[tuple[str, float], ...] = ()
    bounds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """`keys` are columns or expressions as SQL, with their direction where it is not the usual one.

    `same` is equal for two indexes that serve the same (classes, collations, directions, predicate).
    `needed` says what it is for beside reading: primary key, constraint, partitioned index (a part of one,
    which alone can be dropped), replica identity, foreign key (one refers to it) or unique; else "".
    `rule` is what it lets nobody write: "" nothing, else how it is unique. `definition` makes it again.
    """

    name: str
    keys: tuple[str, ...]
    include: tuple[str, ...] = ()
    method: str = "btree"
    predicate: str = ""
    needed: str = ""
    rule: str = ""
    definition: str = ""
    valid: bool = True
    scans: int = 0
    bytes: int = 0
    same: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Equal only to itself: there is one per catalog. `parts` are the partitions of a partitioned table, each
    its schema and its whole name as SQL; `split_by` the columns that say which part a row is in."""

    schema: str
    name: str
    rows: float
    pages: int
    columns: Mapping[str, Column]
    indexes: tuple[Index, ...]
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    read: int = 0
    parts: tuple[tuple[str, str], ...] = ()
    split_by: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    name: str
    table: str
    columns: tuple[str, ...]
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """`age` is for how many seconds the use of indexes has been counted, at least."""

    version: int
    tables: Mapping[str, Table]
    foreign_keys: tuple[ForeignKey, ...]
    path: tuple[str, ...]
    age: float
    locked: tuple[str, ...] = ()

    def find(self, schema: str, name: str) -> Table | None:
        """The table that a statement means by this name; `schema` empty means by the search path."""
        for at in (schema,) if schema else self.path:
            if (table := self.tables.get(f"{at}.{name}")) is not None:
                return table
        return None


def quoted(name: str) -> str:
    """An identifier as SQL: bare when it may be."""
    bare = name.isascii() and name.replace("_", "a").isalnum() and name == name.lower()
    if bare and not name[0].isdigit() and name not in RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


RESERVED = frozenset(
    [
        "all",
        "analyse",
        "analyze",
        "and",
        "any",
        "array",
        "as",
        "asc",
        "both",
        "case",
        "cast",
        "check",
        "collate",
        "column",
        "constraint",
        "create",
        "default",
        "desc",
        "distinct",
        "do",
        "else",
        "end",
        "except",
        "false",
        "fetch",
        "for",
        "foreign",
        "from",
        "grant",
        "group",
        "having",
        "in",
        "initially",
        "into",
        "limit",
        "not",
        "null",
        "offset",
        "on",
        "only",
        "or",
        "order",
        "placing",
        "primary",
        "references",
        "select",
        "some",
        "table",
        "then",
        "to",
        "true",
        "union",
        "unique",
        "user",
        "using",
        "when",
        "where",
        "window",
        "with",
    ]
)

_TABLES = """
select c.oid::bigint as oid, n.nspname as schema, c.relname as name, greatest(c.reltuples, 0)::float8 as rows,
       c.relpages::bigint as pages,
       coalesce(s.n_tup_ins, 0) as inserted, coalesce(s.n_tup_upd, 0) as updated,
       coalesce(s.n_tup_del, 0) as deleted, coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0) as read,
       '{}'::text[] as parts, '{}'::text[] as split_by
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_user_tables s on s.relid = c.oid
where c.relkind in ('r', 'm') and c.relpersistence <> 't' and n.nspname <> all($1) and n.nspname !~ '^pg_'
union all
select c.oid::bigint, n.nspname, c.relname, sum(greatest(p.reltuples, 0))::float8, sum(p.relpages)::bigint,
       sum(coalesce(s.n_tup_ins, 0))::bigint, sum(coalesce(s.n_tup_upd, 0))::bigint,
       sum(coalesce(s.n_tup_del, 0))::bigint, sum(coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0))::bigint,
       array_agg(array[format('%I', pn.nspname), format('%I.%I', pn.nspname, p.relname)]
                 order by pn.nspname, p.relname),
       array(select a.attname::text from pg_partitioned_table k
             join pg_attribute a on a.attrelid = k.partrelid and a.attnum = any(k.partattrs::int2[])
             where k.partrelid = c.oid)
from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_inherits i on i.inhparent = c.oid
join pg_class p on p.oid = i.inhrelid join pg_namespace pn on pn.oid = p.relnamespace
left join pg_stat_user_tables s on s.relid = p.oid
where c.relkind = 'p' and n.nspname <> all($1) and n.nspname !~ '^pg_'
group by c.oid, n.nspname, c.relname having bool_and(p.relkind = 'r') and count(*) <= $2
"""

_LOCKED = """
select relation::bigint as oid from pg_locks
where locktype = 'relation' and mode = 'AccessExclusiveLock' and granted and pid <> pg_backend_pid()
"""

_COLUMNS = """
select a.attrelid::bigint as oid, a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
       s.avg_width as width, s.n_distinct as distinct, s.null_frac as null_share,
       s.most_common_vals::text::text[] as common, s.most_common_freqs as shares,
       s.histogram_bounds::text::text[] as bounds
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
left join pg_stats s on s.schemaname = n.nspname and s.tablename = c.relname and s.attname = a.attname
where a.attrelid = any($1::bigint[]::oid[]) and a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum
"""

_INDEXES = """
select i.indrelid::bigint as oid, c.relname as name, am.amname as method, i.indisunique as unique,
       i.indisprimary as primary, i.indisvalid as valid, i.indisreplident as identity,
       exists (select from pg_constraint k
               where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x')) as constrains,
       i.indisexclusion as excludes, i.indimmediate as immediate,
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) as nulls_equal,
       exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype = 'f') as referenced,
       c.relkind = 'I' or exists (select from pg_inherits h where h.inhrelid = i.indexrelid) as attached,
       pg_get_indexdef(i.indexrelid) as definition,
       array(select pg_get_indexdef(i.indexrelid, k, true)
             || case when i.indoption[k - 1] & 1 = 1 then ' desc' else '' end
             || case when i.indoption[k - 1] in (1, 2) then ' nulls other' else '' end
             from generate_series(1, i.indnkeyatts) k order by k) as keys,
       array(select pg_get_indexdef(i.indexrelid, k, true)
             from generate_series(i.indnkeyatts + 1, i.indnatts) k order by k) as include,
       case when i.indpred is null then ''
            else substring(pg_get_indexdef(i.indexrelid) from ' WHERE (.*)$') end as predicate,
       i.indclass::text as classes, i.indcollation::text as collations,
       coalesce(s.idx_scan, 0) as scans, c.relpages::bigint * current_setting('block_size')::int as bytes
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am am on am.oid = c.relam
left join pg_stat_user_indexes s on s.indexrelid = i.indexrelid
where i.indrelid = any($1::bigint[]::oid[]) order by c.relname
"""

_FOREIGN_KEYS = """
select k.conname as name, k.conrelid::bigint as oid, k.confrelid::bigint as target,
       array(select a.attname::text from unnest(k.conkey) with ordinality as u(n, at)
             join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.n order by u.at) as columns
from pg_constraint k where k.contype = 'f' and k.conparentid = 0 and k.conrelid = any($1::bigint[]::oid[])
"""

AGE = """
select extract(epoch from now() - coalesce(d.stats_reset, pg_postmaster_start_time()))::float8
from pg_stat_database d where d.datname = current_database()
"""


async def read_catalog(connection: Any) -> Catalog:
    found = {row["oid"]: row for row in await connection.fetch(_TABLES, list(OWN_SCHEMAS), MAX_PARTS)}
    held = {row["oid"] for row in await connection.fetch(_LOCKED)}
    tables = {oid: row for oid, row in found.items() if oid not in held}
    oids = list(tables)
    columns: dict[int, dict[str, Column]] = {oid: {} for oid in oids}
    for row in await connection.fetch(_COLUMNS, oids):
        columns[row["oid"]][row["name"]] = _column(row, tables[row["oid"]]["rows"])
    indexes: dict[int, list[Index]] = {oid: [] for oid in oids}
    for row in await connection.fetch(_INDEXES, oids):
        indexes[row["oid"]].append(_index(row))
    made = {
        oid: Table(
            schema=row["schema"],
            name=row["name"],
            rows=row["rows"],
            pages=row["pages"],
            columns=columns[oid],
            indexes=tuple(indexes[oid]),
            inserted=row["inserted"],
            updated=row["updated"],
            deleted=row["deleted"],
            read=row["read"],
            parts=tuple((schema, name) for schema, name in row["parts"]),
            split_by=frozenset(row["split_by"]),
        )
        for oid, row in tables.items()
    }
    keys = tuple(
        ForeignKey(
            name=row["name"],
            table=made[row["oid"]].key,
            columns=tuple(row["columns"]),
            target=made[row["target"]].key,
        )
        for row in await connection.fetch(_FOREIGN_KEYS, oids)
        if row["target"] in made
    )
    return Catalog(
        version=int(await connection.fetchval("show server_version_num")) // 10000,
        tables={table.key: table for table in made.values()},
        foreign_keys=keys,
        path=tuple(await connection.fetchval("select current_schemas(false)::text[]")),
        age=await connection.fetchval(AGE) or 0.0,
        locked=tuple(f"{row['schema']}.{row['name']}" for oid, row in found.items() if oid in held),
    )


def _column(row: Mapping[str, Any], rows: float) -> Column:
    distinct = row["distinct"] or 0.0
    return Column(
        name=row["name"],
        type=row["type"],
        width=row["width"] or 0,
        distinct=-distinct * rows if distinct < 0 else distinct,
        null_share=row["null_share"] or 0.0,
        common=tuple(zip(row["common"] or (), row["shares"] or (), strict=False)),
        bounds=tuple(row["bounds"] or ()),
    )


def _index(row: Mapping[str, Any]) -> Index:
    roles = {
        "primary key": row["primary"],
        "constraint": row["constrains"] or row["excludes"],
        "partitioned index": row["attached"],
        "replica identity": row["identity"],
        "foreign key": row["referenced"],
        "unique": row["unique"],
    }
    rule = ""
    if row["unique"]:
        rule = "unique" + (", nulls too" if row["nulls_equal"] else "")
        rule += "" if row["immediate"] else ", deferrable"
    return Index(
        name=row["name"],
        keys=tuple(row["keys"]),
        include=tuple(row["include"]),
        method=row["method"],
        predicate=row["predicate"],
        needed=next((role for role, has in roles.items() if has), ""),
        rule=rule,
        definition=row["definition"],
        valid=row["valid"],
        scans=row["scans"],
        bytes=row["bytes"],
        same=tuple(zip(row["classes"].split(), row["collations"].split(), strict=False)),
    )
