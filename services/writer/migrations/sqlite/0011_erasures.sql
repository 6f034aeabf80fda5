-- Records that were erased, each by the SHA-256 of project, kind and id in hexadecimal digits: the id itself is not kept. They are kept out while
-- allowed_us is NULL. erased_us: when nothing of it was left; report: what the operation did, as a JSON object of whole numbers.
CREATE TABLE lake_erasure (
    id_hash      TEXT PRIMARY KEY,
    domain       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    since_us     INTEGER NOT NULL,
    asked_by     TEXT NOT NULL,
    operation_id TEXT NOT NULL,
    erased_us    INTEGER,
    report       TEXT NOT NULL DEFAULT '{}',
    allowed_us   INTEGER,
    allowed_by   TEXT NOT NULL DEFAULT ''
);
CREATE INDEX lake_erasure_newest ON lake_erasure (since_us DESC, id_hash);
CREATE INDEX lake_erasure_space ON lake_erasure (domain, kind);
