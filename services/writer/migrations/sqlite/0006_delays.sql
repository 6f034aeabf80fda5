-- How long changes took from HQ to readers, over the last minutes before the last commit of a table: percentiles in microseconds, and of how many rows.
ALTER TABLE lake_table ADD COLUMN delay_p50_us BIGINT;
ALTER TABLE lake_table ADD COLUMN delay_p95_us BIGINT;
ALTER TABLE lake_table ADD COLUMN delay_p99_us BIGINT;
ALTER TABLE lake_table ADD COLUMN delay_rows BIGINT;
