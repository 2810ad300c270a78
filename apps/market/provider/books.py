"""What the provider knows: charges, refunds, dead keys and events, as its journal's records build it up.

A key names one charge for ever: the same body again is the same charge, another body is refused. A key that
was cancelled before it was used can never charge. A record is decided first, journaled second, applied third;
only then it is answered. Pure but for the ids.
"""

from __future__ import annotations

import secrets
from typing import Any

__all__ = ["Books", "Record", "Refusal"]

Record = dict[str, Any]


class Refusal(Exception):
    """The request is understood and refused: an HTTP status and a code for programs."""

    def __init__(self, status: int, code: str) -> None:
        self.status = status
        self.code = code
        super().__init__(f"{status} {code}")


class Books:
    def __init__(self) -> None:
        self.charges: dict[str, Record] = {}
        self.refunds: dict[str, Record] = {}
        self.dead: set[str] = set()
        self.undelivered: dict[str, Record] = {}
        self._keys_by_id: dict[str, str] = {}

    def apply(self, record: Record) -> None:
        kind = record["op"]
        if kind == "charge":
            charge = dict(record["charge"])
            self.charges[charge["key"]] = charge
            self._keys_by_id[charge["id"]] = charge["key"]
        elif kind == "refund":
            refund = record["refund"]
            self.refunds[refund["key"]] = refund
            self.by_id(refund["charge"])["refunded"] += refund["amount"]
        elif kind == "cancel":
            self.dead.add(record["key"])
        elif kind == "delivered":
            self.undelivered.pop(record["event"], None)
        else:
            raise ValueError(f"a journal has charge, refund, cancel and delivered records, got {kind!r}")
        if "event" in record and kind in ("charge", "refund"):
            self.undelivered[record["event"]["id"]] = record["event"]

    def by_id(self, id: str) -> Record:
        """Raises Refusal 404."""
        try:
            return self.charges[self._keys_by_id[id]]
        except KeyError:
            raise Refusal(404, "unknown_charge") from None

    def charging(self, key: str, wanted: Record, declined: str | None, now: float) -> Record | None:
        """The record of a new charge; None when the key has made this very charge before. Raises Refusal."""
        known = self.charges.get(key)
        if known is not None:
            _same(known, wanted)
            return None
        if key in self.dead:
            raise Refusal(409, "key_cancelled")
        charge = {
            "id": f"ch_{secrets.token_hex(12)}",
            "key": key,
            **wanted,
            "status": "succeeded" if declined is None else "declined",
            "decline_code": declined,
            "refunded": 0,
            "created": now,
        }
        return {"op": "charge", "charge": charge, "event": _event(f"charge.{charge['status']}", charge, now)}

    def refunding(self, key: str, wanted: Record, now: float) -> Record | None:
        """As `charging`. Refuses what is more than the charge has left."""
        known = self.refunds.get(key)
        if known is not None:
            _same(known, wanted)
            return None
        charge = self.by_id(wanted["charge"])
        if charge["status"] != "succeeded":
            raise Refusal(422, "charge_not_succeeded")
        if charge["currency"] != wanted["currency"]:
            raise Refusal(422, "currency_mismatch")
        if charge["refunded"] + wanted["amount"] > charge["amount"]:
            raise Refusal(422, "amount_exceeds_charge")
        refund = {
            "id": f"re_{secrets.token_hex(12)}",
            "key": key,
            **wanted,
            "status": "succeeded",
            "created": now,
        }
        return {"op": "refund", "refund": refund, "event": _event("refund.succeeded", refund, now)}

    def cancelling(self, key: str) -> Record | None:
        """The record that makes an unused key dead; None when it is dead or has made a charge already."""
        return None if key in self.dead or key in self.charges else {"op": "cancel", "key": key}


def _same(known: Record, wanted: Record) -> None:
    if any(known[name] != value for name, value in wanted.items()):
        raise Refusal(422, "key_reused")


def _event(kind: str, subject: Record, now: float) -> Record:
    return {"id": f"evt_{secrets.token_hex(12)}", "type": kind, "created": now, "data": dict(subject)}
