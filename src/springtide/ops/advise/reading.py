"""What a statement asks of each table: its text, read once. Pure.

A *use* is one table in one query block, with the conditions that AND together there: equality with something
from outside the table, ranges, the order that is wanted and whether only the first rows of it are. Under OR,
and where a column is inside arithmetic or a cast, an index of the usual kind cannot help, so nothing is read;
`_expression` names the few expressions that are keys themselves.
A *slot* says which column a parameter is compared with, so that a typical value can stand in for it.
What cannot be parsed is not guessed at: `read` returns None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from springtide.ops.advise.catalog import Catalog, Table, quoted

__all__ = ["Reading", "Slot", "Use", "read"]

MAX_CHARS = 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Parameter -> what it is compared with. `how`: equal, any, less, more, limit, offset."""

    table: str
    column: str
    how: str
    lowered: bool = False


@dataclass(slots=True, kw_only=True)
class Use:
    """Keys are columns or expressions as SQL. `constants` are keys compared with a literal of the program
    (`is null` counts as one); `order` is (key, descending)."""

    table: Table
    equal: set[str] = field(default_factory=set)
    constants: dict[str, str] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    ranges: list[str] = field(default_factory=list)
    order: list[tuple[str, bool]] = field(default_factory=list)
    limited: bool = False
    columns: set[str] | None = field(default_factory=set)
    """Columns the block reads; None means all of them."""


@dataclass(slots=True, kw_only=True)
class Reading:
    """`kind`: select, insert, update or delete; `target` is the table written, `written` the columns set."""

    kind: str
    uses: list[Use] = field(default_factory=list)
    slots: dict[int, Slot] = field(default_factory=dict)
    parameters: int = 0
    target: Table | None = None
    written: set[str] = field(default_factory=set)
    star: list[Table] = field(default_factory=list)
    skips: bool = False
    order: list[tuple[str, bool]] = field(default_factory=list)
    paged: bool = False
    claims: bool = False
    """It locks rows and skips locked ones: a queue's statement."""
    adds_up: bool = False
    """Its rows are sums over others, so their number says nothing about those it read."""
    tree: exp.Expr | None = None
    opaque: list[tuple[exp.Expr, Slot]] = field(default_factory=list)
    """Sides of ranges that have parameters inside an expression, by the slot that they fill as a whole."""


_COMPARES: dict[type[exp.Expr], str] = {exp.GT: "more", exp.GTE: "more", exp.LT: "less", exp.LTE: "less"}
_FLIPPED = {"more": "less", "less": "more"}


def read(text: str, catalog: Catalog) -> Reading | None:
    if len(text) > MAX_CHARS:
        return None
    try:
        tree = sqlglot.parse_one(text, dialect="postgres")
    except (SqlglotError, RecursionError, ValueError):
        return None
    kinds = {exp.Select: "select", exp.Insert: "insert", exp.Update: "update", exp.Delete: "delete"}
    kind = next((name for type_, name in kinds.items() if isinstance(tree, type_)), None)
    if kind is None and isinstance(tree, exp.SetOperation):
        kind = "select"
    if kind is None:
        return None
    reading = Reading(
        kind=kind,
        parameters=max((n for n, _ in _parameters(tree)), default=0),
        claims=any(lock.args.get("wait") is False for lock in tree.find_all(exp.Lock)),
        adds_up=tree.find(exp.AggFunc, exp.Group, exp.Distinct) is not None,
        tree=tree,
    )
    common = {cte.alias for cte in tree.find_all(exp.CTE)}
    if kind != "select":
        target = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
        if isinstance(target, exp.Table):
            reading.target = _table(target, catalog, common)
    for block in tree.find_all(exp.Select, exp.Update, exp.Delete):
        _block(block, catalog, common, reading)
    if isinstance(tree, exp.Select):
        _top(tree, catalog, common, reading)
    if isinstance(tree, exp.Update):
        reading.written = {
            one.this.name
            for one in tree.expressions
            if isinstance(one, exp.EQ) and isinstance(one.this, exp.Column)
        }
    return reading


def _parameters(tree: exp.Expr) -> Iterator[tuple[int, exp.Expr]]:
    for node in tree.find_all(exp.Parameter):
        if node.name.isdigit():
            yield int(node.name), node


def _table(node: exp.Table, catalog: Catalog, common: set[str]) -> Table | None:
    if not isinstance(node.this, exp.Identifier) or (not node.db and node.name in common):
        return None
    return catalog.find(node.db, node.name)


def _sources(block: exp.Expr, catalog: Catalog, common: set[str]) -> dict[str, Use]:
    """The tables of one block by the name they have in it."""
    found: dict[str, Use] = {}
    nodes: list[exp.Expr | None] = []
    if isinstance(block, exp.Select):
        start = block.args.get("from_") or block.args.get("from")
        nodes.append(start.this if start is not None else None)
    else:
        nodes.append(block.this)
        for key in ("from_", "from", "using"):
            more = block.args.get(key)
            if isinstance(more, list):
                nodes += more
            elif isinstance(more, exp.Expr):
                nodes.append(more.this)
    nodes += [join.this for join in block.args.get("joins") or ()]
    for node in list(nodes):
        if isinstance(node, exp.Table):
            nodes += [join.this for join in node.args.get("joins") or ()]
    for node in nodes:
        if isinstance(node, exp.Table) and (table := _table(node, catalog, common)) is not None:
            found[node.alias_or_name] = Use(table=table)
    return found


def _block(block: exp.Expr, catalog: Catalog, common: set[str], reading: Reading) -> None:
    uses = _sources(block, catalog, common)
    if not uses:
        return
    conditions: list[exp.Expr] = []
    if (where := block.args.get("where")) is not None:
        conditions += _conjuncts(where.this)
    for join in [*(block.args.get("joins") or ()), *_nested_joins(block)]:
        if (on := join.args.get("on")) is not None:
            conditions += _conjuncts(on)
        for column in join.args.get("using") or ():
            for use in uses.values():
                if column.name in use.table.columns:
                    use.joined.add(quoted(column.name))
    for condition in conditions:
        _condition(condition, uses, reading)
    for number, node in _parameters(block):
        parent = node.parent
        if isinstance(parent, exp.Limit):
            reading.slots[number] = Slot(table="", column="", how="limit")
        elif isinstance(parent, exp.Offset):
            reading.slots[number] = Slot(table="", column="", how="offset")
    order = block.args.get("order")
    wanted = [_ordered(one, uses) for one in order.expressions] if order is not None else []
    known = [one for one in wanted if one is not None]
    if known and len(known) == len(wanted) and len({id(use) for use, _, _ in known}) == 1:
        use = known[0][0]
        if not block.args.get("group") and not block.args.get("distinct"):
            use.order = [(key, down) for _, key, down in known]
            use.limited = block.args.get("limit") is not None
    elif not wanted:
        _extreme(block, uses)
    for use in uses.values():
        _columns(block, use, uses)
    reading.uses += uses.values()


def _extreme(block: exp.Expr, uses: dict[str, Use]) -> None:
    """min(x) and max(x) of all rows are the first ones in the order of x."""
    if not isinstance(block, exp.Select) or block.args.get("group"):
        return
    asked = [one for item in block.expressions for one in item.find_all(exp.AggFunc, exp.Column)]
    inside = [one for one in asked if isinstance(one, exp.Min | exp.Max)]
    found = [_key(one.this, uses) for one in inside]
    if not found or len(asked) != 2 * len(inside) or found[0] is None:
        return
    use, key, _, _ = found[0]
    if all(one is not None and one[0] is use and one[1] == key for one in found):
        use.order = [(key, isinstance(inside[0], exp.Max))]
        use.limited = True


def _nested_joins(block: exp.Expr) -> list[exp.Expr]:
    start = block.args.get("from_") or block.args.get("from")
    node = start.this if start is not None else block.this
    return list(node.args.get("joins") or ()) if isinstance(node, exp.Table) else []


def _conjuncts(node: exp.Expr) -> list[exp.Expr]:
    node = node.unnest()
    if isinstance(node, exp.And):
        return _conjuncts(node.left) + _conjuncts(node.right)
    return [node]


def _owner(column: exp.Column, uses: dict[str, Use]) -> Use | None:
    if column.table:
        return uses.get(column.table)
    owners = [use for use in uses.values() if column.name in use.table.columns]
    return owners[0] if len(owners) == 1 else None


def _key(node: exp.Expr, uses: dict[str, Use]) -> tuple[Use, str, exp.Column, bool] | None:
    """The table, the key as SQL, its column, and whether it is lower(column)."""
    node = node.unnest()
    if isinstance(node, exp.Column):
        use = _owner(node, uses)
        if use is None or node.name not in use.table.columns:
            return None
        return use, quoted(node.name), node, False
    if isinstance(node, exp.Lower | exp.Upper) and isinstance(node.this, exp.Column):
        inner = _key(node.this, uses)
        if inner is not None:
            name = "lower" if isinstance(node, exp.Lower) else "upper"
            return inner[0], f"{name}({inner[1]})", inner[2], True
    return None


def _expression(node: exp.Expr, uses: dict[str, Use]) -> tuple[Use, str] | None:
    """A key that always has the same value for the same row, whoever asks and wherever: a text out of a
    document, and the day of a moment in a named time zone."""
    node = node.unnest()
    columns = list(node.find_all(exp.Column))
    if len(columns) != 1 or (found := _key(columns[0], uses)) is None or next(_parameters(node), None):
        return None
    use, column, bare, _ = found
    type_ = use.table.columns[bare.name].type
    if isinstance(node, exp.JSONExtractScalar) and type_ in ("json", "jsonb"):
        copy = node.copy()
        for one in copy.find_all(exp.Column):
            one.set("table", None)
        return use, f"({copy.sql(dialect='postgres')})"
    if isinstance(node, exp.Cast) and node.to.this is exp.DType.DATE:
        moment = node.this.unnest()
        zone = moment.args.get("zone") if isinstance(moment, exp.AtTimeZone) else None
        if (
            isinstance(zone, exp.Literal)
            and moment.this.unnest() is bare
            and type_.endswith("with time zone")
        ):
            return use, f"(({column} AT TIME ZONE {zone.sql(dialect='postgres')})::date)"
    return None


def _given(node: exp.Expr) -> bool:
    """Whether it is a parameter, or computed from parameters alone."""
    return next(_parameters(node), None) is not None and not node.find(exp.Column, exp.Select)


def _outside(node: exp.Expr, use: Use, uses: dict[str, Use]) -> bool:
    """Whether nothing in `node` depends on the row of `use`; a name of an outer block does not."""
    return all(
        (column.table and column.table not in uses) or _owner(column, uses) not in (use, None)
        for column in node.find_all(exp.Column)
    )


def _literal(node: exp.Expr) -> str | None:
    node = node.unnest()
    if isinstance(node, exp.Cast):
        node = node.this
    if isinstance(node, exp.Literal | exp.Boolean):
        return node.sql(dialect="postgres")
    return None


def _condition(node: exp.Expr, uses: dict[str, Use], reading: Reading) -> None:
    if isinstance(node, exp.EQ | exp.NullSafeEQ):
        for side, other in ((node.left, node.right), (node.right, node.left)):
            if (found := _key(side, uses)) is not None:
                _equal(found, other, uses, reading)
            elif (made := _expression(side, uses)) is not None and _given(other):
                made[0].equal.add(made[1])
    elif isinstance(node, exp.In):
        if (found := _key(node.this, uses)) is not None:
            _member(found, node, uses, reading)
    elif isinstance(node, exp.Is):
        if (found := _key(node.this, uses)) is not None and isinstance(node.expression, exp.Null):
            found[0].constants[found[1]] = "null"
        elif found is not None and isinstance(node.expression, exp.Boolean):
            found[0].constants[found[1]] = node.expression.sql(dialect="postgres")
    elif isinstance(node, exp.Not):
        inner = node.this.unnest()
        if isinstance(inner, exp.Is) and isinstance(inner.expression, exp.Null):
            if (found := _key(inner.this, uses)) is not None:
                found[0].constants[found[1]] = "not null"
        elif isinstance(inner, exp.Column) and (found := _key(inner, uses)) is not None:
            found[0].constants[found[1]] = "FALSE"
    elif isinstance(node, exp.Column):
        if (found := _key(node, uses)) is not None:
            found[0].constants[found[1]] = "TRUE"
    elif isinstance(node, exp.Between):
        if (found := _key(node.this, uses)) is not None:
            _range(found, node.args["low"], "more", uses, reading)
            _range(found, node.args["high"], "less", uses, reading)
    elif type(node) in _COMPARES:
        _compare(node, uses, reading)


def _compare(node: exp.Expr, uses: dict[str, Use], reading: Reading) -> None:
    how = _COMPARES[type(node)]
    left, right = node.this.unnest(), node.expression.unnest()
    if isinstance(left, exp.Tuple) and isinstance(right, exp.Tuple):  # a page after a cursor
        left, right = left.expressions[0], right.expressions[0]
    if (found := _key(left, uses)) is not None:
        _range(found, right, how, uses, reading)
    if (found := _key(right, uses)) is not None:
        _range(found, left, _FLIPPED[how], uses, reading)


def _slot(found: tuple[Use, str, exp.Column, bool], node: exp.Expr, how: str, reading: Reading) -> None:
    for number, _ in _parameters(node):
        reading.slots.setdefault(
            number, Slot(table=found[0].table.key, column=found[2].name, how=how, lowered=found[3])
        )


def _equal(
    found: tuple[Use, str, exp.Column, bool], other: exp.Expr, uses: dict[str, Use], reading: Reading
) -> None:
    use, key, _, _ = found
    if isinstance(other, exp.Any):
        if _outside(other, use, uses):
            use.equal.add(key)
            _slot(found, other, "any", reading)
        return
    literal = _literal(other)
    if literal is not None:
        use.constants[key] = literal
    elif not _outside(other, use, uses):
        return
    elif list(other.find_all(exp.Column)):
        use.joined.add(key)
    elif not other.find(exp.Select):
        use.equal.add(key)
        _slot(found, other, "equal", reading)


def _member(
    found: tuple[Use, str, exp.Column, bool], node: exp.In, uses: dict[str, Use], reading: Reading
) -> None:
    use, key, _, _ = found
    if node.args.get("query") is not None:
        use.joined.add(key)
        return
    if len(node.expressions) == 1 and (literal := _literal(node.expressions[0])) is not None:
        use.constants[key] = literal
    elif all(_outside(one, use, uses) for one in node.expressions):
        use.equal.add(key)
        for one in node.expressions:
            _slot(found, one, "equal", reading)


def _range(
    found: tuple[Use, str, exp.Column, bool],
    other: exp.Expr,
    how: str,
    uses: dict[str, Use],
    reading: Reading,
) -> None:
    use, key, _, _ = found
    if _outside(other, use, uses) and not other.find(exp.Select):
        if key not in use.ranges:
            use.ranges.append(key)
        inside = [number for number, _ in _parameters(other)]
        if isinstance(other.unnest(), exp.Parameter | exp.Cast):
            _slot(found, other, how, reading)
        elif inside:
            slot = Slot(table=use.table.key, column=found[2].name, how=how)
            reading.opaque.append((other, slot))
            for number in inside:
                reading.slots.setdefault(number, slot)


def _ordered(node: exp.Expr, uses: dict[str, Use]) -> tuple[Use, str, bool] | None:
    if not isinstance(node, exp.Ordered) or (found := _key(node.this, uses)) is None:
        return None
    return found[0], found[1], bool(node.args.get("desc"))


def _columns(block: exp.Expr, use: Use, uses: dict[str, Use]) -> None:
    if not isinstance(block, exp.Select):
        use.columns = None
        return
    for one in block.expressions:
        if isinstance(one, exp.Star) or (isinstance(one, exp.Column) and isinstance(one.this, exp.Star)):
            use.columns = None
            return
    assert use.columns is not None
    for column in block.find_all(exp.Column):
        if _owner(column, uses) is use:
            use.columns.add(column.name)


def _top(tree: exp.Select, catalog: Catalog, common: set[str], reading: Reading) -> None:
    """What the whole statement sends back, and in which pages."""
    sources = _sources(tree, catalog, common)
    for one in tree.expressions:
        if isinstance(one, exp.Star):
            reading.star += [use.table for use in sources.values()]
        elif isinstance(one, exp.Column) and isinstance(one.this, exp.Star) and one.table in sources:
            reading.star.append(sources[one.table].table)
    reading.skips = tree.args.get("offset") is not None
    reading.paged = tree.args.get("limit") is not None
    order = tree.args.get("order")
    if order is not None:
        wanted = [_ordered(one, sources) for one in order.expressions]
        reading.order = [(one[1], one[2]) for one in wanted if one is not None]
