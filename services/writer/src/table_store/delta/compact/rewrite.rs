//! Rewriting files beside batches: their live rows go into new files in the order of the clustering columns, and it is remembered
//! where each row went.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use parquet::errors::ParquetError;

use crate::compaction::{Input, PositionMap, merge};
use crate::key_index::{FinishedRun, IndexEntry, RunBuilder};
use crate::table_store::delta::compact::select::{CompactionPlan, Task};
use crate::table_store::delta::compact::yield_to_batches::{Batches, CooperativeYield};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::files::file_writer::{FileFormat, FileWriter, positions as positions_of};
use crate::table_store::delta::files::key_columns::{KeyColumns, key_names};
use crate::table_store::delta::files::new_files::{NewFile, NewFiles};
use crate::table_store::schema_plan::{Column, clustering};

/// Failed tasks after which no further one is begun: it is the store that has trouble, not the files.
const FAILURES_MAX: usize = 3;

/// What the rewriting of some tasks made.
pub(crate) struct Rewritten {
    /// In the order of the tasks; `None` for those that failed or were not begun.
    pub(crate) outputs: Vec<Option<RewrittenFiles>>,
    /// Entries of all written rows. Those of files that never become part of the table do no harm.
    pub(crate) run: FinishedRun,
    /// Entries of ids that the run has another entry of: one of their rows has to leave.
    pub(crate) again: Vec<IndexEntry>,
    /// Which tasks failed, and why.
    pub(crate) failures: Vec<(usize, EngineError)>,
}

/// What the rewriting of one task made.
pub(crate) struct RewrittenFiles {
    pub(crate) added: Vec<NewFile>,
    pub(crate) positions: PositionMap,
}

/// Rewrites the files of one task after the other. What one that fails has written is deleted; the others may be committed.
pub(crate) async fn rewrite(
    plan: &CompactionPlan,
    mut run: RunBuilder,
    batches: &Batches,
) -> Result<Rewritten, EngineError> {
    let mut cooperation = CooperativeYield::new(batches);
    let mut outputs = Vec::with_capacity(plan.tasks.len());
    let mut failures = Vec::new();
    for (number, task) in plan.tasks.iter().enumerate() {
        if failures.len() >= FAILURES_MAX {
            break;
        }
        match rewrite_task(plan, task, &mut run, &mut cooperation).await {
            Ok(output) => outputs.push(Some(output)),
            // It takes no run either.
            Err(error @ EngineError::Index(_)) => return discarded(plan, &outputs, error).await,
            Err(error) => {
                outputs.push(None);
                failures.push((number, error));
            }
        }
    }
    match finished(run).await {
        Ok((run, again)) => Ok(Rewritten { outputs, run, again, failures }),
        Err(error) => discarded(plan, &outputs, error).await,
    }
}

/// Deletes what was written.
async fn discarded<T>(
    plan: &CompactionPlan,
    outputs: &[Option<RewrittenFiles>],
    error: EngineError,
) -> Result<T, EngineError> {
    NewFiles::new(outputs.iter().flatten().flat_map(|output| &output.added), []).discard(&plan.store).await;
    Err(error)
}

/// The files of a task, opened, and how their rows are merged.
struct OpenedTask {
    inputs: Vec<Input>,
    /// Columns of the new files: those that any of the files has.
    schema: SchemaRef,
    /// Names of the columns that order the rows.
    sort_by: Vec<String>,
    /// Rows of a merged batch.
    rows_at_once: usize,
}

async fn open_inputs(plan: &CompactionPlan, task: &Task) -> Result<OpenedTask, EngineError> {
    let mut present: HashSet<String> = HashSet::new();
    // Many files are read with small batches, so that one of each is not much; wide tables as well.
    let most = data_file::rows_at_once(plan.schema.columns.len());
    let rows_at_once = (8 * most / task.inputs.len().max(1)).clamp(most.min(512), most);
    let opening = task.inputs.iter().map(|file| data_file::open_with(&plan.store, file, None, rows_at_once));
    let opened = try_join_all(opening).await?;
    let most = opened.iter().map(|file| file.rows_in_memory).fold(most, usize::min);
    for file in &opened {
        present.extend(file.stream.schema().fields().iter().map(|field| field.name().clone()));
    }
    let columns: Vec<&Column> = plan
        .schema
        .columns
        .iter()
        .filter(|column| present.contains(&column.name) && !plan.partition_columns.contains(&column.name))
        .collect();
    let schema: SchemaRef = data_file::file_schema(&columns);
    let owned: Arc<Vec<Column>> = Arc::new(columns.iter().map(|column| (*column).clone()).collect());
    let inputs = opened.into_iter().zip(&task.inputs).zip(&task.starts).map(|((opened, file), starts_at)| Input {
        batches: {
            let (schema, columns) = (Arc::clone(&schema), Arc::clone(&owned));
            let typed = move |batch: Result<RecordBatch, ParquetError>| {
                let columns: Vec<&Column> = columns.iter().collect();
                data_file::in_table_types(&batch?, &schema, &columns)
            };
            opened.stream.map(typed).boxed()
        },
        deleted: file.deleted_rows().cloned(),
        starts_at: starts_at.clone(),
    });
    let sort_by: Vec<String> = clustering()
        .filter_map(|source| columns.iter().find(|column| column.source == source))
        .map(|column| column.name.clone())
        .collect();
    Ok(OpenedTask { inputs: inputs.collect(), schema, sort_by, rows_at_once: most })
}

/// Reads the files and writes their live rows.
async fn rewrite_task(
    plan: &CompactionPlan,
    task: &Task,
    run: &mut RunBuilder,
    cooperation: &mut CooperativeYield<'_>,
) -> Result<RewrittenFiles, EngineError> {
    let OpenedTask { inputs, schema, sort_by, rows_at_once } = open_inputs(plan, task).await?;
    let merged = merge(inputs, Arc::clone(&schema), &sort_by, rows_at_once);
    let mut merged = std::pin::pin!(merged);
    let format = FileFormat::new(
        Arc::clone(&plan.store),
        schema,
        &plan.schema,
        plan.partition_columns.clone(),
        plan.numbers.clone(),
    );
    let live: u64 = task.inputs.iter().map(|file| file.live_rows().unsigned_abs()).sum();
    let rows_max = live.div_ceil(task.job.outputs.max(1) as u64).max(1);
    let partition = task.inputs.first().map(|file| file.partition.clone()).unwrap_or_default();
    let mut writer = FileWriter::new(&format, partition, usize::try_from(rows_max).unwrap_or(usize::MAX));
    let rows: Vec<u64> = task.inputs.iter().map(|file| file.rows.unsigned_abs()).collect();
    let mut positions = PositionMap::new(&rows);
    let [id, _, observed] = key_names(&plan.schema);
    let writing = async {
        while let Some(merged) = merged.try_next().await.map_err(EngineError::Merge)? {
            let keys = KeyColumns::without_version(&merged.batch, &id, &observed).map_err(EngineError::Corrupt)?;
            let places = writer.write(&merged.batch).await?;
            let mut from = 0;
            for (first, count) in &places {
                positions.record_all(&merged.sources[from..from + count], *first);
                from += count;
            }
            for (row, position) in positions_of(places).enumerate() {
                let Some(id) = keys.id_hash(row) else { continue };
                let entry = IndexEntry { id, position, observed_us: keys.order(row).observed_us };
                run.push(entry).map_err(EngineError::Index)?;
            }
            cooperation.yield_to_batches().await;
        }
        writer.close().await
    };
    if let Err(error) = writing.await {
        writer.discard().await;
        return Err(error);
    }
    Ok(RewrittenFiles { added: writer.into_files(), positions })
}

/// Sorts the entries of a run, which holds one entry of an id. Answers the others.
async fn finished(run: RunBuilder) -> Result<(FinishedRun, Vec<IndexEntry>), EngineError> {
    let finishing = tokio::task::spawn_blocking(move || {
        let mut again = Vec::new();
        run.finish(&mut |_, other| again.push(other)).map(|run| (run, again))
    });
    finishing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
}
