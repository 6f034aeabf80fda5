//! Spaces that leave memory and come back.

use lake_shared::identity::{Kind, Space};

use super::lake::{Lake, batch, new_row, numbered, space, tombstone};
use super::log::Log;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{Applied, SpaceBatch, TableStore};

fn space_of(domain: &str) -> Space {
    Space { domain: domain.into(), kind: Kind::Case }
}

async fn apply(store: &DeltaTableStore, domain: &str, batch: SpaceBatch) -> Applied {
    store.apply(SpaceBatch { space: space_of(domain), ..batch }).await.unwrap()
}

async fn is_loaded(store: &DeltaTableStore, domain: &str) -> bool {
    store.spaces.cell(&space_of(domain)).state.lock().await.is_some()
}

#[tokio::test]
async fn spaces_share_a_budget_and_come_back_without_reading_keys() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(DeltaOptions { spaces_bytes_max: 1, ..DeltaOptions::default() });
    let domains = ["a", "b", "c"];
    for version in 1..=4 {
        for domain in domains {
            let rows = batch(&[("t", numbered(0..50, version))], vec![tombstone(&format!("gone-{version}"), None, 5)]);
            let applied = apply(&store, domain, rows).await;
            assert_eq!((applied.tables[0].rows_total, applied.tables[0].rows_upserted), (50, 50));
        }
        assert!(!is_loaded(&store, "a").await && !is_loaded(&store, "b").await && is_loaded(&store, "c").await);
    }
    let reads = gate.reads.load(std::sync::atomic::Ordering::Relaxed);
    for domain in domains {
        let again = apply(&store, domain, batch(&[("t", numbered(0..50, 3))], vec![])).await;
        assert!(again.tables.is_empty(), "what is older changes nothing");
        let late = apply(&store, domain, batch(&[("t", vec![new_row("gone-2", 4, &[])])], vec![])).await;
        assert!(late.tables.is_empty(), "what was deleted stays away");
    }
    assert_eq!(gate.reads.load(std::sync::atomic::Ordering::Relaxed), reads, "no data file was read");
    let roomy = lake.open_elsewhere(DeltaOptions::default());
    for domain in domains {
        apply(&roomy, domain, batch(&[], vec![])).await;
    }
    for domain in domains {
        assert!(is_loaded(&roomy, domain).await);
    }
}

/// Maintenance reaches spaces that nobody has written to since the start.
#[tokio::test]
async fn an_idle_space_is_compacted_after_a_start() {
    let lake = Lake::new().await;
    let options = |deletion_vectors| DeltaOptions { deletion_vectors, ..DeltaOptions::default() };
    let store = lake.open(options(DeletionVectors::On));
    store.apply(batch(&[("t", numbered(0..100, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered(0..3, 2))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    assert_eq!(log.deleted_rows(), 3);
    store.close().await;
    drop(store);
    let store = lake.open(options(DeletionVectors::Off));
    store.maintain(&space()).await.unwrap();
    assert_eq!((log.deleted_rows(), lake.read("t").await.len()), (0, 100));
}

/// The metastore has lost its row of a table, as after a restore of an older copy.
#[tokio::test]
async fn a_table_that_the_metastore_has_forgotten_is_registered_again() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    store.apply(batch(&[("t", numbered(0..10, 1)), ("u", numbered(10..20, 1))], vec![])).await.unwrap();
    let file = lake.database.path().join("metastore.sqlite");
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    sqlx::query("DELETE FROM lake_table WHERE type = 't'").execute(&pool).await.unwrap();
    pool.close().await;
    for version in 2..4 {
        let rows = [("t", numbered(0..10, version)), ("u", numbered(10..20, version))];
        store.apply(batch(&rows, vec![])).await.unwrap();
    }
    assert_eq!((lake.read("t").await.len(), lake.read("u").await.len()), (10, 10));
    assert_eq!(lake.metastore.tables(Some(&space())).await.unwrap().len(), 2);
    assert_eq!(Log::of(&lake, "t").latest(), 2, "the same table goes on");
}

/// Each table has the settings of its name.
#[tokio::test]
async fn tables_have_settings_of_their_own() {
    let lake = Lake::new().await;
    let mut options = DeltaOptions { deletion_vectors: DeletionVectors::Off, ..DeltaOptions::default() };
    let store = lake.open(options.clone());
    store
        .apply(batch(&[("a", numbered(0..1, 1)), ("b", numbered(1..2, 1)), ("c", numbered(2..3, 1))], vec![]))
        .await
        .unwrap();
    let tables = lake.metastore.tables(Some(&space())).await.unwrap();
    let name = |of: &str| tables.iter().find(|table| table.key.document_type.as_str() == of).unwrap().name.clone();
    let named = |deletion_vectors, partition_by| super::super::NamedTableOptions { deletion_vectors, partition_by };
    options.named.insert(name("b"), named(Some(DeletionVectors::On), None));
    let d = name("c").trim_end_matches('c').to_owned() + "d";
    options.named.insert(d, named(None, Some(vec!["month".into()])));
    store.close().await;
    drop(store);
    let store = lake.open(options);
    let types = ["a", "b", "d"];
    let rows = |ids: usize, version| {
        let of_type = |(of, first): (&&'static str, usize)| (*of, numbered(first..first + ids, version));
        types.iter().zip([0, 100, 200]).map(of_type).collect::<Vec<_>>()
    };
    store.apply(batch(&rows(40, 2), vec![])).await.unwrap();
    store.apply(batch(&rows(1, 3), vec![])).await.unwrap();
    let log = |of: &str| Log::of(&lake, of);
    assert!(log("a").deleted_rows() == 0 && log("b").deleted_rows() > 0 && log("d").deleted_rows() == 0);
    let partitions = |of: &str| log(of).newest("metaData")["partitionColumns"].as_array().unwrap().len();
    assert_eq!((partitions("a"), partitions("b"), partitions("d")), (0, 0, 1));
}
