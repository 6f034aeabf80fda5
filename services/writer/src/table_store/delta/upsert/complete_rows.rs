//! Incomplete rows get what they do not bring from the row that they replace.
//!
//! A row is incomplete where the record could not be read as a whole: a form whose XML is missing, a record that is too large. Its column
//! [`INCOMPLETE_SOURCE`](crate::table_store::schema_plan::INCOMPLETE_SOURCE) says why. The fields of HQ's record that its message has count, also
//! where they are NULL; all others stay as they were. So a reading that did not see the answers of a form never empties them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{is_not_null, take_record_batch};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use roaring::RoaringBitmap;

use crate::key_index::FileNumber;
use crate::table_store::SpaceBatch;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::conversion::{ColumnType, column_type, converted};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::space::state::{RowLocation, SpaceState};
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upsert::apply::Upserter;
use crate::table_store::delta::upsert::plan::decide::Decisions;
use crate::table_store::delta::upsert::rows::stored::{self, Fields, StoredColumns};
use crate::table_store::schema_plan::{LAKE_PREFIX, is_foreign};

/// Source path of the month. It may come from what an incomplete row does not have.
const MONTH_SOURCE: &str = "+month";

/// Bytes of memory that rows may take which come from tables to complete those of one batch. Where it is more, the batch is applied in halves.
const HELD_BYTES_MAX: usize = 64 << 20;

/// Where the rows before stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Before {
    /// In a file of a table.
    Held(TableNumber, FileNumber),
    /// In the batch itself: a position in `SpaceBatch::upserts`, and one in its `rows`.
    Arrived(usize, usize),
}

/// An incomplete row, and the row that has what it lacks.
struct Pair {
    /// Row of the file or batch of [`Before`].
    before: u32,
    /// Row of the batch that it came in.
    arrived: u32,
    /// Position among the rows of its table that enter.
    upsert: usize,
}

/// Pairs by where the row before stands, and where the incomplete one does.
type Pairs = BTreeMap<(Before, (usize, usize)), Vec<Pair>>;

impl Upserter {
    /// A batch in which the incomplete rows that enter are completed; `decisions` then name the completed ones. `None` where none has a row
    /// before it.
    pub(super) async fn complete_rows(
        &self,
        state: &SpaceState,
        batch: &SpaceBatch,
        decisions: &mut Decisions,
        found: &ByIdHash<RowLocation>,
    ) -> Result<Option<SpaceBatch>, EngineError> {
        let pairs = pairs(decisions, found);
        if pairs.is_empty() {
            return Ok(None);
        }
        let mut completed = batch.clone();
        let (mut held_rows, mut held_bytes) = (0, 0_usize);
        for ((before, (table, number)), mut pairs) in pairs {
            pairs.sort_unstable_by_key(|pair| pair.before);
            let fields = match before {
                Before::Held(table, file) => {
                    let left = HELD_BYTES_MAX.saturating_sub(held_bytes);
                    let fields = self.held_fields(state, table, file, &pairs, left).await?;
                    held_rows += pairs.len();
                    let bytes =
                        |fields: &Fields| fields.iter().map(|(_, array)| array.get_array_memory_size()).sum::<usize>();
                    held_bytes = held_bytes.saturating_add(fields.as_ref().map_or(HELD_BYTES_MAX, bytes));
                    match fields {
                        // A single one is completed, however large it is.
                        Some(fields) if held_bytes <= HELD_BYTES_MAX || held_rows == 1 => fields,
                        _ => {
                            let reason = format!(
                                "completed by what tables hold they take more than {HELD_BYTES_MAX} bytes of memory"
                            );
                            return Err(EngineError::BadRows(reason));
                        }
                    }
                }
                Before::Arrived(table, number) => {
                    let rows = taken(&batch.upserts[table].rows[number], pairs.iter().map(|pair| pair.before));
                    fields_of(&rows.map_err(EngineError::arrow)?)
                }
            };
            let arrived = taken(&batch.upserts[table].rows[number], pairs.iter().map(|pair| pair.arrived));
            let rows = arrived.and_then(|arrived| merged(&arrived, fields)).map_err(EngineError::arrow)?;
            let batches = &mut completed.upserts[table].rows;
            for (row, pair) in pairs.iter().enumerate() {
                let at = &mut decisions.upserts[table][pair.upsert].at;
                (at.batch, at.row) = (batches.len(), row);
            }
            batches.push(rows);
        }
        Ok(Some(completed))
    }

    /// What rows of a file hold, under the source paths of their columns. `None` for several rows that take more than `bytes_max` of memory.
    async fn held_fields(
        &self,
        state: &SpaceState,
        table: TableNumber,
        number: FileNumber,
        pairs: &[Pair],
        bytes_max: usize,
    ) -> Result<Option<Fields>, EngineError> {
        let held = state.table(table);
        let Some(file) = held.file(number) else { return Ok(Some(Fields::new())) };
        let rows: RoaringBitmap = pairs.iter().map(|pair| pair.before).collect();
        let store = self.loader.access().unloaded(held.path())?.object_store();
        let rows = data_file::whole_rows(&store, file, &rows, bytes_max).await;
        let columns = StoredColumns { schema: held.schema(), partition_columns: held.partition_columns() };
        let fields =
            rows.and_then(|rows| rows.map(|rows| stored::by_source(columns, file, &rows, is_kept)).transpose());
        fields.map_err(|error| error.of_table(table))
    }
}

fn pairs(decisions: &Decisions, found: &ByIdHash<RowLocation>) -> Pairs {
    let mut pairs = Pairs::new();
    for incomplete in &decisions.incomplete {
        let upsert = &decisions.upserts[incomplete.table][incomplete.upsert];
        let (before, row) = match (incomplete.base, found.get(&upsert.id)) {
            (Some(base), _) => (Before::Arrived(base.table, base.batch), row_number(base.row)),
            (None, Some(held)) => (Before::Held(held.table, held.position.file), held.position.row.get()),
            (None, None) => continue,
        };
        let pair = Pair { before: row, arrived: row_number(upsert.at.row), upsert: incomplete.upsert };
        pairs.entry((before, (incomplete.table, upsert.at.batch))).or_default().push(pair);
    }
    pairs
}

/// A row of a message, which has far fewer.
fn row_number(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(u32::MAX)
}

fn taken(batch: &RecordBatch, rows: impl Iterator<Item = u32>) -> Result<RecordBatch, ArrowError> {
    take_record_batch(batch, &UInt32Array::from_iter_values(rows))
}

fn fields_of(rows: &RecordBatch) -> Fields {
    let fields = rows.schema_ref().fields().iter().zip(rows.columns());
    let fields = fields.filter(|(field, _)| is_kept(field.name()));
    fields.map(|(field, array)| (field.name().clone(), Arc::clone(array))).collect()
}

/// Whether what stands under a source path may stay: not what the lake notes of each row anew, and not what others added.
fn is_kept(source: &str) -> bool {
    !source.starts_with(LAKE_PREFIX) && !is_foreign(source)
}

/// Incomplete rows with the fields of the rows before them, row by row.
fn merged(arrived: &RecordBatch, before: Fields) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<(String, ArrayRef)> = Vec::with_capacity(before.len() + arrived.num_columns());
    let mut kept: HashMap<String, ArrayRef> = before.iter().cloned().collect();
    for (field, array) in arrived.schema_ref().fields().iter().zip(arrived.columns()) {
        let array = match (field.name().as_str(), kept.remove(field.name())) {
            (MONTH_SOURCE, Some(before)) => first_known(&before, array)?,
            // What the lake adds follows from what was read, the user's location for example.
            (source, Some(before)) if source.starts_with('+') => first_known(array, &before)?,
            _ => Arc::clone(array),
        };
        columns.push((field.name().clone(), array));
    }
    columns.extend(before.into_iter().filter(|(source, _)| kept.contains_key(source)));
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(source, array)| (source, array, true)))
}

/// The values of the first, and where it is NULL those of the other.
fn first_known(first: &ArrayRef, other: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let in_type_of_first = column_type(first.data_type()).and_then(|to| converted(other, to));
    let as_text = |array: &ArrayRef| converted(array, ColumnType::String).unwrap_or_else(|| Arc::clone(array));
    let (first, other) = match in_type_of_first.filter(|other| other.data_type() == first.data_type()) {
        Some(other) => (Arc::clone(first), other),
        None => (as_text(first), as_text(other)),
    };
    zip(&is_not_null(&first)?, &first, &other)
}
