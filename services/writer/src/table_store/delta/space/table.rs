//! What the engine knows about one table of a space.

use std::collections::BTreeMap;
use std::sync::Arc;

use lake_shared::identity::TableKey;
use roaring::RoaringBitmap;

use crate::key_index::FileNumber;
use crate::metastore::{RecordedDelays, TableRecord};
use crate::table_store::delta::clock::now_us;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::DeletionVector;
use crate::table_store::delta::log::base_version::{KnownTable, ObjectVersion, OwnEntry, ProbeResult};
use crate::table_store::delta::log::entry::LoggedPaths;
use crate::table_store::delta::space::delays::Delays;
use crate::table_store::delta::space::unusable::reason::Unusable;
use crate::table_store::schema_plan::TableSchema;

/// A table of the space. It changes by the methods below only, each of which leaves version and files in step.
#[derive(Clone, Debug)]
pub(crate) struct TableState {
    key: TableKey,
    name: String,
    path: String,
    /// Version of the log that everything below and the key index stand for; `None` before the first commit.
    version: Option<u64>,
    /// Identity in the metadata. Another one is another table, whatever its versions are.
    id: Option<String>,
    /// The version that was probed last and what was seen of its entry in the log.
    seen: Option<(u64, Option<ObjectVersion>)>,
    /// Why the table cannot be used; then it has no version and no files.
    unusable: Option<Arc<Unusable>>,
    schema: TableSchema,
    /// Names of the partition columns.
    partition_columns: Vec<String>,
    /// By number.
    files: BTreeMap<FileNumber, DataFile>,
    /// How long its rows took.
    delays: Delays,
    /// What the metastore has not been told yet.
    unreported: Option<Freshness>,
    /// Whether it has been told this schema since the space was loaded.
    schema_reported: bool,
    /// Changed since compaction last looked at it.
    changed: bool,
    /// The last commit of this process.
    own: Option<OwnCommit>,
    /// What is to be brought back.
    lost: Option<LostRows>,
}

/// Newest publish and fetch times of rows, microseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Freshness {
    pub(crate) newest_published_us: Option<i64>,
    pub(crate) newest_fetched_us: Option<i64>,
}

impl Freshness {
    pub(crate) fn include(&mut self, other: Self) {
        self.newest_published_us = self.newest_published_us.max(other.newest_published_us);
        self.newest_fetched_us = self.newest_fetched_us.max(other.newest_fetched_us);
    }
}

/// A table as its log has it at one version.
pub(crate) struct LoadedTable {
    pub(crate) version: Option<u64>,
    pub(crate) id: String,
    pub(crate) schema: TableSchema,
    pub(crate) partition_columns: Vec<String>,
    pub(crate) files: BTreeMap<FileNumber, DataFile>,
}

/// Rows that a commit brought into a table.
#[derive(Clone, Debug)]
pub(crate) struct AddedRows {
    /// Where they are.
    pub(crate) file: DataFile,
    /// Which rows of the file; `None`: all. The others were copied from older files.
    pub(crate) rows: Option<RoaringBitmap>,
}

/// The last commit of this process to a table.
#[derive(Clone, Debug)]
pub(crate) struct OwnCommit {
    pub(crate) entry: OwnEntry,
    pub(crate) added: Vec<AddedRows>,
}

/// Rows that were committed, and that the log does not speak of any more.
#[derive(Clone, Debug)]
pub(crate) struct LostRows {
    pub(crate) added: Vec<AddedRows>,
    /// The columns of the files.
    pub(crate) schema: TableSchema,
    pub(crate) partition_columns: Vec<String>,
}

/// What a commit of the engine made of a table.
pub(crate) struct CommittedFiles {
    pub(crate) own: OwnCommit,
    /// Identity of the table, if the commit said it.
    pub(crate) id: Option<String>,
    /// Files that left.
    pub(crate) removed: Vec<FileNumber>,
    /// Files that got another deletion vector.
    pub(crate) marked: Vec<(FileNumber, DeletionVector)>,
    /// Files that entered.
    pub(crate) added: Vec<DataFile>,
}

impl TableState {
    pub(crate) fn new(record: TableRecord) -> Self {
        Self {
            key: record.key,
            name: record.name,
            path: record.path,
            version: None,
            id: None,
            seen: None,
            unusable: None,
            schema: TableSchema::default(),
            partition_columns: Vec::new(),
            files: BTreeMap::new(),
            delays: Delays::default(),
            unreported: None,
            schema_reported: false,
            changed: true,
            own: None,
            lost: None,
        }
    }

    pub(crate) const fn key(&self) -> &TableKey {
        &self.key
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Folder, relative to the lake's root.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) const fn version(&self) -> Option<u64> {
        self.version
    }

    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub(crate) const fn schema(&self) -> &TableSchema {
        &self.schema
    }

    pub(crate) fn partition_columns(&self) -> &[String] {
        &self.partition_columns
    }

    pub(crate) fn files(&self) -> impl ExactSizeIterator<Item = &DataFile> + Clone {
        self.files.values()
    }

    pub(crate) fn file(&self, number: FileNumber) -> Option<&DataFile> {
        self.files.get(&number)
    }

    pub(crate) const fn unusable(&self) -> Option<&Arc<Unusable>> {
        self.unusable.as_ref()
    }

    /// Rows that readers see.
    pub(crate) fn rows(&self) -> i64 {
        self.files().map(DataFile::live_rows).sum()
    }

    /// Bytes of the data files.
    pub(crate) fn bytes(&self) -> i64 {
        self.files().map(|file| file.size).sum()
    }

    /// What the state stands for, to be compared with the log.
    pub(crate) fn known(&self) -> KnownTable<'_> {
        let seen = self.seen.as_ref().filter(|(seen, _)| Some(*seen) == self.version);
        KnownTable {
            key: &self.key,
            path: &self.path,
            version: self.version,
            id: self.id.as_deref(),
            entry: seen.and_then(|(_, entry)| entry.as_ref()),
            own_bytes: self
                .own
                .as_ref()
                .map(|own| own.entry)
                .filter(|own| Some(own.version) == self.version)
                .map(|own| own.bytes),
        }
    }

    /// The paths of files that the log has in another encoding than delta-rs would write.
    pub(crate) fn logged_paths(&self) -> LoggedPaths<'_> {
        self.files().filter_map(|file| Some((file.path.as_str(), file.logged.as_deref()?))).collect()
    }

    /// What the metastore has not been told yet; `None`: nothing.
    pub(crate) const fn unreported(&self) -> Option<Freshness> {
        self.unreported
    }

    /// How long the rows of the last minutes took from HQ to readers; `None` where none came.
    pub(crate) fn recorded_delays(&self) -> Option<RecordedDelays> {
        self.delays.recorded()
    }

    pub(crate) const fn is_schema_reported(&self) -> bool {
        self.schema_reported
    }

    /// Whether it changed since compaction found nothing to do.
    pub(crate) const fn is_changed(&self) -> bool {
        self.changed
    }

    /// A version was read from the log.
    pub(super) fn set_loaded(&mut self, loaded: LoadedTable) {
        self.schema_reported &= self.schema == loaded.schema;
        self.version = loaded.version;
        self.id = Some(loaded.id);
        self.schema = loaded.schema;
        self.partition_columns = loaded.partition_columns;
        self.files = loaded.files;
        self.changed = true;
    }

    /// A commit of the engine is in the log.
    pub(super) fn commit_applied(&mut self, commit: CommittedFiles) {
        for number in commit.removed {
            self.files.remove(&number);
        }
        for (number, vector) in commit.marked {
            if let Some(file) = self.files.get_mut(&number) {
                file.deleted = Some(vector);
            }
        }
        self.files.extend(commit.added.into_iter().map(|file| (file.number, file)));
        self.version = Some(commit.own.entry.version);
        self.own = Some(commit.own);
        self.id = commit.id.or(self.id.take());
        self.unreported.get_or_insert_default();
    }

    /// The last log entry of this process.
    pub(crate) fn own_entry(&self) -> Option<OwnEntry> {
        self.own.as_ref().map(|own| own.entry)
    }

    /// The last commit of this process, with what it takes to read its files; it is not compared with the log any more.
    pub(super) fn take_own(&mut self) -> Option<(OwnEntry, LostRows)> {
        let OwnCommit { entry, added } = self.own.take()?;
        let (schema, partition_columns) = (self.schema.clone(), self.partition_columns.clone());
        Some((entry, LostRows { added, schema, partition_columns }))
    }

    /// Rows of the table were found to be lost.
    pub(super) fn set_lost(&mut self, lost: LostRows) {
        self.lost = Some(lost).filter(|lost| !lost.added.is_empty());
    }

    /// What is to be brought back.
    pub(crate) const fn lost(&self) -> Option<&LostRows> {
        self.lost.as_ref()
    }

    /// It has been brought back.
    pub(super) fn restored(&mut self) {
        self.lost = None;
    }

    /// A commit brought rows, whose changes HQ had published then. `schema`: the new one, where it changed.
    pub(super) fn rows_committed(
        &mut self,
        schema: Option<TableSchema>,
        partition_columns: Vec<String>,
        freshness: Freshness,
        published_us: &[i64],
    ) {
        if let Some(schema) = schema {
            self.schema = schema;
            self.schema_reported = false;
        }
        self.partition_columns = partition_columns;
        self.changed = true;
        self.unreported.get_or_insert_default().include(freshness);
        self.delays.add(published_us, now_us());
    }

    /// The table was dropped, log and all. The next commit makes it anew.
    pub(super) fn forget(&mut self) {
        self.clear();
        (self.id, self.schema, self.partition_columns) = Default::default();
        self.unreported.get_or_insert_default();
        self.schema_reported = false;
    }

    /// Nothing that was known of its files counts any more.
    pub(super) fn clear(&mut self) {
        (self.version, self.seen, self.files) = Default::default();
    }

    pub(super) fn set_unusable(&mut self, unusable: Option<Arc<Unusable>>) -> Option<Arc<Unusable>> {
        std::mem::replace(&mut self.unusable, unusable)
    }

    /// Remembers what a probe saw, for the next one.
    pub(super) fn set_probed(&mut self, result: ProbeResult) {
        self.seen = result.into_seen();
    }

    /// Whether a probe found what is not known.
    pub(super) fn needs_reload(&self, result: &ProbeResult) -> bool {
        result.needs_reload(self.seen.as_ref())
    }

    /// The log has a version that the metastore may not know of.
    pub(super) fn set_unreported(&mut self) {
        self.unreported.get_or_insert_default();
    }

    /// The metastore has been told everything.
    pub(super) const fn set_reported(&mut self) {
        self.unreported = None;
        self.schema_reported = true;
    }

    /// Compaction has found nothing to do.
    pub(super) const fn set_unchanged(&mut self) {
        self.changed = false;
    }

    /// How many rows a file has, of which the log did not say so.
    pub(super) fn set_rows_of_file(&mut self, number: FileNumber, rows: i64) {
        if let Some(file) = self.files.get_mut(&number) {
            file.rows = rows;
        }
    }

    /// Least and greatest version of the rows of a file.
    pub(super) fn set_version_bounds(&mut self, number: FileNumber, versions_us: Option<(i64, i64)>) {
        if let Some(file) = self.files.get_mut(&number) {
            file.versions_us = versions_us;
        }
    }
}
