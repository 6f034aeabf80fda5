//! Making a committed change part of the state of its space.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use crate::key_index::{FileNumber, IndexEntry};
use crate::metric_names;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::new_files::NewFile;
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::{AddedRows, CommittedFiles, OwnCommit, TableState};
use crate::table_store::delta::upsert::change::{Change, CommittedChange, WrittenChange};
use crate::table_store::delta::upsert::progress::Progress;

/// Brings files, key index and schema of a table in step with a commit of a change.
pub(crate) fn adopt(state: &mut SpaceState, committed: CommittedChange, progress: &mut Progress) {
    let CommittedChange { change, written, entry, id } = committed;
    let kind = state.space().kind.name();
    let bytes: i64 = written.added.iter().map(|file| file.add.size).sum();
    let upserted = change.incoming.len() as u64;
    progress.add(&change);
    let versions = versions_us(state.table(change.number), &change, &written);
    let WrittenChange { plan, partition_columns, added, removed, marked, inserted, copied, copied_run } = written;
    let inserted_rows = inserted_rows(&inserted, copied.is_empty() && copied_run.is_none());
    let added: Vec<DataFile> =
        added.into_iter().zip(versions).map(|(file, versions_us)| file.into_data_file(versions_us)).collect();
    let own = added.iter().map(|file| AddedRows {
        file: file.clone(),
        rows: inserted_rows.as_ref().map(|rows| rows.get(&file.number).cloned().unwrap_or_default()),
    });
    let own = OwnCommit { entry, added: own.collect() };
    state.commit_applied(change.number, CommittedFiles { own, id, removed, marked, added });
    state.put_keys(copied.into_iter().chain(inserted));
    if let Some(run) = copied_run {
        state.attach_keys(run);
    }
    let schema = plan.changed.then_some(plan.schema);
    let (freshness, published_us) = (change.incoming.freshness(), change.incoming.published_us());
    state.rows_committed(change.number, schema, partition_columns, freshness, published_us);
    metrics::counter!(metric_names::ROWS_UPSERTED_TOTAL, "kind" => kind).increment(upserted);
    metrics::counter!(metric_names::ROWS_DELETED_TOTAL, "kind" => kind).increment(change.deleted);
    metrics::counter!(metric_names::BYTES_WRITTEN_TOTAL, "kind" => kind).increment(bytes.unsigned_abs());
}

/// Which rows of new files came with a change; `None`: all of them.
fn inserted_rows(inserted: &[IndexEntry], are_all: bool) -> Option<HashMap<FileNumber, RoaringBitmap>> {
    if are_all {
        return None;
    }
    let mut rows: HashMap<FileNumber, RoaringBitmap> = HashMap::new();
    for entry in inserted {
        rows.entry(entry.position.file).or_default().insert(entry.position.row.get());
    }
    Some(rows)
}

/// Bounds of the versions of the rows of each new file. They came with this change or stood in the files that it
/// takes out of the partition.
fn versions_us(table: &TableState, change: &Change, written: &WrittenChange) -> Vec<Option<(i64, i64)>> {
    let joined = |one: (i64, i64), other: (i64, i64)| (one.0.min(other.0), one.1.max(other.1));
    let arrived = change.incoming.keys.iter().map(|(_, order)| (order.version_us, order.version_us)).reduce(joined);
    let mut copied: HashMap<&Partition, Option<(i64, i64)>> = HashMap::new();
    for file in written.removed.iter().filter_map(|number| table.file(*number)) {
        let bounds = copied.entry(&file.partition).or_insert(file.versions_us);
        *bounds = bounds.zip(file.versions_us).map(|(one, other)| joined(one, other));
    }
    let of_file = |file: &NewFile| match (arrived, copied.get(&file.partition)) {
        (arrived, None) => arrived,
        (None, Some(copied)) => *copied,
        (Some(arrived), Some(copied)) => copied.map(|copied| joined(arrived, copied)),
    };
    written.added.iter().map(of_file).collect()
}
