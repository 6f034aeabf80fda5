//! The writer put together: metastore, store, lease, ingest, maintenance, quarantine, and the handle to ask it.
//!
//! [`Writer::open`] builds it from its configuration, [`Writer::run`] runs it; the service and the lake in one process use both.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use lake_shared::queue::Queue;
use lake_shared::queue::announcement::{self, Activity};
use lake_shared::telemetry::{Check, Endpoints};
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{AdminOptions, AdminServer, ServedParts};
use crate::catalog::hive::HiveCatalog;
use crate::catalog::registrar::Registrar;
use crate::catalog::{Catalog, CatalogKind, CatalogOptions};
use crate::handle::{WriterHandle, WriterRole};
use crate::ingest::{self, IngestOptions};
use crate::lease::{HeldLease, LeaseClaimant, LeaseEnd, LeaseOptions, Reach};
use crate::maintenance::{self, MaintenanceOptions};
use crate::metastore::Metastore;
use crate::metastore::connect::{self, MetastoreConfig};
use crate::metric_names;
use crate::operations::backfill::{self, BackfillTools};
use crate::operations::reconcile::{self, ReconcileTools};
use crate::operations::{self, INGEST_REQUESTS_MAX, Operations, Request, pause_keeper, policy_keeper, runner};
pub use crate::operations::{BackfillOptions, ReconcileOptions};
use crate::pipeline_watch::PipelineWatch;
use crate::quarantine::replay::Quarantine;
use crate::quarantine::{sink, watch as quarantine_watch};
use crate::status_page::{Samples, StatusPage};
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
    /// Section `[backfill]`: how much backfills ask fetchers for at once.
    #[serde(default)]
    pub backfill: BackfillOptions,
    /// Section `[reconcile]`: how comparisons with HQ are made.
    #[serde(default)]
    pub reconcile: ReconcileOptions,
    /// Section `[lease]`: the right to commit.
    #[serde(default)]
    pub lease: LeaseOptions,
    /// Section `[catalog]`: where readers find the tables by name.
    #[serde(default)]
    pub catalog: CatalogOptions,
    /// Section `[admin]`: the gRPC interface for operators; without it there is none.
    #[serde(default)]
    pub admin: Option<AdminOptions>,
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
        self.catalog.validate()?;
        self.admin.as_ref().map_or(Ok(()), AdminOptions::validate)?;
        self.backfill.validate()?;
        self.reconcile.validate()?;
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

/// How long calls of operators may take to end when everything else has ended.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// A writer that is ready to run.
pub struct Writer {
    /// The metastore, with its own tables created or updated.
    pub metastore: Arc<dyn Metastore>,
    /// The lake's root, found to be usable.
    pub root: Arc<LakeStore>,
    options: WriterOptions,
    catalog: Option<Arc<dyn Catalog>>,
    admin: Option<AdminServer>,
    pipeline: PipelineWatch,
    samples: Samples,
    /// What it tells of its work.
    activity: Arc<Activity>,
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
    pub async fn open(mut options: WriterOptions) -> anyhow::Result<Self> {
        // The key index of each space keeps about ten files open; many systems allow a process a thousand unless it asks for more.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
        let admin = match &options.admin {
            Some(admin) => Some(AdminServer::bind(admin).await?),
            None => None,
        };
        let catalog: Option<Arc<dyn Catalog>> = match options.catalog.kind {
            CatalogKind::None => None,
            CatalogKind::Hive => Some(Arc::new(HiveCatalog::new(&options.catalog).map_err(anyhow::Error::msg)?)),
        };
        let metastore = connect::open(&options.metastore)?;
        connect::migrate_when_there(&*metastore).await?;
        let root = Arc::new(LakeStore::open(&options.store)?);
        root.probe_when_there().await?;
        options.tables.index_folder =
            options.tables.index_folder.take().or_else(|| default_index_folder(&root.location("")));
        let store = DeltaTableStore::new(Arc::clone(&root), Arc::clone(&metastore), options.tables.clone());
        store.check_at_startup().await?;
        let (role, _) = watch::channel(WriterRole::StandingBy);
        let (ask, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
        let claimant = options.lease.claimant();
        let (pipeline, samples, activity) = (PipelineWatch::default(), Samples::default(), Arc::default());
        Ok(Self {
            metastore,
            root,
            options,
            catalog,
            admin,
            pipeline,
            samples,
            activity,
            claimant,
            role,
            ask,
            requests,
        })
    }

    /// How the other parts of the process ask this writer.
    pub fn handle(&self) -> WriterHandle {
        let metastore = Arc::clone(&self.metastore);
        WriterHandle::new(self.claimant.clone(), metastore, self.role.subscribe(), self.ask.clone())
    }

    /// What `/ready` asks of the writer: its queue, metastore and store.
    pub fn checks(&self, queue: &Arc<dyn Queue>) -> Vec<Check> {
        let metastore = Arc::clone(&self.metastore);
        let metastore = Check::new("metastore", move || {
            let metastore = Arc::clone(&metastore);
            async move { metastore.check().await.map_err(|error| error.to_string()) }
        });
        let [queue, store] = self.reach_checks(queue);
        vec![queue, metastore, store]
    }

    /// What the writer answers on its HTTP port.
    pub fn endpoints(&self, queue: &Arc<dyn Queue>) -> Endpoints {
        Endpoints { checks: self.checks(queue), pages: self.pages() }
    }

    /// The page for people, where it is wanted.
    pub fn pages(&self) -> Router {
        if !self.options.admin.as_ref().is_some_and(|admin| admin.status_page) {
            return Router::new();
        }
        let (metastore, pipeline) = (Arc::clone(&self.metastore), self.pipeline.clone());
        StatusPage { handle: self.handle(), metastore, pipeline, samples: self.samples.clone() }.router()
    }

    /// What a writer needs beside the metastore.
    fn reach_checks(&self, queue: &Arc<dyn Queue>) -> [Check; 2] {
        let root = Arc::clone(&self.root);
        let store = Check::new("store", move || {
            let root = Arc::clone(&root);
            async move { root.check().await.map_err(|error| error.to_string()) }
        });
        [Check::queue(Arc::clone(queue)), store]
    }

    /// Waits for the lease, then writes until `shutdown`; drains, and gives the lease back. A lease that is lost is waited for again. Quarantine
    /// entries are stored all the time, until everything else has ended.
    ///
    /// # Errors
    ///
    /// The queue refused a consumer, or a task panicked. The process is to be started anew.
    pub async fn run(mut self, queue: Arc<dyn Queue>, shutdown: CancellationToken) -> anyhow::Result<()> {
        metric_names::count_from_zero();
        let pipeline = self.pipeline.clone();
        let _watching =
            AbortOnDropHandle::new(tokio::spawn(pipeline.clone().run(Arc::clone(&queue), shutdown.clone())));
        let sampling = self.samples.clone().run(Arc::clone(&queue), pipeline.clone(), shutdown.clone());
        let _sampling = AbortOnDropHandle::new(tokio::spawn(sampling));
        let activity = Arc::clone(&self.activity);
        let tells = move || activity.announcement();
        let announcing = announcement::run(Arc::clone(&queue), "writer", tells, shutdown.clone());
        let _announcing = AbortOnDropHandle::new(tokio::spawn(announcing));
        let answering = self.admin.take().map(|admin| {
            let parts = ServedParts {
                handle: self.handle(),
                metastore: Arc::clone(&self.metastore),
                lake: Arc::clone(&self.root),
                queue: Arc::clone(&queue),
                pipeline: pipeline.clone(),
                quarantine_bounds: self.options.maintenance.quarantine_bounds(),
            };
            tokio::spawn(admin.serve(parts, shutdown.clone()))
        });
        let reach = Reach::new(self.reach_checks(&queue).into());
        let quarantine_shutdown = CancellationToken::new();
        let reports = Arc::clone(&self.metastore);
        let keeping_reports = backfill::reports::run(Arc::clone(&queue), reports, quarantine_shutdown.clone());
        let storing_quarantined = sink::run(
            Arc::clone(&queue),
            Arc::clone(&self.metastore),
            self.options.maintenance.quarantine_bounds(),
            quarantine_shutdown.clone(),
        );
        let writing = async {
            let role = self.role.clone();
            let written = self.write(queue, &reach, shutdown).await;
            role.send_replace(WriterRole::Ended);
            quarantine_shutdown.cancel();
            written
        };
        let ((), (), written) = tokio::join!(storing_quarantined, keeping_reports, writing);
        let Some(mut answering) = answering else { return written };
        match tokio::time::timeout(LAST_ANSWERS_WITHIN, &mut answering).await {
            Ok(ended) => written.and(ended?),
            // A client that does not read its answer is not waited for.
            Err(_) => {
                answering.abort();
                written
            }
        }
    }

    /// Where operators ask this writer; `None`: nowhere.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|admin| admin.address().ok())
    }

    /// Holds the lease again and again.
    async fn write(self, queue: Arc<dyn Queue>, reach: &Reach, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { metastore, root, options, catalog, claimant, role, requests, pipeline, activity, .. } = self;
        let requests = Arc::new(Mutex::new(requests));
        loop {
            let Some(mut held) = HeldLease::acquire(&metastore, &claimant, reach, &shutdown).await else {
                return Ok(());
            };
            let metastore = metastore.fenced(held.fence().clone());
            // What an earlier holding knew of the tables is forgotten: others may have written since.
            let store = DeltaTableStore::new(Arc::clone(&root), Arc::clone(&metastore), options.tables.clone());
            let registrar = Registrar::new(
                catalog.clone(),
                Arc::clone(&metastore),
                options.catalog.clone(),
                &root.location(""),
                store.changes().clone(),
            );
            let leased = Leased {
                metastore,
                store: Arc::new(store),
                registrar: Arc::new(registrar),
                options: options.clone(),
                queue: Arc::clone(&queue),
                requests: Arc::clone(&requests),
                pipeline: pipeline.clone(),
                activity: Arc::clone(&activity),
            };
            leased.forget_requests().await;
            let (epoch, since_us) = (held.lease().epoch, held.lease().acquired_us);
            role.send_replace(WriterRole::Holding { epoch, since_us });
            metrics::gauge!(metric_names::LEASE_HELD).set(1.0);
            let ended = leased.run(&mut held, shutdown.clone()).await;
            metrics::gauge!(metric_names::LEASE_HELD).set(0.0);
            role.send_replace(WriterRole::StandingBy);
            let end = match ended {
                Ok(Some(end)) => end,
                ended => {
                    held.give_back().await;
                    return ended.map(drop);
                }
            };
            metrics::counter!(metric_names::LEASES_LOST_TOTAL).increment(1);
            match end {
                LeaseEnd::Lost(reason) => {
                    tracing::warn!(
                        epoch,
                        reason,
                        "the writer's lease is lost; nothing more is written before it is held again"
                    );
                }
                LeaseEnd::GivesWay(missing) => {
                    tracing::warn!(epoch, missing, "the writer's lease is given to another writer that waits for it");
                    held.give_back().await;
                }
            }
        }
    }
}

/// The part of a writer that only runs while it holds the lease.
struct Leased {
    metastore: Arc<dyn Metastore>,
    store: Arc<dyn TableStore>,
    registrar: Arc<Registrar>,
    options: WriterOptions,
    queue: Arc<dyn Queue>,
    requests: Arc<Mutex<mpsc::Receiver<Request>>>,
    pipeline: PipelineWatch,
    activity: Arc<Activity>,
}

impl Leased {
    /// Drops requests that came when the lease was held before: their callers have been told that it was lost.
    async fn forget_requests(&self) {
        let mut requests = self.requests.lock().await;
        while requests.try_recv().is_ok() {}
    }

    /// Works until `shutdown` (`None`) or until the lease ends; then nothing of it is under way any more.
    async fn run(self, lease: &mut HeldLease, shutdown: CancellationToken) -> anyhow::Result<Option<LeaseEnd>> {
        // Tasks of their own: compaction computes, and must not hold up what is done in between here. They end with their set.
        let mut beside = JoinSet::new();
        let ended = {
            let mut keep = std::pin::pin!(lease.keep());
            let mut work = std::pin::pin!(self.work(&mut beside, shutdown));
            // A lost lease ends the work at once, in the middle of whatever it is: another writer may be committing. What was taken from the
            // queue goes back to it.
            tokio::select! {
                end = &mut keep => Ok(Some(end)),
                worked = &mut work => worked.map(|()| None),
            }
        };
        if let Ok(Some(_)) = ended {
            // Tasks that are told to end may come as far as to their next wait.
            lease.fence().set_lost();
            beside.shutdown().await;
            self.store.close().await;
        }
        ended
    }

    /// Ingest, with maintenance and requests beside it, until `shutdown`.
    async fn work(&self, beside: &mut JoinSet<()>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { metastore, store, registrar, options, queue, requests, pipeline, activity } = self;
        let (ask_ingest, asked) = mpsc::channel(INGEST_REQUESTS_MAX);
        let policies = options.tables.policies.clone();
        if !policy_keeper::at_start(&**metastore, &policies, &shutdown).await {
            return Ok(());
        }
        let Some(paused) = pause_keeper::at_start(&**metastore, &shutdown).await else { return Ok(()) };
        let quarantine = Quarantine::new(Arc::clone(store), Arc::clone(metastore), Arc::clone(queue));
        let quarantine = Arc::new(quarantine);
        let operations = Operations::new(
            Arc::clone(store),
            Arc::clone(metastore),
            Arc::clone(&quarantine),
            ask_ingest,
            Arc::clone(registrar),
        );
        let operations = Arc::new(operations);
        beside.spawn(quarantine_watch::run(quarantine, Arc::clone(metastore), shutdown.clone()));
        beside.spawn(Arc::clone(registrar).run(shutdown.clone()));
        let (tables, rounds) = (Arc::clone(store), options.maintenance.clone());
        beside.spawn(maintenance::run(tables, Arc::clone(metastore), rounds, shutdown.clone()));
        beside.spawn(operations::serve(Arc::clone(&operations), Arc::clone(requests), shutdown.clone()));
        beside.spawn(policy_keeper::run(Arc::clone(metastore), policies, shutdown.clone()));
        let keeper = Arc::clone(&operations);
        beside.spawn(runner::run(Arc::clone(&operations), Arc::clone(metastore), shutdown.clone()));
        beside.spawn(backfill::run(BackfillTools {
            operations: Arc::clone(&operations),
            metastore: Arc::clone(metastore),
            queue: Arc::clone(queue),
            pipeline: pipeline.clone(),
            options: options.backfill.clone(),
            shutdown: shutdown.clone(),
        }));
        beside.spawn(reconcile::run(ReconcileTools {
            operations: Arc::clone(&operations),
            metastore: Arc::clone(metastore),
            queue: Arc::clone(queue),
            options: options.reconcile.clone(),
            shutdown: shutdown.clone(),
        }));
        beside.spawn(pause_keeper::run(keeper, Arc::clone(metastore), paused.clone(), shutdown.clone()));
        let others = async {
            while let Some(ended) = beside.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        let (tables, told, ingested) = (Arc::clone(store), Arc::clone(activity), options.ingest.clone());
        let ingest = ingest::run(Arc::clone(queue), tables, ingested, paused, asked, told, shutdown);
        let outcome = tokio::try_join!(ingest, others);
        // The store is closed when nothing uses it any more.
        beside.shutdown().await;
        store.close().await;
        outcome.map(|_| ())
    }
}
