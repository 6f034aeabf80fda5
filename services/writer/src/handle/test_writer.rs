//! A whole writer over the queue in memory, on SQLite and real tables, for tests.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use lake_proto::queue::v1::RowBatch;
use lake_shared::identity::{Kind, Space, TableKey};
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::queue::{Message, Queue};
use lake_shared::{escaped_names, wire};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{WriterHandle, WriterRole};
use crate::admin::AdminOptions;
use crate::catalog::CatalogOptions;
use crate::ingest::IngestOptions;
use crate::lease::LeaseOptions;
use crate::maintenance::MaintenanceOptions;
use crate::metastore::Metastore;
use crate::metastore::connect::MetastoreConfig;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};
use crate::table_store::lake_store::LakeStoreConfig;
use crate::writer::{BackfillOptions, ReconcileOptions, Writer, WriterOptions};

/// How long something that happens by itself may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running writer.
pub(crate) struct Running {
    pub(crate) handle: WriterHandle,
    pub(crate) queue: Arc<MemoryQueue>,
    pub(crate) metastore: Arc<dyn Metastore>,
    /// Where operators ask it.
    pub(crate) admin_address: Option<SocketAddr>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// A writer on the lake in the folder, without compaction of its own: its upserts leave small files and deletion vectors.
    pub(crate) async fn start(folder: &TempDir, name: &str, address: &str) -> Self {
        Self::start_with_admin(folder, name, address, None).await
    }

    /// The same with an interface for operators.
    pub(crate) async fn start_with_admin(
        folder: &TempDir,
        name: &str,
        address: &str,
        admin: Option<AdminOptions>,
    ) -> Self {
        let place = |part: &str| folder.path().join(part);
        std::fs::create_dir_all(place("tables")).unwrap();
        let writer = Writer::open(WriterOptions {
            store: LakeStoreConfig { sync: false, ..LakeStoreConfig::of_root(place("tables").display().to_string()) },
            metastore: MetastoreConfig {
                url: format!("sqlite:{}", place("metastore.sqlite").display()).into(),
                connections_max: 1,
            },
            tables: DeltaOptions {
                deletion_vectors: DeletionVectors::On,
                small_files_max: 2,
                tiny_file_bytes: 0,
                deleted_share_max: 1.0,
                index_folder: Some(place("index")),
                ..DeltaOptions::default()
            },
            ingest: IngestOptions { flush_age_ms: 5, ..IngestOptions::default() },
            maintenance: MaintenanceOptions { compact_every_seconds: 0, ..MaintenanceOptions::default() },
            admin,
            backfill: BackfillOptions::default(),
            reconcile: ReconcileOptions { settle_seconds: 0 },
            catalog: CatalogOptions::default(),
            lease: LeaseOptions { owner: name.into(), address: address.into(), ..LeaseOptions::default() },
        });
        let writer = writer.await.unwrap();
        let (handle, shutdown) = (writer.handle(), CancellationToken::new());
        let queue = MemoryQueue::new(MemoryQueueOptions::default());
        let (admin_address, metastore) = (writer.admin_address(), Arc::clone(&writer.metastore));
        let task = tokio::spawn(writer.run(Arc::<MemoryQueue>::clone(&queue), shutdown.clone()));
        Self { handle, queue, metastore, admin_address, shutdown, task }
    }

    pub(crate) async fn until_holding(&self) -> (i64, i64) {
        let holding = async {
            loop {
                if let WriterRole::Holding { epoch, since_us } = self.handle.status().await.role {
                    return (epoch, since_us);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, holding).await.unwrap()
    }

    /// Queues rows; they are committed when the future ends.
    pub(crate) async fn publish(&self, document_type: &str, ids: &[&str], version: i64) {
        let key = table(document_type);
        let subject = escaped_names::rows_subject(&key.space.domain, Kind::Case, Some(&key.document_type));
        let payload = wire::encode(&RowBatch {
            domain: key.space.domain.to_string(),
            kind: Kind::Case.to_proto() as i32,
            r#type: Some(document_type.into()),
            arrow_ipc: rows(ids, version).into(),
            tombstones: Vec::new(),
        });
        let message = Message { subject, payload, dedupe_id: uuid::Uuid::new_v4().to_string() };
        tokio::time::timeout(PATIENCE, self.queue.publish(message)).await.unwrap().unwrap();
    }

    pub(crate) async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

pub(crate) fn rows(ids: &[&str], version: i64) -> Vec<u8> {
    let versions = vec![version; ids.len()];
    let observed = TimestampMicrosecondArray::from(versions.clone()).with_timezone("UTC");
    let columns: [(&str, ArrayRef); 3] = [
        ("/_id", Arc::new(StringArray::from(ids.to_vec()))),
        ("+_lake_version", Arc::new(Int64Array::from(versions))),
        ("+_lake_observed_at", Arc::new(observed)),
    ];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let mut stream = StreamWriter::try_new(Vec::new(), rows.schema_ref()).unwrap();
    stream.write(&rows).unwrap();
    stream.into_inner().unwrap()
}

pub(crate) fn space() -> Space {
    Space { domain: "demo".into(), kind: Kind::Case }
}

pub(crate) fn table(document_type: &str) -> TableKey {
    TableKey { space: space(), document_type: document_type.into() }
}
