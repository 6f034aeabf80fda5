//! What a writer that holds the lease does on request. [`crate::handle::WriterHandle`] is how requests come here.
//!
//! Requests run as tasks of the leased part: they end with it, so that nothing is committed after the lease was lost.

use std::sync::Arc;

use futures::future::BoxFuture;
use lake_shared::identity::{Space, TableKey};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::handle::{HandleError, LeasedStatus, TableDescription};
use crate::ingest::control::{IngestRequest, PauseScope};
use crate::metastore::{Metastore, TableRecord};
use crate::table_store::{Compacted, Maintained, TableStore};

/// A request, with the answer's way back in it.
pub(crate) type Request = Box<dyn FnOnce(Arc<Operations>) -> BoxFuture<'static, ()> + Send>;

/// Most requests that are worked on at the same time; more of them wait.
const REQUESTS_AT_ONCE: usize = 64;

/// Most requested compactions and clean-ups at the same time, beside the regular ones: they compute, read and write much.
const REWRITES_AT_ONCE: usize = 2;

/// Most requests to ingest that wait for its next turn.
pub(crate) const INGEST_REQUESTS_MAX: usize = 16;

/// The operations of a writer that holds the lease.
pub(crate) struct Operations {
    store: Arc<dyn TableStore>,
    metastore: Arc<dyn Metastore>,
    ingest: mpsc::Sender<IngestRequest>,
    rewrites: Semaphore,
}

impl Operations {
    /// Operations on these tables and this ingest.
    pub(crate) fn new(
        store: Arc<dyn TableStore>,
        metastore: Arc<dyn Metastore>,
        ingest: mpsc::Sender<IngestRequest>,
    ) -> Self {
        Self { store, metastore, ingest, rewrites: Semaphore::new(REWRITES_AT_ONCE) }
    }

    pub(crate) async fn status(&self) -> Result<LeasedStatus, HandleError> {
        let ingest = self.ask_ingest(IngestRequest::Status).await?;
        Ok(LeasedStatus { ingest, spaces_in_use: self.store.spaces_in_use() })
    }

    pub(crate) async fn tables(&self, space: Option<&Space>) -> Result<Vec<TableRecord>, HandleError> {
        self.metastore.tables(space).await.map_err(HandleError::Metastore)
    }

    pub(crate) async fn describe(&self, table: &TableKey) -> Result<TableDescription, HandleError> {
        let record = self.record(table).await?;
        let pending = self.ask_ingest(|answer| IngestRequest::Pending(table.clone(), answer)).await?;
        Ok(TableDescription { record, loaded: self.store.describe(table).await, pending })
    }

    pub(crate) async fn compact(&self, table: &TableKey) -> Result<Compacted, HandleError> {
        self.record(table).await?;
        let _permit = self.rewrites.acquire().await;
        self.store.compact_table(table).await.map_err(HandleError::Store)
    }

    pub(crate) async fn maintain(&self, space: &Space) -> Result<Maintained, HandleError> {
        if !self.metastore.spaces().await.map_err(HandleError::Metastore)?.contains(space) {
            return Err(HandleError::UnknownSpace(space.clone()));
        }
        let _permit = self.rewrites.acquire().await;
        self.store.maintain(space).await.map_err(HandleError::Store)
    }

    pub(crate) async fn pause(&self, scope: PauseScope) -> Result<(), HandleError> {
        self.ask_ingest(|answer| IngestRequest::Pause(scope, answer)).await
    }

    pub(crate) async fn resume(&self, scope: PauseScope) -> Result<(), HandleError> {
        self.ask_ingest(|answer| IngestRequest::Resume(scope, answer)).await
    }

    async fn record(&self, table: &TableKey) -> Result<TableRecord, HandleError> {
        let records = self.tables(Some(&table.space)).await?;
        let record = records.into_iter().find(|record| record.key == *table);
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
    operations: Operations,
    mut requests: mpsc::Receiver<Request>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let operations = Arc::new(operations);
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(request) = requests.recv(), if running.len() < REQUESTS_AT_ONCE => {
                running.spawn(request(Arc::clone(&operations)));
            }
            Some(ended) = running.join_next() => ended?,
        }
    }
    running.shutdown().await;
    Ok(())
}
