//! Bringing a table back to an earlier version.
//!
//! One commit takes out the files that the version did not have, and brings back those that it had. The engine then meets it as it meets a
//! commit of another program: the key index learns where the rows are, and rows that were deleted in HQ meanwhile leave again, as their
//! tombstones are remembered. What was changed in HQ since the version has to be read from HQ again.

use std::collections::HashMap;
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::kernel::{Action, Add, DeletionVectorDescriptor, LogicalFileView};
use deltalake::table::state::DeltaTableState;
use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::identity::TableKey;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::consent::{Consent, plan_id};
use crate::metastore::steering::restore_point::RestorePoint;
use crate::table_store::Restored;
use crate::table_store::delta::clock::now_us;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors;
use crate::table_store::delta::files::new_files::NewFiles;
use crate::table_store::delta::log::commit::{Commit, Label};
use crate::table_store::delta::log::entry::RawPaths;
use crate::table_store::delta::log::file_actions::removal;
use crate::table_store::delta::log::history;
use crate::table_store::delta::log::metadata;
use crate::table_store::delta::log::table_access::CommitResult;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::table_number::TableNumber;

/// Requests to the store under way at once.
const AT_ONCE: usize = 16;

/// Restores tables.
pub(crate) struct TableRestorer {
    loader: Arc<SpaceLoader>,
}

/// What a restoration would do.
struct RestorePlan {
    actions: Vec<Action>,
    /// Paths of the files that come back as the log has them, where that is not what would be written.
    logged: HashMap<String, String>,
    restored: Restored,
}

impl TableRestorer {
    pub(crate) const fn new(loader: Arc<SpaceLoader>) -> Self {
        Self { loader }
    }

    /// Brings a table of a loaded space back to a version, as far as the consent goes. Nothing else is done to the space meanwhile.
    ///
    /// # Errors
    /// When the version or one of its files is gone, when another plan was to be kept to, or when the store or the metastore fails.
    pub(crate) async fn restore(
        &self,
        cell: &SpaceCell,
        key: &TableKey,
        to: RestorePoint,
        consent: &Consent,
    ) -> Result<Restored, EngineError> {
        let _no_compaction = cell.compacting.lock().await;
        let _no_clean_up = cell.cleaning.lock().await;
        let mut guard = cell.state.lock().await;
        let state = guard.as_mut().filter(|state| !state.is_poisoned());
        let state = state.ok_or_else(|| EngineError::NotLoaded(key.space.clone()))?;
        let number = state.number_of(&key.document_type);
        let number = number.ok_or_else(|| EngineError::NotRestorable("the lake has no such table".into()))?;
        let held = state.table(number);
        let Some(table) = self.loader.access().at_known_version(&held.known()).await? else {
            self.loader.refresh(state, number).await?;
            return Err(EngineError::Contended(key.clone()));
        };
        let Some(current) = table.version() else {
            return Err(EngineError::NotRestorable("the table has no commit".into()));
        };
        let version = self.version(&table, held.path(), current, to).await?;
        let earlier = self.at_version(held.path(), version).await?;
        let plan = plan(held, &table, &earlier)?;
        check_files(&table.object_store(), &plan.actions, version).await?;
        if *consent != Consent::DryRun && plan.restored.is_nothing() {
            // It is so already; perhaps whoever did it has ended before that was told.
            return Ok(Restored { done: true, plan: consent.plan().to_owned(), ..plan.restored });
        }
        if !consent.allows(&plan.restored.plan).map_err(EngineError::StalePlan)? {
            return Ok(plan.restored);
        }
        self.commit(state, number, table, plan).await
    }

    async fn commit(
        &self,
        state: &mut SpaceState,
        number: TableNumber,
        table: DeltaTable,
        plan: RestorePlan,
    ) -> Result<Restored, EngineError> {
        let held = state.table(number);
        let base = self.loader.access().base_version(&held.known()).await?;
        let mut logged = held.logged_paths();
        logged.extend(plan.logged.iter().map(|(decoded, raw)| (decoded.as_str(), raw.as_str())));
        let (label, new_files) = (Label::Restore, NewFiles::default());
        let commit = Commit { table, base, label, actions: plan.actions, logged, new_files };
        let key = held.key().clone();
        let committed = self.loader.access().commit(&key, commit).await?;
        self.loader.refresh(state, number).await?;
        self.loader.report_state(state).await?;
        match committed {
            CommitResult::Committed(_) => {
                let Restored { version, rows_before, rows_after, .. } = plan.restored;
                tracing::info!(table = %key, version, rows_before, rows_after, "table restored to an earlier version");
                Ok(Restored { done: true, ..plan.restored })
            }
            CommitResult::Conflict { .. } => Err(EngineError::Contended(key)),
        }
    }

    /// The version that is meant.
    async fn version(
        &self,
        table: &DeltaTable,
        path: &str,
        current: u64,
        to: RestorePoint,
    ) -> Result<u64, EngineError> {
        let at_ms = match to {
            RestorePoint::Version(version) if version <= current => return Ok(version),
            RestorePoint::Version(version) => {
                let reason = format!("there is no version {version}; the newest one is {current}");
                return Err(EngineError::NotRestorable(reason));
            }
            RestorePoint::Instant { at_us } => at_us.div_euclid(1_000),
        };
        let log_store = table.log_store();
        let entries = (0..=current).rev().map(|version| {
            let log_store = Arc::clone(&log_store);
            async move {
                let entry = log_store.read_commit_entry(version).await.map_err(EngineError::delta)?;
                Ok::<_, EngineError>(entry.map(|entry| history::version_of(version, &entry)))
            }
        });
        let mut entries = stream::iter(entries).buffered(AT_ONCE);
        while let Some(Some(entry)) = entries.try_next().await? {
            if entry.at_ms.is_some_and(|made_ms| made_ms <= at_ms) {
                return Ok(entry.version);
            }
        }
        let reason =
            format!("the log of {path} has no version from then or before it; `table history` lists those that it has");
        Err(EngineError::NotRestorable(reason))
    }

    async fn at_version(&self, path: &str, version: u64) -> Result<DeltaTable, EngineError> {
        let mut table = self.loader.access().unloaded(path)?;
        match table.load_version(version).await {
            Ok(()) => Ok(table),
            Err(error) => {
                let error = EngineError::delta(error);
                if !permanent_error::is_permanent(&error) {
                    return Err(error);
                }
                let reason = format!(
                    "the log does not tell version {version} any more; `table history` lists those that it does"
                );
                Err(EngineError::NotRestorable(reason))
            }
        }
    }
}

/// What tells two versions of one file apart: its path and its deletion vector.
type FileVersion = (String, Option<(String, Option<i32>)>);

fn file_version(path: &str, vector: Option<&DeletionVectorDescriptor>) -> FileVersion {
    let vector = vector.map(|vector| (format!("{:?}{}", vector.storage_type, vector.path_or_inline_dv), vector.offset));
    (path.to_owned(), vector)
}

fn vector_of(view: &LogicalFileView) -> Option<DeletionVectorDescriptor> {
    #[allow(deprecated, reason = "the only way to the action with its deletion vector")]
    view.add_action().deletion_vector
}

/// The actions that make a version of the present one.
fn plan(held: &TableState, table: &DeltaTable, earlier: &DeltaTable) -> Result<RestorePlan, EngineError> {
    let now_ms = now_us() / 1_000;
    let (now, then) = (snapshot(table)?, snapshot(earlier)?);
    let of_held = |file: &DataFile| file.deleted.as_ref().map(|deleted| deleted.descriptor.clone());
    let mut leaving: HashMap<FileVersion, &DataFile> =
        held.files().map(|file| (file_version(&file.path, of_held(file).as_ref()), file)).collect();
    let (mut adds, mut logged, mut rows_after) = (Vec::new(), HashMap::new(), 0_i64);
    let mut raw_paths = RawPaths::of(then);
    for (position, view) in then.log_data().iter().enumerate() {
        let (path, vector) = (view.path().into_owned(), vector_of(&view));
        let hidden = vector.as_ref().map_or(0, |vector| vector.cardinality);
        rows_after += view.num_records().unwrap_or_default() as i64 - hidden;
        if leaving.remove(&file_version(&path, vector.as_ref())).is_some() {
            continue;
        }
        if let Some(raw) = raw_paths.odd(position, &view)? {
            logged.insert(path, raw);
        }
        #[allow(deprecated, reason = "the only way to the action with its statistics")]
        let add = view.add_action();
        adds.push(Add { data_change: true, ..add });
    }
    let mut actions: Vec<Action> = metadata::restored(now, then)?.into_iter().collect();
    let changes_columns = !actions.is_empty();
    let removed: Vec<&DataFile> = leaving.into_values().collect();
    let removals = removed.iter().map(|file| removal(file, held.partition_columns(), true, now_ms));
    actions.extend(removals.map(Action::Remove));
    actions.extend(adds.iter().cloned().map(Action::Add));
    let objects = removed.iter().map(|file| format!("- {:?}", file_version(&file.path, of_held(file).as_ref())));
    let back = adds.iter().map(|add| format!("+ {:?}", file_version(&add.path, add.deletion_vector.as_ref())));
    let columns = changes_columns.then(|| format!("columns of {}", then.version()));
    let restored = Restored {
        plan: plan_id("restore", objects.chain(back).chain(columns).collect()),
        done: false,
        version: then.version(),
        rows_before: held.rows().unsigned_abs(),
        rows_after: rows_after.unsigned_abs(),
        files_added: adds.len() as u64,
        files_removed: removed.len() as u64,
        changes_columns,
    };
    Ok(RestorePlan { actions, logged, restored })
}

fn snapshot(table: &DeltaTable) -> Result<&DeltaTableState, EngineError> {
    table.snapshot().map_err(EngineError::delta)
}

/// Makes sure that everything that comes back is there: a clean-up deletes what the retention does not keep.
async fn check_files(store: &Arc<dyn ObjectStore>, actions: &[Action], version: u64) -> Result<(), EngineError> {
    let mut needed: Vec<Path> = Vec::new();
    for action in actions {
        let Action::Add(add) = action else { continue };
        let path = Path::parse(&add.path);
        needed.push(path.map_err(|error| EngineError::corrupt(format!("path {}: {error}", add.path)))?);
        needed.extend(add.deletion_vector.as_ref().and_then(deletion_vectors::path_of));
    }
    needed.sort_unstable();
    needed.dedup();
    let looks = needed.into_iter().map(|path| async move {
        match store.head(&path).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => Err(EngineError::NotRestorable(format!(
                "{path} of version {version} is deleted, as it is older than the retention; choose a later version"
            ))),
            Err(error) => Err(EngineError::Store(error)),
        }
    });
    stream::iter(looks).buffer_unordered(AT_ONCE).try_collect().await
}
