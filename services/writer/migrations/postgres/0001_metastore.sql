-- All times are microseconds since 1970-01-01T00:00:00Z, so that both databases and the queue agree on them.

CREATE TABLE lake_table (
    name                TEXT PRIMARY KEY,
    domain              TEXT NOT NULL,
    kind                TEXT NOT NULL,
    type                TEXT NOT NULL,
    path                TEXT NOT NULL,
    location            TEXT NOT NULL,
    schema              TEXT NOT NULL DEFAULT '',
    version             BIGINT,
    row_count           BIGINT NOT NULL DEFAULT 0,
    files               BIGINT NOT NULL DEFAULT 0,
    bytes               BIGINT NOT NULL DEFAULT 0,
    newest_published_us BIGINT,
    newest_fetched_us   BIGINT,
    last_commit_us      BIGINT,
    created_us          BIGINT NOT NULL,
    UNIQUE (domain, kind, type)
);

-- Ids that left, so that a late row does not bring them back. id_hash is what the writer compares.
CREATE TABLE tombstone (
    domain      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    id_hash     BYTEA NOT NULL,
    id          TEXT NOT NULL,
    version_us  BIGINT,
    observed_us BIGINT NOT NULL,
    at_us       BIGINT NOT NULL,
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
    payload      BYTEA NOT NULL,
    topic        TEXT NOT NULL,
    partition_id BIGINT NOT NULL,
    offset_id    BIGINT NOT NULL,
    published_us BIGINT NOT NULL,
    fetched_us   BIGINT NOT NULL,
    at_us        BIGINT NOT NULL,
    attempts     BIGINT NOT NULL DEFAULT 1
);
CREATE INDEX quarantine_newest ON quarantine (at_us DESC, fingerprint);

-- Who may commit. The epoch grows by one at each change of owner.
CREATE TABLE writer_lease (
    name       TEXT PRIMARY KEY,
    owner      TEXT NOT NULL,
    epoch      BIGINT NOT NULL,
    expires_us BIGINT NOT NULL
);
