//! Deleting what nobody needs any more. Runs under the lock of the space, so no commit of ours is under way.

use std::collections::{HashMap, HashSet};

use deltalake::DeltaTable;
use deltalake::checkpoints;
use futures::TryStreamExt;
use lake_shared::identity::Space;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::space::SpaceState;
use super::{DeltaTableStore, EngineError, now_us};
use crate::table_store::Maintained;

/// A file that no log entry speaks of may be of a commit under way elsewhere (a writer that has not noticed that it lost its
/// lease), so it stays at least this long, hours.
const UNKNOWN_FILES_STAY_HOURS: u64 = 24;

impl DeltaTableStore {
    pub(super) async fn maintain_space(
        &self,
        held: &mut Option<SpaceState>,
        space: &Space,
    ) -> Result<Maintained, EngineError> {
        let mut maintained = Maintained::default();
        let older_than_us = hours_us(self.options.tombstone_retention_hours);
        let forgotten =
            self.metastore.forget_old_tombstones(space, older_than_us).await.map_err(EngineError::Metastore)?;
        if let Some(state) = held {
            for id in &forgotten {
                state.tombstones.remove(id);
            }
        }
        maintained.tombstones_forgotten = forgotten.len() as u64;
        for record in self.metastore.tables(Some(space)).await.map_err(EngineError::Metastore)? {
            // A handle of its own: what is in use by commits is not disturbed.
            let mut table = self.closed(&record.path)?;
            if !super::commit::load(&mut table).await? {
                continue;
            }
            maintained.tables += 1;
            maintained.files_deleted += self.delete_files(&table).await?;
            let logs = checkpoints::cleanup_metadata(&table, None).await.map_err(EngineError::delta)?;
            maintained.log_files_deleted += logs as u64;
        }
        tracing::info!(
            %space,
            tables = maintained.tables,
            files_deleted = maintained.files_deleted,
            log_files_deleted = maintained.log_files_deleted,
            tombstones_forgotten = maintained.tombstones_forgotten,
            "space maintained"
        );
        Ok(maintained)
    }

    /// Deletes the data files of a table that are neither active nor within the retention.
    async fn delete_files(&self, table: &DeltaTable) -> Result<u64, EngineError> {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let active: HashSet<Path> = snapshot.log_data().iter().map(|view| view.object_store_path()).collect();
        let log_store = table.log_store();
        let removed: HashMap<Path, i64> = snapshot
            .all_tombstones(log_store.as_ref())
            .map_ok(|tombstone| {
                let path =
                    Path::parse(tombstone.path().as_ref()).unwrap_or_else(|_| Path::from(tombstone.path().as_ref()));
                (path, tombstone.deletion_timestamp().unwrap_or_default())
            })
            .try_collect()
            .await
            .map_err(EngineError::delta)?;
        let store = table.object_store();
        let now = now_us();
        let removed_before_ms = now.saturating_sub(hours_us(self.options.retention_hours)) / 1_000;
        let unknown_hours = self.options.retention_hours.max(UNKNOWN_FILES_STAY_HOURS);
        let unknown_before_ms = now.saturating_sub(hours_us(unknown_hours)) / 1_000;
        let mut expired = Vec::new();
        let mut files = store.list(None);
        while let Some(file) = files.try_next().await.map_err(EngineError::Store)? {
            let hidden = file.location.parts().any(|part| part.as_ref().starts_with(['_', '.']));
            if hidden || file.location.extension() != Some("parquet") || active.contains(&file.location) {
                continue;
            }
            let is_expired = match removed.get(&file.location) {
                Some(removed_ms) => *removed_ms <= removed_before_ms,
                None => file.last_modified.timestamp_millis() <= unknown_before_ms,
            };
            if is_expired {
                expired.push(file.location);
            }
        }
        drop(files);
        for path in &expired {
            match store.delete(path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(EngineError::Store(error)),
            }
        }
        Ok(expired.len() as u64)
    }
}

fn hours_us(hours: u64) -> i64 {
    i64::try_from(hours.saturating_mul(3_600_000_000)).unwrap_or(i64::MAX)
}
