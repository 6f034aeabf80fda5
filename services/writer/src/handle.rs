//! The way to ask a running writer, and to tell it what to do: cheap to clone, and safe to use from any task of the process.
//!
//! What is asked is done inside the part of the writer that holds the lease ([`crate::operations`]). A writer that stands by answers with the
//! holder of the lease and its address instead. An operation goes on when its caller gives up waiting; a lost lease or the end of the
//! writer ends it.

use std::future::Future;
use std::sync::Arc;

use lake_shared::identity::{Space, TableKey};
use tokio::sync::{mpsc, oneshot, watch};

use crate::catalog::status::{CatalogEntry, CatalogStatus};
use crate::ingest::control::PauseScope;
use crate::lease::{LEASE_NAME, LeaseClaimant};
use crate::metastore::{Lease, Metastore, MetastoreError, TableRecord};
use crate::operations::{Operations, Request};
use crate::table_store::{Compacted, LocatedRow, Maintained};

pub use crate::handle_error::HandleError;
pub use crate::operations::{LeasedStatus, TableDescription};

/// What a writer is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterRole {
    /// It does not hold the lease, or not any more, and waits for it.
    StandingBy,
    /// It holds the lease: it commits.
    Holding {
        /// Epoch of the lease, which grows by one at each change of holder.
        epoch: i64,
        /// When it took the lease, microseconds, by the metastore's clock.
        since_us: i64,
    },
    /// It has stopped.
    Ended,
}

/// A writer, described for an operator.
#[derive(Debug)]
pub struct WriterStatus {
    /// Name of this writer, as it stands in the metastore while it holds the lease.
    pub owner: String,
    /// Where others reach this writer; empty when `[lease] address` is not configured.
    pub address: String,
    /// Whether it holds the lease.
    pub role: WriterRole,
    /// The lease as the metastore has it: `None` when no writer holds it now.
    pub holder: Result<Option<Lease>, MetastoreError>,
    /// What only the holder of the lease has.
    pub leased: Option<LeasedStatus>,
}

/// Asks one writer of this process. See the module.
#[derive(Clone)]
pub struct WriterHandle {
    claimant: LeaseClaimant,
    metastore: Arc<dyn Metastore>,
    role: watch::Receiver<WriterRole>,
    requests: mpsc::Sender<Request>,
}

impl WriterHandle {
    pub(crate) fn new(
        claimant: LeaseClaimant,
        metastore: Arc<dyn Metastore>,
        role: watch::Receiver<WriterRole>,
        requests: mpsc::Sender<Request>,
    ) -> Self {
        Self { claimant, metastore, role, requests }
    }

    /// What the writer is and does. Answered by a writer that stands by as well.
    pub async fn status(&self) -> WriterStatus {
        let role = *self.role.borrow();
        // A writer that ends meanwhile has nothing to tell any more.
        let leased = self.run(|operations| async move { operations.status().await }).await.ok();
        let LeaseClaimant { owner, address, .. } = self.claimant.clone();
        WriterStatus { owner, address, role, holder: self.metastore.lease(LEASE_NAME).await, leased }
    }

    /// The registered tables of a space, or of all spaces (`None`), by name.
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping, or the metastore failed.
    pub async fn tables(&self, space: Option<Space>) -> Result<Vec<TableRecord>, HandleError> {
        self.run(|operations| async move { operations.tables(space.as_ref()).await }).await
    }

    /// One table: its record in the metastore, its state in memory, and what waits for its commit. Waits for a batch of its space that is
    /// being applied.
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping, the metastore failed, or it has no such table.
    pub async fn describe(&self, table: TableKey) -> Result<TableDescription, HandleError> {
        self.run(|operations| async move { operations.describe(&table).await }).await
    }

    /// How far the catalog is what the lake has, as it is known.
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping.
    pub async fn catalog_status(&self) -> Result<CatalogStatus, HandleError> {
        self.run(|operations| async move { Ok(operations.catalog_status()) }).await
    }

    /// What differs between the lake and the catalog, by reading all of the catalog, and the number of tables that do not differ.
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping, it has no catalog, or the catalog or the metastore failed.
    pub async fn catalog_diff(&self) -> Result<(Vec<CatalogEntry>, u64), HandleError> {
        self.run(|operations| async move { operations.catalog_diff().await }).await
    }

    /// Compacts what the policy asks for in one table, now instead of in the next round. Batches go on being applied. `more` in the answer:
    /// the call ended at its own limit, and another one would find more to do.
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping, the metastore failed or has no such table, or the store failed: the table cannot be
    /// used, or passing trouble.
    pub async fn compact(&self, table: TableKey) -> Result<Compacted, HandleError> {
        self.run(|operations| async move { operations.compact(&table).await }).await
    }

    /// Compacts and cleans up the tables of a space, now instead of in the next round; see [`crate::table_store::TableStore::maintain`].
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping, the metastore failed or has no such space, or the store failed.
    pub async fn maintain(&self, space: Space) -> Result<Maintained, HandleError> {
        self.run(|operations| async move { operations.maintain(&space).await }).await
    }

    /// Where the row of an id is in a space that has tables; see [`crate::table_store::TableStore::locate`].
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping, or the store failed.
    pub async fn locate(&self, space: Space, id: String) -> Result<Option<LocatedRow>, HandleError> {
        self.run(|operations| async move { operations.locate(&space, &id).await }).await
    }

    /// Pauses ingest: rows stay in the queue. Answers when no commit of the scope runs any more; before, it is not certain that the tables
    /// rest. A pause ends with the process, and with the lease when that is lost. Maintenance goes on.
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping.
    pub async fn pause(&self, scope: PauseScope) -> Result<(), HandleError> {
        self.run(|operations| async move { operations.pause(scope).await }).await
    }

    /// Resumes ingest; rows that were given back to the queue come again within half a minute. To resume everything ends the pauses of single
    /// spaces as well; a single space does not go on while everything is paused.
    ///
    /// # Errors
    ///
    /// This writer does not hold the lease or is stopping.
    pub async fn resume(&self, scope: PauseScope) -> Result<(), HandleError> {
        self.run(|operations| async move { operations.resume(scope).await }).await
    }

    /// Has an operation done by the part of the writer that holds the lease.
    async fn run<T, Operation, Running>(&self, operation: Operation) -> Result<T, HandleError>
    where
        T: Send + 'static,
        Operation: FnOnce(Arc<Operations>) -> Running + Send + 'static,
        Running: Future<Output = Result<T, HandleError>> + Send + 'static,
    {
        let role = *self.role.borrow();
        match role {
            WriterRole::StandingBy => return Err(self.not_lease_holder().await),
            WriterRole::Ended => return Err(HandleError::Stopping),
            WriterRole::Holding { .. } => {}
        }
        let (answer, answered) = oneshot::channel();
        let request: Request = Box::new(|operations| {
            Box::pin(async move {
                // The operation is done, whether its answer is still waited for or not.
                let _ = answer.send(operation(operations).await);
            })
        });
        let mut now = self.role.clone();
        let asking = async {
            self.requests.send(request).await.map_err(|_| HandleError::Stopping)?;
            answered.await.map_err(|_| HandleError::Stopping)?
        };
        tokio::select! {
            biased;
            answered = asking => answered,
            // A request that comes too late is not served any more.
            _ = now.wait_for(|now| *now != role) => Err(HandleError::Stopping),
        }
    }

    async fn not_lease_holder(&self) -> HandleError {
        match self.metastore.lease(LEASE_NAME).await {
            Ok(holder) => HandleError::NotLeaseHolder { holder },
            Err(error) => HandleError::Metastore(error),
        }
    }
}

#[cfg(test)]
pub(crate) mod test_writer;
#[cfg(test)]
mod tests;
