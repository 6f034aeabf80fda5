//! Options of the command `hq-sim`. Every one can also come from the environment; those with secrets should.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::blobs::{BlobSink, BucketAddress};
use crate::kafka::KafkaSink;
use crate::life::LifeOptions;
use crate::sharding::ShardMap;

/// A simulated CommCare HQ on real Postgres, blob store, users and Kafka.
#[derive(Debug, Parser)]
#[command(name = "hq-sim")]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Creates HQ's tables and topics where they are missing.
    Create(Create),
    /// Lives at an even rate and serves the users meanwhile.
    Play(Play),
    /// Lives as fast as the parts allow, for benchmarks, and prints the rate.
    Load(Load),
}

/// Where the parts are.
#[derive(Clone, Debug, Args)]
pub struct Parts {
    /// Main database, postgres://…
    #[arg(long, env = "HQ_SIM_MAIN_URL", hide_env_values = true)]
    pub main_url: String,
    /// Shard databases, separated by commas: `url` each for an even share of 1024 shards, or `first-last=url` each; none: all in
    /// the main database.
    #[arg(long, env = "HQ_SIM_SHARD_URLS", hide_env_values = true, value_delimiter = ',')]
    pub shard_urls: Vec<String>,
    /// Kafka's bootstrap servers, host:port, separated by commas.
    #[arg(long, env = "HQ_SIM_KAFKA", default_value = "127.0.0.1:9092")]
    pub kafka: String,
    /// More properties of the Kafka client, `name=value`, separated by commas.
    #[arg(long, env = "HQ_SIM_KAFKA_PROPERTIES", hide_env_values = true, value_delimiter = ',')]
    pub kafka_properties: Vec<String>,
    /// Seconds to try again when a part does not answer.
    #[arg(long, env = "HQ_SIM_WAIT_SECONDS", default_value_t = 120)]
    pub wait_seconds: u64,
}

/// Where blobs go: a folder or a bucket.
#[derive(Clone, Debug, Args)]
pub struct Blobs {
    /// Folder of blobs.
    #[arg(long, env = "HQ_SIM_BLOB_FOLDER", required_unless_present = "blob_endpoint")]
    pub blob_folder: Option<PathBuf>,
    /// S3 endpoint of blobs, http://…
    #[arg(long, env = "HQ_SIM_BLOB_ENDPOINT", conflicts_with = "blob_folder")]
    pub blob_endpoint: Option<String>,
    /// Bucket of blobs; it must exist.
    #[arg(long, env = "HQ_SIM_BLOB_BUCKET", default_value = "blobdb")]
    pub blob_bucket: String,
    /// Region of the bucket.
    #[arg(long, env = "HQ_SIM_BLOB_REGION", default_value = "us-east-1")]
    pub blob_region: String,
    /// Access key of the bucket.
    #[arg(long, env = "HQ_SIM_BLOB_ACCESS_KEY", hide_env_values = true, default_value = "", hide_default_value = true)]
    pub blob_access_key: String,
    /// Secret key of the bucket; better given in the environment.
    #[arg(long, env = "HQ_SIM_BLOB_SECRET_KEY", hide_env_values = true, default_value = "", hide_default_value = true)]
    pub blob_secret_key: String,
}

/// How tables and topics are made.
#[derive(Clone, Debug, Args)]
pub struct Creation {
    /// Partitions of each new topic.
    #[arg(long, env = "HQ_SIM_PARTITIONS", default_value_t = 4)]
    pub partitions: i32,
    /// Replicas of each new topic.
    #[arg(long, env = "HQ_SIM_REPLICATION", default_value_t = 1)]
    pub replication: i32,
    /// Also creates missing databases (through the server's database `postgres`).
    #[arg(long, env = "HQ_SIM_CREATE_DATABASES")]
    pub create_databases: bool,
}

/// Size and character of the simulated life.
#[derive(Clone, Debug, Args)]
pub struct LifeArguments {
    /// The same seed gives the same life.
    #[arg(long, env = "HQ_SIM_SEED", default_value_t = 1)]
    pub seed: u64,
    /// Number of project spaces.
    #[arg(long, env = "HQ_SIM_DOMAINS", default_value_t = 3)]
    pub domains: usize,
    /// Mobile workers of each project space at the beginning.
    #[arg(long, env = "HQ_SIM_WORKERS", default_value_t = 12)]
    pub workers: usize,
    /// Messages come twice, late, out of order; clocks are off.
    #[arg(long, env = "HQ_SIM_MISCHIEF")]
    pub mischief: bool,
    /// Malformed messages, unreadable XML, missing blobs, hostile names.
    #[arg(long, env = "HQ_SIM_SABOTAGE")]
    pub sabotage: bool,
}

/// What a life does besides: it serves HQ's users, and says in the end what a lake must contain.
#[derive(Clone, Debug, Args)]
pub struct Serving {
    /// Address and port of the user server (CouchDB and Elasticsearch in one).
    #[arg(long, env = "HQ_SIM_USERS_LISTEN", default_value = "127.0.0.1:9200")]
    pub users_listen: SocketAddr,
    /// Serves users until a signal comes, also when nothing happens any more.
    #[arg(long, env = "HQ_SIM_KEEP_RUNNING")]
    pub keep_running: bool,
    /// At the end, writes what a faithful lake must contain into this folder.
    #[arg(long, env = "HQ_SIM_EXPECTATION")]
    pub expectation: Option<PathBuf>,
    /// Turns by which the places of rows in the lake may lag behind, for the expectation.
    #[arg(long, env = "HQ_SIM_PLACE_SLACK_TURNS", default_value_t = 0)]
    pub place_slack_turns: u64,
}

/// Options of `create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The databases and the Kafka cluster to use.
    #[command(flatten)]
    pub parts: Parts,
    /// How databases and topics are made.
    #[command(flatten)]
    pub creation: Creation,
}

/// Options of `play`.
#[derive(Debug, Args)]
pub struct Play {
    /// The databases and the Kafka cluster to use.
    #[command(flatten)]
    pub parts: Parts,
    /// The blob store to use.
    #[command(flatten)]
    pub blobs: Blobs,
    /// How databases and topics are made.
    #[command(flatten)]
    pub creation: Creation,
    /// Size and character of the life.
    #[command(flatten)]
    pub life: LifeArguments,
    /// The user server, and what is done at the end.
    #[command(flatten)]
    pub serving: Serving,
    /// Changes (messages) in all; without it, life has no end.
    #[arg(long, env = "HQ_SIM_CHANGES")]
    pub changes: Option<u64>,
    /// Changes per second.
    #[arg(long, env = "HQ_SIM_RATE", default_value_t = 5.0)]
    pub rate: f64,
}

/// Options of `load`.
#[derive(Debug, Args)]
pub struct Load {
    /// The databases and the Kafka cluster to use.
    #[command(flatten)]
    pub parts: Parts,
    /// The blob store to use.
    #[command(flatten)]
    pub blobs: Blobs,
    /// How databases and topics are made.
    #[command(flatten)]
    pub creation: Creation,
    /// Size and character of the life.
    #[command(flatten)]
    pub life: LifeArguments,
    /// The user server, and what is done at the end.
    #[command(flatten)]
    pub serving: Serving,
    /// Changes (messages) in all.
    #[arg(long, env = "HQ_SIM_CHANGES", default_value_t = 100_000)]
    pub changes: u64,
    /// Changes per second; without it, as fast as possible.
    #[arg(long, env = "HQ_SIM_RATE")]
    pub rate: Option<f64>,
    /// At most so many turns in one transaction.
    #[arg(long, env = "HQ_SIM_GROUP", default_value_t = 500)]
    pub group: usize,
}

impl Parts {
    /// The inclusive range and address of each shard database.
    ///
    /// # Errors
    ///
    /// When only some addresses have a range, or a range is no range.
    pub fn shards(&self) -> Result<Vec<(u32, u32, String)>> {
        let urls: Vec<&str> = self.shard_urls.iter().map(|url| url.trim()).filter(|url| !url.is_empty()).collect();
        let ranged = urls.iter().filter(|url| range_of(url).is_some()).count();
        ensure!(
            ranged == 0 || ranged == urls.len(),
            "either all shard databases have a range, first-last=url, or none"
        );
        if ranged > 0 {
            return urls.iter().map(|url| range_of(url).context("a shard database without a range")).collect();
        }
        let map = ShardMap::even(u32::try_from(urls.len()).context("count shard databases")?)?;
        Ok(map.ranges().iter().zip(urls).map(|(&(first, last), url)| (first, last, url.to_owned())).collect())
    }

    /// The producer to the Kafka cluster.
    ///
    /// # Errors
    ///
    /// When a property is not `name=value` or not known.
    pub fn kafka(&self) -> Result<KafkaSink> {
        let given = self.kafka_properties.iter().filter(|property| !property.is_empty());
        let properties: Result<Vec<_>> = given
            .map(|property| {
                let (name, value) = property.split_once('=').context("a Kafka property is not name=value")?;
                Ok((name.to_owned(), value.to_owned()))
            })
            .collect();
        KafkaSink::new(&self.kafka, &properties?)
    }

    /// How long to try again.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.wait_seconds)
    }
}

/// Understands `first-last=url`.
fn range_of(text: &str) -> Option<(u32, u32, String)> {
    let (range, url) = text.split_once('=')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, url.to_owned()))
}

impl Blobs {
    /// The blob store.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn sink(&self) -> Result<BlobSink> {
        if let Some(folder) = &self.blob_folder {
            return BlobSink::folder(folder);
        }
        BlobSink::bucket(&BucketAddress {
            endpoint: self.blob_endpoint.clone().context("neither a blob folder nor a blob endpoint is given")?,
            bucket: self.blob_bucket.clone(),
            region: self.blob_region.clone(),
            access_key: self.blob_access_key.clone(),
            secret_key: self.blob_secret_key.as_str().into(),
        })
    }
}

impl LifeArguments {
    /// The same for [`crate::life::Life`].
    pub fn options(&self) -> LifeOptions {
        LifeOptions {
            seed: self.seed,
            domains: self.domains,
            workers_per_domain: self.workers,
            mischief: self.mischief,
            sabotage: self.sabotage,
            ..LifeOptions::default()
        }
    }

    /// A name under which account of this life is kept.
    pub fn account(&self) -> String {
        let Self { seed, domains, workers, mischief, sabotage } = self;
        format!("seed {seed}, {domains} domains, {workers} workers, mischief {mischief}, sabotage {sabotage}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parts(shard_urls: &str) -> Parts {
        let line = ["hq-sim", "create", "--main-url", "postgres://m", "--shard-urls", shard_urls];
        match CommandLine::try_parse_from(line).unwrap().command {
            Command::Create(create) => create.parts,
            other => panic!("not create: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn shard_databases_share_evenly_or_as_told() {
        let even = parts("postgres://a?x=1,postgres://b").shards().unwrap();
        assert_eq!(even, [(0, 511, "postgres://a?x=1".to_owned()), (512, 1023, "postgres://b".to_owned())]);
        let told = parts("0-9=postgres://a,10-15=postgres://b").shards().unwrap();
        assert_eq!(told, [(0, 9, "postgres://a".to_owned()), (10, 15, "postgres://b".to_owned())]);
        assert!(parts("0-9=postgres://a,postgres://b").shards().is_err());
        assert!(parts("").shards().unwrap().is_empty());
    }

    #[test]
    fn a_life_is_known_by_its_options() {
        let line = "hq-sim load --main-url m --blob-folder b --seed 7 --mischief";
        let Command::Load(load) = CommandLine::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("not load")
        };
        assert_eq!(load.life.options().seed, 7);
        assert_eq!(load.life.account(), "seed 7, 3 domains, 12 workers, mischief true, sabotage false");
        assert!(CommandLine::try_parse_from("hq-sim load --main-url m".split(' ')).is_err());
    }
}
