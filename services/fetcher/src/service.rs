//! The fetcher put together, for its own process and for the lake in one process.

use std::sync::Arc;
use std::time::SystemTime;

use lake_hq::connect::HqConfig;
use lake_hq::documents::case::CaseOptions;
use lake_hq::source::Hq;
use lake_proto::queue::v1::Announcement;
use lake_shared::identity::Kind;
use lake_shared::quarantine::{self, Stage};
use lake_shared::queue::{Queue, announcement};
use lake_shared::telemetry::Check;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::allow_list::TakeConfig;
use crate::change_feed::ChangeFeed;
use crate::change_feed::kafka::{KafkaConfig, KafkaFeed};
use crate::coalesce::{LEDGER_TOPIC, USER_TOPICS};
use crate::metric_names;
use crate::options::FetchOptions;
use crate::pipeline::{self, Fetcher};

/// What is configured about a fetcher, apart from its servers.
pub struct FetcherOptions {
    /// Section `[take]`: the domains and documents that are fetched.
    pub take: TakeConfig,
    /// What a case's document holds besides the case.
    pub case_options: CaseOptions,
    /// Section `[fetch]`: how much is read from HQ at once, and how fast.
    pub fetch: FetchOptions,
}

/// A fetcher that is ready to run.
pub struct FetcherService {
    feed: Arc<dyn ChangeFeed>,
    fetcher: Fetcher,
}

impl FetcherService {
    /// A fetcher from a feed and an HQ to a queue, all of them connected.
    pub fn build(feed: Arc<dyn ChangeFeed>, hq: Hq, queue: Arc<dyn Queue>, options: FetcherOptions) -> Self {
        quarantine::count_from_zero(Stage::Fetcher);
        let FetcherOptions { take, case_options, fetch } = options;
        Self { feed, fetcher: Fetcher::new(hq, queue, take, case_options, fetch) }
    }

    /// What `/ready` asks of the fetcher: its feed, its queue, and HQ as far as it reads there.
    pub fn checks(&self) -> Vec<Check> {
        let Hq { database, blobs, .. } = self.fetcher.hq.clone();
        let (feed, xml_watch) = (Arc::clone(&self.feed), Arc::clone(&self.fetcher.xml_watch));
        vec![
            Check::new("kafka", move || {
                let feed = Arc::clone(&feed);
                async move { feed.check().await }
            }),
            Check::queue(Arc::clone(&self.fetcher.queue)),
            Check::new("hq database", move || {
                let database = Arc::clone(&database);
                async move { database.check().await.map_err(|error| error.to_string()) }
            }),
            Check::new("hq blobs", move || {
                let blobs = Arc::clone(&blobs);
                async move { blobs.check().await.map_err(|error| error.to_string()) }
            }),
            Check::new("form xml", move || {
                let xml_watch = Arc::clone(&xml_watch);
                async move { xml_watch.check() }
            }),
        ]
    }

    /// Fetches until `shutdown` or until the feed closes; then finishes what is in flight.
    ///
    /// # Errors
    ///
    /// Those of [`pipeline::run`].
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (feed, queue) = (Arc::clone(&self.feed), Arc::clone(&self.fetcher.queue));
        let taken = self.fetcher.take.told();
        let fetcher = Arc::new(self.fetcher);
        let told = Arc::clone(&fetcher);
        let tells = move || Announcement {
            partitions: feed.progress(),
            taken: Some(taken.clone()),
            ..told.announcement(SystemTime::now())
        };
        let announcing = announcement::run(queue, "fetcher", tells, shutdown.clone());
        let _announcing = AbortOnDropHandle::new(tokio::spawn(announcing));
        pipeline::run(self.feed, fetcher, shutdown).await
    }
}

/// What a fetcher reads on Kafka.
pub(crate) fn topics(hq: &HqConfig) -> Vec<&'static str> {
    let ledger = hq.database.ledger_values.then_some(LEDGER_TOPIC);
    Kind::ALL.map(Kind::topic).into_iter().chain(USER_TOPICS).chain(ledger).collect()
}

/// Joins the readers of HQ's change feed on Kafka: of documents, of users, and of ledger values where they are part of cases.
/// `lake_has_records` says whether the lake has taken records before: a consumer group that has committed nothing is new only if it has not.
///
/// # Errors
///
/// The Kafka client refuses the configuration.
pub fn subscribe(kafka: &KafkaConfig, hq: &HqConfig, lake_has_records: bool) -> anyhow::Result<Arc<dyn ChangeFeed>> {
    let topics = topics(hq);
    // An alert on growth would not see the first position of a counter that appears with it.
    for &topic in &topics {
        metrics::counter!(metric_names::POSITIONS_GONE_TOTAL, "topic" => topic.to_owned()).increment(0);
    }
    Ok(KafkaFeed::subscribe(kafka, &topics, lake_has_records)?)
}
