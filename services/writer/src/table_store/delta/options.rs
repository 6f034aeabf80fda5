//! Limits and settings of the engine; section `[tables]`.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::Deserialize;

pub use crate::metastore::steering::table_policy::DeletionVectors;
use crate::metastore::steering::table_policy::Policies;
use crate::table_store::schema_plan::COLUMNS_MAX;

/// Settings of one table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct NamedTableOptions {
    /// Instead of the general setting.
    pub deletion_vectors: Option<DeletionVectors>,
    /// Instead of the general setting.
    pub partition_by: Option<Vec<String>>,
}

/// Limits and settings of the engine; section `[tables]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaOptions {
    /// Most columns of a table; text beyond them goes into the overflow column.
    pub columns_max: usize,
    /// Most types of one kind in a project (tables of a space). Rows of further types go to quarantine.
    pub types_max: usize,
    /// Tables that have metrics of their own; the metrics of further ones are not told.
    pub metrics_tables_max: usize,
    /// Size at which a data file is closed and the next begins, bytes.
    pub target_file_bytes: NonZeroU64,
    /// A file below this size is small, bytes.
    pub small_file_bytes: u64,
    /// More small files than this in a table (or partition) are folded into one.
    pub small_files_max: usize,
    /// A file up to this size is tiny, bytes: when a table (or partition) would have more than `small_files_max` of them, an upsert folds
    /// them into its new file, also where deletion vectors are written. 0 leaves them to compaction.
    pub tiny_file_bytes: u64,
    /// Share of deleted rows above which a file is rewritten, 0 to 1.
    pub deleted_share_max: f64,
    /// More files than this with the same place in the order of month and supervisor are sorted into each other.
    pub overlap_max: usize,
    /// Most bytes that one compaction reads.
    pub compaction_bytes_max: u64,
    /// Whether tables have deletion vectors: `auto`, `on`, `off`.
    pub deletion_vectors: DeletionVectors,
    /// Tables below this size have no deletion vectors when that is `auto`, bytes.
    pub copy_on_write_below_bytes: u64,
    /// Bytes a second that are rewritten for that in all tables together; a change beyond them gets deletion vectors all the same.
    pub copy_on_write_bytes_per_second: u64,
    /// Columns that partition tables made from now on, for example `["month", "supervisor_id"]`.
    pub partition_by: Vec<String>,
    /// Settings of single tables, by their names in the metastore.
    pub named: BTreeMap<String, NamedTableOptions>,
    /// What operators have said about single tables, over all of this.
    #[serde(skip)]
    pub policies: Policies,
    /// Folder of the key indexes on a local disk, about 24 bytes an id. Without it the writer takes [a folder of the
    /// user](crate::table_store::index_home), and the engine alone a temporary one, in which they are built anew at every start.
    pub index_folder: Option<PathBuf>,
    /// Whether to begin although none of the tables that the metastore knows is there.
    pub start_without_tables: bool,
    /// Most entries of one key index that are in memory before they are written to disk, about 26 bytes each.
    pub index_entries_in_memory_max: usize,
    /// Bytes that all spaces together take in memory (indexes, lists of files, deletion vectors); the ones that were used longest ago are put away
    /// and come back when there are rows for them.
    pub spaces_bytes_max: usize,
    /// Most tables whose handles stay open.
    pub tables_open_max: usize,
    /// Data files that these tables have together, about 3 kB each in memory.
    pub files_open_max: usize,
    /// Commits of a table after which its log gets a checkpoint; more where a checkpoint takes long.
    pub checkpoint_every_commits: u64,
    /// How long superseded data files stay for running readers and time travel, hours. The log speaks of each of them for so long, so a
    /// longer time makes the checkpoints of tables with many commits larger and slower.
    pub retention_hours: u64,
    /// How long files stay that no log speaks of: those of a crash, or of a write under way, hours.
    pub orphan_hours: u64,
    /// How long deletions are remembered, so that a late row does not bring an id back, hours.
    pub tombstone_retention_hours: u64,
    /// Most deletions that are remembered of a space; beyond them the oldest are forgotten early.
    pub tombstones_max: u32,
}

impl Default for DeltaOptions {
    /// 2,000 columns, 10,000 types, metrics of 2,000 tables, files of 128 MiB, small below 8 MiB, 8 small files, tiny up to 64 KiB, 15 % deleted rows, 8 overlapping files,
    /// compactions of 2 GiB, copy on write below 64 MiB and up to 4 MiB/s, no partitions, 500,000 entries in memory, spaces of 256 MiB, 200 open
    /// tables with 100,000 files, a checkpoint every 64 commits, 2 days, a day, 30 days and 20 million deletions.
    fn default() -> Self {
        Self {
            columns_max: COLUMNS_MAX,
            types_max: 10_000,
            metrics_tables_max: 2_000,
            target_file_bytes: NonZeroU64::MIN.saturating_add((128 << 20) - 1),
            small_file_bytes: 8 << 20,
            small_files_max: 8,
            tiny_file_bytes: 64 << 10,
            deleted_share_max: 0.15,
            overlap_max: 8,
            compaction_bytes_max: 2 << 30,
            deletion_vectors: DeletionVectors::Auto,
            copy_on_write_below_bytes: 64 << 20,
            copy_on_write_bytes_per_second: 4 << 20,
            partition_by: Vec::new(),
            named: BTreeMap::new(),
            policies: Policies::default(),
            index_folder: None,
            start_without_tables: false,
            index_entries_in_memory_max: 500_000,
            spaces_bytes_max: 256 << 20,
            tables_open_max: 200,
            files_open_max: 100_000,
            checkpoint_every_commits: 64,
            retention_hours: 2 * 24,
            orphan_hours: 24,
            tombstone_retention_hours: 30 * 24,
            tombstones_max: 20_000_000,
        }
    }
}

/// What holds for one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Whether it has deletion vectors.
    pub deletion_vectors: DeletionVectors,
    /// What partitions it, if it is made now.
    pub partition_by: Vec<String>,
    /// Below this size it has no deletion vectors when that is `auto`, bytes.
    pub copy_on_write_below_bytes: u64,
    /// Whether rounds of compaction take it in.
    pub compaction: bool,
    /// How long superseded data files stay, hours.
    pub retention_hours: u64,
}

impl DeltaOptions {
    /// Rules that types cannot express. The error names the key and what to do.
    pub fn validate(&self) -> Result<(), String> {
        if !(self.deleted_share_max > 0.0 && self.deleted_share_max <= 1.0) {
            return Err("key `tables.deleted_share_max`: give a share above 0 and up to 1, such as 0.15".into());
        }
        if self.types_max == 0 {
            return Err("key `tables.types_max`: all rows would go to quarantine; give at least 1".into());
        }
        if self.checkpoint_every_commits == 0 {
            return Err("key `tables.checkpoint_every_commits`: give at least 1".into());
        }
        if self.tombstone_retention_hours < self.retention_hours {
            return Err(format!(
                "key `tables.tombstone_retention_hours`: deletions would be forgotten while versions with the deleted rows can still be \
                 restored, and their rows would stay; give at least tables.retention_hours ({})",
                self.retention_hours
            ));
        }
        if self.orphan_hours == 0 {
            let reason = "a clean-up would delete the files of commits under way; give at least 1";
            return Err(format!("key `tables.orphan_hours`: {reason}"));
        }
        Ok(())
    }

    /// What holds for a table, by its name in the metastore.
    pub fn of_table(&self, name: &str) -> TableOptions {
        let (named, policy) = (self.named.get(name).cloned().unwrap_or_default(), self.policies.of(name));
        let configured = named.deletion_vectors.unwrap_or(self.deletion_vectors);
        TableOptions {
            deletion_vectors: policy.deletion_vectors.unwrap_or(configured),
            partition_by: named.partition_by.unwrap_or_else(|| self.partition_by.clone()),
            copy_on_write_below_bytes: self.copy_on_write_below_bytes,
            compaction: policy.compaction.unwrap_or(true),
            retention_hours: policy.retention_hours.unwrap_or(self.retention_hours),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::metastore::steering::table_policy::TablePolicy;

    #[test]
    fn limits_that_would_do_harm_are_refused() {
        assert_eq!(DeltaOptions::default().validate(), Ok(()));
        for deleted_share_max in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(DeltaOptions { deleted_share_max, ..DeltaOptions::default() }.validate().is_err());
        }
        assert!(DeltaOptions { orphan_hours: 0, ..DeltaOptions::default() }.validate().is_err());
        assert!(DeltaOptions { checkpoint_every_commits: 0, ..DeltaOptions::default() }.validate().is_err());
        assert!(DeltaOptions { types_max: 0, ..DeltaOptions::default() }.validate().is_err());
        let hours = |tombstone_retention_hours| DeltaOptions { tombstone_retention_hours, ..DeltaOptions::default() };
        let error = hours(47).validate().expect_err("deletions are forgotten before files");
        assert!(error.contains("tombstone_retention_hours") && error.contains("(48)"), "{error}");
        assert_eq!(hours(48).validate(), Ok(()));
    }

    #[test]
    fn a_table_of_its_own_settings_keeps_the_others() {
        let named = NamedTableOptions { deletion_vectors: Some(DeletionVectors::Off), partition_by: None };
        let options = DeltaOptions {
            named: BTreeMap::from([("a".to_owned(), named)]),
            partition_by: vec!["month".to_owned()],
            ..DeltaOptions::default()
        };
        assert_eq!(options.of_table("a").deletion_vectors, DeletionVectors::Off);
        assert_eq!(options.of_table("b").deletion_vectors, DeletionVectors::Auto);
        assert_eq!(options.of_table("a").partition_by, ["month"]);
        assert_eq!((options.of_table("a").compaction, options.of_table("a").retention_hours), (true, 48));
        // What an operator says counts at once, also in clones, and until it is taken back.
        let policy = TablePolicy {
            deletion_vectors: Some(DeletionVectors::On),
            compaction: Some(false),
            retention_hours: Some(3),
        };
        options.clone().policies.replace(HashMap::from([("a".to_owned(), policy)]));
        let (of_a, of_b) = (options.of_table("a"), options.of_table("b"));
        assert_eq!((of_a.deletion_vectors, of_a.compaction, of_a.retention_hours), (DeletionVectors::On, false, 3));
        assert_eq!((of_b.compaction, of_b.retention_hours), (true, 48));
        options.policies.replace(HashMap::new());
        assert_eq!(options.of_table("a").deletion_vectors, DeletionVectors::Off);
    }
}
