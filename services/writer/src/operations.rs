//! What a writer that holds the lease does on request. [`crate::handle::WriterHandle`] is how requests come here.
//!
//! Requests run as tasks of the leased part: they end with it, so that nothing is committed after the lease was lost.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use lake_shared::comparison::BucketSums;
use lake_shared::identity::{Space, TableKey};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catalog::registrar::{Registrar, Synced};
use crate::catalog::status::{CatalogEntry, CatalogStatus};
use crate::consent::{Consent, Destroyed};
use crate::handle_error::HandleError;
use crate::ingest::control::{IngestRequest, IngestStatus, PauseScope, PendingRows};
use crate::metastore::steering::OperationTarget;
use crate::metastore::steering::restore_point::RestorePoint;
use crate::metastore::{Metastore, TableRecord};
use crate::quarantine::replay::Quarantine;
use crate::table_store::compared_rows::{ComparedScope, RowState, WantedRows};
use crate::table_store::erasure::{Erased, Erasure};
use crate::table_store::{Compacted, InMemoryTable, LocatedRow, Maintained, PlannedCompaction, Restored, TableStore};

pub(crate) mod backfill;
mod erasing;
pub(crate) mod pause_keeper;
pub(crate) mod policy_keeper;
mod quarantine_work;
pub(crate) mod reconcile;
pub(crate) mod runner;

pub use self::backfill::BackfillOptions;
pub use self::reconcile::ReconcileOptions;

/// A request, with the answer's way back in it.
pub(crate) type Request = Box<dyn FnOnce(Arc<Operations>) -> BoxFuture<'static, ()> + Send>;

/// Most requests that are worked on at the same time; more of them wait.
const REQUESTS_AT_ONCE: usize = 64;

/// Most requested compactions and clean-ups at the same time, beside the regular ones: they compute, read and write much.
const REWRITES_AT_ONCE: usize = 2;

/// Most requested compactions and clean-ups that wait for their turn; more are refused, so that they leave room for other requests.
const REWRITES_WAITING_MAX: usize = 16;

/// Most pauses whose answers are waited for; more are refused.
const PAUSES_WAITING_MAX: usize = 16;

/// Most requests that read the metastore at the same time: its few connections also serve the commits.
const METASTORE_READS_AT_ONCE: usize = 1;

/// Most requests to ingest that wait for its next turn.
pub(crate) const INGEST_REQUESTS_MAX: usize = 16;

/// What a writer that holds the lease is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedStatus {
    /// What is taken from the queue and not committed, and what is paused.
    pub ingest: IngestStatus,
    /// The spaces that were used since the writer started.
    pub spaces_in_use: Vec<Space>,
}

/// A table, described for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDescription {
    /// The table in the metastore: where it is, its size after the last recorded commit, and how fresh it is.
    pub record: TableRecord,
    /// The table in memory, and whether it can be used; `None` while its space is not loaded.
    pub loaded: Option<InMemoryTable>,
    /// What waits for its commit.
    pub pending: PendingRows,
    /// The table in the catalog; `None`: there is no catalog.
    pub catalog: Option<CatalogEntry>,
}

/// The operations of a writer that holds the lease.
pub(crate) struct Operations {
    store: Arc<dyn TableStore>,
    metastore: Arc<dyn Metastore>,
    quarantine: Arc<Quarantine>,
    ingest: mpsc::Sender<IngestRequest>,
    catalog: Arc<Registrar>,
    rewrites: Semaphore,
    rewrites_waiting: Semaphore,
    pauses_waiting: Semaphore,
    metastore_reads: Semaphore,
}

impl Operations {
    /// Operations on these tables, this quarantine, this ingest and this catalog.
    pub(crate) fn new(
        store: Arc<dyn TableStore>,
        metastore: Arc<dyn Metastore>,
        quarantine: Arc<Quarantine>,
        ingest: mpsc::Sender<IngestRequest>,
        catalog: Arc<Registrar>,
    ) -> Self {
        Self {
            store,
            metastore,
            quarantine,
            ingest,
            catalog,
            rewrites: Semaphore::new(REWRITES_AT_ONCE),
            rewrites_waiting: Semaphore::new(REWRITES_WAITING_MAX),
            pauses_waiting: Semaphore::new(PAUSES_WAITING_MAX),
            metastore_reads: Semaphore::new(METASTORE_READS_AT_ONCE),
        }
    }

    pub(crate) async fn status(&self) -> Result<LeasedStatus, HandleError> {
        let ingest = self.ask_ingest(IngestRequest::Status).await?;
        Ok(LeasedStatus { ingest, spaces_in_use: self.store.spaces_in_use() })
    }

    pub(crate) async fn tables(&self, space: Option<&Space>) -> Result<Vec<TableRecord>, HandleError> {
        let _permit = self.metastore_reads.acquire().await;
        self.metastore.tables(space).await.map_err(HandleError::Metastore)
    }

    pub(crate) async fn describe(&self, table: &TableKey) -> Result<TableDescription, HandleError> {
        let record = self.record(table).await?;
        let pending = self.ask_ingest(|answer| IngestRequest::Pending(table.clone(), answer)).await?;
        let catalog = self.catalog.entry(&record);
        Ok(TableDescription { record, loaded: self.store.describe(table).await, pending, catalog })
    }

    pub(crate) async fn compact(&self, table: &TableKey) -> Result<Compacted, HandleError> {
        let _waiting =
            self.rewrites_waiting.try_acquire().map_err(|_| HandleError::Busy("compactions and clean-ups"))?;
        self.record(table).await?;
        let _permit = self.rewrites.acquire().await;
        self.store.compact_table(table).await.map_err(HandleError::Store)
    }

    pub(crate) async fn plan_compaction(&self, table: &TableKey) -> Result<PlannedCompaction, HandleError> {
        self.record(table).await?;
        self.store.plan_compaction(table).await.map_err(HandleError::Store)
    }

    pub(crate) async fn maintain(&self, space: &Space) -> Result<Maintained, HandleError> {
        let _waiting =
            self.rewrites_waiting.try_acquire().map_err(|_| HandleError::Busy("compactions and clean-ups"))?;
        let spaces = {
            let _permit = self.metastore_reads.acquire().await;
            self.metastore.spaces().await.map_err(HandleError::Metastore)?
        };
        if !spaces.contains(space) {
            return Err(HandleError::UnknownSpace(space.clone()));
        }
        let _permit = self.rewrites.acquire().await;
        self.store.maintain(space).await.map_err(HandleError::Store)
    }

    pub(crate) async fn vacuum(&self, table: &TableKey, consent: &Consent) -> Result<Destroyed, HandleError> {
        let _waiting =
            self.rewrites_waiting.try_acquire().map_err(|_| HandleError::Busy("compactions and clean-ups"))?;
        self.record(table).await?;
        let _permit = self.rewrites.acquire().await;
        self.store.vacuum_table(table, consent).await.map_err(HandleError::Store)
    }

    pub(crate) async fn checkpoint(&self, table: &TableKey) -> Result<Option<u64>, HandleError> {
        let _waiting =
            self.rewrites_waiting.try_acquire().map_err(|_| HandleError::Busy("compactions and clean-ups"))?;
        self.record(table).await?;
        let _permit = self.rewrites.acquire().await;
        self.store.checkpoint_table(table).await.map_err(HandleError::Store)
    }

    pub(crate) async fn drop_tables(
        &self,
        target: &OperationTarget,
        asked_by: &str,
        consent: &Consent,
    ) -> Result<Destroyed, HandleError> {
        self.store.drop_tables(target, asked_by, consent).await.map_err(HandleError::Store)
    }

    pub(crate) async fn restore(
        &self,
        table: &TableKey,
        to: RestorePoint,
        consent: &Consent,
    ) -> Result<Restored, HandleError> {
        self.record(table).await?;
        self.store.restore_table(table, to, consent).await.map_err(HandleError::Store)
    }

    pub(crate) async fn allow_tables(&self, target: &OperationTarget) -> Result<u64, HandleError> {
        self.store.allow_tables(target).await.map_err(HandleError::Store)
    }

    pub(crate) async fn erase(&self, asked: &Erasure, consent: &Consent) -> Result<Erased, HandleError> {
        let _waiting =
            self.rewrites_waiting.try_acquire().map_err(|_| HandleError::Busy("compactions and clean-ups"))?;
        let _permit = self.rewrites.acquire().await;
        self.store.erase(asked, consent).await.map_err(HandleError::Store)
    }

    pub(crate) async fn allow_records(
        &self,
        space: &Space,
        hashes: &[String],
        allowed_by: &str,
    ) -> Result<u64, HandleError> {
        self.store.allow_records(space, hashes, allowed_by).await.map_err(HandleError::Store)
    }

    /// Those of the ids that have a row.
    pub(crate) async fn present(&self, space: &Space, ids: &[String]) -> Result<HashSet<String>, HandleError> {
        self.store.present(space, ids).await.map_err(HandleError::Store)
    }

    /// Brings a space in step with what other programs did to its tables.
    pub(crate) async fn follow_tables(&self, space: &Space) -> Result<(), HandleError> {
        self.store.follow_tables(space).await.map_err(HandleError::Store)
    }

    /// Sums of rows, to be compared with those of HQ.
    pub(crate) async fn bucket_sums(
        &self,
        scope: &ComparedScope,
        bucket_count: u32,
    ) -> Result<BucketSums, HandleError> {
        self.store.bucket_sums(scope, bucket_count).await.map_err(HandleError::Store)
    }

    /// Rows that are compared with HQ's documents one by one.
    pub(crate) async fn row_states(
        &self,
        scope: &ComparedScope,
        wanted: WantedRows<'_>,
    ) -> Result<Vec<RowState>, HandleError> {
        self.store.row_states(scope, wanted).await.map_err(HandleError::Store)
    }

    /// The work on the quarantine.
    pub(crate) fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    pub(crate) async fn locate(&self, space: &Space, id: &str) -> Result<Option<LocatedRow>, HandleError> {
        self.store.locate(space, id).await.map_err(HandleError::Store)
    }

    pub(crate) fn catalog_status(&self) -> CatalogStatus {
        self.catalog.status()
    }

    pub(crate) async fn catalog_diff(&self) -> Result<(Vec<CatalogEntry>, u64), HandleError> {
        self.catalog.diff().await.map_err(HandleError::Catalog)
    }

    pub(crate) async fn sync_catalog(&self, consent: &Consent) -> Result<Synced, HandleError> {
        self.catalog.sync(consent).await.map_err(HandleError::Catalog)
    }

    pub(crate) async fn pause(&self, scope: PauseScope) -> Result<(), HandleError> {
        let _waiting = self.pauses_waiting.try_acquire().map_err(|_| HandleError::Busy("pauses"))?;
        self.ask_ingest(|answer| IngestRequest::Pause(scope, answer)).await
    }

    pub(crate) async fn resume(&self, scope: PauseScope) -> Result<(), HandleError> {
        self.ask_ingest(|answer| IngestRequest::Resume(scope, answer)).await
    }

    async fn record(&self, table: &TableKey) -> Result<TableRecord, HandleError> {
        let record = self.metastore.table(table).await.map_err(HandleError::Metastore)?;
        record.ok_or_else(|| HandleError::UnknownTable(table.clone()))
    }

    async fn ask_ingest<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> IngestRequest) -> Result<T, HandleError> {
        let (answer, answered) = oneshot::channel();
        self.ingest.send(request(answer)).await.map_err(|_| HandleError::Stopping)?;
        answered.await.map_err(|_| HandleError::Stopping)
    }
}

/// Works on requests until `shutdown`; those that are not done by then are given up.
pub(crate) async fn serve(
    operations: Arc<Operations>,
    requests: Arc<Mutex<mpsc::Receiver<Request>>>,
    shutdown: CancellationToken,
) {
    // Free since the task that served the last holding of the lease has ended.
    let mut requests = requests.lock().await;
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(request) = requests.recv(), if running.len() < REQUESTS_AT_ONCE => {
                running.spawn(request(Arc::clone(&operations)));
            }
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    // Its caller is told that the writer does not answer; the others go on.
                    tracing::error!(%error, "a request panicked");
                }
            }
        }
    }
    running.shutdown().await;
}
