//! Bringing the files of a table in step with a version of its log: what is read, and the pure difference of the two lists.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::kernel::DeletionVectorDescriptor;
use deltalake::table::state::DeltaTableState;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;

use crate::key_index::FileNumber;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::{self, DeletionVector};
use crate::table_store::delta::files::partition::{self, Partition};
use crate::table_store::delta::log::base_version;
use crate::table_store::delta::log::entry::RawPaths;
use crate::table_store::delta::log::metadata;
use crate::table_store::delta::log::protocol;
use crate::table_store::delta::space::index::snapshot::{SnapshotFile, SnapshotFiles};
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::{LoadedTable, TableState};
use crate::table_store::delta::table_number::TableNumber;

/// Deletion vectors read at once.
const VECTORS_AT_ONCE: usize = 16;

/// A data file as a version of the log has it.
struct LoggedFile {
    path: String,
    /// The path as it stands in the log, where delta-rs would encode it otherwise.
    logged: Option<String>,
    /// Bytes.
    size: i64,
    /// Rows, deleted ones included; `None` where the log does not say.
    rows: Option<i64>,
    deleted: Option<DeletionVector>,
    partition: Partition,
    /// Whether every row that was deleted in the known file of this path still is. If not, or if that was not looked at, rows may have
    /// come back that the index has forgotten.
    keeps_deletes: bool,
}

/// Two lists of files compared.
struct Difference {
    files: BTreeMap<FileNumber, DataFile>,
    /// Numbers of files whose keys are not in the index.
    unread: Vec<FileNumber>,
    /// Numbers of files that are not part of the table any more.
    gone: Vec<FileNumber>,
}

impl SpaceState {
    /// Brings the files of a table in step with a loaded version. Answers the numbers of files whose keys are not in the index yet.
    /// `snapshot`: the files that the index knows of when a space is loaded.
    ///
    /// # Errors
    /// When the table cannot be written by this engine, or its log or deletion vectors cannot be read. The files are as before then, or none
    /// where the folder has another table now.
    pub(super) async fn reconcile(
        &mut self,
        number: TableNumber,
        table: &DeltaTable,
        snapshot: SnapshotFiles,
    ) -> Result<Vec<FileNumber>, EngineError> {
        let logged = table.snapshot().map_err(EngineError::delta)?;
        protocol::judge(self.table(number).key(), logged.metadata(), logged.protocol())?;
        let schema = metadata::schema_of(logged.metadata())?;
        let partition_columns = logged.metadata().partition_columns().to_vec();
        partition::check_types(&partition_columns, &schema)?;
        let id = base_version::id_of(logged);
        if self.table(number).id().is_some_and(|held| held != id) {
            self.clear_table(number);
        }
        let state = self.table(number);
        let mut known = snapshot.of_table(&id);
        known.extend(state.files().map(|file| (file.path.clone(), SnapshotFile::of(file))));
        let files = logged_files(state, table, logged, &known, &partition_columns).await?;
        let numbers = self.numbers().clone();
        let Difference { files, unread, gone } = difference(state, known, files, || numbers.next());
        let loaded = LoadedTable { version: table.version(), id, schema, partition_columns, files };
        self.table_loaded(number, loaded, gone);
        Ok(unread)
    }
}

/// Compares the files that are known with those of the log. A file keeps its number as long as the index may keep its entries.
fn difference(
    held: &TableState,
    mut known: HashMap<String, SnapshotFile>,
    logged: Vec<LoggedFile>,
    next_number: impl Fn() -> FileNumber,
) -> Difference {
    let (mut files, mut unread, mut gone) = (BTreeMap::new(), Vec::new(), Vec::new());
    for file in logged {
        let known = known.remove(&file.path);
        let held = known.as_ref().and_then(|known| held.file(known.number));
        // Other writers need not say how many rows a file has; then they are counted as its keys are read.
        let rows = file.rows.or_else(|| held.map(|file| file.rows).filter(|rows| *rows >= 0));
        let same = known.as_ref().filter(|_| rows.is_some() && file.keeps_deletes).map(|known| known.number);
        let number = same.unwrap_or_else(&next_number);
        if same.is_none() {
            unread.push(number);
            gone.extend(known.map(|known| known.number));
        }
        let file = DataFile {
            number,
            path: file.path,
            logged: file.logged,
            size: file.size,
            rows: rows.unwrap_or(-1),
            deleted: file.deleted,
            partition: file.partition,
            versions_us: held.and_then(|held| held.versions_us),
        };
        files.insert(number, file);
    }
    gone.extend(known.into_values().map(|known| known.number));
    Difference { files, unread, gone }
}

/// The files of a loaded version, with their deletion vectors.
async fn logged_files(
    held: &TableState,
    table: &DeltaTable,
    snapshot: &DeltaTableState,
    known: &HashMap<String, SnapshotFile>,
    partition_columns: &[String],
) -> Result<Vec<LoggedFile>, EngineError> {
    let store = table.object_store();
    let mut vectors = changed_vectors(held, &store, snapshot).await?;
    let mut raw_paths = RawPaths::of(snapshot);
    let mut files = Vec::with_capacity(snapshot.log_data().num_files());
    for (position, view) in snapshot.log_data().iter().enumerate() {
        let path = view.path().into_owned();
        let known = known.get(&path);
        let deleted = match view.deletion_vector_descriptor() {
            None => None,
            Some(descriptor) => match vectors.remove(&path) {
                Some(vector) => Some(vector),
                None => Some(held_vector(held, known, &store, descriptor).await?),
            },
        };
        let before = known.and_then(|known| known.deleted.as_ref());
        let held_rows = || known.and_then(|known| held.file(known.number)).filter(|file| file.rows >= 0);
        // Without them the keys of the file are read anyway.
        let rows_known = view.num_records().is_some() || held_rows().is_some();
        files.push(LoggedFile {
            logged: raw_paths.odd(position, &view)?,
            size: view.size(),
            rows: view.num_records().and_then(|rows| i64::try_from(rows).ok()),
            keeps_deletes: rows_known && only_grew(&store, before, deleted.as_ref()).await?,
            deleted,
            partition: Partition::of_values(partition_columns, &view.partition_values_map()),
            path,
        });
    }
    Ok(files)
}

/// The vector that is held, where it is the described one.
async fn held_vector(
    held: &TableState,
    known: Option<&SnapshotFile>,
    store: &Arc<dyn ObjectStore>,
    descriptor: DeletionVectorDescriptor,
) -> Result<DeletionVector, EngineError> {
    let held = known.and_then(|known| held.file(known.number)?.deleted.as_ref());
    match held {
        Some(held) if held.descriptor == descriptor => Ok(held.clone()),
        _ => deletion_vectors::load(store, descriptor).await,
    }
}

/// Reads the deletion vectors of a loaded version that are not those which are held. By path of their files.
async fn changed_vectors(
    held: &TableState,
    store: &Arc<dyn ObjectStore>,
    snapshot: &DeltaTableState,
) -> Result<HashMap<String, DeletionVector>, EngineError> {
    let held: HashMap<&str, &DeletionVectorDescriptor> =
        held.files().filter_map(|file| Some((file.path.as_str(), &file.deleted.as_ref()?.descriptor))).collect();
    let log = snapshot.log_data();
    let described = log.iter().filter_map(|view| Some((view.path().into_owned(), view.deletion_vector_descriptor()?)));
    let unread: Vec<_> = described
        .filter(|(path, descriptor)| held.get(path.as_str()) != Some(&descriptor))
        .map(|(path, descriptor)| async move { Ok((path, deletion_vectors::load(store, descriptor).await?)) })
        .collect();
    stream::iter(unread).buffer_unordered(VECTORS_AT_ONCE).try_collect().await
}

/// Whether every row that was deleted in a file still is.
async fn only_grew(
    store: &Arc<dyn ObjectStore>,
    before: Option<&DeletionVectorDescriptor>,
    now: Option<&DeletionVector>,
) -> Result<bool, EngineError> {
    let Some(before) = before else { return Ok(true) };
    let Some(now) = now else { return Ok(false) };
    if &now.descriptor == before {
        return Ok(true);
    }
    match deletion_vectors::load(store, before.clone()).await {
        Ok(before) => Ok(before.rows.is_subset(&now.rows)),
        // Superseded vectors are cleaned up after the retention.
        Err(EngineError::Store(object_store::Error::NotFound { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use lake_shared::identity::{Kind, Space, TableKey};

    use super::*;
    use crate::metastore::{RecordedState, TableRecord};

    fn data_file(number: u32, path: &str) -> DataFile {
        DataFile {
            number: FileNumber::new(number),
            path: path.to_owned(),
            logged: None,
            size: 1,
            rows: 7,
            deleted: None,
            partition: Partition::default(),
            versions_us: Some((1, 2)),
        }
    }

    fn held(files: &[(u32, &str)]) -> TableState {
        let space = Space { domain: "demo".into(), kind: Kind::Case };
        let mut table = TableState::new(TableRecord {
            key: TableKey { space, document_type: "t".into() },
            name: "demo_case_sql_t".into(),
            path: "demo/case-sql/t".into(),
            location: "file:///demo/case-sql/t".into(),
            state: RecordedState::default(),
            created_us: 0,
        });
        let files = files.iter().map(|(number, path)| (FileNumber::new(*number), data_file(*number, path)));
        table.set_loaded(LoadedTable {
            version: Some(3),
            id: "id".into(),
            schema: Default::default(),
            partition_columns: Vec::new(),
            files: files.collect(),
        });
        table
    }

    fn logged(path: &str, rows: Option<i64>, keeps_deletes: bool) -> LoggedFile {
        let path = path.to_owned();
        LoggedFile { path, logged: None, size: 5, rows, deleted: None, partition: Partition::default(), keeps_deletes }
    }

    fn numbers(numbers: &[u32]) -> Vec<FileNumber> {
        numbers.iter().copied().map(FileNumber::new).collect()
    }

    #[test]
    fn a_file_keeps_its_number_as_long_as_the_index_may_keep_its_entries() {
        let table = held(&[(1, "same"), (2, "rows came back"), (3, "gone"), (4, "rows not told")]);
        let mut known: HashMap<String, SnapshotFile> =
            table.files().map(|file| (file.path.clone(), SnapshotFile::of(file))).collect();
        // The index knows it from its last checkpoint, and nothing else is held of it.
        known.insert("only in the snapshot".into(), SnapshotFile::of(&data_file(5, "only in the snapshot")));
        known.insert("snapshot, rows not told".into(), SnapshotFile::of(&data_file(6, "snapshot, rows not told")));
        let files = vec![
            logged("same", Some(9), true),
            logged("rows came back", Some(7), false),
            logged("new", None, true),
            logged("rows not told", None, true),
            logged("only in the snapshot", Some(7), true),
            logged("snapshot, rows not told", None, true),
        ];
        let next = Cell::new(10);
        let Difference { files, unread, mut gone } = difference(&table, known, files, || {
            next.set(next.get() + 1);
            FileNumber::new(next.get())
        });
        gone.sort_unstable();
        assert_eq!((unread, gone), (numbers(&[11, 12, 13]), numbers(&[2, 3, 6])));
        let found: Vec<(u32, &str, i64)> =
            files.values().map(|file| (file.number.get(), file.path.as_str(), file.rows)).collect();
        let expected = [
            (1, "same", 9),
            (4, "rows not told", 7),
            (5, "only in the snapshot", 7),
            (11, "rows came back", 7),
            (12, "new", -1),
            (13, "snapshot, rows not told", -1),
        ];
        assert_eq!(found, expected);
        assert!(
            files.values().all(|file| file.versions_us.is_none() == (file.number.get() == 5 || file.number.get() > 11))
        );
    }
}
