//! One change of one table: which files are rewritten, and with what.
//!
//! Copy on write: the files that hold a replaced, deleted or stray row are read as a stream, their other rows are written together
//! with the new ones, and one commit exchanges the files. Many small files are folded into it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use deltalake::datafile::writer::DeltaWriter;
use deltalake::kernel::{Action, Add, Remove};
use futures::TryStreamExt;
use object_store::ObjectStore;

use super::arriving::Arriving;
use super::batch::KeyColumns;
use super::files::{self, DataFile};
use super::space::{Slot, SpaceState};
use super::{DeltaOptions, EngineError};
use crate::table_store::key_index::{IdHash, KeyIndex, Place, id_hash};
use crate::table_store::schema_plan::{
    COMMITTED_SOURCE, Column, ID_SOURCE, OBSERVED_SOURCE, OVERFLOW_SOURCE, SchemaPlan, VERSION_SOURCE, plan,
};

/// What is to happen to a table.
#[derive(Debug)]
pub(super) struct Change {
    /// Which table of the space.
    pub(super) number: u32,
    /// Rows that enter.
    pub(super) arriving: Arriving,
    /// Ids whose rows leave.
    pub(super) leaving: HashSet<IdHash>,
}

/// A change whose data files are written and durable, but not yet part of the table.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) plan: SchemaPlan,
    /// New files with their row counts, in the order of the rows.
    pub(super) added: Vec<(Add, usize)>,
    /// Files that are replaced.
    pub(super) removed: Vec<DataFile>,
    /// Ids of the copied rows, by file, in the order in which they were written, before the new rows.
    pub(super) copied: Vec<(u32, Vec<IdHash>)>,
}

/// Which files a change rewrites.
pub(super) fn files_to_rewrite(
    slot: &Slot,
    index: &KeyIndex,
    change: &Change,
    everything: bool,
    options: &DeltaOptions,
) -> Vec<DataFile> {
    if everything {
        return slot.files.clone();
    }
    let ids = change.arriving.keys.iter().map(|(id, _)| *id).chain(change.leaving.iter().copied());
    let places = ids.filter_map(|id| index.get(id)).filter(|place| place.table == change.number);
    let mut touched: HashSet<u32> = places.map(|place| place.file).collect();
    touched.extend(index.stray_files(change.number));
    let small = |file: &&DataFile| file.size < options.small_file_bytes as i64 && !touched.contains(&file.number);
    let small: Vec<u32> = slot.files.iter().filter(small).map(|file| file.number).collect();
    // The new file is probably small too.
    if small.len() + 1 > options.small_files_max {
        touched.extend(small);
    }
    slot.files.iter().filter(|file| touched.contains(&file.number)).cloned().collect()
}

/// Plans the schema, then reads and writes data files. Nothing is visible yet.
pub(super) async fn write(
    state: &SpaceState,
    change: &Change,
    store: Arc<dyn ObjectStore>,
    options: &DeltaOptions,
    now_us: i64,
) -> Result<Written, EngineError> {
    let slot = state.slot(change.number);
    let fields = if change.arriving.len() == 0 { Vec::new() } else { change.arriving.fields(&slot.schema)? };
    let plan = plan(&slot.schema, &fields, options.columns_max).map_err(EngineError::BadRows)?;
    let removed = files_to_rewrite(slot, &state.index, change, plan.rewrites, options);
    let mut streams = Vec::with_capacity(removed.len());
    let mut present: HashSet<String> = fields.into_iter().map(|field| field.source).collect();
    present.extend([ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE, COMMITTED_SOURCE].map(str::to_owned));
    if !plan.overflow.is_empty() {
        present.insert(OVERFLOW_SOURCE.to_owned());
    }
    let by_name: HashMap<&str, &Column> =
        slot.schema.columns.iter().map(|column| (column.name.as_str(), column)).collect();
    for file in &removed {
        let stream = files::open(&store, file, None).await?;
        let names = stream.schema().fields().iter().filter_map(|field| by_name.get(field.name().as_str()));
        present.extend(names.map(|column| column.source.clone()));
        streams.push((file, stream));
    }
    // A column that is NULL in all rows of a file is left out of it: readers fill it in, and wide tables stay small.
    let columns: Vec<&Column> = plan.schema.columns.iter().filter(|column| present.contains(&column.source)).collect();
    let schema = files::file_schema(&columns);
    let mut writer = files::writer(store, schema.clone(), &plan.schema, options.target_file_bytes);
    let survivors = Survivors::new(state, change);
    let copying = async {
        let mut copied = Vec::with_capacity(streams.len());
        for (file, mut stream) in streams {
            let mut ids = Vec::new();
            while let Some(batch) = stream.try_next().await.map_err(EngineError::read_file)? {
                let batch = survivors.of(&batch, file, &mut ids)?;
                let rows = batch.num_rows();
                let batch =
                    files::aligned(&schema, &columns, rows, |column| batch.column_by_name(&column.name).cloned())?;
                writer.write(&batch).await.map_err(EngineError::delta)?;
            }
            copied.push((file.number, ids));
        }
        for batch in change.arriving.aligned(&schema, &columns, &plan, now_us)? {
            writer.write(&batch).await.map_err(EngineError::delta)?;
        }
        Ok(copied)
    };
    let copied = match copying.await {
        Ok(copied) => copied,
        Err(error) => return Err(give_up(writer, error).await),
    };
    let rows = copied.iter().map(|(_, ids): &(u32, Vec<IdHash>)| ids.len()).sum::<usize>() + change.arriving.len();
    let adds = writer.close().await.map_err(EngineError::delta)?;
    let added = files::in_row_order(adds, rows)?;
    Ok(Written { plan, added, removed, copied })
}

/// Aborts an upload, so that no parts stay behind in the store.
async fn give_up(writer: DeltaWriter, error: EngineError) -> EngineError {
    if let Err(abort) = writer.abort().await {
        tracing::debug!(%abort, "upload could not be aborted");
    }
    error
}

/// Which rows of a file stay: those whose place in the index is this very file, and that are not replaced or deleted.
struct Survivors<'a> {
    index: &'a KeyIndex,
    table: u32,
    replaced: HashSet<IdHash>,
    names: [String; 3],
}

impl<'a> Survivors<'a> {
    fn new(state: &'a SpaceState, change: &Change) -> Self {
        let schema = &state.slot(change.number).schema;
        let name = |source| schema.column(source).map(|column| column.name.clone()).unwrap_or_default();
        let entering = change.arriving.keys.iter().map(|(id, _)| *id);
        Self {
            index: &state.index,
            table: change.number,
            replaced: entering.chain(change.leaving.iter().copied()).collect(),
            names: [name(ID_SOURCE), name(VERSION_SOURCE), name(OBSERVED_SOURCE)],
        }
    }

    fn of(&self, batch: &RecordBatch, file: &DataFile, ids: &mut Vec<IdHash>) -> Result<RecordBatch, EngineError> {
        let [id, version, observed] = &self.names;
        let keys = KeyColumns::of(batch, id, version, observed)
            .map_err(|error| EngineError::corrupt(format!("file {}: {error}", file.path)))?;
        let stays = |row: usize| {
            let id = id_hash(keys.id(row).unwrap_or_default());
            let place = self.index.get(id);
            let here = place.is_some_and(|place| {
                // The order tells two rows of one id in one file apart.
                place.table == self.table && place.file == file.number && place.order == keys.order(row)
            });
            let stays = here && !self.replaced.contains(&id);
            if stays {
                ids.push(id);
            }
            stays
        };
        let mask: BooleanArray = (0..batch.num_rows()).map(stays).map(Some).collect();
        filter_record_batch(batch, &mask).map_err(EngineError::arrow)
    }
}

/// The file actions of a written change.
pub(super) fn actions(written: &Written, now_ms: i64) -> Vec<Action> {
    let removes = written.removed.iter().map(|file| {
        Action::Remove(Remove {
            path: file.path.clone(),
            data_change: true,
            deletion_timestamp: Some(now_ms),
            extended_file_metadata: Some(true),
            partition_values: Some(HashMap::new()),
            size: Some(file.size),
            ..Remove::default()
        })
    });
    let adds = written.added.iter().map(|(add, _)| Action::Add(add.clone()));
    removes.chain(adds).collect()
}

/// Brings index and file list of a table in step with a commit of a change.
pub(super) fn committed(state: &mut SpaceState, change: &Change, written: Written, version: u64) {
    let removed: HashSet<u32> = written.removed.iter().map(|file| file.number).collect();
    let added: Vec<(DataFile, usize)> = written
        .added
        .into_iter()
        .map(|(add, rows)| {
            let number = state.new_file_number();
            (DataFile { number, path: add.path, size: add.size, rows: rows as i64 }, rows)
        })
        .collect();
    let mut places = added.iter().flat_map(|(file, rows)| std::iter::repeat_n(file.number, *rows));
    for (from, ids) in &written.copied {
        for (&id, to) in ids.iter().zip(places.by_ref()) {
            state.index.moved(id, change.number, *from, to);
        }
    }
    for (&(id, order), file) in change.arriving.keys.iter().zip(places) {
        state.index.committed(id, Place { table: change.number, file, order });
        state.condemned.remove(&id);
    }
    for &id in &change.leaving {
        state.index.left(id, change.number);
        state.condemned.remove(&id);
    }
    state.index.strays_left(|file| removed.contains(&file));
    let (published, fetched) = change.arriving.freshness();
    let slot = state.slot_mut(change.number);
    slot.files.retain(|file| !removed.contains(&file.number));
    slot.files.extend(added.into_iter().map(|(file, _)| file));
    slot.schema = written.plan.schema;
    slot.version = Some(version);
    let unrecorded = slot.unrecorded.get_or_insert_default();
    unrecorded.newest_published_us = unrecorded.newest_published_us.max(published);
    unrecorded.newest_fetched_us = unrecorded.newest_fetched_us.max(fetched);
}
