//! Which files of a table are compacted next.
//!
//! What has to be known is copied under the lock of the space; the plan is made without it, as it reads the statistics of many files. Small
//! jobs share a commit: a table of thousands of partitions needs thousands of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::kernel::LogicalFileView;
use lake_shared::identity::TableKey;
use object_store::ObjectStore;
use serde_json::Value;

use crate::compaction::{ClusterKeys, ClusterRange, ColumnBounds, FileFacts, Job, PartitionNumber, Policy, plan};
use crate::consent::plan_id;
use crate::key_index::{FileNumber, RunBuilder};
use crate::table_store::PlannedCompaction;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::file_writer::FileNumbers;
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::options::{DeletionVectors, DeltaOptions};
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::schema_plan::{Column, ID_SOURCE, TableSchema, clustering};

/// Files that one job reads. A row group of each may be in memory.
const FILES_MAX: usize = 8;

/// Rows that one job reads: where each of them goes is in memory, 8 bytes a row.
const ROWS_MAX: u64 = 16_000_000;

/// Bytes that the jobs of one commit read together; a larger job has a commit of its own. Less work is lost when a commit fails, and
/// the map of positions stays small.
const SHARED_BYTES_MAX: u64 = 64 << 20;

/// Jobs of one commit. Batches wait while it is made, and that time grows with its files.
const SHARED_JOBS_MAX: usize = 128;

/// A table as it is when compaction looks at it.
pub(crate) struct CompactionInput {
    number: TableNumber,
    key: TableKey,
    generation: u64,
    version: Option<u64>,
    /// The files of the partitions that may need work.
    files: BTreeMap<FileNumber, DataFile>,
    schema: TableSchema,
    partition_columns: Vec<String>,
    numbers: FileNumbers,
    table: DeltaTable,
    policy: Policy,
    run: RunBuilder,
}

/// Work on one table that ends in one commit.
pub(crate) struct CompactionPlan {
    pub(crate) number: TableNumber,
    pub(crate) key: TableKey,
    pub(crate) generation: u64,
    /// One at least.
    pub(crate) tasks: Vec<Task>,
    pub(crate) schema: TableSchema,
    pub(crate) partition_columns: Vec<String>,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) numbers: FileNumbers,
}

/// A job with the files that it is about.
pub(crate) struct Task {
    pub(crate) job: Job,
    pub(crate) inputs: Vec<DataFile>,
    /// Below which key no row of a file is, in the order of the inputs.
    pub(crate) starts: Vec<Option<Vec<u8>>>,
}

impl CompactionInput {
    /// The table that was looked at.
    pub(crate) const fn table(&self) -> &TableKey {
        &self.key
    }

    /// Takes what is needed to plan the work on a table; `None` if there cannot be any.
    pub(crate) async fn take(
        loader: &SpaceLoader,
        options: &DeltaOptions,
        state: &mut SpaceState,
        number: TableNumber,
    ) -> Result<Option<Self>, EngineError> {
        let held = state.table(number);
        let purge_all = options.of_table(held.name()).deletion_vectors == DeletionVectors::Off;
        // An operator may switch deletion vectors off when the table has long been looked at.
        let is_to_purge = purge_all && held.files().any(|file| file.deleted.is_some());
        let files =
            if held.is_changed() || is_to_purge { candidate_files(held, options, purge_all) } else { BTreeMap::new() };
        if files.is_empty() {
            state.set_unchanged(number);
            return Ok(None);
        }
        let Some(table) = loader.access().at_known_version(&held.known()).await? else {
            loader.refresh(state, number).await?;
            return Ok(None);
        };
        loader.access().put_back(held.key(), table.clone());
        Ok(Some(Self {
            number,
            key: held.key().clone(),
            generation: state.generation(),
            version: held.version(),
            files,
            schema: held.schema().clone(),
            partition_columns: held.partition_columns().to_vec(),
            numbers: state.numbers().clone(),
            table,
            policy: policy(options, purge_all),
            run: state.index().run_builder().map_err(EngineError::Index)?,
        }))
    }

    /// The version that was looked at.
    pub(crate) const fn planned_version(&self) -> PlannedVersion {
        PlannedVersion { number: self.number, generation: self.generation, version: self.version }
    }

    /// All the work that the policy asks for now. Takes long, as the statistics of the files are read.
    pub(crate) fn outlook(&self) -> Result<PlannedCompaction, EngineError> {
        let log = self.table.snapshot().map_err(EngineError::delta)?.log_data();
        let (facts, _) = facts(self, log.iter());
        let jobs = plan(&facts, &self.policy);
        let files = jobs.iter().flat_map(|job| &job.files).filter_map(|number| self.files.get(number));
        let object = |file: &DataFile| format!("{} {}", file.path, file.rows - file.live_rows());
        Ok(PlannedCompaction {
            plan: plan_id("compact", files.clone().map(object).collect()),
            jobs: jobs.len() as u64,
            files: files.clone().count() as u64,
            bytes: files.map(|file| file.size.unsigned_abs()).sum(),
        })
    }

    /// Chooses the most urgent work, if there is any. Takes long, as the statistics of the files are read.
    pub(crate) fn plan(self) -> Result<Option<(CompactionPlan, RunBuilder)>, EngineError> {
        let log = self.table.snapshot().map_err(EngineError::delta)?.log_data();
        let (facts, starts) = facts(&self, log.iter());
        let jobs = shared(plan(&facts, &self.policy));
        if jobs.is_empty() {
            return Ok(None);
        }
        let task = |job: Job| {
            let inputs: Vec<DataFile> = job.files.iter().filter_map(|file| self.files.get(file)).cloned().collect();
            let starts = inputs.iter().map(|file| starts.get(&file.number).cloned()).collect();
            Task { job, inputs, starts }
        };
        let plan = CompactionPlan {
            number: self.number,
            key: self.key,
            generation: self.generation,
            tasks: jobs.into_iter().map(task).collect(),
            schema: self.schema,
            partition_columns: self.partition_columns,
            store: self.table.object_store(),
            numbers: self.numbers,
        };
        Ok(Some((plan, self.run)))
    }
}

/// A version of a table in which nothing is to be done, if it turns out so.
pub(crate) struct PlannedVersion {
    number: TableNumber,
    generation: u64,
    version: Option<u64>,
}

impl PlannedVersion {
    /// The table is not looked at again before it changes.
    pub(crate) fn set_unchanged(&self, state: &mut SpaceState) {
        if state.generation() == self.generation && state.table(self.number).version() == self.version {
            state.set_unchanged(self.number);
        }
    }
}

/// The first job, and others beside it if it is small. What they leave is first in the next plan.
fn shared(jobs: Vec<Job>) -> Vec<Job> {
    let (mut bytes, mut count) = (0_u64, 0);
    let fits = |job: &Job| {
        let with = bytes.saturating_add(job.bytes);
        let fits = count == 0 || (with <= SHARED_BYTES_MAX && count < SHARED_JOBS_MAX);
        if fits {
            (bytes, count) = (with, count + 1);
        }
        fits
    };
    jobs.into_iter().filter(fits).collect()
}

/// The files of those partitions of which the policy can ask for anything, as far as can be told without the log. Most tables of a lake
/// are small and need nothing, and neither do most partitions.
fn candidate_files(held: &TableState, options: &DeltaOptions, purge_all: bool) -> BTreeMap<FileNumber, DataFile> {
    let few = options.small_files_max.min(options.overlap_max);
    let has_many_deleted = |file: &DataFile| {
        let deleted = file.rows - file.live_rows();
        deleted > 0 && (purge_all || deleted as f64 > file.rows as f64 * options.deleted_share_max)
    };
    let mut partitions: HashMap<&Partition, (usize, bool)> = HashMap::new();
    for file in held.files() {
        let (count, is_needy) = partitions.entry(&file.partition).or_default();
        *count += 1;
        *is_needy |= *count > few || has_many_deleted(file);
    }
    if !partitions.values().any(|(_, is_needy)| *is_needy) {
        return BTreeMap::new();
    }
    let needy = held.files().filter(|file| partitions.get(&file.partition).is_some_and(|(_, needy)| *needy));
    needy.map(|file| (file.number, file.clone())).collect()
}

fn policy(options: &DeltaOptions, purge_all: bool) -> Policy {
    Policy {
        target_file_bytes: options.target_file_bytes.get(),
        small_file_bytes: options.small_file_bytes,
        small_files_max: options.small_files_max,
        deleted_share_max: options.deleted_share_max,
        overlap_max: options.overlap_max,
        job_bytes_max: options.compaction_bytes_max,
        job_files_max: FILES_MAX,
        job_rows_max: ROWS_MAX,
        purge_all,
    }
}

/// What the policy needs to know of the files. Beside it, below which key no row of a file is.
fn facts(
    planned: &CompactionInput,
    views: impl Iterator<Item = LogicalFileView>,
) -> (Vec<FileFacts>, HashMap<FileNumber, Vec<u8>>) {
    let columns: Vec<&Column> = clustering()
        .filter_map(|source| planned.schema.column(source))
        .filter(|column| column.source != ID_SOURCE)
        .filter(|column| !planned.partition_columns.contains(&column.name))
        .collect();
    let types: Vec<_> = columns.iter().map(|column| column.arrow()).collect();
    let keys = if columns.is_empty() { None } else { ClusterKeys::new(&types).ok() };
    let numbers: HashMap<&str, &DataFile> = planned.files.values().map(|file| (file.path.as_str(), file)).collect();
    let mut partitions: HashMap<&Partition, PartitionNumber> = HashMap::new();
    let (mut facts, mut starts) = (Vec::with_capacity(planned.files.len()), HashMap::new());
    for view in views {
        let Some(file) = numbers.get(view.path().as_ref()) else { continue };
        let next = PartitionNumber::new(partitions.len() as u32);
        let place = keys.as_ref().and_then(|keys| place(keys, &columns, &view.stats()?));
        let (clustered, start) = place.unwrap_or_default();
        starts.extend(start.map(|start| (file.number, start)));
        facts.push(FileFacts {
            number: file.number,
            partition: *partitions.entry(&file.partition).or_insert(next),
            bytes: file.size.unsigned_abs(),
            rows: file.rows.unsigned_abs(),
            deleted: (file.rows - file.live_rows()).unsigned_abs(),
            clustered,
        });
    }
    (facts, starts)
}

/// Where a file is in the clustering order, by its statistics: the range that it spans for certain, and a key that no row is below.
fn place(keys: &ClusterKeys, columns: &[&Column], stats: &str) -> Option<(Option<ClusterRange>, Option<Vec<u8>>)> {
    let stats: Value = serde_json::from_str(stats).ok()?;
    let bounds: Vec<ColumnBounds<'_>> = columns
        .iter()
        .map(|column| {
            let value = |which: &str| stats[which][&column.name].as_str();
            let nulls = stats["nullCount"][&column.name].as_i64();
            // A file without the column has NULL in every row.
            let nulls = nulls.map_or(value("minValues").is_none(), |nulls| nulls > 0);
            ColumnBounds { min: value("minValues"), max: value("maxValues"), nulls }
        })
        .collect();
    Some((keys.range(&bounds), keys.lowest(&bounds)))
}
