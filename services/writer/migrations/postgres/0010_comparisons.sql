-- Documents in which a comparison has found that HQ and the lake differ. class: missing, stale, extra, moved. Types are empty and times NULL where the
-- document is not there.
CREATE TABLE lake_difference (
    operation_id  TEXT NOT NULL,
    id            TEXT NOT NULL,
    class         TEXT NOT NULL,
    lake_type     TEXT NOT NULL,
    hq_type       TEXT NOT NULL,
    lake_saved_us BIGINT,
    hq_saved_us   BIGINT,
    PRIMARY KEY (operation_id, id)
);
