//! What is asked of the tables when records are taken out of the lake wholly, and what that has done. Pure.

use std::collections::BTreeMap;

use lake_shared::identity::Space;

use crate::consent::plan_id;
use crate::metastore::erasures::record_ids::erasure_hash;

/// Records that are to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// Where they are.
    pub space: Space,
    /// Their ids.
    pub ids: Vec<String>,
    /// Who asks.
    pub asked_by: String,
    /// The operation that does it: what it has begun with consent it goes on with.
    pub operation_id: String,
}

impl Erasure {
    /// What is kept of the ids.
    pub fn hashes(&self) -> Vec<String> {
        self.ids.iter().map(|id| erasure_hash(&self.space, id)).collect()
    }
}

/// What an erasure has found and done in the tables of a space, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Id of the plan, made of the records and of all that was found of them.
    pub plan: String,
    /// Whether it was done, not only planned.
    pub done: bool,
    /// Records that were asked for.
    pub records: u64,
    /// Tables that were searched.
    pub tables: u64,
    /// Data files of all versions that were read, those that no version has among them.
    pub files_searched: u64,
    /// Data files that held one of the records.
    pub files_found: u64,
    /// Rows of the records in these, of all versions together.
    pub rows: u64,
    /// Those among the files that were part of the newest version: others take their places.
    pub files_rewritten: u64,
    /// Data files that were deleted at once. Versions of before cannot be read any more where they had these.
    pub files_deleted: u64,
    /// Bytes of the files that held one of the records.
    pub bytes: u64,
    /// Entries and checkpoints of logs that were read.
    pub log_files_searched: u64,
    /// Those that named one of the records, in statistics or paths.
    pub log_files_found: u64,
    /// Tables whose logs named one: they begin anew with a checkpoint, and have no versions before it any more.
    pub logs_renewed: u64,
    /// Files of logs that were deleted.
    pub log_files_deleted: u64,
    /// Files of logs that name one of the ids still, as a row of another record does, or a folder of a partition within the retention.
    pub log_files_left: u64,
    /// Remembered deletions of the records.
    pub tombstones: u64,
}

impl Erased {
    /// Its figures by name.
    pub fn figures(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::from([
            ("records", self.records),
            ("tables", self.tables),
            ("files_searched", self.files_searched),
            ("files_found", self.files_found),
            ("rows", self.rows),
            ("files_rewritten", self.files_rewritten),
            ("files_deleted", self.files_deleted),
            ("bytes", self.bytes),
            ("log_files_searched", self.log_files_searched),
            ("log_files_found", self.log_files_found),
            ("logs_renewed", self.logs_renewed),
            ("log_files_deleted", self.log_files_deleted),
            ("log_files_left", self.log_files_left),
            ("deletions", self.tombstones),
            ("done", self.done.into()),
        ])
    }
}

/// Id of the plan to erase records of which this was found, each described by a text.
pub(crate) fn erasure_plan(asked: &Erasure, found: impl IntoIterator<Item = String>) -> String {
    plan_id("erase", asked.hashes().into_iter().chain(found).collect())
}
