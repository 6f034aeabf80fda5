//! The servers that a lake may be on, each real and to be killed.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use hdfs_native_object_store::HdfsObjectStoreBuilder;
use lake_tests::parts::{Hdfs, ObjectStore, Spark};
use lake_tests::readers::Readers;
use lake_writer::table_store::lake_store::{LakeStoreConfig, S3Config};
use object_store::ObjectStore as Store;

const BUCKET: &str = "lake";
/// Below which the tables are.
pub const PREFIX: &str = "some/tables";

/// A running server.
#[derive(Debug)]
pub enum Server {
    /// SeaweedFS.
    S3(Box<ObjectStore>),
    /// A name node and a data node of Hadoop.
    Hdfs(Box<Hdfs>),
}

impl Server {
    /// An S3 store with an empty bucket.
    pub fn s3() -> anyhow::Result<Self> {
        let s3 = ObjectStore::start()?;
        s3.create_bucket(BUCKET)?;
        Ok(Self::S3(Box::new(s3)))
    }

    /// An empty file system of Hadoop.
    pub fn hdfs() -> anyhow::Result<Self> {
        Ok(Self::Hdfs(Box::new(Hdfs::start()?)))
    }

    /// What a writer is told of it.
    pub fn config(&self) -> LakeStoreConfig {
        match self {
            Self::S3(s3) => LakeStoreConfig {
                s3: Some(S3Config {
                    endpoint: Some(s3.endpoint()),
                    region: Some(s3.region().to_owned()),
                    access_key_id: Some(s3.access_key().into()),
                    secret_access_key: Some(s3.secret_key().into()),
                    allow_http: true,
                    ..S3Config::default()
                }),
                ..LakeStoreConfig::of_root(format!("s3://{BUCKET}/{PREFIX}"))
            },
            Self::Hdfs(hdfs) => LakeStoreConfig::of_root(hdfs.url(PREFIX)),
        }
    }

    /// A client of its own, for whoever looks at all that is there.
    pub fn client(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(match self {
            Self::S3(s3) => Arc::new(s3.client(BUCKET)?),
            Self::Hdfs(hdfs) => Arc::new(HdfsObjectStoreBuilder::new().with_url(hdfs.url("")).build()?),
        })
    }

    /// Readers of the tables: from the server itself where they all can, else of the copy.
    pub fn readers(&self, copy: &Path) -> anyhow::Result<Readers> {
        match self {
            Self::S3(s3) => Readers::of_bucket(s3, BUCKET),
            Self::Hdfs(_) => Readers::of_copy(copy),
        }
    }

    /// Kills it hard and starts it again on the same data.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        match self {
            Self::S3(s3) => s3.server().restart(),
            Self::Hdfs(hdfs) => hdfs.restart(),
        }
    }

    /// Whoever reads Hadoop's files is a program in Java: Spark counts as many rows.
    pub fn ensure_spark_counts(&self, path: &Path, rows: usize) -> anyhow::Result<()> {
        let Self::Hdfs(hdfs) = self else { return Ok(()) };
        let table = hdfs.url(path.to_str().context("a path is text")?);
        let counted = Spark::shared(|spark| spark.sql(&[&format!("SELECT count(*) FROM delta.`{table}`")]))?;
        ensure!(counted == [[Some(rows.to_string())]], "Spark counts {counted:?} in {table}, there are {rows}");
        Ok(())
    }
}
