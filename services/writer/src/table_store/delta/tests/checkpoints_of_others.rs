//! Checkpoints that other programs, copies and backups leave behind: a hint that leads nowhere, one of several parts that was never finished.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::lake::{Lake, batch, numbered, space, table, until};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeltaOptions, DeltaTableStore};

const DAY: Duration = Duration::from_secs(24 * 3_600);

fn options(orphan_hours: u64) -> DeltaOptions {
    DeltaOptions { checkpoint_every_commits: 10, orphan_hours, ..DeltaOptions::default() }
}

/// A table with 26 commits and the checkpoints that belong to them; the engine that made it.
async fn with_checkpoints(lake: &Lake) -> (DeltaTableStore, Log) {
    let store = lake.open(options(24));
    let log = Log::of(lake, "t");
    for version in 0..26 {
        store.apply(batch(&[("t", numbered(version..version + 5, version as i64 + 1))], vec![])).await.unwrap();
        // Made beside the commits: waited for, so that the next ones do not come too soon for the second.
        let due = version / 10;
        until("the checkpoints that are due", || checkpoints(&log).len() >= due).await;
    }
    (store, log)
}

/// The files of checkpoints, in order.
fn checkpoints(log: &Log) -> Vec<PathBuf> {
    let Ok(files) = fs::read_dir(log.folder.join("_delta_log")) else { return Vec::new() };
    let files = files.map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.to_string_lossy().ends_with(".checkpoint.parquet")).collect();
    files.sort();
    files
}

fn hint(log: &Log) -> PathBuf {
    log.folder.join("_delta_log/_last_checkpoint")
}

#[tokio::test]
async fn a_hint_that_leads_nowhere_does_not_cost_the_table() {
    for is_running in [true, false] {
        for is_deleted in [true, false] {
            let lake = Lake::new().await;
            let (mut store, log) = with_checkpoints(&lake).await;
            if is_deleted {
                fs::remove_file(checkpoints(&log).last().unwrap()).unwrap();
            } else {
                fs::write(hint(&log), "{\"version\":999999,\"size\":1}").unwrap();
            }
            if !is_running {
                store.close().await;
                drop(store);
                store = lake.open_elsewhere(options(24));
            }
            store.apply(batch(&[("t", numbered(100..103, 1))], vec![])).await.unwrap();
            store.maintain(&space()).await.unwrap();
            let case = (is_running, is_deleted);
            assert_eq!(store.describe(&table("t")).await.unwrap().unusable, None, "{case:?}");
            // Readers, which believe the hint, find the log again.
            assert_eq!(lake.read("t").await.len(), 33, "{case:?}");
        }
    }
}

#[tokio::test]
async fn a_checkpoint_that_is_not_complete_is_no_reason_to_delete_what_came_before_it() {
    for (orphan_hours, is_left) in [(24, false), (100_000, true)] {
        let lake = Lake::new().await;
        let (store, log) = with_checkpoints(&lake).await;
        store.close().await;
        let all = checkpoints(&log);
        for later in &all[1..] {
            fs::remove_file(later).unwrap();
        }
        let first: u64 = all[0].file_name().unwrap().to_str().unwrap()[..20].parse().unwrap();
        let half = log.folder.join(format!("_delta_log/{:020}.checkpoint.0000000001.0000000002.parquet", first + 10));
        fs::copy(&all[0], &half).unwrap();
        fs::write(hint(&log), format!("{{\"version\":{first},\"size\":1}}")).unwrap();
        let old = SystemTime::now() - 60 * DAY;
        for file in fs::read_dir(log.folder.join("_delta_log")).unwrap() {
            File::options().write(true).open(file.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
        // It makes no checkpoint of its own, which would be a good reason.
        let store = lake.open_elsewhere(DeltaOptions { checkpoint_every_commits: 1_000, ..options(orphan_hours) });
        store.apply(batch(&[("t", numbered(100..101, 1))], vec![])).await.unwrap();
        store.maintain(&space()).await.unwrap();
        assert!(all[0].exists() && log.versions().is_superset(&(first + 1..26).collect()), "{:?}", log.versions());
        assert_eq!((half.exists(), log.versions().contains(&0)), (is_left, is_left));
        assert_eq!(lake.read("t").await.len(), 31);
    }
}
