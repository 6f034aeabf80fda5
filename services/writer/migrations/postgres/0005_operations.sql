-- Work that was asked for, each in one row from the request to the result. state: pending, running, succeeded, failed, cancelled.
CREATE TABLE lake_operation (
    id               TEXT PRIMARY KEY,
    request_id       TEXT NOT NULL UNIQUE,
    kind             TEXT NOT NULL,
    domain           TEXT NOT NULL,
    target_kind      TEXT NOT NULL,
    type             TEXT NOT NULL,
    state            TEXT NOT NULL,
    since_us         BIGINT NOT NULL,
    reason           TEXT NOT NULL DEFAULT '',
    attempts         BIGINT NOT NULL DEFAULT 0,
    done             BIGINT NOT NULL DEFAULT 0,
    total            BIGINT,
    asked_by         TEXT NOT NULL,
    created_us       BIGINT NOT NULL,
    started_us       BIGINT,
    heartbeat_us     BIGINT,
    finished_us      BIGINT,
    cancel_requested BIGINT NOT NULL DEFAULT 0,
    epoch            BIGINT NOT NULL DEFAULT 0,
    result           TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX lake_operation_newest ON lake_operation (created_us DESC, id);
CREATE INDEX lake_operation_open ON lake_operation (state, created_us);

-- What is paused; the row with empty domain and kind is everything. in_force_us: when the holder of the lease last said that it holds to it.
CREATE TABLE lake_pause (
    domain      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    since_us    BIGINT NOT NULL,
    asked_by    TEXT NOT NULL,
    reason      TEXT NOT NULL,
    in_force_us BIGINT,
    PRIMARY KEY (domain, kind)
);

-- What was asked for by whom, written before it is done.
CREATE TABLE lake_audit (
    id         TEXT PRIMARY KEY,
    at_us      BIGINT NOT NULL,
    asked_by   TEXT NOT NULL,
    call       TEXT NOT NULL,
    target     TEXT NOT NULL,
    request_id TEXT NOT NULL
);
CREATE INDEX lake_audit_newest ON lake_audit (at_us DESC, id);
