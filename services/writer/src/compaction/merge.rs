//! Merging files: a stream of their live rows in sort order, each with its place of origin.
//!
//! Memory: one batch per input, with its encoded sort columns, and the output in the making with about as many rows of batches that
//! it still needs. Inputs with a known start are opened when the merge gets there.
//!
//! Every live row comes out exactly once, whatever the order of an input: only the head of each input is ever compared. An
//! input that is not sorted makes the output sorted in pieces only.

use crate::key_index::RowNumber;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::compute::{interleave, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use futures::future::try_join_all;
use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt, try_unfold};
use roaring::RoaringBitmap;

/// Bytes of an output, and of batches kept only for it, above which it is given out early.
const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// One file to be merged.
pub struct Input {
    /// All physical rows of the file, in file order. Polled first when the merge needs the first row.
    pub batches: BoxStream<'static, Result<RecordBatch, ArrowError>>,
    /// Physical rows that are deleted.
    pub deleted: Option<Arc<RoaringBitmap>>,
    /// A key ([`super::ClusterKeys`] of the first sort columns) not above any live row: until the merge gets there,
    /// the input stays unopened. `None`: opened at once.
    pub starts_at: Option<Vec<u8>>,
}

/// Where a row came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Ordinal of the input.
    pub input: u32,
    /// Physical row in it.
    pub row: RowNumber,
}

/// Merged rows.
#[derive(Clone, Debug)]
pub struct Merged {
    /// At least one row, with exactly the schema that was asked for.
    pub batch: RecordBatch,
    /// Origin of each row of the batch.
    pub sources: Vec<Source>,
}

/// Why a merge ended early. Nothing follows an error.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// An input could not be read.
    #[error("input {input} of the merge could not be read")]
    Read {
        /// Ordinal of the input.
        input: u32,
        /// Why.
        #[source]
        source: ArrowError,
    },
    /// A column of an input has another type than the table.
    #[error("column {column} of input {input} of the merge holds {found}, the table has {expected}; rewrite it first")]
    ColumnType {
        /// Ordinal of the input.
        input: u32,
        /// Name of the column.
        column: String,
        /// Its type in the input.
        found: DataType,
        /// Its type in the table.
        expected: DataType,
    },
    /// An input has more rows than a position can name.
    #[error("input {input} of the merge has more than {} rows", u32::MAX)]
    TooManyRows {
        /// Ordinal of the input.
        input: u32,
    },
    /// Rows could not be compared or put together.
    #[error("rows of a merge could not be {doing}")]
    Rows {
        /// What was to be done with them.
        doing: &'static str,
        /// Why.
        #[source]
        source: ArrowError,
    },
}

impl MergeError {
    fn rows(doing: &'static str) -> impl Fn(ArrowError) -> Self {
        move |source| Self::Rows { doing, source }
    }
}

/// Merges the live rows of files in the order of the columns `sort_by` (ascending, NULL first; ties by input, then row).
///
/// Columns of `schema` that an input lacks are NULL there, those of an input that are not in `schema` are left out, a name in
/// `sort_by` that is not in `schema` orders nothing. An output has at most `rows_at_once` rows, and fewer if they are large.
/// Errors: [`MergeError`], among them a column whose type is not exactly that of `schema`.
pub fn merge(
    inputs: Vec<Input>,
    schema: SchemaRef,
    sort_by: &[String],
    rows_at_once: usize,
) -> impl Stream<Item = Result<Merged, MergeError>> + Send + use<> {
    let order = Order::of(&schema, sort_by);
    let start = async move {
        let order = order.map_err(MergeError::rows("ordered"))?;
        let inputs = (0..).zip(inputs).map(|(number, input)| Cursor::new(number, input)).collect();
        Merger::start(inputs, schema, order, rows_at_once.max(1)).await
    };
    futures::stream::once(start).map_ok(|merger| try_unfold(merger, Merger::step)).try_flatten()
}

/// The batch with its rows in the order of the columns `sort_by`, as [`merge`] wants its inputs, and for each of its rows the row it
/// was before. Rows with equal keys keep their order.
pub fn sorted(batch: &RecordBatch, sort_by: &[String]) -> Result<(RecordBatch, Vec<u32>), ArrowError> {
    let rows = u32::try_from(batch.num_rows())
        .map_err(|_| ArrowError::InvalidArgumentError(format!("{} rows are too many", batch.num_rows())))?;
    let order = Order::of(&batch.schema(), sort_by)?;
    let mut permutation: Vec<u32> = (0..rows).collect();
    if !order.columns.is_empty() {
        let columns: Vec<ArrayRef> = order.columns.iter().map(|&column| Arc::clone(batch.column(column))).collect();
        let keys = order.converter.convert_columns(&columns)?;
        permutation.sort_by(|&one, &other| keys.row(one as usize).cmp(&keys.row(other as usize)));
    }
    if permutation.is_sorted() {
        return Ok((batch.clone(), permutation));
    }
    let sorted = take_record_batch(batch, &UInt32Array::from(permutation.clone()))?;
    Ok((sorted, permutation))
}

/// The sort columns.
struct Order {
    /// Ordinals in the schema.
    columns: Vec<usize>,
    converter: RowConverter,
}

impl Order {
    fn of(schema: &SchemaRef, sort_by: &[String]) -> Result<Self, ArrowError> {
        let columns: Vec<usize> = sort_by.iter().filter_map(|name| schema.index_of(name).ok()).collect();
        let fields = columns.iter().map(|&column| SortField::new(schema.field(column).data_type().clone()));
        Ok(Self { converter: RowConverter::new(fields.collect())?, columns })
    }
}

/// A batch with the columns of the schema, `None` where the input lacks one.
struct Aligned {
    columns: Vec<Option<ArrayRef>>,
    rows: usize,
    /// Bytes, about.
    bytes: usize,
}

/// The batch that a cursor stands in.
struct Current {
    batch: Arc<Aligned>,
    /// `None` if no column orders the rows.
    keys: Option<Rows>,
    /// Physical row of the first row.
    first: RowNumber,
    /// Which rows are deleted; empty if none is.
    dead: Vec<bool>,
    /// A live row.
    at: usize,
    /// Ordinal among the batches of the output in the making.
    part: Option<usize>,
}

/// Reads one input.
struct Cursor {
    number: u32,
    batches: BoxStream<'static, Result<RecordBatch, ArrowError>>,
    deleted: Option<Arc<RoaringBitmap>>,
    starts_at: Option<Vec<u8>>,
    current: Option<Current>,
    rows_read: u64,
    /// The last schema seen, and where in it the columns are.
    places: Option<(SchemaRef, Vec<Option<usize>>)>,
}

impl Cursor {
    fn new(number: u32, input: Input) -> Self {
        let Input { batches, deleted, starts_at } = input;
        Self { number, batches, deleted, starts_at, current: None, rows_read: 0, places: None }
    }

    /// What orders the head of the input; before it is opened, its lower bound.
    fn key(&self) -> &[u8] {
        match &self.current {
            Some(current) => current.keys.as_ref().map_or(&[][..], |keys| keys.row(current.at).data()),
            None => self.starts_at.as_deref().unwrap_or_default(),
        }
    }

    /// Reads up to the next batch with a live row. At the end, there is no current batch.
    async fn read(&mut self, schema: &SchemaRef, order: &Order) -> Result<(), MergeError> {
        let input = self.number;
        self.current = None;
        while let Some(batch) = self.batches.next().await {
            let batch = batch.map_err(|source| MergeError::Read { input, source })?;
            let rows = batch.num_rows();
            if rows == 0 {
                continue;
            }
            let too_many = |_| MergeError::TooManyRows { input };
            let first = RowNumber::new(u32::try_from(self.rows_read).map_err(too_many)?);
            self.rows_read += rows as u64;
            let last = RowNumber::new(u32::try_from(self.rows_read - 1).map_err(too_many)?);
            let dead = self.dead(first, last);
            let Some(at) = (0..rows).find(|&row| dead.is_empty() || !dead[row]) else { continue };
            let batch = Arc::new(self.aligned(&batch, schema)?);
            let keys = (!order.columns.is_empty()).then(|| {
                let arrays = order.columns.iter().map(|&column| {
                    let missing = || new_null_array(schema.field(column).data_type(), rows);
                    batch.columns[column].clone().unwrap_or_else(missing)
                });
                order.converter.convert_columns(&arrays.collect::<Vec<_>>())
            });
            let keys = keys.transpose().map_err(MergeError::rows("ordered"))?;
            self.current = Some(Current { batch, keys, first, dead, at, part: None });
            return Ok(());
        }
        Ok(())
    }

    fn dead(&self, first: RowNumber, last: RowNumber) -> Vec<bool> {
        let Some(deleted) = &self.deleted else { return Vec::new() };
        let (first, last) = (first.get(), last.get());
        if deleted.range_cardinality(first..=last) == 0 {
            return Vec::new();
        }
        let mut dead = vec![false; (last - first) as usize + 1];
        for row in deleted.range(first..=last) {
            dead[(row - first) as usize] = true;
        }
        dead
    }

    fn aligned(&mut self, batch: &RecordBatch, schema: &SchemaRef) -> Result<Aligned, MergeError> {
        let found = batch.schema_ref();
        if !self.places.as_ref().is_some_and(|(seen, _)| Arc::ptr_eq(seen, found)) {
            self.places = Some((Arc::clone(found), self.places(found, schema)?));
        }
        let places = self.places.iter().flat_map(|(_, places)| places);
        let columns: Vec<Option<ArrayRef>> = places.map(|place| Some(Arc::clone(batch.column((*place)?)))).collect();
        let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
        let bytes = columns.iter().flatten().map(bytes).sum();
        Ok(Aligned { columns, rows: batch.num_rows(), bytes })
    }

    fn places(&self, found: &SchemaRef, schema: &SchemaRef) -> Result<Vec<Option<usize>>, MergeError> {
        let by_name: HashMap<&str, usize> =
            (0..).zip(found.fields()).map(|(at, field)| (&field.name()[..], at)).collect();
        let place = |field: &arrow::datatypes::FieldRef| {
            let Some(&place) = by_name.get(&field.name()[..]) else { return Ok(None) };
            let (found, expected) = (found.field(place).data_type(), field.data_type());
            if found == expected {
                return Ok(Some(place));
            }
            let (column, found, expected) = (field.name().clone(), found.clone(), expected.clone());
            Err(MergeError::ColumnType { input: self.number, column, found, expected })
        };
        schema.fields().iter().map(place).collect()
    }
}

/// The state of a merge.
struct Merger {
    cursors: Vec<Cursor>,
    /// Ordinals of the cursors that have rows left, as a binary heap with the lowest key on top.
    heap: Vec<usize>,
    schema: SchemaRef,
    order: Order,
    rows_at_once: usize,
    /// Finished outputs.
    ready: VecDeque<Merged>,
    /// The output in the making: batches, (batch, row in it) of each row, its origins, and its bytes.
    parts: Vec<Arc<Aligned>>,
    picks: Vec<(usize, usize)>,
    sources: Vec<Source>,
    bytes: usize,
    /// Rows and bytes of batches that only the output in the making still needs.
    kept: (usize, usize),
}

impl Merger {
    async fn start(
        mut cursors: Vec<Cursor>,
        schema: SchemaRef,
        order: Order,
        rows_at_once: usize,
    ) -> Result<Self, MergeError> {
        let now = cursors.iter_mut().filter(|cursor| cursor.starts_at.is_none());
        try_join_all(now.map(|cursor| cursor.read(&schema, &order))).await?;
        let waiting = |cursor: &Cursor| cursor.current.is_some() || cursor.starts_at.is_some();
        let heap = (0..cursors.len()).filter(|&cursor| waiting(&cursors[cursor])).collect();
        let (ready, parts, picks, sources) = (VecDeque::new(), Vec::new(), Vec::new(), Vec::new());
        let mut merger =
            Self { cursors, heap, schema, order, rows_at_once, ready, parts, picks, sources, bytes: 0, kept: (0, 0) };
        for at in (0..merger.heap.len() / 2).rev() {
            merger.sift_down(at);
        }
        Ok(merger)
    }

    /// The next output, with the state for the one after it.
    async fn step(mut self) -> Result<Option<(Merged, Self)>, MergeError> {
        loop {
            if let Some(merged) = self.ready.pop_front() {
                return Ok(Some((merged, self)));
            }
            let full = self.picks.len() >= self.rows_at_once
                || self.kept.0 > self.rows_at_once
                || self.bytes.max(self.kept.1) >= OUTPUT_BYTES_MAX;
            if full || self.heap.is_empty() && !self.picks.is_empty() {
                self.flush()?;
                continue;
            }
            let Some(&top) = self.heap.first() else { return Ok(None) };
            if self.cursors[top].current.is_none() {
                self.refill(top).await?;
            } else if self.pick(top) {
                self.sift_down(0);
            }
        }
    }

    /// Takes the head of a cursor and goes to its next live row. False if there is none in memory; the next step then reads on.
    fn pick(&mut self, cursor: usize) -> bool {
        let cursor = &mut self.cursors[cursor];
        let Some(current) = &mut cursor.current else { return false };
        let part = *current.part.get_or_insert_with(|| {
            self.parts.push(Arc::clone(&current.batch));
            self.parts.len() - 1
        });
        self.picks.push((part, current.at));
        self.sources.push(Source { input: cursor.number, row: current.first.offset(current.at as u32) });
        self.bytes += current.batch.bytes / current.batch.rows.max(1);
        let rows = current.batch.rows;
        let live = |row: &usize| current.dead.is_empty() || !current.dead[*row];
        if let Some(next) = (current.at + 1..rows).find(live) {
            current.at = next;
            return true;
        }
        self.kept = (self.kept.0 + rows, self.kept.1 + current.batch.bytes);
        cursor.current = None;
        false
    }

    /// Reads on in the cursor on top of the heap, and puts it in its place.
    async fn refill(&mut self, top: usize) -> Result<(), MergeError> {
        let cursor = &mut self.cursors[top];
        cursor.read(&self.schema, &self.order).await?;
        if cursor.current.is_none() {
            // A file that is read to its end is closed.
            cursor.batches = futures::stream::empty().boxed();
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    fn sift_down(&mut self, mut at: usize) {
        let heap = &mut self.heap;
        let rank = |cursor: usize| (self.cursors[cursor].key(), cursor);
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= heap.len() {
                return;
            }
            let least = if right < heap.len() && rank(heap[right]) < rank(heap[left]) { right } else { left };
            if rank(heap[at]) <= rank(heap[least]) {
                return;
            }
            heap.swap(at, least);
            at = least;
        }
    }

    /// Finishes the output in the making.
    fn flush(&mut self) -> Result<(), MergeError> {
        let parts = std::mem::take(&mut self.parts);
        let picks = std::mem::take(&mut self.picks);
        let sources = std::mem::take(&mut self.sources);
        (self.bytes, self.kept) = (0, (0, 0));
        for cursor in &mut self.cursors {
            if let Some(current) = &mut cursor.current {
                current.part = None;
            }
        }
        self.build(&parts, &picks, &sources)
    }

    /// Puts rows together; in halves if the texts of a column are too long for one array.
    fn build(
        &mut self,
        parts: &[Arc<Aligned>],
        picks: &[(usize, usize)],
        sources: &[Source],
    ) -> Result<(), MergeError> {
        match assembled(&self.schema, parts, picks) {
            Ok(batch) if picks.is_empty() => drop(batch),
            Ok(batch) => self.ready.push_back(Merged { batch, sources: sources.to_vec() }),
            Err(ArrowError::OffsetOverflowError(_)) if picks.len() > 1 => {
                let half = picks.len() / 2;
                self.build(parts, &picks[..half], &sources[..half])?;
                self.build(parts, &picks[half..], &sources[half..])?;
            }
            Err(source) => return Err(MergeError::Rows { doing: "put together", source }),
        }
        Ok(())
    }
}

/// A batch of these rows of these parts.
fn assembled(schema: &SchemaRef, parts: &[Arc<Aligned>], picks: &[(usize, usize)]) -> Result<RecordBatch, ArrowError> {
    // Files with disjoint ranges come in whole pieces, which need no copy.
    let run = picks.windows(2).all(|pair| pair[0].0 == pair[1].0 && pair[0].1 + 1 == pair[1].1);
    let run = picks.first().filter(|_| run);
    // Which parts lack a column, and the picks with row 0 there; neighbours in wide tables often agree.
    let mut adjusted: (Vec<bool>, Vec<(usize, usize)>) = Default::default();
    let arrays = (0..).zip(schema.fields()).map(|(column, field)| {
        if let Some(&(part, row)) = run {
            let whole = parts[part].columns[column].as_ref();
            return Ok(whole.map_or_else(
                || new_null_array(field.data_type(), picks.len()),
                |array| array.slice(row, picks.len()),
            ));
        }
        let missing: Vec<bool> = parts.iter().map(|part| part.columns[column].is_none()).collect();
        if missing.iter().all(|missing| *missing) {
            return Ok(new_null_array(field.data_type(), picks.len()));
        }
        let null = new_null_array(field.data_type(), 1);
        let arrays: Vec<&dyn Array> =
            parts.iter().map(|part| part.columns[column].as_ref().unwrap_or(&null).as_ref()).collect();
        if !missing.contains(&true) {
            return interleave(&arrays, picks);
        }
        if adjusted.0 != missing {
            let rows = picks.iter().map(|&(part, row)| (part, if missing[part] { 0 } else { row })).collect();
            adjusted = (missing, rows);
        }
        interleave(&arrays, &adjusted.1)
    });
    let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(picks.len()));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
}
