-- Where the relay has what writes made stale applied; springtide/cache/_applied.py explains the rows.
-- __schema__ stands for the module's schema. One row per class and never more. It is about this very server.

CREATE TABLE __schema__._applied (
    class text   PRIMARY KEY,
    slots text[] NOT NULL
);
