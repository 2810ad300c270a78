"""The statements of idempotency records, written for one schema; `idempotency.py` explains them."""

from __future__ import annotations

__all__ = ["Sql"]


class Sql:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        table = f"{schema}._idempotency"
        place = "bucket = $1 AND digest = $2"
        # A claim need not survive a crash of the server, which ends the request too: it waits for no disk
        # and no standby.
        quickly = "pg_catalog.set_config('synchronous_commit', 'off', true) = 'off'"
        # The schema is checked to be a plain identifier; everything else is a constant.
        # A conflict alone would wait for the transaction that is finishing the row: look before.
        self.begin = (
            f"INSERT INTO {table} (bucket, digest, fingerprint, claim_id, leased_until, expires_at)"  # noqa: S608
            " SELECT $1, $2, $3, $4, now() + $5::interval, now() + $6::interval"
            f" WHERE {quickly} AND NOT EXISTS (SELECT FROM {table} WHERE {place})"
            " ON CONFLICT (bucket, digest) DO NOTHING"
        )
        answer = "status, headers, body"
        self.see = (
            f"SELECT fingerprint, claim_id, leased_until <= now() AS abandoned, {answer}"  # noqa: S608
            f" FROM {table} WHERE {place}"
        )
        # A row that somebody has locked is being finished at this moment: it is not waited for.
        self.take_over = (
            f"UPDATE {table} SET claim_id = $4, leased_until = now() + $5::interval"  # noqa: S608
            f" WHERE {place} AND claim_id = $3 AND {quickly} AND EXISTS (SELECT FROM {table}"
            f" WHERE {place} AND claim_id = $3 AND status IS NULL AND leased_until <= now()"
            " FOR UPDATE SKIP LOCKED)"
        )
        self.finish = (
            f"UPDATE {table} SET status = $4, headers = $5, body = $6"  # noqa: S608
            f" WHERE {place} AND claim_id = $3 AND status IS NULL"
        )
        self.release = f"DELETE FROM {table} WHERE {place} AND claim_id = $3 AND status IS NULL"  # noqa: S608
        self.lock = f"{self.see} FOR UPDATE"
        # Changes nothing but writes to the log: its commit proves that what came before is durable.
        self.confirm = f"UPDATE {table} SET expires_at = expires_at WHERE {place}"  # noqa: S608
        self.purge = (
            f"DELETE FROM {table} WHERE (bucket, digest) IN (SELECT bucket, digest FROM {table}"  # noqa: S608
            " WHERE expires_at < now() AND leased_until < now() ORDER BY expires_at LIMIT $1"
            " FOR UPDATE SKIP LOCKED)"
        )
