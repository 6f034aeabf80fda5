//! What a comparison finds.

use async_trait::async_trait;
use lake_hq::scan::ScanScope;
use lake_hq::scan::compared::{Compared, ComparedScope, ComparedStretch, DocumentState, HqComparison, NumberedSum};
use lake_hq::source::{Columns, SourceError};
use lake_hq::timestamp;
use lake_shared::comparison::{BucketSum, BucketSums, bucket, time_columns};
use lake_shared::identity::{DocumentType, Kind};
use serde_json::Value;

use super::{MemoryHq, Rows, field, scan};
use crate::turn::Table;

/// The documents of a scope, by primary key.
fn states(tables: &[Rows; Table::ALL.len()], scope: &ScanScope) -> Vec<(i64, DocumentState)> {
    let (table, id, type_column) = match scope.kind {
        Kind::Case => (Table::Case, "case_id", "type"),
        Kind::Form => (Table::Form, "form_id", "xmlns"),
        Kind::Location => (Table::Location, "location_id", ""),
    };
    let keys: Vec<i64> = scan::keys(tables, scope).into_iter().map(|(key, _)| key).collect();
    let state = |row: &Columns| {
        let key = row.get("id").and_then(Value::as_i64)?;
        keys.binary_search(&key).ok()?;
        if row.get("deleted_on").is_some_and(|at| !at.is_null()) && scope.kind == Kind::Form {
            return None;
        }
        let document_type = match scope.kind {
            Kind::Case => DocumentType::from(field(row, type_column)),
            Kind::Form => DocumentType::of_form(field(row, type_column)),
            Kind::Location => DocumentType::location(),
        };
        let time = |column: Option<&str>| timestamp::parse_us(field(row, column?));
        let times_us = time_columns(scope.kind).map(time);
        Some((key, DocumentState { id: field(row, id).to_owned(), document_type, times_us }))
    };
    let mut states: Vec<_> = tables[table as usize].values().flatten().filter_map(state).collect();
    states.sort_unstable_by_key(|(key, _)| *key);
    states
}

impl MemoryHq {
    /// The documents of a stretch, of buckets where some are named.
    fn compared(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
        buckets: Option<&[u32]>,
    ) -> Option<Compared<DocumentState>> {
        if stretch.shard != scan::SHARD {
            return None;
        }
        let is_meant = |state: &DocumentState| {
            let number = bucket(&state.id, stretch.bucket_count);
            scope.has_id(&state.id) && buckets.is_none_or(|buckets| buckets.contains(&number))
        };
        let mut all = states(&self.read().tables, &scope.scan);
        all.retain(|(key, state)| *key > stretch.after && is_meant(state));
        let finished = all.len() < stretch.documents_max.max(1);
        all.truncate(stretch.documents_max.max(1));
        let reached = all.last().map_or(stretch.after, |(key, _)| *key);
        Some(Compared { found: all.into_iter().map(|(_, state)| state).collect(), reached, finished })
    }
}

#[async_trait]
impl HqComparison for MemoryHq {
    async fn sum_stretch(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
    ) -> Result<Option<Compared<NumberedSum>>, SourceError> {
        let Some(Compared { found, reached, finished }) = self.compared(scope, stretch, None) else { return Ok(None) };
        let mut sums = BucketSums::new(stretch.bucket_count);
        found.iter().for_each(|state| sums.add(&state.compared()));
        let found = sums.iter().filter(|(_, sum)| *sum != BucketSum::default()).collect();
        Ok(Some(Compared { found, reached, finished }))
    }

    async fn stretch_states(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
        buckets: &[u32],
    ) -> Result<Option<Compared<DocumentState>>, SourceError> {
        Ok(self.compared(scope, stretch, Some(buckets)))
    }

    async fn read_states(&self, scope: &ScanScope, ids: &[String]) -> Result<Vec<DocumentState>, SourceError> {
        let all = states(&self.read().tables, scope).into_iter().map(|(_, state)| state);
        Ok(all.filter(|state| ids.contains(&state.id)).collect())
    }
}
