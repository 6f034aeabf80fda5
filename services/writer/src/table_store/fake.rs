//! A table store for tests that keeps nothing but what it was asked.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::AsArray;
use async_trait::async_trait;
use lake_shared::comparison::BucketSums;
use lake_shared::identity::{DocumentType, Space, TableKey};
use tokio::sync::Semaphore;

use super::compared_rows::{ComparedScope, RowState, WantedRows};
use super::erasure::{Erased, Erasure};
use super::{
    Applied, Compacted, InMemoryTable, LocatedRow, Maintained, PlannedCompaction, Restored, SpaceBatch, StoreError,
    TableStatus, TableStore,
};
use crate::consent::{Consent, Destroyed};
use crate::metastore::steering::OperationTarget;
use crate::metastore::steering::restore_point::RestorePoint;

/// Remembers ids by space; refuses ids that begin with `bad`, tables of type `broken`, and types that begin with `surplus`, all of them at once;
/// panics at ids that begin with `panic`; fails as often as told, and for the domains and types it is told of. Counts its clean-ups, and keeps what it
/// is to tell of the tables.
#[derive(Default)]
pub(crate) struct FakeStore {
    ids: Mutex<BTreeMap<Space, Vec<String>>>,
    /// Domains for which it fails.
    pub(crate) failing: Mutex<HashSet<String>>,
    /// Domains and types for which it fails for no cause that it knows.
    pub(crate) unexplained: Mutex<HashSet<String>>,
    applied: AtomicUsize,
    failures_left: AtomicUsize,
    busy: Mutex<HashSet<Space>>,
    parallel_most: AtomicUsize,
    gate: Option<Semaphore>,
    cleaned: AtomicUsize,
    /// What it was to tell of the tables, each time.
    pub(crate) told: Mutex<Vec<Vec<TableStatus>>>,
}

impl FakeStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Commits wait until they are let through.
    pub(crate) fn gated() -> Arc<Self> {
        Arc::new(Self { gate: Some(Semaphore::new(0)), ..Self::default() })
    }

    pub(crate) fn let_through(&self, commits: usize) {
        self.gate.as_ref().unwrap().add_permits(commits);
    }

    /// Number of batches.
    pub(crate) fn applied(&self) -> usize {
        self.applied.load(Ordering::SeqCst)
    }

    /// Number of spaces that have a batch now.
    pub(crate) fn busy(&self) -> usize {
        self.busy.lock().unwrap().len()
    }

    /// Most spaces that had a batch at the same time.
    pub(crate) fn parallel_most(&self) -> usize {
        self.parallel_most.load(Ordering::SeqCst)
    }

    /// Fails so many more times.
    pub(crate) fn fail(&self, times: usize) {
        self.failures_left.store(times, Ordering::SeqCst);
    }

    /// Number of clean-ups of spaces.
    pub(crate) fn cleaned(&self) -> usize {
        self.cleaned.load(Ordering::SeqCst)
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.ids.lock().unwrap().values().flatten().cloned().collect();
        ids.sort();
        ids
    }
}

fn ids_of(batch: &SpaceBatch) -> Vec<String> {
    let rows = batch.upserts.iter().flat_map(|table| &table.rows);
    let ids = rows.flat_map(|rows| rows.column_by_name("/_id").unwrap().as_string::<i32>().iter().flatten());
    ids.map(str::to_owned).chain(batch.tombstones.iter().map(|tombstone| format!("-{}", tombstone.id))).collect()
}

#[async_trait]
impl TableStore for FakeStore {
    async fn apply(&self, batch: SpaceBatch) -> Result<Applied, StoreError> {
        let space = batch.space.clone();
        let ids = ids_of(&batch);
        if let Some(id) = ids.iter().find(|id| id.starts_with("panic")) {
            panic!("out of bounds at {id}");
        }
        {
            let mut busy = self.busy.lock().unwrap();
            assert!(busy.insert(space.clone()), "{space} overlaps with itself");
            self.parallel_most.fetch_max(busy.len(), Ordering::SeqCst);
        }
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        self.applied.fetch_add(1, Ordering::SeqCst);
        let fails =
            self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let fails = fails || self.failing.lock().unwrap().contains(space.domain.as_str());
        let types = batch.upserts.iter().map(|rows| rows.document_type.clone());
        let surplus: Vec<DocumentType> = types.filter(|name| name.as_str().starts_with("surplus")).collect();
        let strange = |name: &str| self.unexplained.lock().unwrap().contains(name);
        let is_strange =
            strange(space.domain.as_str()) || batch.upserts.iter().any(|rows| strange(rows.document_type.as_str()));
        let outcome = if is_strange {
            Err(StoreError::Unexplained { space: space.clone(), source: "overflow".into() })
        } else if fails {
            Err(StoreError::Unavailable { space: space.clone(), action: "test", source: "connection lost".into() })
        } else if let Some(rows) = batch.upserts.iter().find(|rows| rows.document_type.to_string() == "broken") {
            let table = TableKey { space: space.clone(), document_type: rows.document_type.clone() };
            Err(StoreError::UnusableTable { table, reason: "a column of a strange type".into() })
        } else if !surplus.is_empty() {
            Err(StoreError::TooManyTypes { space: space.clone(), types_max: 7, refused: surplus })
        } else if ids.iter().any(|id| id.starts_with("bad")) {
            Err(StoreError::BadRows { space: space.clone(), reason: "bad id".into() })
        } else {
            self.ids.lock().unwrap().entry(space.clone()).or_default().extend(ids);
            Ok(Applied::default())
        };
        self.busy.lock().unwrap().remove(&space);
        outcome
    }

    async fn compact(&self, _: &Space) -> Result<Compacted, StoreError> {
        Ok(Compacted::default())
    }
    async fn compact_table(&self, _: &TableKey) -> Result<Compacted, StoreError> {
        Ok(Compacted::default())
    }
    async fn describe(&self, _: &TableKey) -> Option<InMemoryTable> {
        None
    }
    async fn vacuum_table(&self, _: &TableKey, _: &Consent) -> Result<Destroyed, StoreError> {
        Ok(Destroyed::default())
    }
    async fn checkpoint_table(&self, _: &TableKey) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }
    async fn drop_tables(&self, _: &OperationTarget, _: &str, _: &Consent) -> Result<Destroyed, StoreError> {
        Ok(Destroyed::default())
    }
    async fn plan_compaction(&self, _: &TableKey) -> Result<PlannedCompaction, StoreError> {
        Ok(PlannedCompaction::default())
    }
    async fn restore_table(&self, _: &TableKey, _: RestorePoint, _: &Consent) -> Result<Restored, StoreError> {
        Ok(Restored::default())
    }
    async fn observed(&self, _: &Space, ids: &[String]) -> Result<Vec<Option<i64>>, StoreError> {
        Ok(vec![None; ids.len()])
    }
    async fn locate(&self, _: &Space, _: &str) -> Result<Option<LocatedRow>, StoreError> {
        Ok(None)
    }
    async fn allow_tables(&self, _: &OperationTarget) -> Result<u64, StoreError> {
        Ok(0)
    }
    async fn erase(&self, asked: &Erasure, consent: &Consent) -> Result<Erased, StoreError> {
        let records = asked.ids.len() as u64;
        Ok(Erased { records, done: *consent != Consent::DryRun, ..Erased::default() })
    }
    async fn allow_records(&self, _: &Space, _: &[String], _: &str) -> Result<u64, StoreError> {
        Ok(0)
    }
    async fn tell_status(&self, tables: &[TableStatus]) -> Result<(), StoreError> {
        self.told.lock().unwrap().push(tables.to_vec());
        Ok(())
    }
    async fn clean_up_status(&self) -> Result<Maintained, StoreError> {
        Ok(Maintained::default())
    }
    async fn close(&self) {}
    async fn present(&self, _: &Space, _: &[String]) -> Result<HashSet<String>, StoreError> {
        Ok(HashSet::new())
    }
    async fn follow_tables(&self, _: &Space) -> Result<(), StoreError> {
        Ok(())
    }
    async fn bucket_sums(&self, _: &ComparedScope, bucket_count: u32) -> Result<BucketSums, StoreError> {
        Ok(BucketSums::new(bucket_count))
    }
    async fn row_states(&self, _: &ComparedScope, _: WantedRows<'_>) -> Result<Vec<RowState>, StoreError> {
        Ok(Vec::new())
    }
    fn spaces_in_use(&self) -> Vec<Space> {
        Vec::new()
    }
    async fn maintain(&self, _: &Space) -> Result<Maintained, StoreError> {
        self.cleaned.fetch_add(1, Ordering::SeqCst);
        Ok(Maintained::default())
    }
}
