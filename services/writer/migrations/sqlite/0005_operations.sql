-- Work that was asked for, each in one row from the request to the result. state: pending, running, succeeded, failed, cancelled.
-- to_plan: the plan that it was asked to keep to; plan: the one that it has made or kept to.
CREATE TABLE lake_operation (
    id               TEXT PRIMARY KEY,
    request_id       TEXT NOT NULL UNIQUE,
    kind             TEXT NOT NULL,
    domain           TEXT NOT NULL,
    target_kind      TEXT NOT NULL,
    type             TEXT NOT NULL,
    of_table         INTEGER NOT NULL,
    dry_run          INTEGER NOT NULL DEFAULT 0,
    to_plan          TEXT NOT NULL DEFAULT '',
    state            TEXT NOT NULL,
    since_us         INTEGER NOT NULL,
    reason           TEXT NOT NULL DEFAULT '',
    attempts         INTEGER NOT NULL DEFAULT 0,
    done             INTEGER NOT NULL DEFAULT 0,
    total            INTEGER,
    asked_by         TEXT NOT NULL,
    created_us       INTEGER NOT NULL,
    started_us       INTEGER,
    heartbeat_us     INTEGER,
    finished_us      INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    epoch            INTEGER NOT NULL DEFAULT 0,
    result           TEXT NOT NULL DEFAULT '{}',
    plan             TEXT NOT NULL DEFAULT ''
);
CREATE INDEX lake_operation_newest ON lake_operation (created_us DESC, id);
CREATE INDEX lake_operation_open ON lake_operation (state, created_us);

-- What is paused; the row with empty domain and kind is everything. in_force_us: when the holder of the lease last said that it holds to it.
CREATE TABLE lake_pause (
    domain      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    since_us    INTEGER NOT NULL,
    asked_by    TEXT NOT NULL,
    reason      TEXT NOT NULL,
    in_force_us INTEGER,
    PRIMARY KEY (domain, kind)
);

-- What was asked for by whom, written before it is done.
CREATE TABLE lake_audit (
    id         TEXT PRIMARY KEY,
    at_us      INTEGER NOT NULL,
    asked_by   TEXT NOT NULL,
    call       TEXT NOT NULL,
    target     TEXT NOT NULL,
    request_id TEXT NOT NULL
);
CREATE INDEX lake_audit_newest ON lake_audit (at_us DESC, id);

-- Tables that an operator has dropped, and spaces (whole_space = 1, with an empty type): they are not made anew unless somebody asks for it.
-- files_gone: whether the files of the table are deleted.
CREATE TABLE lake_dropped (
    domain      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    type        TEXT NOT NULL,
    whole_space INTEGER NOT NULL,
    name        TEXT NOT NULL,
    path        TEXT NOT NULL,
    since_us    INTEGER NOT NULL,
    asked_by    TEXT NOT NULL,
    files_gone  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (domain, kind, type, whole_space)
);
