-- What operators have said about single tables, by the name of the table; NULL: as configured. compaction: whether rounds take it in.
CREATE TABLE lake_policy (
    table_name       TEXT PRIMARY KEY,
    deletion_vectors TEXT,
    compaction       BIGINT,
    retention_hours  BIGINT,
    since_us         BIGINT NOT NULL,
    asked_by         TEXT NOT NULL
);
