//! A Delta table that tells analysts what tables there are, how fresh they are and which version they have: one row for each, written anew as a
//! whole when something has changed.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use deltalake::DeltaTable;
use deltalake::checkpoints;
use deltalake::kernel::{Action, Add};
use lake_shared::identity::{Kind, Space, TableKey};

use crate::metastore::fence::Fence;
use crate::metastore::{RecordedDelays, RecordedState, TableRecord};
use crate::table_store::conversion::ColumnType;
use crate::table_store::delta::clock::now_us;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::file_schema;
use crate::table_store::delta::files::file_writer::{FileFormat, FileNumbers, FileWriter};
use crate::table_store::delta::files::new_files::NewFiles;
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::log::base_version::BaseVersion;
use crate::table_store::delta::log::commit::{self, Commit, Label, Outcome};
use crate::table_store::delta::log::metadata::{self, Features};
use crate::table_store::delta::log::protocol;
use crate::table_store::delta::log::table_access::TableAccess;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::schema_plan::{Column, TableSchema};
use crate::table_store::{STATUS_TABLE, TableStatus};

/// Versions between two checkpoints.
const CHECKPOINT_EVERY: u64 = 64;

/// Columns with their types.
const COLUMNS: [(&str, ColumnType); 19] = [
    ("table_name", ColumnType::String),
    ("domain", ColumnType::String),
    ("kind", ColumnType::String),
    ("type", ColumnType::String),
    ("location", ColumnType::String),
    ("version", ColumnType::Long),
    ("row_count", ColumnType::Long),
    ("file_count", ColumnType::Long),
    ("bytes", ColumnType::Long),
    ("paused", ColumnType::Boolean),
    ("created_at", ColumnType::Timestamp),
    ("last_commit_at", ColumnType::Timestamp),
    ("newest_change_at", ColumnType::Timestamp),
    ("newest_read_at", ColumnType::Timestamp),
    ("delay_p50_seconds", ColumnType::Double),
    ("delay_p95_seconds", ColumnType::Double),
    ("delay_p99_seconds", ColumnType::Double),
    ("delay_rows", ColumnType::Long),
    ("as_of", ColumnType::Timestamp),
];

/// Writes the table.
pub(crate) struct StatusTable {
    access: Arc<TableAccess>,
    fence: Option<Fence>,
    options: Arc<DeltaOptions>,
}

impl StatusTable {
    pub(crate) const fn new(access: Arc<TableAccess>, fence: Option<Fence>, options: Arc<DeltaOptions>) -> Self {
        Self { access, fence, options }
    }

    /// What the clean-up knows of it: it is in no space and not in the metastore.
    pub(crate) fn record(&self) -> TableRecord {
        TableRecord {
            key: TableKey {
                space: Space { domain: STATUS_TABLE.into(), kind: Kind::Location },
                document_type: STATUS_TABLE.into(),
            },
            name: STATUS_TABLE.into(),
            path: STATUS_TABLE.into(),
            location: self.access.lake().location(STATUS_TABLE),
            state: RecordedState::default(),
            created_us: 0,
        }
    }

    /// Puts these rows in place of all that are in it.
    ///
    /// # Errors
    /// When the store fails, the lease is lost, or another program has committed to it meanwhile. Nothing has changed then.
    pub(crate) async fn replace(&self, tables: &[TableStatus]) -> Result<(), EngineError> {
        let there = self.access.latest(STATUS_TABLE).await?;
        let table = match &there {
            Some(table) => table.clone(),
            None => self.access.unloaded(STATUS_TABLE)?,
        };
        if let Ok(snapshot) = table.snapshot() {
            protocol::judge(&self.record().key, snapshot.metadata(), snapshot.protocol())?;
        }
        let (schema, adds) = self.write(&table, tables).await?;
        let actions = actions(&table, &schema, adds, &self.options)?;
        // A lease that was lost while the file was written.
        self.fence.as_ref().map_or(Ok(()), Fence::check).map_err(EngineError::LeaseLost)?;
        let commit = Commit {
            table,
            base: BaseVersion::Current,
            label: Label::Upsert,
            actions,
            logged: Default::default(),
            new_files: NewFiles::default(),
        };
        match commit::commit(commit).await? {
            Outcome::Committed { table: Some(table), .. }
                if table.version().is_some_and(|version| version > 0 && version.is_multiple_of(CHECKPOINT_EVERY)) =>
            {
                checkpoints::create_checkpoint(&table, None).await.map_err(EngineError::delta)
            }
            Outcome::Committed { .. } => Ok(()),
            Outcome::Conflict | Outcome::Unknown => Err(EngineError::Contended(self.record().key)),
        }
    }

    /// Writes a file of rows.
    async fn write(&self, table: &DeltaTable, tables: &[TableStatus]) -> Result<(TableSchema, Vec<Add>), EngineError> {
        let column =
            |(name, column_type): (&str, ColumnType)| Column::new(name.to_owned(), format!("/{name}"), column_type);
        let schema = TableSchema { columns: COLUMNS.map(column).into() };
        let columns: Vec<&Column> = schema.columns.iter().collect();
        let file_schema = file_schema(&columns);
        let rows = RecordBatch::try_new(Arc::clone(&file_schema), arrays(tables, now_us()));
        let rows = rows.map_err(EngineError::arrow)?;
        let numbers = FileNumbers::default();
        let format = FileFormat::new(table.object_store(), file_schema, &schema, Vec::new(), numbers);
        let mut writer = FileWriter::new(&format, Partition::default(), usize::MAX);
        writer.write(&rows).await?;
        writer.close().await?;
        Ok((schema.clone(), writer.into_files().into_iter().map(|file| file.add).collect()))
    }
}

/// What makes these files the whole table.
fn actions(
    table: &DeltaTable,
    schema: &TableSchema,
    adds: Vec<Add>,
    options: &DeltaOptions,
) -> Result<Vec<Action>, EngineError> {
    let mut actions = match table.snapshot() {
        Err(_) => metadata::creation(STATUS_TABLE, schema, &[], options, now_us() / 1_000)?,
        Ok(snapshot) => {
            let held = metadata::schema_of(snapshot.metadata())?;
            // Another version of the lake may have had other columns.
            let mut actions = metadata::changes(snapshot, (held != *schema).then_some(schema), Features::default())?;
            actions.extend(snapshot.log_data().iter().map(|view| Action::Remove(view.remove_action(true))));
            actions
        }
    };
    actions.extend(adds.into_iter().map(Action::Add));
    Ok(actions)
}

/// The values, in the order of [`COLUMNS`].
fn arrays(tables: &[TableStatus], now_us: i64) -> Vec<ArrayRef> {
    let texts = |of: &dyn Fn(&TableRecord) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(tables.iter().map(|table| of(&table.record))))
    };
    let numbers = |of: &dyn Fn(&TableRecord) -> Option<i64>| -> ArrayRef {
        Arc::new(tables.iter().map(|table| of(&table.record)).collect::<Int64Array>())
    };
    let instants = |of: &dyn Fn(&TableRecord) -> Option<i64>| -> ArrayRef {
        let instants: TimestampMicrosecondArray = tables.iter().map(|table| of(&table.record)).collect();
        Arc::new(instants.with_timezone("UTC"))
    };
    let seconds = |of: &dyn Fn(&RecordedDelays) -> i64| -> ArrayRef {
        let delays = tables.iter().map(|table| table.record.state.delays.as_ref());
        Arc::new(delays.map(|delays| delays.map(|delays| of(delays) as f64 / 1e6)).collect::<Float64Array>())
    };
    vec![
        texts(&|table| table.name.clone()),
        texts(&|table| table.key.space.domain.to_string()),
        texts(&|table| table.key.space.kind.name().to_owned()),
        texts(&|table| table.key.document_type.to_string()),
        texts(&|table| table.location.clone()),
        numbers(&|table| table.state.version),
        numbers(&|table| Some(table.state.rows)),
        numbers(&|table| Some(table.state.files)),
        numbers(&|table| Some(table.state.bytes)),
        Arc::new(BooleanArray::from_iter(tables.iter().map(|table| Some(table.paused)))),
        instants(&|table| Some(table.created_us)),
        instants(&|table| table.state.last_commit_us),
        instants(&|table| table.state.newest_published_us),
        instants(&|table| table.state.newest_fetched_us),
        seconds(&|delays| delays.p50_us),
        seconds(&|delays| delays.p95_us),
        seconds(&|delays| delays.p99_us),
        numbers(&|table| table.state.delays.map(|delays| delays.rows)),
        instants(&|_| Some(now_us)),
    ]
}
