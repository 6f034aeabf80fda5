//! The engine on a real S3 server, and on a real HDFS, that is killed in the middle of what it is asked for, and comes back on the same data: batches, compaction
//! and clean-up are tried again until they succeed, and after each the tables equal the source.
//!
//! After each step the store is copied, and its files are read without a server in between ([`mirror`]); what has changed is also read by
//! DuckDB, from the bucket itself where it can, and in the end by everybody. `LAKE_TEST_SEED` makes it another history, to look for trouble by hand.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod mirror;
mod server;
mod source;
mod tripwire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lake_shared::escaped_names;
use lake_test_kit::dice::seed_or;
use lake_test_kit::log::ensure_log_is_sound;
use lake_test_kit::rows;
use lake_test_kit::watcher::watched;
use lake_tests::engine::{
    DeletionVectors, DeltaOptions, Expected, Word, bytes, partition_by, small, space, space_batch,
};
use lake_tests::readers::{Reader, Readers, Snapshot};
use lake_writer::metastore::Metastore;
use lake_writer::metastore::sqlite::SqliteMetastore;
use lake_writer::table_store::delta::DeltaTableStore;
use lake_writer::table_store::lake_store::{LakeStore, LakeStoreConfig};
use lake_writer::table_store::{StoreError, TableStore};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use self::mirror::Mirror;
use self::server::{PREFIX, Server};
use self::source::{COLUMNS_MAX, Source, TYPES};
use self::tripwire::{Tripwire, Wire};

const SEED: u64 = 1;
/// Batches.
const ROUNDS: u32 = 10;
/// Fewer deaths of the server than there are in any history.
const DEATHS_MIN: u64 = 2;
/// Bytes above which deltalake uploads a file in parts.
const PART_BYTES: u64 = 5 << 20;
/// How long the engine may say that it cannot just now.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// Where a table is in the store.
fn path_of(document_type: &str) -> PathBuf {
    Path::new(PREFIX).join(escaped_names::table_path(&rows::table(document_type)))
}

/// A lake in a store, and its history.
struct Trial {
    random: StdRng,
    options: DeltaOptions,
    config: LakeStoreConfig,
    tripwire: Arc<Tripwire>,
    /// The database of the metastore and the key indexes.
    own: TempDir,
    /// Key indexes that there have been.
    indexes: u32,
    store: DeltaTableStore,
    source: Source,
    expected: Expected,
    said: Vec<Vec<Word>>,
    mirror: Mirror,
    readers: Readers,
    /// Versions that DuckDB has seen.
    seen: BTreeMap<&'static str, u64>,
    /// How often the engine said that it cannot just now.
    refusals: u64,
    /// Rows that deletion vectors hid, over all looks.
    hidden_rows: u64,
}

/// An engine that knows nothing yet, as after a start; `index` is the number of its key index.
fn open(
    config: &LakeStoreConfig,
    options: &DeltaOptions,
    own: &Path,
    index: u32,
    tripwire: &Arc<Tripwire>,
) -> anyhow::Result<DeltaTableStore> {
    let wire = Arc::clone(tripwire);
    let lake = LakeStore::open(config)?.wrapped(|inner| watched(inner, move |step, _| wire.touch(step)));
    let metastore = SqliteMetastore::file(&own.join("metastore.sqlite"));
    let index_folder = Some(own.join(format!("index-{index}")));
    let options = DeltaOptions { index_folder, ..options.clone() };
    Ok(DeltaTableStore::new(Arc::new(lake), Arc::new(metastore), options))
}

impl Trial {
    async fn begin(seed: u64, server: Server) -> anyhow::Result<Self> {
        let (config, mirror) = (server.config(), Mirror::of(server.client()?)?);
        let readers = server.readers(mirror.folder())?;
        // In production this comes first as well.
        LakeStore::open(&config)?.probe().await?;
        let own = TempDir::with_prefix("lake-test-own-")?;
        SqliteMetastore::file(&own.path().join("metastore.sqlite")).migrate().await?;
        let options = DeltaOptions {
            partition_by: partition_by(&["supervisor_id"]),
            deletion_vectors: DeletionVectors::Auto,
            columns_max: COLUMNS_MAX,
            // The large files shall not be cut.
            target_file_bytes: bytes(64 << 20),
            checkpoint_every_commits: 3,
            ..small()
        };
        let tripwire = Arc::new(Tripwire::of(server));
        let store = open(&config, &options, own.path(), 0, &tripwire)?;
        Ok(Self {
            random: StdRng::seed_from_u64(seed),
            options,
            config,
            tripwire,
            own,
            indexes: 1,
            store,
            source: Source::default(),
            expected: Expected::default(),
            said: Vec::new(),
            mirror,
            readers,
            seen: BTreeMap::new(),
            refusals: 0,
            hidden_rows: 0,
        })
    }

    /// Starts the engine anew: with the key index as it was left, with none, or with an old one.
    fn open_again(&mut self) -> anyhow::Result<()> {
        let index = match self.random.random_range(0..4) {
            0 => {
                self.indexes += 1;
                self.indexes - 1
            }
            1 => self.random.random_range(0..self.indexes),
            _ => self.indexes - 1,
        };
        self.store = open(&self.config, &self.options, self.own.path(), index, &self.tripwire)?;
        Ok(())
    }

    /// Does something again and again until it succeeds; afterwards the server lives.
    async fn persist<T>(
        &mut self,
        wire: Option<Wire>,
        work: impl AsyncFn(&DeltaTableStore) -> Result<T, StoreError>,
    ) -> anyhow::Result<T> {
        let patience = Instant::now() + PATIENCE;
        self.tripwire.stretch(wire);
        loop {
            let outcome = work(&self.store).await;
            match outcome {
                Err(StoreError::Unavailable { .. }) if Instant::now() < patience => {
                    self.refusals += 1;
                    // Somebody may lose patience earlier.
                    if self.random.random_range(0..6) == 0 {
                        self.open_again()?;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => {
                    self.tripwire.come_to_rest().await?;
                    return Ok(outcome?);
                }
            }
        }
    }

    /// A death of the server soon, or none.
    fn wire(&mut self, of_four: u32) -> Option<Wire> {
        (self.random.random_range(0..4) < of_four).then(|| Wire::drawn(&mut self.random))
    }

    async fn round(&mut self, round: u32) -> anyhow::Result<()> {
        if self.random.random_range(0..3) == 0 {
            self.open_again()?;
        }
        let words = self.source.words(&mut self.random, round);
        let batch = space_batch(&words);
        let wire = self.wire(3);
        self.persist(wire, async |store| store.apply(batch.clone()).await).await.context("apply a batch")?;
        words.iter().for_each(|word| self.expected.hear(word));
        self.said.push(words);
        self.look().await.context("after a batch")?;
        let space = space();
        let wire = self.wire(2);
        if round.is_multiple_of(2) {
            self.persist(wire, async |store| store.compact(&space).await).await.context("compact")?;
        } else {
            self.persist(wire, async |store| store.maintain(&space).await).await.context("maintain")?;
        }
        self.look().await.context("after compaction")?;
        Ok(())
    }

    /// The lake is as the source.
    async fn look(&mut self) -> anyhow::Result<BTreeMap<&'static str, Snapshot>> {
        self.mirror.follow().await.context("copy the store")?;
        let mut tables = BTreeMap::new();
        for name in TYPES {
            if let Some(table) = Snapshot::read(&self.mirror.folder().join(path_of(name)), None).await? {
                tables.insert(name, table);
            }
        }
        self.expected.ensure_is_in(&tables)?;
        for (&name, table) in &tables {
            self.hidden_rows += table.hidden_rows;
            if self.seen.insert(name, table.version) != Some(table.version) {
                self.ensure_sees(Reader::DuckDb, name, table)?;
            }
        }
        Ok(tables)
    }

    /// A reader sees what the files hold, and counts so many rows.
    fn ensure_sees(&mut self, reader: Reader, name: &str, table: &Snapshot) -> anyhow::Result<()> {
        let content = self.readers.read(reader, &path_of(name), None)?;
        content
            .ensure_is(&table.rows)
            .with_context(|| format!("{reader} reads {name} in the store, version {}", table.version))
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        // All of it once more changes nothing, whatever the index knows.
        for words in std::mem::take(&mut self.said).into_iter().rev() {
            if self.random.random_range(0..4) == 0 {
                self.open_again()?;
            }
            let batch = space_batch(&words);
            let applied = self.persist(None, async |store| store.apply(batch.clone()).await).await?;
            ensure!(applied.tables.is_empty(), "delivered again it makes commits: {applied:?}");
        }
        let tables = self.look().await.context("after everything was delivered again")?;
        for (name, table) in &tables {
            ensure_log_is_sound(&self.mirror.folder().join(path_of(name)), |_| true)?;
            for reader in Reader::QUICK {
                self.ensure_sees(reader, name, table)?;
            }
            self.tripwire.server().ensure_spark_counts(&path_of(name), table.rows.len())?;
        }
        ensure!(tables.len() == TYPES.len(), "tables were never made: {:?}", tables.keys());
        let hidden = self.hidden_rows;
        let (deaths, refusals, largest) = (self.tripwire.deaths(), self.refusals, self.mirror.largest());
        println!("{deaths} deaths, {refusals} refusals, {hidden} rows hidden, largest object {largest} bytes");
        ensure!(deaths >= DEATHS_MIN && refusals > 0, "the server hardly ever died");
        ensure!(hidden > 0, "no deletion vector was read from the store");
        ensure!(largest > PART_BYTES, "no file was uploaded in parts");
        Ok(())
    }
}

async fn live(server: Server) -> anyhow::Result<()> {
    let (seed, started) = (seed_or(SEED), Instant::now());
    println!("seed {seed}");
    let mut trial = Trial::begin(seed, server).await?;
    for round in 0..ROUNDS {
        trial.round(round).await.with_context(|| format!("round {round} of seed {seed}"))?;
    }
    trial.finish().await.with_context(|| format!("after all rounds of seed {seed}"))?;
    println!("{:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_store_that_is_killed_loses_and_duplicates_nothing() -> anyhow::Result<()> {
    live(Server::s3()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hdfs_that_is_killed_loses_and_duplicates_nothing() -> anyhow::Result<()> {
    live(Server::hdfs()?).await
}
