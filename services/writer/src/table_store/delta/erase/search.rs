//! Which files in the folder of a table hold rows of some ids, and which files of its log name them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::identity::TableKey;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use roaring::RoaringBitmap;

use crate::key_index::FileNumber;
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::delta::erase::mentions::Mentions;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::{self, DataFile};
use crate::table_store::delta::files::partition::Partition;

/// Folder of the log in that of a table.
pub(super) const LOG: &str = "_delta_log";
/// Names the last checkpoint, and nothing of rows.
const HINT: &str = "_last_checkpoint";
/// Files that are read at once.
const FILES_AT_ONCE: usize = 4;

/// Ids that are looked for.
pub(super) struct Wanted {
    pub(super) ids: HashSet<String>,
    pub(super) mentions: Mentions,
}

impl Wanted {
    pub(super) fn of(ids: &[String]) -> Self {
        Self { ids: ids.iter().cloned().collect(), mentions: Mentions::of(ids) }
    }
}

/// A file that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct FoundFile {
    /// Bytes.
    pub(super) size: u64,
    /// Where rows of the ids are; of a file of the log only whether there is one.
    pub(super) rows: RoaringBitmap,
}

/// What is known of the files of a table. Each is read once: what has a name is never written again.
pub(super) struct TableSearch {
    pub(super) key: TableKey,
    /// Folder, relative to the lake's root.
    pub(super) path: String,
    /// Name of the column of ids.
    pub(super) id_column: String,
    data: BTreeMap<String, FoundFile>,
    log: BTreeMap<String, FoundFile>,
}

impl TableSearch {
    pub(super) fn new(key: TableKey, path: String, id_column: String) -> Self {
        Self { key, path, id_column, data: BTreeMap::new(), log: BTreeMap::new() }
    }

    /// Reads what is in the folder and was not read yet, and the files of these paths. What has left is forgotten.
    ///
    /// # Errors
    /// When a file cannot be read: nobody knows what is in it.
    pub(super) async fn look(
        &mut self,
        store: &Arc<dyn ObjectStore>,
        wanted: &Wanted,
        live: &[DataFile],
    ) -> Result<(), EngineError> {
        let files: Vec<ObjectMeta> = store.list(None).try_collect().await.map_err(EngineError::Store)?;
        let is_of_log = |file: &&ObjectMeta| file.location.prefix_matches(&Path::from(LOG));
        let (log, data): (Vec<&ObjectMeta>, Vec<&ObjectMeta>) = files.iter().partition(is_of_log);
        let data = data.into_iter().filter(|file| file.location.extension() == Some("parquet"));
        let mut data: BTreeMap<String, u64> = data.map(|file| (file.location.to_string(), file.size)).collect();
        for file in live {
            // A file system may list a folder under another spelling.
            data.entry(file.path.clone()).or_insert(file.size.unsigned_abs());
        }
        let log = log.into_iter().filter(|file| file.location.filename() != Some(HINT));
        let log: BTreeMap<String, u64> = log.map(|file| (file.location.to_string(), file.size)).collect();
        self.data.retain(|path, _| data.contains_key(path));
        self.log.retain(|path, file| log.get(path) == Some(&file.size));
        let id_column = self.id_column.as_str();
        let reading = data.into_iter().filter(|(path, _)| !self.data.contains_key(path));
        let reading = reading.map(|(path, size)| rows_of(store, path, size, id_column, wanted));
        let mut reading = stream::iter(reading.collect::<Vec<_>>()).buffer_unordered(FILES_AT_ONCE);
        while let Some(read) = reading.try_next().await? {
            self.data.extend(read);
        }
        drop(reading);
        let reading = log.into_iter().filter(|(path, _)| !self.log.contains_key(path));
        let reading = reading.map(|(path, size)| mention_of(store, path, size, wanted));
        let mut reading = stream::iter(reading.collect::<Vec<_>>()).buffer_unordered(FILES_AT_ONCE);
        while let Some(read) = reading.try_next().await? {
            self.log.extend(read);
        }
        Ok(())
    }

    /// Whether a data file was read.
    pub(super) fn has_read(&self, path: &str) -> bool {
        self.data.contains_key(path)
    }

    /// Where the rows of the ids are in a data file; `None`: it holds none.
    pub(super) fn rows_in(&self, path: &str) -> Option<&RoaringBitmap> {
        self.data.get(path).map(|file| &file.rows).filter(|rows| !rows.is_empty())
    }

    /// The data files that hold rows of the ids.
    pub(super) fn found(&self) -> impl Iterator<Item = (&String, &FoundFile)> {
        self.data.iter().filter(|(_, file)| !file.rows.is_empty())
    }

    /// The files of the log that name one.
    pub(super) fn naming(&self) -> BTreeSet<String> {
        self.log.iter().filter(|(_, file)| !file.rows.is_empty()).map(|(path, _)| path.clone()).collect()
    }

    /// How many data files and how many files of the log were read.
    pub(super) fn searched(&self) -> (u64, u64) {
        (self.data.len() as u64, self.log.len() as u64)
    }

    /// What was found, for the id of the plan.
    pub(super) fn objects(&self) -> Vec<String> {
        let rows =
            self.found().map(|(path, file)| format!("{}/{path} {:?}", self.path, file.rows.iter().collect::<Vec<_>>()));
        rows.chain(self.naming().into_iter().map(|path| format!("{}/{path}", self.path))).collect()
    }
}

/// A file as it is read here, whatever the log says of it.
fn unlogged(path: String, size: u64) -> DataFile {
    DataFile {
        number: FileNumber::new(0),
        path,
        logged: None,
        size: i64::try_from(size).unwrap_or(i64::MAX),
        rows: -1,
        deleted: None,
        partition: Partition::default(),
        versions_us: None,
    }
}

/// Where the rows of the ids are in a data file. `None`: the file has left meanwhile.
async fn rows_of(
    store: &Arc<dyn ObjectStore>,
    path: String,
    size: u64,
    id_column: &str,
    wanted: &Wanted,
) -> Result<Option<(String, FoundFile)>, EngineError> {
    let file = unlogged(path, size);
    let mut batches = match data_file::open(store, &file, Some(&[id_column])).await {
        Ok(batches) => batches,
        Err(error) => return gone(store, file, error).await,
    };
    // A table that is partitioned by the id has it in the path alone.
    let all_are = wanted.mentions.are_in(file.path.as_bytes());
    let (mut rows, mut first) = (RoaringBitmap::new(), 0_u32);
    while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
        let count = u32::try_from(batch.num_rows()).unwrap_or(u32::MAX);
        match batch.column_by_name(id_column).and_then(|ids| converted(ids, ColumnType::String)) {
            Some(ids) => {
                let ids = ids.as_string::<i32>();
                let found =
                    (0..batch.num_rows()).filter(|row| ids.is_valid(*row) && wanted.ids.contains(ids.value(*row)));
                rows.extend(found.map(|row| first + row as u32));
            }
            None if all_are => {
                rows.insert_range(first..first.saturating_add(count));
            }
            None => {}
        }
        first = first.saturating_add(count);
    }
    Ok(Some((file.path, FoundFile { size, rows })))
}

/// Whether a file of the log names one of the ids. `None`: it has left meanwhile.
async fn mention_of(
    store: &Arc<dyn ObjectStore>,
    path: String,
    size: u64,
    wanted: &Wanted,
) -> Result<Option<(String, FoundFile)>, EngineError> {
    let found = |is_named: bool| FoundFile { size, rows: is_named.then_some(0).into_iter().collect() };
    let file = unlogged(path, size);
    if !file.path.ends_with(".parquet") {
        let location = Path::parse(&file.path).map_err(|error| EngineError::corrupt(error.to_string()))?;
        let text = match store.get(&location).await {
            Ok(text) => text.bytes().await.map_err(EngineError::Store)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(EngineError::Store(error)),
        };
        let is_named = wanted.mentions.are_in(file.path.as_bytes()) || wanted.mentions.are_in(&text);
        return Ok(Some((file.path, found(is_named))));
    }
    let mut batches = match data_file::open(store, &file, None).await {
        Ok(batches) => batches,
        Err(error) => return gone(store, file, error).await,
    };
    let mut is_named = false;
    while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
        is_named |= batch.columns().iter().any(|column| wanted.mentions.are_in_array(column));
    }
    Ok(Some((file.path, found(is_named))))
}

/// Nothing, where the file has left while it was to be read; otherwise why it cannot be.
async fn gone<T>(store: &Arc<dyn ObjectStore>, file: DataFile, error: EngineError) -> Result<Option<T>, EngineError> {
    let location = Path::parse(&file.path).map_err(|error| EngineError::corrupt(error.to_string()))?;
    match store.head(&location).await {
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        _ => Err(error),
    }
}
