//! Deleting what nobody needs any more. Runs beside batches and compaction: it deletes only what no version within the retention
//! names, and what is so old that no write under way can have made it.
//!
//! Superseded data files are found in the log, with the time of their removal. Superseded deletion vectors are not (delta-rs does not
//! show those of removed files), so each table has a note of those that are not part of it any more and since when.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::checkpoints;
use futures::TryStreamExt;
use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{DeltaTableStore, EngineError, deletion_vectors, now_us, protocol};
use crate::metastore::TableRecord;
use crate::table_store::Maintained;

/// The note of superseded deletion vectors, in the folder of a table: path to milliseconds since 1970. Readers skip folders with `_`.
const NOTE: &str = "_lake/superseded_deletion_vectors.json";

impl DeltaTableStore {
    /// Cleans up the tables of a space.
    pub(super) async fn clean_space(&self, space: &Space) -> Result<Maintained, EngineError> {
        let mut maintained = Maintained::default();
        let older_than_us = hours_us(self.options.tombstone_retention_hours);
        let shared = self.shared(space);
        {
            let mut held = shared.state.lock().await;
            let forgotten =
                self.metastore.forget_old_tombstones(space, older_than_us).await.map_err(EngineError::Metastore)?;
            if let Some(state) = held.as_mut() {
                for id in &forgotten {
                    state.tombstones.remove(id);
                }
            }
            maintained.tombstones_forgotten = forgotten.len() as u64;
        }
        let unusable = self.unusable_tables(space).await;
        let mut failure = None;
        for record in self.metastore.tables(Some(space)).await.map_err(EngineError::Metastore)? {
            if unusable.contains(&record.key) {
                continue;
            }
            // A table that cannot be cleaned up now does not keep the others from their turn.
            if let Err(error) = self.clean_table(&record, &mut maintained).await {
                tracing::warn!(table = %record.key, error = %Chain(&error), "table was not cleaned up");
                failure.get_or_insert(error);
            }
        }
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

    /// Cleans up one table, if there is one.
    async fn clean_table(&self, record: &TableRecord, maintained: &mut Maintained) -> Result<(), EngineError> {
        // A handle of its own: what is in use by commits is not disturbed.
        let table = self.opened(&record.path).await?;
        self.compare(&record.key, table.as_ref()).await?;
        let Some(table) = table else { return Ok(()) };
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        // Whoever may not write a table may not delete its files either.
        protocol::judge(&record.key, snapshot.metadata(), snapshot.protocol())?;
        maintained.tables += 1;
        maintained.files_deleted += self.delete_files(&table).await?;
        if protocol::may_clean_log(snapshot.protocol())? {
            let logs = checkpoints::cleanup_metadata(&table, None).await.map_err(EngineError::delta)?;
            maintained.log_files_deleted += logs as u64;
        }
        Ok(())
    }

    /// Deletes the files of a table that are neither active nor within the retention.
    async fn delete_files(&self, table: &DeltaTable) -> Result<u64, EngineError> {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let mut active: HashSet<Path> = HashSet::new();
        for view in snapshot.log_data().iter() {
            active.insert(view.object_store_path());
            active.extend(view.deletion_vector_descriptor().and_then(|vector| deletion_vectors::path_of(&vector)));
        }
        let log_store = table.log_store();
        // A path is removed again and again, once for each of its deletion vectors: the last time counts.
        let mut removed: HashMap<Path, i64> = HashMap::new();
        let mut tombstones = snapshot.all_tombstones(log_store.as_ref());
        while let Some(tombstone) = tombstones.try_next().await.map_err(EngineError::delta)? {
            let path = Path::parse(tombstone.path().as_ref()).unwrap_or_else(|_| Path::from(tombstone.path().as_ref()));
            let removed_ms = tombstone.deletion_timestamp().unwrap_or_default();
            let last = removed.entry(path).or_insert(removed_ms);
            *last = removed_ms.max(*last);
        }
        drop(tombstones);
        let store = table.object_store();
        let now = now_us();
        let ages = Ages {
            now_ms: now / 1_000,
            removed_before_ms: now.saturating_sub(hours_us(self.options.retention_hours)) / 1_000,
            // A file that no log entry speaks of may be of a commit under way.
            unknown_before_ms: now.saturating_sub(hours_us(self.options.orphan_hours)) / 1_000,
        };
        let note = read_note(&store).await?;
        let (mut expired, mut superseded) = (Vec::new(), BTreeMap::new());
        let mut files = store.list(None);
        while let Some(file) = files.try_next().await.map_err(EngineError::Store)? {
            let hidden = file.location.parts().any(|part| part.as_ref().starts_with(['_', '.']));
            if hidden || active.contains(&file.location) {
                continue;
            }
            let is_expired = match file.location.extension() {
                Some("parquet") => ages.is_data_file_expired(&file, removed.get(&file.location).copied()),
                Some("bin") if is_vectors(&file.location) => {
                    let since = ages.superseded_since(&file, &note);
                    superseded.extend(since.map(|since| (file.location.to_string(), since)));
                    since.is_some_and(|since| since <= ages.removed_before_ms)
                }
                _ => false,
            };
            if is_expired {
                superseded.remove(file.location.as_ref());
                expired.push(file.location);
            }
        }
        drop(files);
        if superseded != note {
            let text = serde_json::to_vec(&superseded).map_err(EngineError::json)?;
            store.put(&Path::from(NOTE), text.into()).await.map_err(EngineError::Store)?;
        }
        for path in &expired {
            match store.delete(path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(EngineError::Store(error)),
            }
        }
        Ok(expired.len() as u64)
    }
}

/// The instants that part what is kept from what is not.
struct Ages {
    now_ms: i64,
    removed_before_ms: i64,
    unknown_before_ms: i64,
}

impl Ages {
    fn is_data_file_expired(&self, file: &ObjectMeta, removed_ms: Option<i64>) -> bool {
        removed_ms.map_or_else(
            || file.last_modified.timestamp_millis() <= self.unknown_before_ms.min(self.removed_before_ms),
            |removed_ms| removed_ms <= self.removed_before_ms,
        )
    }

    /// Since when a file of deletion vectors that is not part of the table is known not to be. Young ones may be of a commit under way.
    fn superseded_since(&self, file: &ObjectMeta, note: &BTreeMap<String, i64>) -> Option<i64> {
        let settled = file.last_modified.timestamp_millis() <= self.unknown_before_ms;
        settled.then(|| note.get(file.location.as_ref()).copied().unwrap_or(self.now_ms))
    }
}

fn is_vectors(path: &Path) -> bool {
    path.filename().is_some_and(|name| name.starts_with("deletion_vector_"))
}

async fn read_note(store: &Arc<dyn ObjectStore>) -> Result<BTreeMap<String, i64>, EngineError> {
    match store.get(&Path::from(NOTE)).await {
        // A note that cannot be understood begins anew: everything stays longer.
        Ok(found) => Ok(serde_json::from_slice(&found.bytes().await.map_err(EngineError::Store)?).unwrap_or_default()),
        Err(object_store::Error::NotFound { .. }) => Ok(BTreeMap::new()),
        Err(error) => Err(EngineError::Store(error)),
    }
}

fn hours_us(hours: u64) -> i64 {
    i64::try_from(hours.saturating_mul(3_600_000_000)).unwrap_or(i64::MAX)
}
