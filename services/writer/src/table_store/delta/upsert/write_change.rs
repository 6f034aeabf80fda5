//! Writing one change of one table: which files are marked, which are rewritten, and with what.
//!
//! *Merge on read*: the new rows become a file (one a partition), the rows they replace are marked in deletion vectors. The cost
//! follows the change. *Copy on write*, for small tables and where deletion vectors are not wanted: the files that hold a replaced,
//! deleted or stale row are read as a stream, their other rows are written together with the new ones. A type change
//! rewrites all files. Either way one commit exchanges the files.
//! Small files are folded into the new one of their partition where there are too many ([`crate::table_store::delta::upsert::plan::file_plan`]).

use std::collections::HashSet;
use std::sync::Arc;

use object_store::ObjectStore;

use crate::key_index::{FileNumber, FinishedRun, RunBuilder};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::deletion_vectors;
use crate::table_store::delta::files::new_files::NewFiles;
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::files::write_memory_budget::WriteMemoryBudget;
use crate::table_store::delta::options::{DeltaOptions, TableOptions};
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::upsert::change::{Change, WrittenChange};
use crate::table_store::delta::upsert::partition_files::{PartitionFiles, WrittenFiles};
use crate::table_store::delta::upsert::plan::file_plan::plan_files;
use crate::table_store::delta::upsert::plan::rewrite_or_deletion_vectors::Replacement;
use crate::table_store::delta::upsert::rows::sorted::SortedRows;
use crate::table_store::schema_plan::{
    COMMITTED_SOURCE, Column, ID_SOURCE, OBSERVED_SOURCE, OVERFLOW_SOURCE, SchemaPlan, VERSION_SOURCE, plan,
};

/// Which columns partition a table that is about to be made: those of the options that it has.
fn partition_columns(table: &TableState, plan: &SchemaPlan, options: &TableOptions) -> Vec<String> {
    if table.version().is_some() {
        return table.partition_columns().to_vec();
    }
    let has = |name: &&String| plan.schema.columns.iter().any(|column| &&column.name == name && column.can_partition());
    let (columns, ignored): (Vec<&String>, Vec<&String>) = options.partition_by.iter().partition(|name| has(name));
    if !ignored.is_empty() {
        tracing::warn!(
            table = table.name(),
            ?ignored,
            "a new table is not partitioned by what it lacks or what is no text or date"
        );
    }
    columns.into_iter().cloned().collect()
}

/// What writing a change needs beside it.
pub(crate) struct WriteContext<'a> {
    pub(crate) state: &'a SpaceState,
    /// The folder of the table.
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) options: &'a DeltaOptions,
    /// Shared by everything that writes files of batches.
    pub(crate) memory: &'a WriteMemoryBudget,
    /// How rows leave.
    pub(crate) replacement: Replacement,
    /// Microseconds since 1970.
    pub(crate) now_us: i64,
}

/// The columns of the rows that enter, and what becomes of the schema by them.
struct IncomingColumns {
    plan: SchemaPlan,
    partition_columns: Vec<String>,
    /// Sources of the columns that the rows have.
    present: HashSet<String>,
}

/// Plans the schema, then reads and writes files. Nothing is visible yet.
///
/// # Errors
/// [`EngineError::BadRows`] before anything is written when the rows can never be stored. After other errors no file is left behind.
pub(crate) async fn write(change: &Change, context: WriteContext<'_>) -> Result<WrittenChange, EngineError> {
    let WriteContext { state, ref store, options, memory, replacement, now_us } = context;
    let table = state.table(change.number);
    let IncomingColumns { plan, partition_columns, present } = incoming_columns(change, table, options)?;
    let columns: Vec<&Column> = plan
        .schema
        .columns
        .iter()
        .filter(|column| present.contains(&column.source) || partition_columns.contains(&column.name))
        .collect();
    let rows = SortedRows::of(&change.incoming, &columns, &plan, &partition_columns, now_us)?;
    let touched: HashSet<&Partition> =
        rows.iter().flat_map(|rows| &rows.partitions).map(|(partition, _)| partition).collect();
    let file_plan = plan_files(table, &change.dead, plan.rewrites, replacement, &touched, options);
    let mut removed: Vec<FileNumber> = file_plan.removed.iter().map(|file| file.number).collect();
    removed.extend(file_plan.rewritten.iter().map(|file| file.number));
    let vectors = file_plan.marked.iter().map(|(_, rows)| Arc::clone(rows)).collect();
    let files = PartitionFiles {
        state,
        table,
        change,
        store: Arc::clone(store),
        plan: &plan,
        partition_columns: &partition_columns,
        options,
        memory,
    };
    let storing = deletion_vectors::store(store, vectors);
    let (out, vectors) = futures::join!(files.write(rows, file_plan.rewritten, &present), storing);
    let (out, vectors) = match (out, vectors) {
        (Ok(out), Ok(vectors)) => (out, vectors),
        (Ok(out), Err(error)) => {
            NewFiles::new(&out.added, []).discard(store).await;
            return Err(error);
        }
        (Err(error), _) => return Err(error),
    };
    let marked = file_plan.marked.iter().map(|(file, _)| file.number).zip(vectors).collect();
    let copied_run = match out.run {
        Some(run) => Some(finished(run).await?),
        None => None,
    };
    let WrittenFiles { added, inserted, copied, .. } = out;
    Ok(WrittenChange { plan, partition_columns, added, removed, marked, inserted, copied, copied_run })
}

fn incoming_columns(
    change: &Change,
    table: &TableState,
    options: &DeltaOptions,
) -> Result<IncomingColumns, EngineError> {
    let incoming = &change.incoming;
    let fields = if incoming.len() == 0 { Vec::new() } else { incoming.fields(table.schema())? };
    let plan = plan(table.schema(), &fields, options.columns_max).map_err(EngineError::BadRows)?;
    let partition_columns = partition_columns(table, &plan, &options.of_table(table.name()));
    check_partition_types(table, &plan, &partition_columns)?;
    let mut present: HashSet<String> = fields.into_iter().map(|field| field.source).collect();
    present.extend([ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE, COMMITTED_SOURCE].map(str::to_owned));
    present.extend((!plan.overflow.is_empty()).then(|| OVERFLOW_SOURCE.to_owned()));
    Ok(IncomingColumns { plan, partition_columns, present })
}

/// Sorts the entries of a run. No id is there twice: each live row is copied once.
async fn finished(run: RunBuilder) -> Result<FinishedRun, EngineError> {
    let finishing = tokio::task::spawn_blocking(move || run.finish(&mut |_, _| {}));
    finishing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
}

/// A partition column cannot change its type: every file would move.
fn check_partition_types(
    table: &TableState,
    plan: &SchemaPlan,
    partition_columns: &[String],
) -> Result<(), EngineError> {
    let changed =
        table.schema().columns.iter().zip(&plan.schema.columns).find(|(before, after)| {
            before.column_type != after.column_type && partition_columns.contains(&before.name)
        });
    changed.map_or(Ok(()), |(column, _)| {
        let reason = format!("column {} partitions the table, so its type cannot change", column.name);
        Err(EngineError::BadRows(reason))
    })
}
