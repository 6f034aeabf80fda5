//! What the engine knows about a space: its tables, their files, where the row of each id is, which ids were deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Space};

use crate::key_index::{FileNumber, FinishedRun, IdHash, IndexEntry, KeyIndex, Located, Position, RowNumber};
use crate::metastore::TableRecord;
use crate::metric_names;
use crate::order_guard::RowOrder;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::file_writer::FileNumbers;
use crate::table_store::delta::log::base_version::ProbeResult;
use crate::table_store::delta::space::index::snapshot::{IndexSnapshot, SnapshotFile, SnapshotTable};
use crate::table_store::delta::space::live_files::LiveFiles;
use crate::table_store::delta::space::table::{CommittedFiles, Freshness, LoadedTable, LostRows, TableState};
use crate::table_store::delta::space::tombstones::dropped_types::DroppedTypes;
use crate::table_store::delta::space::tombstones::filter::TombstoneFilter;
use crate::table_store::delta::space::tombstones::kept_out::KeptOut;
use crate::table_store::delta::space::unusable::reason::Unusable;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::schema_plan::TableSchema;

/// Where the row of an id is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowLocation {
    pub(crate) position: Position,
    /// In which table.
    pub(crate) table: TableNumber,
    /// Its order. The version is not in the index: it is filled in where a decision needs it.
    pub(crate) order: RowOrder,
}

impl RowLocation {
    /// Position of the row, and when it was observed.
    pub(crate) const fn located(&self) -> Located {
        Located { position: self.position, observed_us: self.order.observed_us }
    }
}

/// The state of one space. Tables, live files and index change together, by the methods below.
#[derive(Debug)]
pub(crate) struct SpaceState {
    space: Space,
    index: KeyIndex,
    live: Arc<LiveFiles>,
    tombstones: TombstoneFilter,
    tables: Vec<TableState>,
    by_type: HashMap<DocumentType, TableNumber>,
    numbers: FileNumbers,
    /// Tells this loading of the space from others in this process: file numbers mean nothing beyond it.
    generation: u64,
    /// The table at which the next round of probes begins.
    next_probed: usize,
    /// A reload has begun and not ended: files and index may not agree. Such a state is loaded anew.
    poisoned: bool,
    keys_counted: KeysCounted,
    dropped: DroppedTypes,
    kept_out: KeptOut,
}

/// Keys that count in the metric as long as the state is there.
#[derive(Debug, Default)]
struct KeysCounted(u64);

impl KeysCounted {
    fn set(&mut self, keys: u64) {
        metrics::gauge!(metric_names::INDEX_KEYS).increment(keys as f64 - self.0 as f64);
        self.0 = keys;
    }
}

impl Drop for KeysCounted {
    fn drop(&mut self) {
        self.set(0);
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
            tables: Vec::new(),
            by_type: HashMap::new(),
            numbers,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            next_probed: 0,
            poisoned: false,
            keys_counted: KeysCounted::default(),
            dropped: DroppedTypes::default(),
            kept_out: KeptOut::default(),
        }
    }

    /// Types that have no table, as an operator has dropped it.
    pub(crate) const fn dropped(&self) -> &DroppedTypes {
        &self.dropped
    }

    /// Records that were erased and may not come back.
    pub(crate) const fn kept_out(&self) -> &KeptOut {
        &self.kept_out
    }

    pub(crate) fn set_kept_out(&mut self, kept_out: KeptOut) {
        self.kept_out = kept_out;
    }

    pub(super) fn set_dropped(&mut self, dropped: DroppedTypes) {
        self.dropped = dropped;
    }

    pub(crate) const fn space(&self) -> &Space {
        &self.space
    }

    pub(crate) const fn index(&self) -> &KeyIndex {
        &self.index
    }

    pub(crate) const fn live(&self) -> &Arc<LiveFiles> {
        &self.live
    }

    pub(crate) const fn tombstones(&self) -> &TombstoneFilter {
        &self.tombstones
    }

    pub(crate) const fn tombstones_mut(&mut self) -> &mut TombstoneFilter {
        &mut self.tombstones
    }

    pub(crate) fn tables(&self) -> &[TableState] {
        &self.tables
    }

    /// The tables with their numbers, in order.
    pub(crate) fn numbered_tables(&self) -> impl Iterator<Item = (TableNumber, &TableState)> {
        self.tables.iter().enumerate().map(|(index, table)| (TableNumber::of_index(index), table))
    }

    pub(crate) fn table(&self, number: TableNumber) -> &TableState {
        &self.tables[number.index()]
    }

    /// The number of a table that is registered.
    pub(crate) fn number_of(&self, document_type: &DocumentType) -> Option<TableNumber> {
        self.by_type.get(document_type).copied()
    }

    /// Numbers for new files.
    pub(crate) const fn numbers(&self) -> &FileNumbers {
        &self.numbers
    }

    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) const fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// The state is not used any more, but loaded anew.
    pub(crate) const fn poison(&mut self) {
        self.poisoned = true;
    }

    /// A reload has ended: files and index agree.
    pub(super) const fn reload_ended(&mut self) {
        self.poisoned = false;
    }

    /// Adds a registered table. Returns its number.
    pub(super) fn add_table(&mut self, record: TableRecord) -> TableNumber {
        let number = TableNumber::of_index(self.tables.len());
        self.by_type.insert(record.key.document_type.clone(), number);
        self.tables.push(TableState::new(record));
        number
    }

    pub(super) fn table_mut(&mut self, number: TableNumber) -> &mut TableState {
        &mut self.tables[number.index()]
    }

    /// The table was dropped, log and all. The next commit makes it anew.
    pub(super) fn forget_table(&mut self, number: TableNumber) {
        self.live_mut().remove_table(number);
        self.table_mut(number).forget();
    }

    /// Nothing that was known of the files of a table counts any more.
    pub(super) fn clear_table(&mut self, number: TableNumber) {
        self.live_mut().remove_table(number);
        self.table_mut(number).clear();
    }

    /// A version of a table was read from its log; `gone`: numbers of files that are not part of it any more.
    pub(super) fn table_loaded(&mut self, number: TableNumber, loaded: LoadedTable, gone: Vec<FileNumber>) {
        let live = self.live_mut();
        for file in gone {
            live.remove(file);
        }
        for file in loaded.files.values() {
            live.set(file.number, number, file.deleted_rows().cloned());
        }
        self.table_mut(number).set_loaded(loaded);
    }

    /// A commit of the engine is in the log of a table. Its keys are to be put into the index afterwards: the index may forget entries of
    /// files that it does not know to be live.
    pub(crate) fn commit_applied(&mut self, number: TableNumber, commit: CommittedFiles) {
        let live = self.live_mut();
        for file in &commit.removed {
            live.remove(*file);
        }
        for (file, vector) in &commit.marked {
            live.set(*file, number, Some(Arc::clone(&vector.rows)));
        }
        for file in &commit.added {
            live.set(file.number, number, file.deleted_rows().cloned());
        }
        self.table_mut(number).commit_applied(commit);
    }

    /// What a commit of rows changed beside the files. `schema`: the new one, where it changed. `published_us`: when HQ published the changes
    /// of the rows.
    pub(crate) fn rows_committed(
        &mut self,
        number: TableNumber,
        schema: Option<TableSchema>,
        partition_columns: Vec<String>,
        freshness: Freshness,
        published_us: &[i64],
    ) {
        self.table_mut(number).rows_committed(schema, partition_columns, freshness, published_us);
    }

    /// Enters keys one by one; a later entry of an id replaces an earlier one.
    pub(crate) fn put_keys(&self, entries: impl IntoIterator<Item = IndexEntry>) {
        self.index.put(entries);
    }

    /// Enters keys that were sorted on disk.
    pub(crate) fn attach_keys(&self, run: FinishedRun) {
        self.index.attach(run);
    }

    /// The row at a position must leave with the next commit of its table.
    pub(crate) fn mark_stale(&mut self, position: Position) {
        self.live_mut().mark_stale(position);
    }

    /// Tables with rows that have to be brought back.
    pub(crate) fn tables_with_lost_rows(&self) -> impl Iterator<Item = (TableNumber, &LostRows)> {
        self.numbered_tables().filter_map(|(number, table)| Some((number, table.lost()?)))
    }

    /// The lost rows of a table are back.
    pub(crate) fn lost_rows_restored(&mut self, number: TableNumber) {
        self.table_mut(number).restored();
    }

    /// Compaction has found nothing to do in a table.
    pub(crate) fn set_unchanged(&mut self, number: TableNumber) {
        self.table_mut(number).set_unchanged();
    }

    fn live_mut(&mut self) -> &mut LiveFiles {
        Arc::make_mut(&mut self.live)
    }

    /// Finds the rows of ids. Ids without a row are not in the answer.
    pub(crate) async fn find(&self, ids: Vec<IdHash>) -> Result<ByIdHash<RowLocation>, EngineError> {
        let (index, live) = (self.index.clone(), Arc::clone(&self.live));
        let looking = tokio::task::spawn_blocking(move || {
            let located = index.lookup(&ids, live.as_ref())?;
            Ok(ids.into_iter().zip(located).collect::<Vec<_>>())
        });
        let located = looking.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)?;
        let found = located.into_iter().filter_map(|(id, located)| {
            let located = located?;
            let table = self.live.table(located.position.file)?;
            let order = RowOrder { observed_us: located.observed_us, version_us: i64::MIN };
            Some((id, RowLocation { position: located.position, table, order }))
        });
        Ok(found.collect())
    }

    /// Brings the metric of keys in step with the index.
    pub(crate) fn count_keys(&mut self) {
        self.keys_counted.set(self.index.entries());
    }

    /// What the key index stands for now.
    pub(crate) fn index_snapshot(&self) -> IndexSnapshot {
        let tables = self.tables.iter().map(|table| SnapshotTable {
            path: table.path().to_owned(),
            id: table.id().map(str::to_owned),
            files: table.files().map(SnapshotFile::of).collect(),
        });
        let stale_rows = self
            .numbered_tables()
            .flat_map(|(number, _)| self.live.stale_rows_of(number))
            .flat_map(|(file, rows)| rows.iter().map(move |row| Position { file, row: RowNumber::new(row) }));
        IndexSnapshot::new(self.numbers.last(), stale_rows, tables.collect())
    }

    /// The next tables to be probed, in turn; at most so many. Unusable ones are left out.
    pub(crate) fn next_probed(&mut self, count_max: usize) -> Vec<TableNumber> {
        let total = self.tables.len();
        let first = self.next_probed;
        let count = total.min(count_max);
        self.next_probed = if total == 0 { 0 } else { (first + count) % total };
        let numbers = (first..first + count).map(|number| TableNumber::of_index(number % total));
        numbers.filter(|number| self.table(*number).unusable().is_none()).collect()
    }

    /// Remembers what a probe of a table saw. Whether its log has to be read.
    pub(crate) fn probed(&mut self, number: TableNumber, result: ProbeResult) -> bool {
        let table = self.table_mut(number);
        let needs_reload = table.needs_reload(&result);
        table.set_probed(result);
        needs_reload
    }

    /// Takes a table that cannot be used out of everything that decisions are made by. `took`: how long it took to find out.
    pub(super) fn disable(&mut self, number: TableNumber, error: &EngineError, took: Duration) {
        let reason = Chain(error).to_string();
        self.clear_table(number);
        let table = self.table_mut(number);
        let unusable = Arc::new(Unusable::new(reason.clone(), Instant::now(), took));
        let before = table.set_unusable(Some(unusable));
        if before.is_none_or(|before| before.reason() != reason) {
            tracing::warn!(
                table = %table.key(), path = table.path(), reason,
                "table cannot be used and is left alone, its rows go to quarantine; repair or restore the table, or delete its \
                 folder so that a backfill builds it anew"
            );
        }
    }

    /// A table has been read whole again.
    pub(super) fn enable(&mut self, number: TableNumber) {
        let table = self.table_mut(number);
        if table.set_unusable(None).is_some() {
            tracing::info!(table = %table.key(), "table can be used again");
        }
    }

    #[cfg(test)]
    pub(super) fn make_due(&mut self, number: TableNumber) {
        let table = self.table_mut(number);
        let reason = table.unusable().map(|unusable| unusable.reason().to_owned()).unwrap_or_default();
        table.set_unusable(Some(Arc::new(Unusable::until(reason, Instant::now()))));
    }

    /// Refuses rows for tables that cannot take them.
    ///
    /// # Errors
    /// [`EngineError::Unusable`] names the first such table.
    pub(crate) fn check_usable(&self, numbers: &[TableNumber]) -> Result<(), EngineError> {
        let tables = numbers.iter().map(|number| self.table(*number));
        let unusable = tables.filter_map(|table| Some((table, table.unusable()?))).next();
        unusable.map_or(Ok(()), |(table, unusable)| {
            Err(EngineError::Unusable { table: table.key().clone(), reason: unusable.reason().to_owned() })
        })
    }

    /// The tables that cannot be used.
    pub(crate) fn unusable(&self) -> impl Iterator<Item = TableNumber> + '_ {
        self.numbered_tables().filter(|(_, table)| table.unusable().is_some()).map(|(number, _)| number)
    }
}
