"""The statements of sessions, written for one schema; `sessions.py` explains them."""

from __future__ import annotations

__all__ = ["Sql"]


class Sql:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        table = f"{schema}.session"
        place = "bucket = $1 AND id = $2"
        alive = "ends_at > now()"
        shown = (
            "id, subject, scopes, previous_subject, previous_scopes, created_at, signed_in_at, seen_at,"
            " expires_at, ends_at"
        )
        # The schema is checked to be a plain identifier; everything else is a constant.
        self.open = (
            f"INSERT INTO {table} (bucket, id, secret, subject, scopes, created_at, signed_in_at, seen_at,"
            " expires_at, ends_at) SELECT $1, $2, $3, $4::bigint, $5, now(),"
            " CASE WHEN $4::bigint IS NOT NULL THEN now() END, now(), now() + $6::interval,"
            f" now() + least($6::interval, $7::interval) RETURNING {shown}"
        )
        self.find = (
            f"SELECT {shown}, secret, previous, coalesce(previous_until > now(), false) AS graceful,"  # noqa: S608
            f" seen_at <= now() - $3::interval AS stale FROM {table} WHERE {place} AND {alive}"
        )
        self.touch = (
            f"UPDATE {table} SET seen_at = now(), ends_at = least(expires_at, now() + $4::interval)"  # noqa: S608
            f" WHERE {place} AND {alive} AND seen_at <= now() - $3::interval"
            " AND pg_catalog.set_config('synchronous_commit', 'off', true) = 'off'"
        )
        # The old cookie keeps its rights for a moment only if they are a visitor's or the same user's.
        kept = "WHEN subject IS NULL OR subject = $5::bigint THEN"
        self.rotate = (
            f"UPDATE {table} SET secret = $4, subject = $5::bigint, scopes = $6,"  # noqa: S608
            f" previous = CASE {kept} secret END, previous_subject = CASE {kept} subject END,"
            f" previous_scopes = CASE {kept} scopes END,"
            f" previous_until = CASE {kept} now() + $9::interval END,"
            " signed_in_at = CASE WHEN $5::bigint IS NOT NULL THEN now() END, seen_at = now(),"
            " expires_at = now() + $7::interval, ends_at = now() + least($7::interval, $8::interval)"
            f" WHERE {place} AND secret = $3 AND {alive} RETURNING {shown}"
        )
        self.revoke = (
            f"DELETE FROM {table} WHERE {place} AND {alive}"  # noqa: S608
            " AND (secret = $3 OR (previous = $3 AND previous_until > now()))"
        )
        self.revoke_handle = f"DELETE FROM {table} WHERE {place} AND subject = $3 AND {alive}"  # noqa: S608
        self.revoke_all = f"DELETE FROM {table} WHERE subject = $1 AND id <> $2"  # noqa: S608
        self.list_of = f"SELECT {shown} FROM {table} WHERE subject = $1 AND {alive}"  # noqa: S608
        self.purge = (
            f"DELETE FROM {table} WHERE (bucket, id) IN (SELECT bucket, id FROM {table}"  # noqa: S608
            " WHERE ends_at < now() ORDER BY ends_at LIMIT $1 FOR UPDATE SKIP LOCKED)"
        )
