-- All times are microseconds since 1970-01-01T00:00:00Z, so that both databases and the queue agree on them.

CREATE TABLE lake_table (
    name                TEXT PRIMARY KEY,
    domain              TEXT NOT NULL,
    kind                TEXT NOT NULL,
    type                TEXT NOT NULL,
    path                TEXT NOT NULL,
    location            TEXT NOT NULL,
    schema              TEXT NOT NULL DEFAULT '',
    version             INTEGER,
    row_count           INTEGER NOT NULL DEFAULT 0,
    files               INTEGER NOT NULL DEFAULT 0,
    bytes               INTEGER NOT NULL DEFAULT 0,
    newest_published_us INTEGER,
    newest_fetched_us   INTEGER,
    last_commit_us      INTEGER,
    created_us          INTEGER NOT NULL,
    UNIQUE (domain, kind, type)
);

-- Ids that left, so that a late row does not bring them back. id_hash is what the writer compares.
CREATE TABLE tombstone (
    domain      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    id_hash     BLOB NOT NULL,
    id          TEXT NOT NULL,
    version_us  INTEGER,
    observed_us INTEGER NOT NULL,
    at_us       INTEGER NOT NULL,
    PRIMARY KEY (domain, kind, id_hash)
);
CREATE INDEX tombstone_age ON tombstone (domain, kind, at_us);

-- fingerprint is made of the content: the same entry twice is one row.
CREATE TABLE quarantine (
    fingerprint  TEXT PRIMARY KEY,
    stage        TEXT NOT NULL,
    reason       TEXT NOT NULL,
    detail       TEXT NOT NULL,
    domain       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    type         TEXT NOT NULL,
    document_id  TEXT NOT NULL,
    payload      BLOB NOT NULL,
    topic        TEXT NOT NULL,
    partition_id INTEGER NOT NULL,
    offset_id    INTEGER NOT NULL,
    published_us INTEGER NOT NULL,
    fetched_us   INTEGER NOT NULL,
    at_us        INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX quarantine_newest ON quarantine (at_us DESC, fingerprint);

-- Who may commit. The epoch grows by one at each change of owner.
CREATE TABLE writer_lease (
    name       TEXT PRIMARY KEY,
    owner      TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    expires_us INTEGER NOT NULL
);
