//! Finding the one bad row of a batch by bisection: the batch is halved until the row stands alone, then the row is described for the
//! quarantine. Rows of a table that cannot be used are split off from their batch at once.

use std::collections::HashSet;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;
use lake_proto::queue::v1::Lineage;
use lake_shared::identity::DocumentType;
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Reason, Stage};

use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::schema_plan::ID_SOURCE;
use crate::table_store::{SpaceBatch, TableRows};

/// Two halves of a batch of at least two entries: the first rows, and the rest with the tombstones last.
pub(super) fn halves(batch: &SpaceBatch) -> [SpaceBatch; 2] {
    let middle = batch.len() / 2;
    let empty = || SpaceBatch { space: batch.space.clone(), upserts: Vec::new(), tombstones: Vec::new() };
    let (mut first, mut second) = (empty(), empty());
    let mut left = middle;
    for table in &batch.upserts {
        let mut parts = [Vec::new(), Vec::new()];
        for rows in &table.rows {
            let taken = left.min(rows.num_rows());
            left -= taken;
            parts[0].push(rows.slice(0, taken));
            parts[1].push(rows.slice(taken, rows.num_rows() - taken));
        }
        for (half, mut rows) in [&mut first, &mut second].into_iter().zip(parts) {
            rows.retain(|rows| rows.num_rows() > 0);
            if !rows.is_empty() {
                half.upserts.push(TableRows { document_type: table.document_type.clone(), rows });
            }
        }
    }
    let (early, late) = batch.tombstones.split_at(left);
    first.tombstones.extend_from_slice(early);
    second.tombstones.extend_from_slice(late);
    [first, second]
}

/// The rows of some types, each as a batch of its own, and the batch without them.
pub(super) fn split_off_types(batch: SpaceBatch, types: &HashSet<DocumentType>) -> (Vec<SpaceBatch>, SpaceBatch) {
    let (taken, upserts): (Vec<TableRows>, Vec<TableRows>) =
        batch.upserts.into_iter().partition(|table| types.contains(&table.document_type));
    let mut alone = Vec::new();
    for TableRows { document_type, rows } in taken {
        let rows = rows.iter().flat_map(|rows| (0..rows.num_rows()).map(move |row| rows.slice(row, 1)));
        alone.extend(rows.map(|row| SpaceBatch {
            space: batch.space.clone(),
            upserts: vec![TableRows { document_type: document_type.clone(), rows: vec![row] }],
            tombstones: Vec::new(),
        }));
    }
    (alone, SpaceBatch { space: batch.space.clone(), upserts, tombstones: batch.tombstones })
}

/// Takes the rows of the type of a single row out of other parts of its batch, each as a batch of its own. None for a tombstone.
pub(super) fn take_type_of(row: &SpaceBatch, parts: &mut Vec<SpaceBatch>) -> Vec<SpaceBatch> {
    let Some(table) = row.upserts.first() else { return Vec::new() };
    let mut taken = Vec::new();
    for part in std::mem::take(parts) {
        let (rows, rest) = split_off_types(part, &HashSet::from([table.document_type.clone()]));
        taken.extend(rows);
        parts.push(rest);
    }
    taken
}

/// The quarantine entry of a batch with a single row or tombstone.
pub(super) fn entry(batch: &SpaceBatch, reason: Reason, detail: String) -> QuarantineEntry {
    let document = DocumentIdentity {
        domain: batch.space.domain.to_string(),
        kind: Some(batch.space.kind),
        ..DocumentIdentity::default()
    };
    let mut entry = QuarantineEntry::new(Stage::Writer, reason, detail).document(document);
    if let Some(tombstone) = batch.tombstones.first() {
        entry.document.id.clone_from(&tombstone.id);
        entry.lineage.clone_from(&tombstone.lineage);
    }
    if let Some(table) = batch.upserts.first() {
        entry.document.document_type = table.document_type.to_string();
        if let Some(row) = table.rows.first() {
            entry.document.id = text(row, ID_SOURCE);
            entry.lineage = Some(lineage(row));
            entry.payload = json(row).into();
        }
    }
    entry
}

fn text(row: &RecordBatch, source: &str) -> String {
    let array = row.column_by_name(source).and_then(|array| converted(array, ColumnType::String));
    array
        .filter(|array| array.is_valid(0))
        .map(|array| array.as_string::<i32>().value(0).to_owned())
        .unwrap_or_default()
}

fn lineage(row: &RecordBatch) -> Lineage {
    let number = |source: &str| {
        let array = row.column_by_name(source)?;
        let array = if let Some(array) = array.as_primitive_opt::<Int32Type>() {
            return array.is_valid(0).then(|| i64::from(array.value(0)));
        } else {
            converted(array, ColumnType::Long)?
        };
        array.is_valid(0).then(|| array.as_primitive::<Int64Type>().value(0))
    };
    let instant = |source: &str| {
        let array = converted(row.column_by_name(source)?, ColumnType::Timestamp)?;
        array.is_valid(0).then(|| array.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0))
    };
    Lineage {
        topic: text(row, "+_lake_topic"),
        partition: number("+_lake_partition").and_then(|number| i32::try_from(number).ok()).unwrap_or_default(),
        offset: number("+_lake_offset").unwrap_or_default(),
        published_us: instant("+_lake_published_at").unwrap_or_default(),
        fetched_us: instant("+_lake_fetched_at").unwrap_or_default(),
    }
}

/// The row as JSON of source path to value; empty where a type has no JSON form.
fn json(row: &RecordBatch) -> Vec<u8> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    match writer.write(row).and_then(|()| writer.finish()) {
        Ok(()) => writer.into_inner(),
        Err(_) => Vec::new(),
    }
}
