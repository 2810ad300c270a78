"""The statements of reservations, written for one schema; `reservations.py` explains them."""

from __future__ import annotations

from functools import lru_cache

from springtide.db import _sql

__all__ = ["Sql", "joined"]


class Sql:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        table = f"{schema}._reservation"
        outcomes = f"{schema}._reservation_outcome"
        place = "bucket = $1 AND kind = $2 AND value = $3"
        columns = "bucket, kind, value, owner_id, claim_id, state"
        # The schema is checked to be a plain identifier; everything else is a constant.
        self.insert = (
            f"INSERT INTO {table} ({columns}, claimed_at) VALUES ($1, $2, $3, $4, $5, $6, now())"  # noqa: S608
            " ON CONFLICT (bucket, kind, value) DO NOTHING RETURNING owner_id"
        )
        self.see = (
            f"SELECT {columns}, claimed_at < now() - $4::interval AS abandoned FROM {table} WHERE {place}"  # noqa: S608
            " FOR UPDATE"
        )
        self.held = (
            "SELECT held.owner_id AS _owner_id, held.claim_id AS _claim_id, held.state AS _state, owned.*"  # noqa: S608
            f" FROM {table} AS held LEFT JOIN LATERAL"
            " (SELECT true AS _there, found.* FROM (\n{statement}\n) AS found LIMIT 1) AS owned ON true"
            " WHERE held.bucket = $1 AND held.kind = $2 AND held.value = $3"
        )
        self.look = f"SELECT owner_id, claim_id, state FROM {table} WHERE {place}"  # noqa: S608
        self.keeping = (
            f"UPDATE {table} SET state = 'keeping', claim_id = $4, claimed_at = now() WHERE {place}"  # noqa: S608
        )
        self.releasing = (
            f"UPDATE {table} SET state = 'releasing', claim_id = $5, claimed_at = now()"  # noqa: S608
            f" WHERE {place} AND owner_id = $4 AND state = 'confirmed'"
        )
        self.release = f"DELETE FROM {table} WHERE {place} AND owner_id = $4 AND state = 'confirmed'"  # noqa: S608
        self.commit = (
            f"INSERT INTO {outcomes} (bucket, claim_id, committed, at) SELECT $1, $2, true, now()"
            " WHERE now() < $3::timestamptz + $4::interval ON CONFLICT (bucket, claim_id) DO NOTHING"
        )
        self.abort = (
            f"INSERT INTO {outcomes} (bucket, claim_id, committed, at) VALUES ($1, $2, false, now())"  # noqa: S608
            " ON CONFLICT (bucket, claim_id) DO NOTHING"
        )
        self.outcome = f"SELECT committed FROM {outcomes} WHERE bucket = $1 AND claim_id = $2"  # noqa: S608
        undecided = "claim_id = $1 AND state <> 'confirmed'"
        self.committed = (
            f"DELETE FROM {table} WHERE {undecided} AND state = 'releasing'",  # noqa: S608
            f"UPDATE {table} SET state = 'confirmed' WHERE {undecided}",  # noqa: S608
        )
        self.aborted = (
            f"DELETE FROM {table} WHERE {undecided} AND state = 'pending'",  # noqa: S608
            f"UPDATE {table} SET state = 'confirmed' WHERE {undecided}",  # noqa: S608
        )
        self.undecided = (
            f"SELECT {columns}, true AS abandoned FROM {table} WHERE state <> 'confirmed'"  # noqa: S608
            " AND claimed_at < now() - $1::interval AND (bucket, kind, value) > ($3, $4, $5)"
            " ORDER BY bucket, kind, value LIMIT $2"
        )
        self.outcomes_before = (
            f"SELECT claim_id FROM {outcomes} WHERE at < now() - $1::interval ORDER BY at LIMIT $2"  # noqa: S608
        )
        self.referred = (
            f"SELECT DISTINCT claim_id FROM {table} WHERE claim_id = ANY($1) AND state <> 'confirmed'"  # noqa: S608
        )
        self.forget = f"DELETE FROM {outcomes} WHERE claim_id = ANY($1)"  # noqa: S608


@lru_cache(maxsize=256)
def joined(held: str, sql: str) -> str:
    """`sql`, about the entity with bucket $1 and id $2, for the owner of a value: `held` is `Sql.held`.

    The value's bucket, kind and value come first, so `sql`'s own $3 is the fourth argument.
    """
    owner = {1: "(held.owner_id & 1023)::smallint", 2: "held.owner_id"}
    parts, at = [], 0
    for token in _sql.tokens(sql):
        if token.kind is _sql.Kind.PARAMETER:
            number = int(token.text[1:])
            parts += [sql[at : token.start], owner.get(number, f"${number + 1}")]
            at = token.end
    return held.replace("{statement}", "".join([*parts, sql[at:]]))
