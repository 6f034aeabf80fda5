//! Lives of a process on the folder of a lake.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use lake_shared::escaped_names;
use lake_test_kit::rows;
use lake_test_kit::time::pass_time;
use lake_test_kit::watcher::watched;
use lake_tests::engine::{DeletionVectors, DeltaOptions, bytes, small, space, space_batch};
use lake_tests::parts::wait_until;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::sqlite::SqliteMetastore;
use lake_writer::table_store::TableStore;
use lake_writer::table_store::delta::DeltaTableStore;
use lake_writer::table_store::lake_store::{LakeStore, LakeStoreConfig};

use crate::death::Report;
use crate::history::{Deed, PERSON, TYPES, lives};

/// A file with a byte for each deed that was done.
pub const DEEDS_DONE: &str = "done";
/// Hours between two lives: longer than the retention.
const HOURS: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// The options of each life, with the key index of the folder.
fn options(folder: &Path) -> DeltaOptions {
    DeltaOptions {
        index_folder: Some(index_of(folder)),
        deletion_vectors: DeletionVectors::Auto,
        retention_hours: 1,
        orphan_hours: 1,
        target_file_bytes: bytes(1 << 20),
        copy_on_write_below_bytes: 12_000,
        checkpoint_every_commits: 3,
        index_entries_in_memory_max: 100,
        ..small()
    }
}

/// The folder of a table.
pub fn folder_of(folder: &Path, document_type: &str) -> PathBuf {
    folder.join("tables").join(escaped_names::table_path(&rows::table(document_type)))
}

/// The folder of the key indexes.
pub fn index_of(folder: &Path) -> PathBuf {
    folder.join("index")
}

/// Whether a table has an entry in its log.
pub fn has_log(table: &Path) -> bool {
    let Ok(entries) = fs::read_dir(table.join("_delta_log")) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|end| end == "json"))
}

/// An engine on the folder, from its start to its end: when this returns, nothing is done to the files any more.
pub fn in_a_life<T>(
    folder: &Path,
    report: Option<&Report>,
    deeds: impl AsyncFnOnce(&DeltaTableStore) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    // With its runtime end the tasks that the engine leaves behind.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let metastore = SqliteMetastore::file(&folder.join("metastore.sqlite"));
        metastore.migrate().await?;
        let root = folder.join("tables").display().to_string();
        let mut lake = LakeStore::open(&LakeStoreConfig::of_root(root))?;
        if let Some(report) = report.cloned() {
            lake = lake.wrapped(|inner| watched(inner, move |step, path| report(step, path)));
        }
        let store = DeltaTableStore::new(Arc::new(lake), Arc::new(metastore), options(folder));
        deeds(&store).await
    })
}

/// Lives through the history, on an empty folder, and notes what is done.
pub fn live_through(folder: &Path, report: &Report) -> anyhow::Result<()> {
    let mut done = File::options().create(true).append(true).open(folder.join(DEEDS_DONE))?;
    for (number, life) in lives().into_iter().enumerate() {
        if number > 0 {
            for name in TYPES {
                pass_time(&folder_of(folder, name), HOURS, None)?;
            }
        }
        in_a_life(folder, Some(report), async |store| {
            for deed in &life {
                perform(store, folder, deed).await?;
                done.write_all(b".")?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

async fn perform(store: &DeltaTableStore, folder: &Path, deed: &Deed) -> anyhow::Result<()> {
    match deed {
        Deed::Apply(words) => {
            let applied = store.apply(space_batch(words)).await?;
            ensure!(!applied.tables.is_empty(), "a batch of the history brings nothing");
        }
        Deed::AwaitCheckpoint => {
            let hint = folder_of(folder, PERSON).join("_delta_log/_last_checkpoint");
            wait_until("the log has a checkpoint", PATIENCE, async || Ok(hint.exists())).await?;
        }
        Deed::Compact => {
            let compacted = store.compact(&space()).await?;
            ensure!(compacted.commits > 0, "compaction of the history has nothing to do");
        }
        Deed::Maintain => {
            let maintained = store.maintain(&space()).await?;
            ensure!(maintained.files_deleted > 0, "the clean-up of the history has nothing to do");
        }
    }
    Ok(())
}
