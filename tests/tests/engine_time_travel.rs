//! After the clean-up, every version within the retention is still what it was, in every reader; what nobody can read any more is gone.
//!
//! Time passes by setting clocks back on disk: the log entries up to a version say that it was hours ago, and every file is as old as that.
//! So whoever judged files by their age alone would delete what running readers need.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lake_test_kit::time::{HOUR_MS, data_files, pass_time, set_back_note};
use lake_tests::engine::{
    Cell, DeletionVectors, DeltaOptions, EngineLake, NewRow, batch, partition_by, small, space, tombstone,
};
use lake_tests::readers::{Reader, Readers, Row};
use lake_writer::table_store::TableStore;

const TYPE: &str = "person";

/// Twenty commits: rows enter, are replaced a few at a time, and leave; columns come and one changes its type.
async fn live(lake: &EngineLake, options: &DeltaOptions) -> BTreeMap<u64, Vec<Row>> {
    let store = lake.open(options).unwrap();
    let mut versions = BTreeMap::new();
    for step in 0..20_i64 {
        let ids = if step == 0 { 0..400 } else { step * 7..step * 7 + 30 };
        let rows = ids.map(|id| {
            let note = if step == 12 && id % 5 == 0 { Cell::Text("many".into()) } else { Cell::Number(id * step) };
            let mut cells = BTreeMap::from([("/note".to_owned(), note)]);
            cells.insert(format!("/q{}", step / 4), Cell::Text(format!("answer {step}")));
            cells.insert("+supervisor_id".to_owned(), Cell::Text(["anna", "berta"][(id % 2) as usize].into()));
            NewRow { id: format!("id-{id}"), version_us: step, observed_us: step, cells }
        });
        let leaving = (0..3).map(|n| tombstone(&format!("id-{}", 399 - 3 * step - n), Some(step), step)).collect();
        store.apply(batch(&[(TYPE, rows.collect())], leaving)).await.unwrap();
        if step % 6 == 5 {
            store.maintain(&space()).await.unwrap();
        }
        let snapshot = lake.snapshot(TYPE).await.unwrap().unwrap();
        versions.insert(snapshot.version, snapshot.rows);
    }
    versions
}

/// Data files and deletion vectors.
fn files(folder: &Path) -> Vec<PathBuf> {
    data_files(folder).unwrap()
}

async fn cleaned_up(options: &DeltaOptions) {
    let lake = EngineLake::new().await.unwrap();
    let past = live(&lake, options).await;
    let latest = *past.keys().next_back().unwrap();
    let (&within, _) = past.range(latest / 2..).next().unwrap();
    let table = lake.table(TYPE);
    // What crashes leave behind: written, never committed.
    let mut orphans = vec![table.join("part-00000-0d9e2c4e-1111-4222-8333-444455556666-c000.zstd.parquet")];
    if files(&table).iter().any(|file| file.extension().is_some_and(|end| end == "bin")) {
        orphans.push(table.join("deletion_vector_0d9e2c4e-1111-4222-8333-444455556666.bin"));
    }
    orphans.iter().for_each(|orphan| fs::write(orphan, "half a file").unwrap());
    let before = files(&table).len();
    pass_time(&table, 72, Some(within)).unwrap();

    let store = lake.open(options).unwrap();
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_deleted > 0, "nothing was cleaned up: {options:?}");
    assert!(files(&table).len() < before, "{options:?}");
    // Nothing says when deletion vectors fell out of use, so the first clean-up that meets them may take note only.
    let orphaned = |path: &str| orphans.iter().any(|orphan| orphan.ends_with(path));
    if set_back_note(&table, 72 * HOUR_MS, orphaned).unwrap().is_some() {
        store.maintain(&space()).await.unwrap();
    }
    for orphan in &orphans {
        assert!(!orphan.exists(), "{} is still there: {options:?}", orphan.display());
    }

    let mut readers = Readers::of_folders().unwrap();
    for (&version, rows) in past.range(within..) {
        for reader in Reader::QUICK {
            let content = readers.read(reader, &table, Some(version)).unwrap();
            content.ensure_is(rows).unwrap_or_else(|error| panic!("{reader}, version {version}, {options:?}: {error}"));
        }
    }
    let content = readers.read(Reader::Spark, &table, Some(within)).unwrap();
    content.ensure_is(&past[&within]).unwrap_or_else(|error| panic!("Spark, version {within}, {options:?}: {error}"));

    // The lake lives on.
    let row = NewRow { id: "late".into(), version_us: 99, observed_us: 99, cells: BTreeMap::new() };
    store.apply(batch(&[(TYPE, vec![row])], Vec::new())).await.unwrap();
    let snapshot = lake.snapshot(TYPE).await.unwrap().unwrap();
    assert!(snapshot.version > latest && snapshot.rows.iter().any(|row| row["_id"] == "late"));
    for reader in Reader::QUICK {
        readers.read(reader, &table, None).unwrap().ensure_is(&snapshot.rows).unwrap();
        readers.read(reader, &table, Some(within)).unwrap().ensure_is(&past[&within]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_within_the_retention_stay_as_they_were() {
    for columns in [&[] as &[&str], &["supervisor_id"]] {
        for deletion_vectors in [DeletionVectors::Off, DeletionVectors::On] {
            let partition_by = partition_by(columns);
            let options = DeltaOptions { partition_by, deletion_vectors, retention_hours: 24, ..small() };
            cleaned_up(&options).await;
        }
    }
}
