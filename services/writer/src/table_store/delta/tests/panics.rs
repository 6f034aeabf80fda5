//! Panics in the middle of the engine's work, brought about by what it calls: the call fails, nothing is lost, and everything else goes on.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lake_test_kit::delegating_store::{DelegatingStore, Hooks, Request};
use object_store::path::Path;

use super::compaction::{files_of_rows, merging};
use super::lake::{Lake, batch, new_row, numbered, read_all, space, table, versions};
use crate::table_store::delta::DeltaTableStore;
use crate::table_store::{StoreError, TableStore};

/// A store that panics at requests for the data files of table `t`.
#[derive(Debug, Default)]
struct Panicking {
    at: Mutex<Option<Request>>,
}

impl Panicking {
    fn at(&self, request: Option<Request>) {
        *self.at.lock().unwrap() = request;
    }
}

#[async_trait]
impl Hooks for Panicking {
    async fn before(&self, request: Request, path: &Path) -> object_store::Result<()> {
        let is_hit = *self.at.lock().unwrap() == Some(request);
        let path = path.as_ref();
        assert!(!(is_hit && path.contains("/t/") && path.ends_with(".parquet")), "a library failed");
        Ok(())
    }
}

fn open(lake: &Lake) -> (DeltaTableStore, Arc<Panicking>) {
    let panicking = Arc::new(Panicking::default());
    (lake.open_behind(merging(), |inner| DelegatingStore::over(inner, Arc::clone(&panicking))), panicking)
}

#[tokio::test]
async fn a_batch_that_panics_fails_and_the_next_try_finds_everything_as_it_was() {
    let lake = Lake::new().await;
    let (store, panicking) = open(&lake);
    let first = || batch(&[("t", numbered(0..9, 1)), ("u", vec![new_row("a", 1, &[])])], vec![]);
    store.apply(first()).await.unwrap();
    panicking.at(Some(Request::Put));
    let second = || batch(&[("t", numbered(5..12, 2)), ("u", vec![new_row("a", 2, &[])])], vec![]);
    let error = store.apply(second()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unexplained { .. }), "{error:?}");
    panicking.at(None);
    store.apply(second()).await.unwrap();
    let read = lake.read("t").await;
    assert_eq!(versions(&read).values().filter(|version| **version == 2).count(), 7);
    assert_eq!(read.len(), 12);
    assert_eq!(read_all(&lake, &["t", "u"]).await.len(), 13);
}

#[tokio::test]
async fn a_table_whose_compaction_panics_is_left_out_of_rounds_and_goes_on_taking_rows() {
    let lake = Lake::new().await;
    let (store, panicking) = open(&lake);
    files_of_rows(&store, 4, 25).await;
    for version in 1..5 {
        store.apply(batch(&[("u", numbered(1_000 * version..1_000 * version + 25, 1))], vec![])).await.unwrap();
    }
    let files = async |name: &str| store.describe(&table(name)).await.unwrap().files;
    assert_eq!((files("t").await, files("u").await), (4, 4));

    panicking.at(Some(Request::Get));
    store.compact(&space()).await.unwrap_err();
    assert_eq!((files("t").await, files("u").await), (4, 1), "the other table had its turn");
    let reason = store.describe(&table("t")).await.unwrap().not_compacted.unwrap();
    assert!(reason.contains("a library failed"), "{reason}");
    assert_eq!(store.compact(&space()).await.unwrap().commits, 0, "it is not tried again and again");
    store.apply(batch(&[("t", numbered(500..510, 2))], vec![])).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 110);

    // Asked for, it is tried; when that succeeds, rounds take it in again.
    panicking.at(None);
    assert!(store.compact_table(&table("t")).await.unwrap().commits > 0);
    assert_eq!(store.describe(&table("t")).await.unwrap().not_compacted, None);
    assert_eq!(lake.read("t").await.len(), 110);
}
