-- What becomes of an order is decided by its workflow, `flow`; `state` says what it has come to.
-- The release before runs on this, too: `step`, `tries` and `due_at` are its own, and what it has begun has no
-- flow until one of this release adopts it (`adopting.py`). Both go with the release after this one.
alter table orders.placed add column flow uuid;
