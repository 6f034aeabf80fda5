//! One change of one table: which files are marked, which are rewritten, and with what.
//!
//! *Merge on read*: the new rows become a file (one a partition), the rows they replace are marked in deletion vectors. The cost
//! follows the change. *Copy on write*, for small tables and where deletion vectors are not wanted: the files that hold a replaced,
//! deleted or stray row are read as a stream, their other rows are written together with the new ones. A type change
//! rewrites all files. Either way one commit exchanges the files.
//! Small files are folded into the new one of their partition where there are too many ([`crate::table_store::delta::upsert::file_plan`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use object_store::ObjectStore;
use roaring::RoaringBitmap;

use crate::key_index::{Entry, FinishedRun, RunBuilder};
use crate::table_store::delta::files::deletion_vectors::{self, DeletionVector};
use crate::table_store::delta::files::file_writer::{NewFile, discard};
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::files::write_memory_budget::WriterMemory;
use crate::table_store::delta::space::state::{Slot, SpaceState};
use crate::table_store::delta::upsert::file_plan::plan_files;
use crate::table_store::delta::upsert::partition_files::{Output, PartitionFiles};
use crate::table_store::delta::upsert::rows::incoming::Arriving;
use crate::table_store::delta::upsert::rows::sorted::NewRows;
use crate::table_store::delta::{DeltaOptions, EngineError, TableOptions};
use crate::table_store::schema_plan::{
    COMMITTED_SOURCE, Column, ID_SOURCE, OBSERVED_SOURCE, OVERFLOW_SOURCE, SchemaPlan, VERSION_SOURCE, plan,
};

/// What is to happen to a table.
#[derive(Debug)]
pub(crate) struct Change {
    /// Which table of the space.
    pub(crate) number: u32,
    /// Rows that enter.
    pub(crate) arriving: Arriving,
    /// Positions in this table that must leave, replaced ones and strays included.
    pub(crate) dead: BTreeMap<u32, RoaringBitmap>,
    /// How many rows leave without being replaced.
    pub(crate) deleted: u64,
}

/// A change whose files are written and durable, but not yet part of the table.
pub(crate) struct Written {
    pub(crate) plan: SchemaPlan,
    pub(crate) partition_columns: Vec<String>,
    /// New files.
    pub(crate) added: Vec<NewFile>,
    /// Files that leave.
    pub(crate) removed: Vec<u32>,
    /// Files with another deletion vector than before.
    pub(crate) marked: Vec<(u32, DeletionVector)>,
    /// Where the new rows stand.
    pub(crate) entered: Vec<Entry>,
    /// Where the copied rows stand.
    pub(crate) copied: Vec<Entry>,
    /// The same where they are very many.
    pub(crate) copied_run: Option<FinishedRun>,
}

impl Written {
    /// Deletes the files, of which it is certain that no commit names them.
    pub(crate) async fn discard(&self, store: &Arc<dyn ObjectStore>) {
        discard(store, &self.added).await;
        deletion_vectors::discard(store, self.marked.iter().map(|(_, vector)| vector)).await;
    }
}

/// Which columns partition a table that is about to be made: those of the options that it has.
fn partition_columns(slot: &Slot, plan: &SchemaPlan, options: &TableOptions) -> Vec<String> {
    if slot.version.is_some() {
        return slot.partition_columns.clone();
    }
    let has = |name: &&String| plan.schema.columns.iter().any(|column| &&column.name == name && column.can_partition());
    let (columns, ignored): (Vec<&String>, Vec<&String>) = options.partition_by.iter().partition(|name| has(name));
    if !ignored.is_empty() {
        tracing::warn!(
            table = slot.name,
            ?ignored,
            "a new table is not partitioned by what it lacks or what is no text or date"
        );
    }
    columns.into_iter().cloned().collect()
}

/// Plans the schema, then reads and writes files. Nothing is visible yet.
pub(crate) async fn write(
    state: &SpaceState,
    change: &Change,
    store: Arc<dyn ObjectStore>,
    options: &DeltaOptions,
    memory: &WriterMemory,
    marks: bool,
    now_us: i64,
) -> Result<Written, EngineError> {
    let slot = state.slot(change.number);
    let table_options = options.of_table(&slot.name);
    let fields = if change.arriving.len() == 0 { Vec::new() } else { change.arriving.fields(&slot.schema)? };
    let plan = plan(&slot.schema, &fields, options.columns_max).map_err(EngineError::BadRows)?;
    let partition_columns = partition_columns(slot, &plan, &table_options);
    check_partition_types(slot, &plan, &partition_columns)?;
    let mut present: HashSet<String> = fields.into_iter().map(|field| field.source).collect();
    present.extend([ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE, COMMITTED_SOURCE].map(str::to_owned));
    present.extend((!plan.overflow.is_empty()).then(|| OVERFLOW_SOURCE.to_owned()));
    let arriving_columns: Vec<&Column> = plan
        .schema
        .columns
        .iter()
        .filter(|column| present.contains(&column.source) || partition_columns.contains(&column.name))
        .collect();
    let rows = NewRows::of(&change.arriving, &arriving_columns, &plan, &partition_columns, now_us)?;
    let touched: HashSet<&Partition> =
        rows.iter().flat_map(|rows| &rows.partitions).map(|(partition, _)| partition).collect();
    let file_plan = plan_files(slot, &change.dead, plan.rewrites, marks, &touched, options);
    let mut removed: Vec<u32> = file_plan.removed.iter().map(|file| file.number).collect();
    removed.extend(file_plan.rewritten.iter().map(|file| file.number));
    let vectors = file_plan.marked.iter().map(|(_, rows)| Arc::clone(rows)).collect();
    let partition_columns = partition_columns.as_slice();
    let files = PartitionFiles {
        state,
        slot,
        change,
        store: Arc::clone(&store),
        plan: &plan,
        partition_columns,
        options,
        memory,
    };
    let storing = deletion_vectors::store(&store, vectors);
    let (out, vectors) = futures::join!(files.write(rows, file_plan.rewritten, &present), storing);
    let (out, vectors) = match (out, vectors) {
        (Ok(out), Ok(vectors)) => (out, vectors),
        (Ok(out), Err(error)) => {
            discard(&store, &out.added).await;
            return Err(error);
        }
        (Err(error), _) => return Err(error),
    };
    let marked = file_plan.marked.iter().map(|(file, _)| file.number).zip(vectors).collect();
    let copied_run = match out.run {
        Some(run) => Some(finished(run).await?),
        None => None,
    };
    let Output { added, entered, copied, .. } = out;
    let partition_columns = partition_columns.to_vec();
    Ok(Written { plan, partition_columns, added, removed, marked, entered, copied, copied_run })
}

/// Sorts the entries of a run. No id is there twice: each live row is copied once.
async fn finished(run: RunBuilder) -> Result<FinishedRun, EngineError> {
    let finishing = tokio::task::spawn_blocking(move || run.finish(&mut |_, _| {}));
    finishing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
}

/// A partition column cannot change its type: every file would move.
fn check_partition_types(slot: &Slot, plan: &SchemaPlan, partition_columns: &[String]) -> Result<(), EngineError> {
    let changed =
        slot.schema.columns.iter().zip(&plan.schema.columns).find(|(before, after)| {
            before.column_type != after.column_type && partition_columns.contains(&before.name)
        });
    changed.map_or(Ok(()), |(column, _)| {
        let reason = format!("column {} partitions the table, so its type cannot change", column.name);
        Err(EngineError::BadRows(reason))
    })
}

/// Bounds of the instants at which the rows of each new file were observed. They came with this change or stood in the files that it
/// takes out of the partition.
fn observed_us(slot: &Slot, change: &Change, written: &Written) -> Vec<Option<(i64, i64)>> {
    let joined = |one: (i64, i64), other: (i64, i64)| (one.0.min(other.0), one.1.max(other.1));
    let arrived = change.arriving.keys.iter().map(|(_, order)| (order.observed_us, order.observed_us)).reduce(joined);
    let mut copied: HashMap<&Partition, Option<(i64, i64)>> = HashMap::new();
    for file in written.removed.iter().filter_map(|number| slot.files.get(number)) {
        let bounds = copied.entry(&file.partition).or_insert(file.observed_us);
        *bounds = bounds.zip(file.observed_us).map(|(one, other)| joined(one, other));
    }
    let of_file = |file: &NewFile| match (arrived, copied.get(&file.partition)) {
        (arrived, None) => arrived,
        (None, Some(copied)) => *copied,
        (Some(arrived), Some(copied)) => copied.map(|copied| joined(arrived, copied)),
    };
    written.added.iter().map(of_file).collect()
}

/// Brings index and file list of a table in step with a commit of a change.
pub(crate) fn committed(state: &mut SpaceState, change: &Change, written: Written, version: u64) {
    let number = change.number;
    let observed = observed_us(state.slot(number), change, &written);
    // The files first: the index may forget entries of files that it does not know to be live.
    let live = state.live_mut();
    for file in &written.removed {
        live.remove(*file);
    }
    for (file, vector) in &written.marked {
        live.set(*file, number, Some(Arc::clone(&vector.rows)));
    }
    for file in &written.added {
        live.set(file.number, number, None);
    }
    state.index.put(written.copied.into_iter().chain(written.entered));
    if let Some(run) = written.copied_run {
        state.index.attach(run);
    }
    let (published, fetched) = change.arriving.freshness();
    let slot = state.slot_mut(number);
    for file in written.removed {
        slot.files.remove(&file);
    }
    for (file, vector) in written.marked {
        if let Some(file) = slot.files.get_mut(&file) {
            file.deleted = Some(vector);
        }
    }
    for (file, observed_us) in written.added.into_iter().zip(observed) {
        slot.files.insert(file.number, file.into_data_file(observed_us));
    }
    slot.schema_recorded &= !written.plan.changed;
    slot.schema = written.plan.schema;
    slot.partition_columns = written.partition_columns;
    slot.version = Some(version);
    slot.changed = true;
    let unrecorded = slot.unrecorded.get_or_insert_default();
    unrecorded.newest_published_us = unrecorded.newest_published_us.max(published);
    unrecorded.newest_fetched_us = unrecorded.newest_fetched_us.max(fetched);
}
