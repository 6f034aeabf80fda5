//! Writing the files of one change and committing it.

use std::time::Instant;

use deltalake::DeltaTable;

use crate::metric_names;
use crate::table_store::delta::clock::now_us;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::log::base_version;
use crate::table_store::delta::log::commit::{Commit, Label};
use crate::table_store::delta::log::metadata::{self, Features};
use crate::table_store::delta::log::table_access::CommitResult;
use crate::table_store::delta::options::DeletionVectors;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::upsert::actions::file_actions;
use crate::table_store::delta::upsert::apply::Upserter;
use crate::table_store::delta::upsert::change::{Change, CommittedChange, WrittenChange};
use crate::table_store::delta::upsert::plan::rewrite_or_deletion_vectors::Replacement;
use crate::table_store::delta::upsert::write_change::{WriteContext, write};

/// Readers of this version of the protocol may meet deletion vectors.
/// <https://github.com/delta-io/delta/blob/master/PROTOCOL.md#deletion-vectors>
const READS_VECTORS: i32 = 3;

impl Upserter {
    /// Writes the files of one change and commits it. The state is to be told of it ([`super::adopt::adopt`]). `None`: another program
    /// committed in between.
    pub(super) async fn commit_change(
        &self,
        state: &SpaceState,
        mut change: Change,
    ) -> Result<Option<CommittedChange>, EngineError> {
        let began = Instant::now();
        let (access, held) = (self.loader.access(), state.table(change.number));
        let Some(table) = access.at_known_version(&held.known()).await? else { return Ok(None) };
        let (store, now_us) = (table.object_store(), now_us());
        let context = WriteContext {
            state,
            store: store.clone(),
            options: &self.options,
            memory: &self.write_memory,
            replacement: self.replacement(held, &change),
            now_us,
        };
        let known = held.known();
        let (written, base) = futures::join!(write(&change, context), access.base_version(&known));
        let written = written.map_err(|error| error.of_table(change.number))?;
        let new_files = written.new_files();
        let base = match base {
            Ok(base) => base,
            Err(error) => {
                new_files.discard(&store).await;
                return Err(error);
            }
        };
        let actions = self.actions(held, &table, &written, now_us / 1_000)?;
        let gets_vectors = !written.marked.is_empty()
            && table.snapshot().is_ok_and(|snapshot| snapshot.protocol().min_reader_version() < READS_VECTORS);
        change.incoming.release();
        let id = base_version::id_in(&actions);
        let commit = Commit { table, base, label: Label::Upsert, actions, logged: held.logged_paths(), new_files };
        let entry = match access.commit(held.key(), commit).await? {
            CommitResult::Committed(entry) => entry,
            CommitResult::Conflict { discarded } => {
                discarded.discard(&store).await;
                return Ok(None);
            }
        };
        let version = entry.version;
        if gets_vectors {
            tracing::info!(
                table = %held.key(), version,
                "table gets its first deletion vectors: from now on it needs readers that know them; deletion_vectors = \"off\" prevents \
                 that for tables that may be rewritten with each change"
            );
        }
        let kind = state.space().kind.name();
        metrics::histogram!(metric_names::COMMIT_SECONDS, "kind" => kind).record(began.elapsed().as_secs_f64());
        tracing::debug!(
            table = %held.key(), version, upserted = change.incoming.len(), deleted = change.deleted,
            removed = written.removed.len(), added = written.added.len(), marked = written.marked.len(),
            milliseconds = lake_shared::retry::milliseconds(began.elapsed()), "committed"
        );
        Ok(Some(CommittedChange { change, written, entry, id }))
    }

    /// The actions of a written change: of a new table, or of one that exists, whose schema and features it may change.
    fn actions(
        &self,
        held: &TableState,
        table: &DeltaTable,
        written: &WrittenChange,
        now_ms: i64,
    ) -> Result<Vec<deltalake::kernel::Action>, EngineError> {
        let schema = &written.plan.schema;
        let mut actions = match table.snapshot() {
            Err(_) => metadata::creation(held.name(), schema, &written.partition_columns, &self.options, now_ms)?,
            Ok(snapshot) => {
                let deletion_vectors = match written.marked.is_empty() {
                    true => self.unwanted_vectors(held).filter(|_| takes_last_vector(held, written)),
                    false => Some(true),
                };
                let retention_hours = Some(self.options.of_table(held.name()).retention_hours);
                let features = Features { deletion_vectors, retention_hours };
                metadata::changes(snapshot, written.plan.changed.then_some(schema), features)?
            }
        };
        actions.extend(file_actions(held, table, written, now_ms)?);
        Ok(actions)
    }

    /// How rows leave a table by a change.
    fn replacement(&self, held: &TableState, change: &Change) -> Replacement {
        let rewritten = change.dead.keys().filter_map(|number| held.file(*number));
        let rewritten = rewritten.map(|file| file.size.unsigned_abs()).sum();
        self.rewrite_budget.decide(&self.options.of_table(held.name()), held.bytes(), rewritten)
    }

    /// `Some(false)` where the property of a table that allows deletion vectors is to be taken away.
    fn unwanted_vectors(&self, held: &TableState) -> Option<bool> {
        (self.options.of_table(held.name()).deletion_vectors == DeletionVectors::Off).then_some(false)
    }
}

/// Whether a table has deletion vectors before a change and none after it.
fn takes_last_vector(held: &TableState, written: &WrittenChange) -> bool {
    let mut marked = held.files().filter(|file| file.deleted.is_some()).peekable();
    marked.peek().is_some() && marked.all(|file| written.removed.contains(&file.number))
}
