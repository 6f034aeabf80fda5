//! What the engine knows about a space: its tables, their files, where each id lives, which ids were deleted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use deltalake::DeltaTable;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use lake_shared::identity::{DocumentType, Space, TableKey};
use object_store::ObjectStore;

use super::EngineError;
use super::batch::KeyColumns;
use super::files::{self, DataFile};
use crate::metastore::TableRecord;
use crate::table_store::key_index::{ByIdHash, IdHash, KeyIndex, Place, id_hash};
use crate::table_store::order_guard::{Held, TombstoneOrder};
use crate::table_store::schema_plan::{ID_SOURCE, OBSERVED_SOURCE, TableSchema, VERSION_SOURCE};

/// Files read at once when an index is built.
const FILES_AT_ONCE: usize = 4;

/// A table of the space.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) key: TableKey,
    pub(super) name: String,
    pub(super) path: String,
    /// Version of the log that `schema`, `files` and the index stand for; `None` before the first commit.
    pub(super) version: Option<u64>,
    pub(super) schema: TableSchema,
    pub(super) files: Vec<DataFile>,
    /// What the metastore has not been told yet.
    pub(super) unrecorded: Option<Unrecorded>,
}

/// Freshness gained by commits that the metastore does not know of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unrecorded {
    pub(super) newest_published_us: Option<i64>,
    pub(super) newest_fetched_us: Option<i64>,
}

impl Slot {
    pub(super) fn of(record: TableRecord) -> Self {
        Self {
            key: record.key,
            name: record.name,
            path: record.path,
            version: None,
            schema: TableSchema::default(),
            files: Vec::new(),
            unrecorded: None,
        }
    }

    pub(super) fn rows(&self) -> i64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    pub(super) fn bytes(&self) -> i64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// The state of one space.
#[derive(Debug)]
pub(super) struct SpaceState {
    pub(super) space: Space,
    pub(super) index: KeyIndex,
    pub(super) tombstones: ByIdHash<TombstoneOrder>,
    pub(super) slots: Vec<Slot>,
    pub(super) by_type: HashMap<DocumentType, u32>,
    /// Ids whose rows must leave although no batch says so: their tombstone was remembered, then the process died.
    pub(super) condemned: HashSet<IdHash>,
    pub(super) next_file: u32,
}

impl SpaceState {
    pub(super) fn new(space: Space) -> Self {
        Self {
            space,
            index: KeyIndex::default(),
            tombstones: ByIdHash::default(),
            slots: Vec::new(),
            by_type: HashMap::new(),
            condemned: HashSet::new(),
            next_file: 0,
        }
    }

    /// What is known about an id.
    pub(super) fn held(&self, id: IdHash) -> Held {
        Held { row: self.index.get(id).map(|place| place.order), tombstone: self.tombstones.get(&id).copied() }
    }

    /// Adds a registered table. Returns its number.
    pub(super) fn add_slot(&mut self, record: TableRecord) -> u32 {
        let number = self.slots.len() as u32;
        self.by_type.insert(record.key.document_type.clone(), number);
        self.slots.push(Slot::of(record));
        number
    }

    pub(super) fn slot(&self, number: u32) -> &Slot {
        &self.slots[number as usize]
    }

    pub(super) fn slot_mut(&mut self, number: u32) -> &mut Slot {
        &mut self.slots[number as usize]
    }

    /// A number for a new data file.
    pub(super) fn new_file_number(&mut self) -> u32 {
        self.next_file += 1;
        self.next_file
    }

    /// Settles remembered tombstones with the rows that were found. Returns the ids whose tombstones are outlived.
    pub(super) fn settle_tombstones(&mut self) -> Vec<IdHash> {
        let mut outlived = Vec::new();
        for (&id, tombstone) in &self.tombstones {
            match self.index.get(id) {
                Some(place) if tombstone.beats_row(place.order) => {
                    self.condemned.insert(id);
                }
                Some(_) => outlived.push(id),
                None => {}
            }
        }
        for id in &outlived {
            self.tombstones.remove(id);
        }
        outlived
    }

    /// Brings a table's part of the state to a loaded version: rows of files that are gone are forgotten, new files are scanned.
    pub(super) async fn refresh(&mut self, number: u32, table: &DeltaTable) -> Result<(), EngineError> {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let schema = super::commit::schema_of(snapshot.metadata())?;
        let mut known: HashMap<String, DataFile> = std::mem::take(&mut self.slot_mut(number).files)
            .into_iter()
            .map(|file| (file.path.clone(), file))
            .collect();
        // While this runs the slot has no version: an error half-way leads to a full scan next time.
        self.slot_mut(number).version = None;
        let (mut kept, mut new) = (Vec::new(), Vec::new());
        for view in snapshot.log_data().iter() {
            let path = view.path().into_owned();
            match known.remove(&path) {
                Some(file) => kept.push(file),
                None => {
                    if view.deletion_vector_descriptor().is_some() {
                        return Err(EngineError::corrupt(format!("file {path} has a deletion vector")));
                    }
                    let rows = view.num_records().and_then(|rows| i64::try_from(rows).ok()).unwrap_or_default();
                    new.push(DataFile { number: self.new_file_number(), path, size: view.size(), rows });
                }
            }
        }
        let gone: HashSet<u32> = known.values().map(|file| file.number).collect();
        if !gone.is_empty() {
            self.index.forget_files(|file| gone.contains(&file));
        }
        self.scan(number, &table.object_store(), &schema, &mut new).await?;
        kept.append(&mut new);
        let slot = self.slot_mut(number);
        slot.files = kept;
        slot.schema = schema;
        slot.version = table.version();
        Ok(())
    }

    /// Reads the keys of files into the index.
    async fn scan(
        &mut self,
        number: u32,
        store: &Arc<dyn ObjectStore>,
        schema: &TableSchema,
        new: &mut [DataFile],
    ) -> Result<(), EngineError> {
        let name = |source: &str| schema.column(source).map(|column| column.name.clone()).unwrap_or_default();
        let names = [name(ID_SOURCE), name(VERSION_SOURCE), name(OBSERVED_SOURCE)];
        let names = Arc::new(names);
        let scans: Vec<BoxFuture<'static, _>> =
            new.iter().map(|file| file_keys(Arc::clone(store), file.clone(), Arc::clone(&names)).boxed()).collect();
        let mut scans = stream::iter(scans).buffer_unordered(FILES_AT_ONCE);
        let mut counts = HashMap::new();
        while let Some((file, keys)) = scans.try_next().await? {
            counts.insert(file, keys.len() as i64);
            for (id, order) in keys {
                self.index.found(id, Place { table: number, file, order });
            }
        }
        for file in new.iter_mut() {
            file.rows = counts.get(&file.number).copied().unwrap_or(file.rows);
        }
        Ok(())
    }
}

type Keys = Vec<(IdHash, crate::table_store::order_guard::RowOrder)>;

async fn file_keys(
    store: Arc<dyn ObjectStore>,
    file: DataFile,
    names: Arc<[String; 3]>,
) -> Result<(u32, Keys), EngineError> {
    let [id, version, observed] = names.as_ref();
    let mut batches = files::open(&store, &file, Some(&[id, version, observed])).await?;
    let mut keys = Vec::with_capacity(usize::try_from(file.rows).unwrap_or_default());
    while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
        let columns = KeyColumns::of(&batch, id, version, observed)
            .map_err(|error| EngineError::corrupt(format!("file {}: {error}", file.path)))?;
        keys.extend(
            (0..batch.num_rows()).map(|row| (id_hash(columns.id(row).unwrap_or_default()), columns.order(row))),
        );
    }
    Ok((file.number, keys))
}
