//! Deleting files that no reader needs any more. Runs beside batches and compaction: it deletes only what no version within the retention
//! names, and what is so old that no write under way can have made it.
//!
//! Superseded data files are found in the log, with the time of their removal, which stays there for longer than the retention
//! ([`metadata`]). Superseded deletion vectors are not (delta-rs does not show those of removed files), so each table has a note of those
//! that are not part of it any more and since when; and so it has of data files that the log does not speak of, whatever the reason.
//!
//! Files are told apart by their names alone, which are unique: a file system may list them under another spelling of their folders.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use deltalake::DeltaTable;
use deltalake::checkpoints;
use deltalake::table::config::TablePropertiesExt;
use deltalake::table::state::DeltaTableState;
use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::consent::{Consent, Destroyed, plan_id};
use crate::metastore::{Metastore, TableRecord};
use crate::metric_names;
use crate::table_store::Maintained;
use crate::table_store::delta::clock::now_us;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::deletion_vectors;
use crate::table_store::delta::files::partition::is_partition_folder;
use crate::table_store::delta::log::checkpoint_files::CheckpointFiles;
use crate::table_store::delta::log::metadata;
use crate::table_store::delta::log::protocol;
use crate::table_store::delta::log::table_access::TableAccess;
use crate::table_store::delta::options::{DeltaOptions, TableOptions};
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::unusable::tables::unusable_tables;
use crate::table_store::delta::upkeep::external_changes::ExternalChanges;
use crate::table_store::durable_files;

/// The note of superseded files, in the folder of a table. Readers skip folders with `_`.
const NOTE: &str = "_lake/superseded_files.json";

/// Entries of the log that are read at once.
const ENTRIES_AT_ONCE: usize = 8;

/// Deletes what no reader within the retention needs any more.
pub(crate) struct Vacuum {
    access: Arc<TableAccess>,
    metastore: Arc<dyn Metastore>,
    external_changes: Arc<ExternalChanges>,
    options: Arc<DeltaOptions>,
}

impl Vacuum {
    pub(crate) fn new(
        access: Arc<TableAccess>,
        metastore: Arc<dyn Metastore>,
        external_changes: Arc<ExternalChanges>,
        options: Arc<DeltaOptions>,
    ) -> Self {
        Self { access, metastore, external_changes, options }
    }

    /// Cleans up the tables of a space.
    ///
    /// # Errors
    /// The first error of a table; the other tables have had their turn.
    pub(crate) async fn clean_space(&self, cell: &SpaceCell, space: &Space) -> Result<Maintained, EngineError> {
        let mut maintained = Maintained::default();
        let older_than_us = hours_us(self.options.tombstone_retention_hours);
        let unusable = unusable_tables(cell).await;
        // Rows of such a table that were deleted meanwhile would come back with it.
        if unusable.as_ref().is_some_and(BTreeSet::is_empty) {
            let forgotten = self.metastore.forget_old_tombstones(space, older_than_us).await;
            maintained.tombstones_forgotten = forgotten.map_err(EngineError::Metastore)?;
            let beyond = self.metastore.limit_tombstones(space, self.options.tombstones_max.into()).await;
            let beyond = beyond.map_err(EngineError::Metastore)?;
            if beyond > 0 {
                let tombstones_max = self.options.tombstones_max;
                tracing::warn!(%space, beyond, tombstones_max, "deletions are forgotten early; see tables.tombstones_max");
                maintained.tombstones_forgotten += beyond;
            }
            let retention = Duration::from_secs(self.options.tombstone_retention_hours.saturating_mul(3_600));
            if let Some(state) = cell.state.lock().await.as_mut() {
                state.tombstones_mut().forget(retention, Instant::now());
            }
        }
        let mut failure = None;
        for record in self.metastore.tables(Some(space)).await.map_err(EngineError::Metastore)? {
            if unusable.as_ref().is_some_and(|unusable| unusable.contains(&record.key)) {
                continue;
            }
            // A table that cannot be cleaned up now does not keep the others from their turn.
            if let Err(error) = self.clean_table(cell, &record, &mut maintained).await {
                tracing::warn!(table = %record.key, error = %Chain(&error), "table was not cleaned up");
                failure.get_or_insert(error);
            }
        }
        metrics::counter!(metric_names::DELETED_FILES_TOTAL, "kind" => space.kind.name())
            .increment(maintained.files_deleted);
        tracing::info!(
            %space,
            tables = maintained.tables,
            files_deleted = maintained.files_deleted,
            log_files_deleted = maintained.log_files_deleted,
            tombstones_forgotten = maintained.tombstones_forgotten,
            "space maintained"
        );
        failure.map_or(Ok(maintained), Err)
    }

    /// Cleans up a table that is in no space.
    ///
    /// # Errors
    /// When its log cannot be read, or the store fails.
    pub(crate) async fn clean_unregistered(&self, record: &TableRecord) -> Result<Maintained, EngineError> {
        let mut maintained = Maintained::default();
        self.clean_table(&SpaceCell::default(), record, &mut maintained).await?;
        Ok(maintained)
    }

    /// Cleans up one table, if there is one.
    async fn clean_table(
        &self,
        cell: &SpaceCell,
        record: &TableRecord,
        maintained: &mut Maintained,
    ) -> Result<(), EngineError> {
        let Some(table) = self.opened(cell, record).await? else { return Ok(()) };
        maintained.tables += 1;
        let expired = self.find_expired(&record.name, &table).await?;
        maintained.files_deleted += delete_expired(&table, expired).await?;
        maintained.files_deleted += self.delete_leftovers(&record.path).await?;
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        // Where the history is to be kept, the properties of the table switch that off.
        let may_clean = snapshot.table_config().enable_expired_log_cleanup();
        if may_clean
            && protocol::may_clean_log(snapshot.protocol())?
            && self.are_checkpoints_complete(record, &table).await?
        {
            let logs = checkpoints::cleanup_metadata(&table, None).await.map_err(EngineError::delta)?;
            maintained.log_files_deleted += logs as u64;
        }
        Ok(())
    }

    /// A table that may be cleaned up; `None`: there is none.
    async fn opened(&self, cell: &SpaceCell, record: &TableRecord) -> Result<Option<DeltaTable>, EngineError> {
        // A handle of its own: what is in use by commits is not disturbed.
        let table = self.access.latest(&record.path).await?;
        self.external_changes.compare(cell, &record.key, table.as_ref()).await?;
        let Some(table) = table else { return Ok(None) };
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        // Files of a table that the engine must not write must not be deleted either.
        protocol::judge(&record.key, snapshot.metadata(), snapshot.protocol())?;
        Ok(Some(table))
    }

    /// Deletes the files of one table that no version within the retention needs, as far as the consent goes.
    pub(crate) async fn vacuum_table(
        &self,
        cell: &SpaceCell,
        record: &TableRecord,
        consent: &Consent,
    ) -> Result<Destroyed, EngineError> {
        let opened = self.opened(cell, record).await?;
        let expired = match &opened {
            Some(table) => self.find_expired(&record.name, table).await?,
            None => Expired::default(),
        };
        let objects = expired.files.iter().map(|file| file.location.to_string()).collect();
        let mut destroyed = Destroyed {
            plan: plan_id("vacuum", objects),
            tables: opened.is_some().into(),
            files: expired.files.len() as u64,
            bytes: expired.files.iter().map(|file| file.size).sum(),
            ..Destroyed::default()
        };
        destroyed.done = consent.allows(&destroyed.plan).map_err(EngineError::StalePlan)?;
        if let Some(table) = opened.filter(|_| destroyed.done) {
            delete_expired(&table, expired).await?;
        }
        Ok(destroyed)
    }

    /// Whether every checkpoint of a log is complete. delta-rs takes any file that is named like a part of one for a whole one, and would delete
    /// all that came before it. Those of makers that died long ago are deleted, while others may become complete yet.
    async fn are_checkpoints_complete(&self, record: &TableRecord, table: &DeltaTable) -> Result<bool, EngineError> {
        let store = table.object_store();
        let incomplete = CheckpointFiles::list(&store).await?.incomplete;
        let unknown_before_ms = now_us().saturating_sub(hours_us(self.options.orphan_hours)) / 1_000;
        let (old, young): (Vec<ObjectMeta>, Vec<ObjectMeta>) =
            incomplete.into_iter().partition(|file| file.last_modified.timestamp_millis() < unknown_before_ms);
        if !(old.is_empty() && young.is_empty()) {
            let (table, deleted, left) = (&record.key, old.len(), young.len());
            tracing::warn!(%table, deleted, left, "the log has parts of checkpoints that are not complete; it is cleaned up when none is left");
        }
        delete(&store, old.into_iter().map(|file| file.location).collect()).await?;
        Ok(young.is_empty())
    }

    /// Deletes what a crash left half-written on a local disk, where the store does not list it.
    async fn delete_leftovers(&self, path: &str) -> Result<u64, EngineError> {
        let Some(folder) = self.access.lake().local_folder(path) else { return Ok(0) };
        let hours = self.options.orphan_hours.saturating_mul(3_600);
        let Some(older_than) = SystemTime::now().checked_sub(Duration::from_secs(hours)) else { return Ok(0) };
        let deleted = durable_files::delete_leftovers(folder, older_than).await;
        deleted.map_err(|error| {
            EngineError::Store(object_store::Error::Generic { store: "local files", source: Box::new(error) })
        })
    }

    /// The files of a table that are neither active nor within the retention.
    async fn find_expired(&self, name: &str, table: &DeltaTable) -> Result<Expired, EngineError> {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let logged = LoggedFiles::of(table, snapshot).await?;
        let store = table.object_store();
        let now = now_us();
        let ages = Ages {
            now_ms: now / 1_000,
            removed_before_ms: now.saturating_sub(retention_us(&self.options.of_table(name), snapshot)) / 1_000,
            // A file that no log entry speaks of may be of a commit under way.
            unknown_before_ms: now.saturating_sub(hours_us(self.options.orphan_hours)) / 1_000,
        };
        let noted = read_note(&store).await?;
        let note = noted.clone().without_those_that_came_back(table).await?;
        let (mut expired, mut superseded) = (Vec::new(), BTreeMap::new());
        let mut files = store.list(None);
        while let Some(file) = files.try_next().await.map_err(EngineError::Store)? {
            match fate_of(&file, &logged, &note, &ages) {
                Fate::Kept => {}
                Fate::Superseded { since_ms } => {
                    superseded.insert(file.location.to_string(), since_ms);
                }
                Fate::Expired => expired.push(file),
            }
        }
        let superseded = Note { version: snapshot.version(), files: superseded };
        // Of a table without superseded files there is nothing to note.
        let is_new = superseded != noted && !(superseded.files.is_empty() && noted.files.is_empty());
        Ok(Expired { files: expired, note: is_new.then_some(superseded) })
    }
}

/// What a look at the files of a table has found.
#[derive(Debug, Default)]
struct Expired {
    /// Files that are to be deleted.
    files: Vec<ObjectMeta>,
    /// The note of superseded files, where it changes.
    note: Option<Note>,
}

/// Deletes what a look has found, and writes the note. Answers the number of files.
async fn delete_expired(table: &DeltaTable, expired: Expired) -> Result<u64, EngineError> {
    let store = table.object_store();
    if let Some(note) = expired.note {
        let text = serde_json::to_vec(&note).map_err(EngineError::json)?;
        store.put(&Path::from(NOTE), text.into()).await.map_err(EngineError::Store)?;
    }
    delete(&store, expired.files.into_iter().map(|file| file.location).collect()).await
}

/// Deletes files. Answers how many; those that were gone already are counted as well.
pub(crate) async fn delete(store: &Arc<dyn ObjectStore>, files: Vec<Path>) -> Result<u64, EngineError> {
    let count = files.len() as u64;
    let mut deletions = store.delete_stream(stream::iter(files.into_iter().map(Ok)).boxed());
    while let Some(deleted) = deletions.next().await {
        match deleted {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(EngineError::Store(error)),
        }
    }
    Ok(count)
}

/// What the log of a table says of its files, by name.
#[derive(Debug, Default)]
struct LoggedFiles {
    /// Data files and deletion vectors of the latest version.
    active: HashSet<String>,
    /// Data files that were removed from the table, with the time of it, milliseconds since 1970.
    removed: HashMap<String, i64>,
    /// What partitions the table.
    partition_columns: Vec<String>,
}

impl LoggedFiles {
    async fn of(table: &DeltaTable, snapshot: &DeltaTableState) -> Result<Self, EngineError> {
        let partition_columns = snapshot.metadata().partition_columns().to_vec();
        let mut logged = Self { partition_columns, ..Self::default() };
        for view in snapshot.log_data().iter() {
            logged.active.insert(name_of(&view.object_store_path()));
            let vector = view.deletion_vector_descriptor().and_then(|vector| deletion_vectors::path_of(&vector));
            logged.active.extend(vector.as_ref().map(name_of));
        }
        let log_store = table.log_store();
        let mut tombstones = snapshot.all_tombstones(log_store.as_ref());
        while let Some(tombstone) = tombstones.try_next().await.map_err(EngineError::delta)? {
            let path = Path::parse(tombstone.path().as_ref()).unwrap_or_else(|_| Path::from(tombstone.path().as_ref()));
            // Other writers need not say when.
            let Some(removed_ms) = tombstone.deletion_timestamp().filter(|removed_ms| *removed_ms > 0) else {
                continue;
            };
            // A file is removed again and again, once for each of its deletion vectors: the last time counts.
            let last = logged.removed.entry(name_of(&path)).or_insert(removed_ms);
            *last = removed_ms.max(*last);
        }
        Ok(logged)
    }
}

/// The instants that part what is kept from what is not, milliseconds since 1970.
struct Ages {
    now_ms: i64,
    removed_before_ms: i64,
    unknown_before_ms: i64,
}

impl Ages {
    /// Since when a file that is not part of the table is known not to be. Young ones may be of a commit under way.
    fn superseded_since(&self, file: &ObjectMeta, note: &Note) -> Option<i64> {
        let settled = file.last_modified.timestamp_millis() <= self.unknown_before_ms;
        settled.then(|| note.files.get(file.location.as_ref()).copied().unwrap_or(self.now_ms))
    }
}

/// What becomes of a file in the folder of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is part of the table, or no file of a table, or the log says when it was removed and that is within the retention, or it may be of
    /// a commit under way.
    Kept,
    /// It is not part of the table, which only the note will tell; it stays until the retention is over.
    Superseded {
        /// Since when that is known, milliseconds since 1970.
        since_ms: i64,
    },
    /// No version within the retention has it.
    Expired,
}

/// Decides about a file in the folder of a table.
fn fate_of(file: &ObjectMeta, logged: &LoggedFiles, note: &Note, ages: &Ages) -> Fate {
    // What others keep beside the data files (the log, changes, manifests) is in folders with these. A partition by `_id` has one as well.
    let is_hidden = |name: &str| name.starts_with(['_', '.']) && !is_partition_folder(name, &logged.partition_columns);
    let hidden = file.location.parts().any(|part| is_hidden(part.as_ref()));
    let is_of_tables = file.location.extension() == Some("parquet") || is_vectors(&file.location);
    let name = name_of(&file.location);
    if hidden || !is_of_tables || logged.active.contains(&name) {
        return Fate::Kept;
    }
    let removed_ms = logged.removed.get(&name).copied();
    let Some(since_ms) = removed_ms.or_else(|| ages.superseded_since(file, note)) else { return Fate::Kept };
    if since_ms <= ages.removed_before_ms {
        Fate::Expired
    } else if removed_ms.is_some() {
        Fate::Kept
    } else {
        Fate::Superseded { since_ms }
    }
}

/// What an earlier clean-up found that the log does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Note {
    /// Version of the table then.
    version: u64,
    /// Files that are not part of the table, with the time when that was seen first, milliseconds since 1970.
    files: BTreeMap<String, i64>,
}

impl Note {
    /// Leaves out the vectors that versions after the noted one brought back (an old version was restored): if they are not part
    /// of the table now, they have been superseded anew.
    async fn without_those_that_came_back(mut self, table: &DeltaTable) -> Result<Self, EngineError> {
        let latest = table.version().unwrap_or_default();
        if self.files.is_empty() || self.version == latest {
            return Ok(self);
        }
        if self.version > latest {
            // It is another table.
            return Ok(Self::default());
        }
        let log_store = table.log_store();
        let entries = (self.version + 1..=latest).map(|version| {
            let log_store = Arc::clone(&log_store);
            async move { log_store.read_commit_entry(version).await.map_err(EngineError::delta) }
        });
        let mut entries = stream::iter(entries).buffered(ENTRIES_AT_ONCE);
        let mut named: HashSet<String> = HashSet::new();
        while let Some(entry) = entries.try_next().await? {
            // The log was cleaned up meanwhile: nothing is known.
            let Some(entry) = entry else { return Ok(Self::default()) };
            named.extend(vectors_named(&entry));
        }
        drop(entries);
        self.files.retain(|path, _| !named.contains(path.rsplit('/').next().unwrap_or_default()));
        Ok(self)
    }
}

/// Names of the files of vectors that an entry of the log adds.
fn vectors_named(entry: &[u8]) -> HashSet<String> {
    let lines = entry.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"{\"remove\""));
    let vectors = lines.filter_map(|line| {
        let mut action: Value = serde_json::from_slice(line).ok()?;
        let vector = action.pointer_mut("/add/deletionVector")?.take();
        deletion_vectors::path_of(&serde_json::from_value(vector).ok()?)
    });
    vectors.map(|path| name_of(&path)).collect()
}

/// How long removed files stay: as configured, or longer where another program asks for it in the properties of the table.
fn retention_us(options: &TableOptions, snapshot: &DeltaTableState) -> i64 {
    let configured = hours_us(options.retention_hours);
    if !metadata::has_foreign_retention(snapshot.metadata()) {
        return configured;
    }
    let asked = snapshot.table_config().deleted_file_retention_duration();
    configured.max(i64::try_from(asked.as_micros()).unwrap_or(i64::MAX))
}

fn name_of(path: &Path) -> String {
    path.filename().unwrap_or_default().to_owned()
}

fn is_vectors(path: &Path) -> bool {
    path.extension() == Some("bin") && path.filename().is_some_and(|name| name.starts_with("deletion_vector_"))
}

async fn read_note(store: &Arc<dyn ObjectStore>) -> Result<Note, EngineError> {
    match store.get(&Path::from(NOTE)).await {
        // A note that cannot be understood begins anew: everything stays longer.
        Ok(found) => Ok(serde_json::from_slice(&found.bytes().await.map_err(EngineError::Store)?).unwrap_or_default()),
        Err(object_store::Error::NotFound { .. }) => Ok(Note::default()),
        Err(error) => Err(EngineError::Store(error)),
    }
}

fn hours_us(hours: u64) -> i64 {
    i64::try_from(hours.saturating_mul(3_600_000_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use chrono::DateTime;

    use super::*;

    const AGES: Ages = Ages { now_ms: 1_000, removed_before_ms: 500, unknown_before_ms: 700 };

    fn fate(path: &str, modified_ms: i64, logged: &LoggedFiles, note: &Note) -> Fate {
        let last_modified = DateTime::from_timestamp_millis(modified_ms).unwrap();
        let location = Path::from(path);
        fate_of(&ObjectMeta { location, last_modified, size: 1, e_tag: None, version: None }, logged, note, &AGES)
    }

    #[test]
    fn only_files_that_no_version_within_the_retention_has_expire() {
        let logged = LoggedFiles {
            active: HashSet::from(["active.parquet".to_owned()]),
            removed: HashMap::from([("long_ago.parquet".to_owned(), 500), ("lately.parquet".to_owned(), 501)]),
            partition_columns: vec!["_id".to_owned()],
        };
        let note = Note {
            version: 1,
            files: BTreeMap::from([("noted.parquet".to_owned(), 500), ("deletion_vector_1.bin".to_owned(), 501)]),
        };
        let old = |path| fate(path, 0, &logged, &note);
        assert_eq!(old("month=1/active.parquet"), Fate::Kept);
        assert_eq!(old("long_ago.parquet"), Fate::Expired);
        assert_eq!(old("lately.parquet"), Fate::Kept);
        assert_eq!(old("noted.parquet"), Fate::Expired);
        assert_eq!(old("deletion_vector_1.bin"), Fate::Superseded { since_ms: 501 });
        assert_eq!(old("found_now.parquet"), Fate::Superseded { since_ms: 1_000 });
        assert_eq!(fate("found_now.parquet", 701, &logged, &note), Fate::Kept, "of a commit under way");
        assert_eq!([old("_delta_log/1.parquet"), old("readme.txt"), old("other.bin")], [Fate::Kept; 3]);
        assert_eq!(
            old("_id=a/long_ago.parquet"),
            Fate::Expired,
            "a partition's folder may begin with the name of `_id`"
        );
        assert_eq!([old("_change_data/long_ago.parquet"), old("_id=a/.long_ago.parquet")], [Fate::Kept; 2]);
    }
}
