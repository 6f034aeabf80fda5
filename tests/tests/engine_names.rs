//! Names that projects of HQ choose, as projects, types and properties: each gets a table or a column of its own, which every reader finds, and none meets
//! what the lake, Delta or a reader reserves.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lake_shared::identity::{Kind, Space, TableKey};
use lake_test_kit::hostile_names::{RESERVED, hostile_names};
use lake_test_kit::rows::{Cell, new_row, numbered_id, record_batch};
use lake_tests::engine::{DeltaOptions, EngineLake};
use lake_tests::readers::{Reader, Readers, Snapshot};
use lake_writer::table_store::delta::DeltaTableStore;
use lake_writer::table_store::{SpaceBatch, TableRows, TableStore};

fn key(domain: &str, document_type: &str) -> TableKey {
    TableKey { space: Space { domain: domain.into(), kind: Kind::Case }, document_type: document_type.into() }
}

/// One row in a table of each of these types, with the type in its text.
fn one_row_each(domain: &str, types: &[&str]) -> SpaceBatch {
    let upserts = types.iter().enumerate().map(|(n, name)| TableRows {
        document_type: (*name).into(),
        rows: vec![record_batch(&[new_row(&numbered_id(n), 1, &[("/text", &said(domain, name))])])],
    });
    SpaceBatch { space: key(domain, "").space, upserts: upserts.collect(), tombstones: Vec::new() }
}

fn said(domain: &str, document_type: &str) -> String {
    format!("{document_type:?} of {domain:?}")
}

async fn texts(folder: &Path) -> Vec<String> {
    let snapshot = Snapshot::read(folder, None).await.unwrap().unwrap();
    snapshot.rows.iter().map(|row| row["text"].clone()).collect()
}

/// What each folder of the lake begins with, down to those of tables: nothing that is hidden or reserved anywhere.
fn ensure_folders_are_plain(root: &Path) {
    let mut folders = vec![(root.to_owned(), 0)];
    let mut tables = 0;
    while let Some((folder, depth)) = folders.pop() {
        assert_eq!(folder.join("_delta_log").exists(), depth == 3, "{}", folder.display());
        if depth == 3 {
            tables += 1;
            continue;
        }
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            // The lake's own objects, beside which no project may stand.
            if depth == 0 && name.starts_with("_lake_") {
                assert!(!entry.path().join("case-sql").exists(), "{name}");
                continue;
            }
            assert!(name.starts_with(|first: char| first.is_ascii_alphanumeric()) && !name.contains('='), "{name}");
            folders.push((entry.path(), depth + 1));
        }
    }
    assert!(tables > 0);
}

async fn opened(lake: &EngineLake) -> DeltaTableStore {
    let store = lake.open(&DeltaOptions::default()).unwrap();
    store.check_at_startup().await.unwrap();
    store
}

/// Each table of the metastore holds the one row that was written to it.
async fn ensure_tables_are_right(lake: &EngineLake, expected: &BTreeSet<TableKey>) {
    let tables = lake.tables().await.unwrap();
    assert_eq!(tables.iter().map(|table| table.key.clone()).collect::<BTreeSet<_>>(), *expected);
    for table in tables {
        let (domain, document_type) = (table.key.space.domain.as_str(), table.key.document_type.as_str());
        assert_eq!(texts(&lake.root().join(&table.path)).await, [said(domain, document_type)], "{}", table.path);
    }
    ensure_folders_are_plain(lake.root());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_name_is_a_type() {
    let (lake, names) = (EngineLake::new().await.unwrap(), hostile_names());
    let types: Vec<&str> = names.iter().map(String::as_str).collect();
    let store = opened(&lake).await;
    store.apply(one_row_each("demo", &types)).await.unwrap();
    let expected = types.iter().map(|name| key("demo", name)).collect();
    ensure_tables_are_right(&lake, &expected).await;
    // A start finds all of them where they are.
    store.close().await;
    drop(store);
    let again = opened(&lake).await.apply(one_row_each("demo", &types)).await.unwrap();
    assert!(again.tables.is_empty(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_name_is_a_project() {
    let (lake, names) = (EngineLake::new().await.unwrap(), hostile_names());
    let store = opened(&lake).await;
    for name in &names {
        store.apply(one_row_each(name, &["person"])).await.unwrap();
    }
    ensure_tables_are_right(&lake, &names.iter().map(|name| key(name, "person")).collect()).await;
    opened(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_name_is_a_property() {
    let (lake, names) = (EngineLake::new().await.unwrap(), hostile_names());
    let store = opened(&lake).await;
    let source = |name: &str| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
    let mut row = new_row("a", 1, &[]);
    let named = names.iter().filter(|name| *name != "_id");
    row.cells = named.map(|name| (source(name), Cell::Text(name.clone()))).collect();
    let cells = row.cells.clone();
    let upserts = vec![TableRows { document_type: "person".into(), rows: vec![record_batch(&[row])] }];
    store.apply(SpaceBatch { space: key("demo", "").space, upserts, tombstones: Vec::new() }).await.unwrap();
    let folder = lake.root().join(&lake.tables().await.unwrap()[0].path);
    let snapshot = Snapshot::read(&folder, None).await.unwrap().unwrap();
    let folded: BTreeSet<String> = snapshot.sources.keys().map(|name| name.to_lowercase()).collect();
    assert_eq!(folded.len(), snapshot.sources.len(), "names that readers fold into each other");
    let expected: BTreeMap<String, String> = cells.iter().map(|(source, cell)| (source.clone(), cell.text())).collect();
    assert_eq!(snapshot.fields_of(&snapshot.rows[0]).unwrap(), expected);
    for reserved in ["_change_type", "_commit_version", "_commit_timestamp", "_metadata"] {
        assert!(!folded.contains(reserved), "a table with {reserved} cannot have a change data feed");
    }
    let mut readers = Readers::of_folders().unwrap();
    for reader in Reader::QUICK {
        readers.read(reader, &folder, None).unwrap().ensure_is(&snapshot.rows).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_programs_read_tables_of_reserved_names() {
    let lake = EngineLake::new().await.unwrap();
    let (store, mut readers) = (opened(&lake).await, Readers::of_folders().unwrap());
    let projects = ["_lake_root", "_delta_log", ".hidden", "a=b"];
    for project in projects {
        store.apply(one_row_each(project, &RESERVED)).await.unwrap();
    }
    let keys = projects.iter().flat_map(|project| RESERVED.iter().map(|name| key(project, name)));
    ensure_tables_are_right(&lake, &keys.collect()).await;
    for table in lake.tables().await.unwrap() {
        let folder = lake.root().join(&table.path);
        let rows = Snapshot::read(&folder, None).await.unwrap().unwrap().rows;
        for reader in Reader::QUICK {
            readers.read(reader, &folder, None).unwrap().ensure_is(&rows).unwrap();
        }
    }
    // The lake still knows its root, although a project has the name of its mark.
    store.close().await;
    drop(store);
    opened(&lake).await;
}
