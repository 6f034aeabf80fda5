//! The writer put together: metastore, store, lease, ingest, maintenance, quarantine, and the handle to ask it.
//!
//! [`Writer::open`] builds it from its configuration, [`Writer::run`] runs it; the service and the lake in one process use both.

use std::sync::Arc;

use lake_shared::queue::Queue;
use lake_shared::telemetry::Check;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::handle::{WriterHandle, WriterRole};
use crate::ingest::{self, IngestOptions};
use crate::lease::{HeldLease, LeaseClaimant, LeaseOptions};
use crate::maintenance::{self, MaintenanceOptions};
use crate::metastore::Metastore;
use crate::metastore::connect::{self, MetastoreConfig};
use crate::operations::{self, INGEST_REQUESTS_MAX, Operations, Request};
use crate::quarantine_sink;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeltaOptions, DeltaTableStore};
use crate::table_store::index_home::default_index_folder;
use crate::table_store::lake_store::{LakeStore, LakeStoreConfig};

/// The sections of a configuration file that are about the writer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterOptions {
    /// Section `[store]`: the folder or bucket with the tables.
    pub store: LakeStoreConfig,
    /// Section `[metastore]`: the database with what is known about the tables; in one process usually `sqlite:` and a file.
    pub metastore: MetastoreConfig,
    /// Section `[tables]`: how tables are written, compacted and cleaned up.
    #[serde(default)]
    pub tables: DeltaOptions,
    /// Section `[ingest]`: when rows are committed, and how many are held in memory.
    #[serde(default)]
    pub ingest: IngestOptions,
    /// Section `[maintenance]`: times between two rounds of compaction and of clean-up.
    #[serde(default)]
    pub maintenance: MaintenanceOptions,
    /// Section `[lease]`: the right to commit.
    #[serde(default)]
    pub lease: LeaseOptions,
}

impl WriterOptions {
    /// Rules that types cannot express.
    ///
    /// # Errors
    ///
    /// The key that breaks a rule and what to do.
    pub fn validate(&self) -> Result<(), String> {
        self.store.validate()?;
        self.metastore.validate()?;
        self.tables.validate()
    }
}

/// Creates or updates the metastore's own tables. Waits for a metastore that does not answer yet.
///
/// # Errors
///
/// The metastore's configuration cannot be used.
pub async fn migrate(config: &MetastoreConfig) -> anyhow::Result<()> {
    connect::migrate_when_there(&*connect::open(config)?).await?;
    Ok(())
}

/// Most requests that wait until the writer has begun to work on them.
const REQUESTS_WAITING_MAX: usize = 64;

/// A writer that is ready to run.
pub struct Writer {
    /// The metastore, with its own tables created or updated.
    pub metastore: Arc<dyn Metastore>,
    /// The lake's root, found to be usable.
    pub root: Arc<LakeStore>,
    store: Arc<dyn TableStore>,
    options: WriterOptions,
    claimant: LeaseClaimant,
    role: watch::Sender<WriterRole>,
    /// Both ends of the way of requests.
    ask: mpsc::Sender<Request>,
    requests: mpsc::Receiver<Request>,
}

impl Writer {
    /// Opens metastore and store. Waits for a metastore or a store that does not answer yet.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used, or the store is one on which commits would not be safe.
    pub async fn open(options: WriterOptions) -> anyhow::Result<Self> {
        // The key index of each space keeps about ten files open; many systems allow a process a thousand unless it asks for more.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
        let metastore = connect::open(&options.metastore)?;
        connect::migrate_when_there(&*metastore).await?;
        let root = Arc::new(LakeStore::open(&options.store)?);
        root.probe_when_there().await?;
        let mut tables = options.tables.clone();
        tables.index_folder = tables.index_folder.or_else(|| default_index_folder(&root.location("")));
        let store = DeltaTableStore::new(Arc::clone(&root), Arc::clone(&metastore), tables);
        store.check_at_startup().await?;
        let (role, _) = watch::channel(WriterRole::StandingBy);
        let (ask, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
        let claimant = options.lease.claimant();
        Ok(Self { metastore, root, store: Arc::new(store), options, claimant, role, ask, requests })
    }

    /// How the other parts of the process ask this writer.
    pub fn handle(&self) -> WriterHandle {
        let metastore = Arc::clone(&self.metastore);
        WriterHandle::new(self.claimant.clone(), metastore, self.role.subscribe(), self.ask.clone())
    }

    /// What `/ready` asks of the writer: its queue, metastore and store.
    pub fn checks(&self, queue: &Arc<dyn Queue>) -> Vec<Check> {
        let (metastore, root) = (Arc::clone(&self.metastore), Arc::clone(&self.root));
        vec![
            Check::queue(Arc::clone(queue)),
            Check::new("metastore", move || {
                let metastore = Arc::clone(&metastore);
                async move { metastore.check().await.map_err(|error| error.to_string()) }
            }),
            Check::new("store", move || {
                let root = Arc::clone(&root);
                async move { root.check().await.map_err(|error| error.to_string()) }
            }),
        ]
    }

    /// Waits for the lease, then writes until `shutdown`; drains, and gives the lease back. Quarantine entries are stored all the time, until
    /// everything else has ended.
    ///
    /// # Errors
    ///
    /// The lease was lost, the queue refused a consumer, or a task panicked. The process is to be started anew.
    pub async fn run(self, queue: Arc<dyn Queue>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { metastore, store, options, claimant, role, requests, .. } = self;
        let quarantine_shutdown = CancellationToken::new();
        let storing_quarantined = quarantine_sink::run(
            Arc::clone(&queue),
            Arc::clone(&metastore),
            options.maintenance.quarantine_bounds(),
            quarantine_shutdown.clone(),
        );
        let writing = async {
            let written = match HeldLease::acquire(Arc::clone(&metastore), &claimant, &shutdown).await {
                None => Ok(()),
                Some(held) => {
                    let lease = held.lease();
                    role.send_replace(WriterRole::Holding { epoch: lease.epoch, since_us: lease.acquired_us });
                    Leased { metastore: Arc::clone(&metastore), store, options, queue }
                        .run(held, requests, shutdown)
                        .await
                }
            };
            role.send_replace(WriterRole::Ended);
            quarantine_shutdown.cancel();
            written
        };
        let ((), written) = tokio::join!(storing_quarantined, writing);
        written
    }
}

/// The part of a writer that only runs while it holds the lease.
struct Leased {
    metastore: Arc<dyn Metastore>,
    store: Arc<dyn TableStore>,
    options: WriterOptions,
    queue: Arc<dyn Queue>,
}

impl Leased {
    async fn run(
        self,
        lease: HeldLease,
        requests: mpsc::Receiver<Request>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let drained = CancellationToken::new();
        let mut keep = std::pin::pin!(lease.keep(drained.clone()));
        let mut work = std::pin::pin!(async {
            let worked = self.work(requests, shutdown).await;
            drained.cancel();
            worked
        });
        // A lost lease ends the work at once, in the middle of whatever it is: another writer may be committing.
        tokio::select! {
            kept = &mut keep => { kept?; work.await }
            worked = &mut work => { keep.await?; worked }
        }
    }

    /// Ingest, with maintenance and requests beside it, until `shutdown`.
    async fn work(self, requests: mpsc::Receiver<Request>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { metastore, store, options, queue } = self;
        let (ask_ingest, asked) = mpsc::channel(INGEST_REQUESTS_MAX);
        let operations = Operations::new(Arc::clone(&store), Arc::clone(&metastore), ask_ingest);
        // Tasks of their own: compaction computes, and must not hold up what is done in between here. They end with their set.
        let mut beside = JoinSet::new();
        let (tables, rounds) = (Arc::clone(&store), options.maintenance);
        let maintenance = maintenance::run(tables, Arc::clone(&metastore), rounds, shutdown.clone());
        beside.spawn(maintenance);
        beside.spawn(operations::serve(operations, requests, shutdown.clone()));
        let others = async {
            while let Some(ended) = beside.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        let ingest = ingest::run(queue, Arc::clone(&store), options.ingest, asked, shutdown);
        let outcome = tokio::try_join!(ingest, others);
        // The store is closed when nothing uses it any more.
        beside.shutdown().await;
        store.close().await;
        outcome.map(|_| ())
    }
}
