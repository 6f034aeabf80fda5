//! Names of the writer's metrics. They are a contract with dashboards and alerts: base units, `_total` for counters.

use lake_shared::identity::Kind;
use lake_shared::quarantine::{self, Stage};

/// Counter: documents that fetchers were asked to read from HQ again. Labels `kind`, `cause`.
pub const REQUESTED_TOTAL: &str = "lake_writer_requested_total";
/// Counter: documents of backfills that fetchers have read. Label `kind`.
pub const BACKFILLED_TOTAL: &str = "lake_writer_backfilled_total";
/// Gauge: backfills that are worked on.
pub const BACKFILLS_RUNNING: &str = "lake_writer_backfills_running";
/// Gauge: comparisons with HQ that are worked on.
pub const RECONCILES_RUNNING: &str = "lake_writer_reconciles_running";
/// Counter: documents in which comparisons have found that HQ and the lake differ. Labels `kind`, `class`: `missing`, `stale`, `extra`, `moved`.
pub const DIFFERENCES_TOTAL: &str = "lake_writer_differences_total";
/// Histogram, seconds: one Delta commit, files written included. Label `kind`.
pub const COMMIT_SECONDS: &str = "lake_writer_commit_seconds";
/// Counter: rows that entered a table or replaced an older one. Label `kind`.
pub const ROWS_UPSERTED_TOTAL: &str = "lake_writer_rows_upserted_total";
/// Counter: rows that left a table. Label `kind`.
pub const ROWS_DELETED_TOTAL: &str = "lake_writer_rows_deleted_total";
/// Counter: rows and deletions of erased records that were not let in. Label `kind`.
pub const KEPT_OUT_TOTAL: &str = "lake_writer_kept_out_total";
/// Counter: bytes of data files written. Label `kind`.
pub const BYTES_WRITTEN_TOTAL: &str = "lake_writer_bytes_written_total";
/// Histogram, seconds: one commit of compaction, files written included. Label `kind`.
pub const COMPACTION_SECONDS: &str = "lake_writer_compaction_seconds";
/// Histogram, seconds: how long a commit of compaction kept batches of its space waiting. Label `kind`.
pub const COMPACTION_HOLD_SECONDS: &str = "lake_writer_compaction_hold_seconds";
/// Counter: bytes of data files that compaction wrote. Label `kind`.
pub const COMPACTED_BYTES_TOTAL: &str = "lake_writer_compacted_bytes_total";
/// Counter: superseded and orphaned files deleted. Label `kind`.
pub const DELETED_FILES_TOTAL: &str = "lake_writer_deleted_files_total";
/// Counter: data files that compaction replaced. Label `kind`.
pub const COMPACTED_FILES_TOTAL: &str = "lake_writer_compacted_files_total";
/// Counter: commits that met a commit of another writer, or whose outcome had to be looked up. Label `outcome`.
pub const COMMIT_CONFLICTS_TOTAL: &str = "lake_writer_commit_conflicts_total";
/// Gauge, seconds since 1970: publish time of the newest HQ change that is readable in a table. Label `table`.
pub const FRESHNESS_SECONDS: &str = "lake_writer_table_freshness_timestamp_seconds";
/// Gauge: rows of a table. Label `table`.
pub const TABLE_ROWS: &str = "lake_writer_table_rows";
/// Gauge: replicas that a stage should have, as KEDA was last told. Label `stage`.
pub const SCALING_REPLICAS: &str = "lake_writer_scaling_replicas";
/// Gauge: data files of a table. Label `table`.
pub const TABLE_FILES: &str = "lake_writer_table_files";
/// Gauge: bytes of the data files of a table. Label `table`.
pub const TABLE_BYTES: &str = "lake_writer_table_bytes";
/// Gauge: tables without metrics of their own, as there are more than `tables.metrics_tables_max`.
pub const UNMEASURED_TABLES: &str = "lake_writer_unmeasured_tables";
/// Gauge: tables that cannot be used until an operator repairs them. Their rows go to quarantine.
pub const UNUSABLE_TABLES: &str = "lake_writer_unusable_tables";
/// Gauge: tables that rounds of compaction leave out after a panic.
pub const NOT_COMPACTED_TABLES: &str = "lake_writer_not_compacted_tables";
/// Counter: tables whose transaction log was found to be gone, and which are made anew. Label `kind`.
pub const GONE_TABLES_TOTAL: &str = "lake_writer_gone_tables_total";
/// Gauge: keys held in the key indexes of all spaces.
pub const INDEX_KEYS: &str = "lake_writer_index_keys";
/// Gauge, bytes: messages that wait for their commit, are being committed or are on their way to quarantine.
pub const HELD_BYTES: &str = "lake_writer_held_bytes";
/// Gauge: rows and tombstones that wait for their commit.
pub const HELD_ROWS: &str = "lake_writer_held_rows";
/// Counter: commits of a space that were begun, those tried again not counted. Label `cause`: `rows`, `bytes`, `age`, `memory`, `shutdown`.
pub const FLUSHES_TOTAL: &str = "lake_writer_flushes_total";
/// Counter: commits of a space that failed with passing trouble and are tried again.
pub const FLUSH_RETRIES_TOTAL: &str = "lake_writer_flush_retries_total";
/// Counter: entries stored in quarantine. Label `stage`: `fetcher`, `enricher`, `writer`, `other`.
pub const QUARANTINE_STORED_TOTAL: &str = "lake_writer_quarantine_stored_total";
/// Gauge: 1 while this writer holds the lease, else 0.
pub const LEASE_HELD: &str = "lake_writer_lease_held";
/// Counter: how often this writer lost the lease, or gave way to another one because the queue or the store was missing.
pub const LEASES_LOST_TOTAL: &str = "lake_writer_leases_lost_total";
/// Gauge: tables that are still to be created, altered or dropped in the catalog.
pub const CATALOG_PENDING_TABLES: &str = "lake_writer_catalog_pending_tables";
/// Gauge, seconds: how long the oldest of them waits.
pub const CATALOG_LAG_SECONDS: &str = "lake_writer_catalog_lag_seconds";
/// Counter: rounds that ended as the catalog or the metastore did not answer.
pub const CATALOG_FAILURES_TOTAL: &str = "lake_writer_catalog_failures_total";
/// Counter: entries that left the quarantine because they were too old or too many.
pub const QUARANTINE_DROPPED_TOTAL: &str = "lake_writer_quarantine_dropped_total";
/// Counter: entries that left the quarantine. Label `how`: `replayed` (a later reading of the record is in the lake), `discarded`.
pub const QUARANTINE_RELEASED_TOTAL: &str = "lake_writer_quarantine_released_total";
/// Gauge: entries in quarantine.
pub const QUARANTINE_ENTRIES: &str = "lake_writer_quarantine_entries";

/// Lets what alerts look at begin at zero: an alert on growth would not see the first event of a counter that appears with it, and a writer
/// that stands by has to say so.
pub(crate) fn count_from_zero() {
    for name in [LEASE_HELD, UNUSABLE_TABLES, NOT_COMPACTED_TABLES] {
        metrics::gauge!(name).increment(0);
    }
    quarantine::count_from_zero(Stage::Writer);
    for name in [LEASES_LOST_TOTAL, FLUSH_RETRIES_TOTAL, QUARANTINE_DROPPED_TOTAL] {
        metrics::counter!(name).increment(0);
    }
    for outcome in ["conflict", "committed", "overwritten"] {
        metrics::counter!(COMMIT_CONFLICTS_TOTAL, "outcome" => outcome).increment(0);
    }
    for kind in Kind::ALL {
        for name in [GONE_TABLES_TOTAL, DELETED_FILES_TOTAL, COMPACTED_FILES_TOTAL, COMPACTED_BYTES_TOTAL] {
            metrics::counter!(name, "kind" => kind.name()).increment(0);
        }
    }
}
