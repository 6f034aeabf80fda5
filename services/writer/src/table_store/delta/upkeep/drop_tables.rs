//! Taking tables out of the lake for good.
//!
//! Order of durability: out of the metastore, with a mark that they were dropped; then the files, the log of each table last, so that a folder
//! without a log is never taken for a table; then the mark says so. What was interrupted is found by the marks, and goes on.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::consent::{Consent, Destroyed, plan_id};
use crate::metastore::Metastore;
use crate::metastore::fence::Fence;
use crate::metastore::steering::{DroppedRecord, OperationTarget};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::log::table_access::TableAccess;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::upkeep::vacuum;

/// Folder of the log in that of a table.
const LOG: &str = "_delta_log";

/// Takes tables out of the lake.
pub(crate) struct TableDropper {
    access: Arc<TableAccess>,
    metastore: Arc<dyn Metastore>,
}

/// A folder of a table that is to go, with what is in it.
struct Doomed {
    path: String,
    files: Vec<ObjectMeta>,
}

impl TableDropper {
    pub(crate) const fn new(access: Arc<TableAccess>, metastore: Arc<dyn Metastore>) -> Self {
        Self { access, metastore }
    }

    /// Drops a table, or all tables of a space, as far as the consent goes. Nothing else is done to the space meanwhile.
    pub(crate) async fn drop_tables(
        &self,
        cell: &SpaceCell,
        target: &OperationTarget,
        asked_by: &str,
        consent: &Consent,
    ) -> Result<Destroyed, EngineError> {
        let _no_compaction = cell.compacting.lock().await;
        let _no_clean_up = cell.cleaning.lock().await;
        let mut state = cell.state.lock().await;
        let is_meant = |name: &_| target.document_type.as_ref().is_none_or(|meant| meant == name);
        let tables = self.metastore.tables(Some(&target.space)).await.map_err(EngineError::Metastore)?;
        let tables: Vec<_> = tables.into_iter().filter(|table| is_meant(&table.key.document_type)).collect();
        let dropped = self.metastore.dropped(Some(&target.space)).await.map_err(EngineError::Metastore)?;
        let unfinished: Vec<&DroppedRecord> = dropped.iter().filter(|record| is_unfinished(record, target)).collect();
        let is_over =
            tables.is_empty() && unfinished.is_empty() && dropped.iter().any(|record| record.target == *target);
        if is_over && *consent != Consent::DryRun {
            // Whoever did it has ended before that was told.
            return Ok(Destroyed { plan: consent.plan().to_owned(), done: true, ..Destroyed::default() });
        }
        let paths = tables.iter().map(|table| &table.path).chain(unfinished.iter().map(|dropped| &dropped.path));
        let doomed = self.doomed(paths).await?;
        let objects = doomed.iter().flat_map(|folder| {
            folder.files.iter().map(|file| format!("{}/{} {}", folder.path, file.location, file.size))
        });
        let mut destroyed = Destroyed {
            plan: plan_id("drop", objects.collect()),
            done: false,
            tables: tables.len() as u64,
            rows: tables.iter().map(|table| table.state.rows.unsigned_abs()).sum(),
            files: doomed.iter().map(|folder| folder.files.len() as u64).sum(),
            bytes: doomed.iter().flat_map(|folder| &folder.files).map(|file| file.size).sum(),
        };
        // What was begun with consent is gone on with, whatever is left of it.
        let allowed = consent.allows(&destroyed.plan);
        let goes_on = tables.is_empty() && !unfinished.is_empty() && *consent != Consent::DryRun;
        if !goes_on && !allowed.map_err(EngineError::StalePlan)? {
            return Ok(destroyed);
        }
        self.metastore.drop_tables(target, asked_by).await.map_err(EngineError::Metastore)?;
        // What is known of the space is read anew, without the tables and with the marks.
        *state = None;
        drop(state);
        for table in &tables {
            self.access.close(&table.key);
            tracing::info!(table = %table.key, rows = table.state.rows, asked_by, "table dropped; its files are being deleted");
        }
        for folder in doomed {
            self.delete(folder).await?;
        }
        self.metastore.dropped_files_gone(target).await.map_err(EngineError::Metastore)?;
        destroyed.done = true;
        Ok(destroyed)
    }

    async fn doomed(&self, paths: impl Iterator<Item = &String>) -> Result<Vec<Doomed>, EngineError> {
        let mut doomed = Vec::new();
        for path in paths {
            let store = self.access.unloaded(path)?.object_store();
            let files = store.list(None).try_collect().await.map_err(EngineError::Store)?;
            doomed.push(Doomed { path: path.clone(), files });
        }
        Ok(doomed)
    }

    /// Deletes a folder while the lease is held: another writer may have finished this, and the table may have been made anew in the same place.
    async fn delete(&self, folder: Doomed) -> Result<(), EngineError> {
        self.metastore.fence().map_or(Ok(()), Fence::check).map_err(EngineError::LeaseLost)?;
        let store = self.access.unloaded(&folder.path)?.object_store();
        let is_of_log = |file: &Path| file.prefix_matches(&Path::from(LOG));
        let locations = folder.files.into_iter().map(|file| file.location);
        let (log, data): (Vec<Path>, Vec<Path>) = locations.partition(is_of_log);
        vacuum::delete(&store, data).await?;
        vacuum::delete(&store, log).await?;
        if let Some(local) = self.access.lake().local_folder(&folder.path) {
            match tokio::fs::remove_dir_all(&local).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %local.display(), %error, "the empty folder of a dropped table stays");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a table of the target was dropped while its files could not all be deleted.
fn is_unfinished(record: &DroppedRecord, target: &OperationTarget) -> bool {
    !record.files_gone && (target.document_type.is_none() || record.target.document_type == target.document_type)
}
