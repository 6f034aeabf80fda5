-- What operators have said about single tables, by the name of the table; NULL: as configured. compaction: whether rounds take it in.
CREATE TABLE lake_policy (
    table_name       TEXT PRIMARY KEY,
    deletion_vectors TEXT,
    compaction       BIGINT,
    retention_hours  BIGINT,
    since_us         BIGINT NOT NULL,
    asked_by         TEXT NOT NULL
);

-- Which version a table is to be restored to: its number, or the instant at which it was the newest one, microseconds since 1970.
ALTER TABLE lake_operation ADD COLUMN to_version BIGINT;
ALTER TABLE lake_operation ADD COLUMN to_us BIGINT;
