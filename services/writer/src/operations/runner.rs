//! Does what operators have asked for ([`crate::metastore::steering`]), in the writer that holds the lease.
//!
//! Operations are looked for in the metastore, so it makes no difference which process was asked. One that a writer left unfinished, as it
//! ended or lost the lease, is begun anew by the next holder: what operations do may be done twice without harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use lake_shared::identity::{Space, TableKey};
use lake_shared::retry::Backoff;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catalog::registrar::{RegistrarError, Synced};
use crate::consent::{Consent, Destroyed};
use crate::handle_error::HandleError;
use crate::metastore::steering::restore_point::RestorePoint;
use crate::metastore::steering::{NewOperation, OperationEnd, OperationKind, OperationRecord, OperationState};
use crate::metastore::{Metastore, MetastoreError};
use crate::operations::Operations;
use crate::table_store::{Compacted, PlannedCompaction, Restored, StoreError};

/// Time between two looks for new operations.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often a running operation says that it is alive, and hears whether it is to end.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(3);

/// Most operations at the same time. Those that rewrite files share the turns of [`Operations`].
const AT_ONCE: usize = 4;

/// How often a step is tried again after passing trouble, before its operation fails.
const TRIES: u32 = 5;

/// How long operations that have ended, and the audit, are kept: 90 days.
const KEPT_US: i64 = 90 * 86_400 * 1_000_000;

/// Rounds between two clean-ups of old operations.
const FORGET_EVERY_ROUNDS: u32 = 3_600;

/// Why an operation that only plans has no effect.
pub(super) const ONLY_PLANNED: &str = "it was only planned: nothing was changed";
/// Why work on the quarantine cannot be done.
const NO_SELECTION: &str = "the operation does not say which entries it is about";

/// Figures of what an operation did, by name.
pub(super) type Figures = BTreeMap<&'static str, u64>;

/// How an operation ended.
pub(super) enum End {
    Succeeded(Figures),
    /// It has succeeded, and there is something to be said of it.
    Told {
        reason: String,
        figures: Figures,
        plan: String,
    },
    /// What was destroyed, or would be.
    Destroyed(Destroyed),
    /// What would be done, and the id of that plan.
    Planned(Figures, String),
    /// What a table was brought back to, or would be.
    Restored(Restored),
    /// What was done to the catalog, or would be.
    Synced(Synced),
    Cancelled(Figures),
    Failed(String),
    /// The next holder of the lease begins it anew.
    Left,
}

/// Works on operations until `shutdown`; those that are not done by then are begun anew by the next holder.
pub(crate) async fn run(operations: Arc<Operations>, metastore: Arc<dyn Metastore>, shutdown: CancellationToken) {
    let mut running = JoinSet::new();
    let mut round = 0_u32;
    loop {
        while running.len() < AT_ONCE {
            match metastore.begin_operation().await {
                Ok(Some(begun)) => {
                    let worker = Worker { operations: Arc::clone(&operations), metastore: Arc::clone(&metastore) };
                    running.spawn(async move { worker.work(begun).await });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "operations cannot be looked for now");
                    break;
                }
            }
        }
        if round.is_multiple_of(FORGET_EVERY_ROUNDS)
            && let Err(error) = metastore.forget_old_operations(KEPT_US).await
        {
            tracing::warn!(error = %Chain(&error), "old operations stay in the metastore for now");
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an operation panicked; the next holder of the lease begins it anew");
                }
            }
        }
    }
    running.shutdown().await;
}

/// Works on one operation.
pub(super) struct Worker {
    pub(super) operations: Arc<Operations>,
    pub(super) metastore: Arc<dyn Metastore>,
}

impl Worker {
    async fn work(&self, begun: OperationRecord) {
        let OperationRecord { id, asked, attempts, .. } = &begun;
        let kind = asked.kind.code();
        tracing::info!(operation = %id, kind, target = asked.subject(), asked_by = asked.asked_by, attempts, "operation begun");
        let end = self.done(&begun).await;
        let (state, reason, figures, plan) = match end {
            End::Succeeded(figures) => (OperationState::Succeeded, String::new(), figures, String::new()),
            End::Told { reason, figures, plan } => (OperationState::Succeeded, reason, figures, plan),
            End::Destroyed(destroyed) => told(destroyed),
            End::Planned(figures, plan) => (OperationState::Succeeded, ONLY_PLANNED.to_owned(), figures, plan),
            End::Restored(restored) => told_of_version(restored),
            End::Synced(synced) => told_of_catalog(synced),
            End::Cancelled(figures) => (OperationState::Cancelled, String::new(), figures, String::new()),
            End::Failed(reason) => (OperationState::Failed, reason, Figures::new(), String::new()),
            End::Left => return,
        };
        tracing::info!(operation = %id, kind, target = asked.subject(), state = state.code(), reason, "operation ended");
        let result = serde_json::to_string(&figures).unwrap_or_else(|_| "{}".into());
        let end = OperationEnd { state, reason, result, plan };
        self.insist(|| self.metastore.end_operation(id, &end)).await;
    }

    /// Does what an operation asks for.
    async fn done(&self, begun: &OperationRecord) -> End {
        let OperationRecord { id, asked, .. } = begun;
        let NewOperation { target, consent, asked_by, .. } = asked;
        let of_table = || {
            let document_type = target.document_type.clone();
            let key = document_type.map(|document_type| TableKey { space: target.space.clone(), document_type });
            key.ok_or_else(|| End::Failed("the operation names no table".into()))
        };
        let operations = &self.operations;
        match asked.kind {
            OperationKind::CompactTable => match of_table() {
                Ok(key) => self.compact_by_plan(begun, &key).await,
                Err(end) => end,
            },
            OperationKind::CleanUpSpace => self.clean_up(id, &target.space).await,
            OperationKind::VacuumTable => match of_table() {
                Ok(key) => {
                    let vacuumed = self.beside_heartbeats(id, 0, || operations.vacuum(&key, consent)).await;
                    vacuumed.map_or_else(|end| end, End::Destroyed)
                }
                Err(end) => end,
            },
            OperationKind::CheckpointTable => match of_table() {
                Ok(key) => self.checkpoint(id, &key).await,
                Err(end) => end,
            },
            OperationKind::RestoreTable => match (of_table(), RestorePoint::of_details(&asked.details)) {
                (Ok(key), Some(to)) => {
                    let restored = self.beside_heartbeats(id, 0, || operations.restore(&key, to, consent)).await;
                    restored.map_or_else(|end| end, End::Restored)
                }
                (Ok(_), None) => End::Failed("the operation names no version".into()),
                (Err(end), _) => end,
            },
            // They have a runner of their own.
            OperationKind::Backfill | OperationKind::Reconcile => End::Left,
            OperationKind::DropTables => {
                let dropped = self.beside_heartbeats(id, 0, || operations.drop_tables(target, asked_by, consent)).await;
                dropped.map_or_else(|end| end, End::Destroyed)
            }
            OperationKind::SyncCatalog => {
                let synced = self.beside_heartbeats(id, 0, || operations.sync_catalog(consent)).await;
                synced.map_or_else(|end| end, End::Synced)
            }
            OperationKind::AllowTables => {
                match self.beside_heartbeats(id, 0, || operations.allow_tables(target)).await {
                    // Begun anew, it finds that a writer had done it before it ended.
                    Ok(0) if begun.attempts <= 1 => End::Failed(format!(
                        "nothing of {target} is dropped, or its files are still being deleted, or its whole project is dropped"
                    )),
                    Ok(allowed) => End::Succeeded(Figures::from([("allowed", allowed)])),
                    Err(end) => end,
                }
            }
            OperationKind::EraseRecords => self.erase(begun).await,
            OperationKind::AllowRecords => self.allow_records(begun).await,
            OperationKind::ReplayQuarantine => match asked.selection() {
                Some(filter) => self.replay(begun, &filter).await,
                None => End::Failed(NO_SELECTION.into()),
            },
            OperationKind::DiscardQuarantine => match asked.selection() {
                Some(filter) => self.discard(begun, &filter).await,
                None => End::Failed(NO_SELECTION.into()),
            },
        }
    }

    async fn checkpoint(&self, id: &str, key: &TableKey) -> End {
        match self.beside_heartbeats(id, 0, || self.operations.checkpoint(key)).await {
            Ok(Some(version)) => End::Succeeded(Figures::from([("version", version)])),
            Ok(None) => End::Failed(format!("table {key} has no commit")),
            Err(end) => end,
        }
    }

    /// Compacts a table as far as the consent goes.
    async fn compact_by_plan(&self, begun: &OperationRecord, key: &TableKey) -> End {
        let (id, consent) = (&begun.id, &begun.asked.consent);
        // What was begun with consent is gone on with, whatever is left of it.
        if *consent == Consent::Given || (*consent != Consent::DryRun && begun.attempts > 1) {
            return self.compact(id, key).await;
        }
        let planned = match self.beside_heartbeats(id, 0, || self.operations.plan_compaction(key)).await {
            Ok(planned) => planned,
            Err(end) => return end,
        };
        match consent.allows(&planned.plan) {
            Ok(true) => self.compact(id, key).await,
            Ok(false) => {
                let PlannedCompaction { plan, jobs, files, bytes } = planned;
                let figures = [("jobs", jobs), ("files_before", files), ("bytes_before", bytes), ("done", 0)];
                End::Planned(figures.into(), plan)
            }
            Err(stale) => End::Failed(format!("{stale}; look at a new plan")),
        }
    }

    /// Compacts a table in steps, as many as there is work for.
    async fn compact(&self, id: &str, key: &TableKey) -> End {
        let mut all = Compacted::default();
        loop {
            let step = self.beside_heartbeats(id, all.commits, || self.operations.compact(key)).await;
            let done = match step {
                Ok(done) => done,
                Err(end) => return end,
            };
            all.commits += done.commits;
            all.files_before += done.files_before;
            all.files_after += done.files_after;
            all.bytes_written += done.bytes_written;
            let figures = || {
                Figures::from([
                    ("commits", all.commits),
                    ("files_before", all.files_before),
                    ("files_after", all.files_after),
                    ("bytes_written", all.bytes_written),
                ])
            };
            if !done.more {
                return End::Succeeded(figures());
            }
            if self.is_to_end(id, all.commits).await {
                return End::Cancelled(figures());
            }
        }
    }

    async fn clean_up(&self, id: &str, space: &Space) -> End {
        match self.beside_heartbeats(id, 0, || self.operations.maintain(space)).await {
            Ok(done) => End::Succeeded(Figures::from([
                ("tables", done.tables),
                ("files_compacted", done.files_compacted),
                ("files_deleted", done.files_deleted),
                ("log_files_deleted", done.log_files_deleted),
                ("deletions_forgotten", done.tombstones_forgotten),
            ])),
            Err(end) => end,
        }
    }

    /// Takes a step of an operation, telling meanwhile that it goes on. Passing trouble is waited out for a while.
    pub(super) async fn beside_heartbeats<T, Step>(
        &self,
        id: &str,
        done: u64,
        mut step: impl FnMut() -> Step,
    ) -> Result<T, End>
    where
        Step: Future<Output = Result<T, HandleError>>,
    {
        let alive = async {
            loop {
                tokio::time::sleep(HEARTBEAT_EVERY).await;
                self.is_to_end(id, done).await;
            }
        };
        let mut backoff = Backoff::default();
        let stepping = async {
            for _ in 1..TRIES {
                match step().await {
                    Err(error) if is_passing(&error) => tokio::time::sleep(backoff.next_wait()).await,
                    outcome => return outcome,
                }
            }
            step().await
        };
        let outcome = tokio::select! {
            outcome = stepping => outcome,
            () = alive => return Err(End::Left),
        };
        outcome.map_err(|error| match error {
            HandleError::Stopping | HandleError::NotLeaseHolder { .. } => End::Left,
            error => End::Failed(Chain(&error).to_string()),
        })
    }

    /// Tells how far an operation is. Answers whether it was asked to end early; no, while the metastore does not answer.
    async fn is_to_end(&self, id: &str, done: u64) -> bool {
        self.is_to_end_of(id, done, None).await
    }

    /// The same where it is known how much there is to be done in all.
    pub(super) async fn is_to_end_of(&self, id: &str, done: u64, total: Option<i64>) -> bool {
        let done = i64::try_from(done).unwrap_or(i64::MAX);
        self.metastore.operation_goes_on(id, done, total).await.unwrap_or_else(|error| {
            tracing::warn!(operation = id, error = %Chain(&error), "the operation's progress cannot be recorded now");
            false
        })
    }

    /// Repeats a call until the metastore answers, or the lease is lost.
    async fn insist<Call>(&self, mut call: impl FnMut() -> Call)
    where
        Call: Future<Output = Result<(), MetastoreError>>,
    {
        let mut backoff = Backoff::default();
        while let Err(error) = call().await {
            if error.is_lease_lost() {
                return;
            }
            tracing::warn!(error = %Chain(&error), "the end of an operation cannot be recorded now; it is tried again");
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }
}

/// What was destroyed, as an operation tells it.
fn told(destroyed: Destroyed) -> (OperationState, String, Figures, String) {
    let Destroyed { plan, done, tables, rows, files, bytes } = destroyed;
    let figures =
        [("tables", tables), ("rows", rows), ("files", files), ("bytes", bytes), ("done", done.into())].into();
    let reason = if done { String::new() } else { ONLY_PLANNED.into() };
    (OperationState::Succeeded, reason, figures, plan)
}

/// What became of a table that was to be restored, as an operation tells it.
fn told_of_version(restored: Restored) -> (OperationState, String, Figures, String) {
    let Restored { plan, done, version, rows_before, rows_after, files_added, files_removed, changes_columns } =
        restored;
    let figures = [
        ("version", version),
        ("rows_before", rows_before),
        ("rows_after", rows_after),
        ("files_added", files_added),
        ("files_removed", files_removed),
        ("columns_change", changes_columns.into()),
        ("done", done.into()),
    ];
    let reason = if done { String::new() } else { ONLY_PLANNED.into() };
    (OperationState::Succeeded, reason, figures.into(), plan)
}

/// What was done to the catalog, as an operation tells it. What the catalog has refused makes the operation fail: the status says what that is.
fn told_of_catalog(synced: Synced) -> (OperationState, String, Figures, String) {
    let Synced { plan, done, created, altered, dropped, taken, failed } = synced;
    let figures = [
        ("created", created),
        ("altered", altered),
        ("dropped", dropped),
        ("taken", taken),
        ("failed", failed),
        ("done", done.into()),
    ];
    let (state, reason) = match (done, failed) {
        (false, _) => (OperationState::Succeeded, ONLY_PLANNED.into()),
        (true, 0) => (OperationState::Succeeded, String::new()),
        (true, _) => {
            (OperationState::Failed, format!("the catalog refused {failed} tables; lakectl catalog status shows why"))
        }
    };
    (state, reason, figures.into(), plan)
}

/// Whether trying again may help: the store or the metastore does not answer, or others wait for the same turn.
pub(super) fn is_passing(error: &HandleError) -> bool {
    match error {
        HandleError::Busy(_) => true,
        HandleError::Metastore(error) => !error.is_lease_lost() && !error.is_refusal(),
        HandleError::Catalog(RegistrarError::Catalog(_) | RegistrarError::Metastore(_)) => true,
        HandleError::Store(error) => matches!(error, StoreError::Unavailable { .. }),
        _ => false,
    }
}
