//! What the engine knows about a space: its tables, their files, where each id lives, which ids were deleted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use deltalake::DeltaTable;
use deltalake::kernel::DeletionVectorDescriptor;
use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::identity::{DocumentType, Space, TableKey};
use object_store::ObjectStore;

use crate::key_index::{IdHash, KeyIndex, Position};
use crate::metastore::TableRecord;
use crate::metric_names;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::{self, DeletionVector};
use crate::table_store::delta::files::file_writer::FileNumbers;
use crate::table_store::delta::files::partition::{self, Partition};
use crate::table_store::delta::log::base_version::{self, Mark};
use crate::table_store::delta::log::entry::RawPaths;
use crate::table_store::delta::log::protocol;
use crate::table_store::delta::space::index::snapshot::{StampedFile, StampedFiles};
use crate::table_store::delta::space::live_files::LiveFiles;
use crate::table_store::delta::space::tombstone_filter::TombstoneFilter;
use crate::table_store::delta::space::unusable::Unusable;
use crate::table_store::order_guard::RowOrder;
use crate::table_store::schema_plan::TableSchema;

/// Deletion vectors read at once.
const VECTORS_AT_ONCE: usize = 16;

/// A table of the space.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) key: TableKey,
    pub(crate) name: String,
    pub(crate) path: String,
    /// Version of the log that everything below and the index stand for; `None` before the first commit.
    pub(crate) version: Option<u64>,
    /// Identity in the metadata. Another one is another table, whatever its versions are.
    pub(crate) id: Option<String>,
    /// The version that was last looked at and what was seen of its entry in the log.
    pub(crate) seen: Option<(u64, Option<Mark>)>,
    /// Why the table cannot be used; then it has no version and no files.
    pub(crate) unusable: Option<Arc<Unusable>>,
    pub(crate) schema: TableSchema,
    /// Names of the partition columns.
    pub(crate) partition_columns: Vec<String>,
    /// By number.
    pub(crate) files: BTreeMap<u32, DataFile>,
    /// What the metastore has not been told yet.
    pub(crate) unrecorded: Option<Unrecorded>,
    /// Whether it has been told this schema since the space was loaded.
    pub(crate) schema_recorded: bool,
    /// Changed since compaction last looked at it.
    pub(crate) changed: bool,
}

/// Freshness gained by commits that the metastore does not know of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unrecorded {
    pub(crate) newest_published_us: Option<i64>,
    pub(crate) newest_fetched_us: Option<i64>,
}

impl Slot {
    pub(crate) fn of(record: TableRecord) -> Self {
        Self {
            key: record.key,
            name: record.name,
            path: record.path,
            version: None,
            id: None,
            seen: None,
            unusable: None,
            schema: TableSchema::default(),
            partition_columns: Vec::new(),
            files: BTreeMap::new(),
            unrecorded: None,
            schema_recorded: false,
            changed: true,
        }
    }

    /// Rows that readers see.
    pub(crate) fn rows(&self) -> i64 {
        self.files.values().map(DataFile::live_rows).sum()
    }

    pub(crate) fn bytes(&self) -> i64 {
        self.files.values().map(|file| file.size).sum()
    }
}

/// The row of an id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// Where it stands.
    pub(crate) position: Position,
    /// In which table.
    pub(crate) table: u32,
    /// Its order. The instant of observation is not in the index: it is filled in where a decision needs it.
    pub(crate) order: RowOrder,
}

/// The state of one space.
#[derive(Debug)]
pub(crate) struct SpaceState {
    pub(crate) space: Space,
    pub(crate) index: KeyIndex,
    pub(crate) live: Arc<LiveFiles>,
    pub(crate) tombstones: TombstoneFilter,
    pub(crate) slots: Vec<Slot>,
    pub(crate) by_type: HashMap<DocumentType, u32>,
    pub(crate) numbers: FileNumbers,
    /// Tells this loading of the space from others in this process: file numbers mean nothing beyond it.
    pub(crate) generation: u64,
    /// Where the next look at the tables begins.
    pub(crate) looked_at: usize,
    /// A refresh has begun and not ended: files and index may not agree. Such a state is loaded anew.
    pub(crate) torn: bool,
    /// What the metric of keys has of this state.
    keys_told: KeysTold,
}

/// Keys that count in the metric as long as the state is there.
#[derive(Debug, Default)]
struct KeysTold(u64);

impl KeysTold {
    fn tell(&mut self, keys: u64) {
        metrics::gauge!(metric_names::INDEX_KEYS).increment(keys as f64 - self.0 as f64);
        self.0 = keys;
    }
}

impl Drop for KeysTold {
    fn drop(&mut self) {
        self.tell(0);
    }
}

static GENERATIONS: AtomicU64 = AtomicU64::new(0);

impl SpaceState {
    pub(crate) fn new(space: Space, index: KeyIndex, numbers: FileNumbers) -> Self {
        Self {
            space,
            index,
            live: Arc::default(),
            tombstones: TombstoneFilter::default(),
            slots: Vec::new(),
            by_type: HashMap::new(),
            numbers,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            looked_at: 0,
            torn: false,
            keys_told: KeysTold::default(),
        }
    }

    /// Adds a registered table. Returns its number.
    pub(crate) fn add_slot(&mut self, record: TableRecord) -> u32 {
        let number = self.slots.len() as u32;
        self.by_type.insert(record.key.document_type.clone(), number);
        self.slots.push(Slot::of(record));
        number
    }

    /// Somebody took the table away, log and all. The next commit makes it anew.
    pub(crate) fn forget_table(&mut self, number: u32) {
        self.take_out(number);
        let slot = self.slot_mut(number);
        (slot.id, slot.schema, slot.partition_columns) = Default::default();
        slot.unrecorded.get_or_insert_default();
        slot.schema_recorded = false;
    }

    /// Nothing of a table counts any more.
    pub(crate) fn take_out(&mut self, number: u32) {
        self.live_mut().remove_table(number);
        let slot = self.slot_mut(number);
        (slot.version, slot.seen, slot.files) = Default::default();
    }

    pub(crate) fn slot(&self, number: u32) -> &Slot {
        &self.slots[number as usize]
    }

    pub(crate) fn slot_mut(&mut self, number: u32) -> &mut Slot {
        &mut self.slots[number as usize]
    }

    pub(crate) fn live_mut(&mut self) -> &mut LiveFiles {
        Arc::make_mut(&mut self.live)
    }

    /// Finds the rows of ids. Ids without a row are not in the answer.
    pub(crate) async fn find(&self, ids: Vec<IdHash>) -> Result<ByIdHash<Found>, EngineError> {
        let (index, live) = (self.index.clone(), Arc::clone(&self.live));
        let looking = tokio::task::spawn_blocking(move || {
            let located = index.lookup(&ids, live.as_ref())?;
            Ok(ids.into_iter().zip(located).collect::<Vec<_>>())
        });
        let located = looking.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)?;
        let found = located.into_iter().filter_map(|(id, located)| {
            let located = located?;
            let table = self.live.table(located.position.file)?;
            let order = RowOrder { version_us: located.version_us, observed_us: i64::MIN };
            Some((id, Found { position: located.position, table, order }))
        });
        Ok(found.collect())
    }

    /// Reads the deletion vectors of a loaded version that are not those which are held. By path of their files.
    async fn vectors_of(
        &self,
        number: u32,
        table: &DeltaTable,
    ) -> Result<HashMap<String, DeletionVector>, EngineError> {
        let files = self.slot(number).files.values();
        let held: HashMap<&str, &DeletionVectorDescriptor> =
            files.filter_map(|file| Some((file.path.as_str(), &file.deleted.as_ref()?.descriptor))).collect();
        let store = table.object_store();
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let log = snapshot.log_data();
        let described =
            log.iter().filter_map(|view| Some((view.path().into_owned(), view.deletion_vector_descriptor()?)));
        let unread: Vec<_> = described
            .filter(|(path, descriptor)| held.get(path.as_str()) != Some(&descriptor))
            .map(|(path, descriptor)| {
                let store = &store;
                async move { Ok((path, deletion_vectors::load(store, descriptor).await?)) }
            })
            .collect();
        stream::iter(unread).buffer_unordered(VECTORS_AT_ONCE).try_collect().await
    }

    /// Brings the metric of keys in step with the index.
    pub(crate) fn tell_keys(&mut self) {
        self.keys_told.tell(self.index.entries());
    }

    /// Brings the files of a table in step with a loaded version. Answers the numbers of files whose keys are not in the index yet.
    /// `stamped` are the files that the index does know.
    pub(crate) async fn follow(
        &mut self,
        number: u32,
        table: &DeltaTable,
        stamped: StampedFiles,
    ) -> Result<Vec<u32>, EngineError> {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        protocol::judge(&self.slot(number).key, snapshot.metadata(), snapshot.protocol())?;
        let schema = crate::table_store::delta::log::commit::schema_of(snapshot.metadata())?;
        let id = base_version::id_of(snapshot);
        if self.slot(number).id.as_ref().is_some_and(|held| *held != id) {
            self.take_out(number);
        }
        let mut known = stamped.of_table(&id);
        let partition_columns = snapshot.metadata().partition_columns().to_vec();
        partition::check_types(&partition_columns, &schema)?;
        let store = table.object_store();
        for file in self.slot(number).files.values() {
            let deleted = file.deleted.as_ref().map(|deleted| deleted.descriptor.clone());
            let stamped = StampedFile { number: file.number, path: file.path.clone(), deleted };
            known.insert(file.path.clone(), stamped);
        }
        let mut vectors = self.vectors_of(number, table).await?;
        let mut before = std::mem::take(&mut self.slot_mut(number).files);
        let (mut files, mut unread, mut replaced) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut raw_paths = RawPaths::of(snapshot);
        for (position, view) in snapshot.log_data().iter().enumerate() {
            let path = view.path().into_owned();
            let logged = raw_paths.odd(position, &view)?;
            let descriptor = view.deletion_vector_descriptor();
            let known = known.remove(&path);
            let held = known.as_ref().and_then(|known| before.remove(&known.number));
            let deleted = match descriptor {
                None => None,
                Some(descriptor) => match held.as_ref().and_then(|file| file.deleted.clone()) {
                    Some(held) if held.descriptor == descriptor => Some(held),
                    _ => match vectors.remove(&path) {
                        Some(vector) => Some(vector),
                        None => Some(deletion_vectors::load(&store, descriptor).await?),
                    },
                },
            };
            // Other writers need not say how many rows a file has; then they are counted as its keys are read.
            let rows = view.num_records().and_then(|rows| i64::try_from(rows).ok());
            let rows = rows.or_else(|| held.as_ref().map(|file| file.rows).filter(|rows| *rows >= 0));
            let same = match &known {
                Some(known)
                    if rows.is_some() && only_grew(&store, known.deleted.as_ref(), deleted.as_ref()).await? =>
                {
                    Some(known.number)
                }
                _ => None,
            };
            let file_number = same.unwrap_or_else(|| self.numbers.next());
            if same.is_none() {
                unread.push(file_number);
                replaced.extend(known.map(|known| known.number));
            }
            let file = DataFile {
                number: file_number,
                path,
                logged,
                size: view.size(),
                rows: rows.unwrap_or(-1),
                deleted,
                partition: Partition::of_values(&partition_columns, &view.partition_values_map()),
                observed_us: held.and_then(|held| held.observed_us),
            };
            files.insert(file_number, file);
        }
        let live = self.live_mut();
        for gone in before.into_keys().chain(known.into_values().map(|known| known.number)).chain(replaced) {
            live.remove(gone);
        }
        for (file_number, file) in &files {
            live.set(*file_number, number, file.deleted_rows().cloned());
        }
        let slot = self.slot_mut(number);
        slot.files = files;
        slot.schema_recorded &= slot.schema == schema;
        slot.schema = schema;
        slot.partition_columns = partition_columns;
        slot.version = table.version();
        slot.id = Some(id);
        slot.changed = true;
        Ok(unread)
    }
}

/// Whether every row that was deleted in a file still is. If not, rows came back that the index may have forgotten.
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
        // It is not kept for ever.
        Err(EngineError::Store(object_store::Error::NotFound { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}
