//! The writer put together: metastore, store, lease, ingest, quarantine, clean-up.

use std::sync::Arc;

use lake_shared::queue::Queue;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ingest::{self, IngestOptions};
use crate::lease::{HeldLease, LeaseOptions};
use crate::maintenance::{self, MaintenanceOptions};
use crate::metastore::Metastore;
use crate::metastore::connect::{self, MetastoreConfig};
use crate::quarantine_sink;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeltaOptions, DeltaTableStore};
use crate::table_store::lake_store::{LakeStore, LakeStoreConfig};

/// What a writer is made of.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Where the tables are.
    pub store: LakeStoreConfig,
    /// What is known about them.
    pub metastore: MetastoreConfig,
    /// How tables are written.
    pub tables: DeltaOptions,
    /// When rows are committed.
    pub ingest: IngestOptions,
    /// Clean-up.
    pub maintenance: MaintenanceOptions,
    /// The right to commit.
    pub lease: LeaseOptions,
}

/// A writer that is ready to run.
pub struct Writer {
    /// The metastore, migrated.
    pub metastore: Arc<dyn Metastore>,
    /// The lake's root, probed.
    pub root: Arc<LakeStore>,
    store: Arc<dyn TableStore>,
    options: WriterOptions,
}

impl Writer {
    /// Opens metastore and store. Waits for a metastore that does not answer yet; a store that cannot be used safely is refused.
    pub async fn open(options: WriterOptions) -> anyhow::Result<Self> {
        // The key index of each space keeps about ten files open; many systems allow a process a thousand unless it asks for more.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
        let metastore = connect::open(&options.metastore)?;
        connect::migrate_when_there(&*metastore).await;
        let root = Arc::new(LakeStore::open(&options.store)?);
        root.probe_when_there().await?;
        let store = DeltaTableStore::new(Arc::clone(&root), Arc::clone(&metastore), options.tables.clone());
        store.check_at_startup().await?;
        Ok(Self { metastore, root, store: Arc::new(store), options })
    }

    /// Waits for the lease, then writes until `shutdown`; drains, and gives the lease back. The quarantine is kept on being filled until
    /// everything else has ended.
    pub async fn run(self, queue: Arc<dyn Queue>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let quarantine_shutdown = CancellationToken::new();
        let quarantine =
            quarantine_sink::run(Arc::clone(&queue), Arc::clone(&self.metastore), quarantine_shutdown.clone());
        let writing = async {
            let written = self.write(queue, shutdown).await;
            quarantine_shutdown.cancel();
            written
        };
        let (quarantined, written) = tokio::join!(quarantine, writing);
        written.and(quarantined)
    }

    async fn write(&self, queue: Arc<dyn Queue>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Some(lease) = HeldLease::acquire(Arc::clone(&self.metastore), &self.options.lease, &shutdown).await? else {
            return Ok(());
        };
        let drained = CancellationToken::new();
        let keep = lease.keep(drained.clone());
        let work = async {
            // A task of its own: compaction computes, and must not hold up what is done in between here. It ends with its set.
            let mut beside = JoinSet::new();
            beside.spawn(maintenance::run(
                Arc::clone(&self.store),
                Arc::clone(&self.metastore),
                self.options.maintenance.clone(),
                shutdown.clone(),
            ));
            let cleanup = async {
                beside.join_next().await.map_or(Ok(()), |ended| ended.unwrap_or_else(|error| Err(error.into())))
            };
            let ingest = ingest::run(queue, Arc::clone(&self.store), self.options.ingest.clone(), shutdown.clone());
            let outcome = tokio::try_join!(ingest, cleanup);
            self.store.close().await;
            drained.cancel();
            outcome.map(|_| ())
        };
        let mut keep = std::pin::pin!(keep);
        let mut work = std::pin::pin!(work);
        // A lost lease ends the work at once, in the middle of whatever it is: somebody else may be committing.
        tokio::select! {
            kept = &mut keep => { kept?; work.await }
            outcome = &mut work => { keep.await?; outcome }
        }
    }
}
