#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use lake_hq::documents::case::CaseOptions;
use lake_hq::source::Hq;
use lake_proto::queue::v1::{Quarantined, RecordBatch, RequestedIds};
use lake_shared::queue::Message;
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_simulated_hq::scripted_hq::{Question, Script, ScriptedHq};
use lake_simulated_hq::single_rows::case;

use super::*;
use crate::allow_list::{AllowList, TakeConfig};
use crate::change_feed::memory::MemoryFeed;
use crate::options::FetchOptions;
use crate::pipeline;

/// A fetcher in one process, with an enricher that only notes what comes.
pub(super) struct World {
    pub(super) queue: Arc<MemoryQueue>,
    shutdown: CancellationToken,
    fetcher: tokio::task::JoinHandle<anyhow::Result<()>>,
    records: Box<dyn Consumer>,
}

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

impl World {
    /// Domain `d` is taken, and so is `e`.
    pub(super) async fn start(hq: Hq) -> Self {
        let queue = MemoryQueue::new(MemoryQueueOptions::default());
        let domains = AllowList::Only(["d", "e"].map(str::to_owned).into());
        let take = TakeConfig { domains, ..TakeConfig::EVERYTHING };
        let fetcher =
            Fetcher::new(hq, Arc::<MemoryQueue>::clone(&queue), take, CaseOptions::default(), FetchOptions::default());
        let shutdown = CancellationToken::new();
        let fetcher = tokio::spawn(pipeline::run(Arc::new(MemoryFeed::default()), Arc::new(fetcher), shutdown.clone()));
        let records = queue.consumer(Stream::Records, options("enricher")).await.unwrap();
        Self { queue, shutdown, fetcher, records }
    }

    pub(super) fn ask(&self, payload: Bytes) -> tokio::task::JoinHandle<()> {
        let queue = Arc::clone(&self.queue);
        tokio::spawn(async move {
            let subject = "lake.changes.d.case".into();
            queue.publish(Message { subject, payload, dedupe_id: uuid::Uuid::new_v4().to_string() }).await.unwrap();
        })
    }

    async fn records(&mut self) -> (RecordBatch, Box<dyn lake_shared::queue::Receipt>) {
        let delivery = tokio::time::timeout(PATIENCE, self.records.next()).await.unwrap().unwrap().unwrap();
        (wire::decode(&delivery.payload).unwrap(), delivery.receipt)
    }

    pub(super) async fn end(self) {
        self.shutdown.cancel();
        self.fetcher.await.unwrap().unwrap();
    }
}

fn options(name: &str) -> ConsumerOptions {
    ConsumerOptions { durable_name: name.into(), in_flight_max: 100, acknowledge_within: PATIENCE }
}

fn request(domain: &str, ids: &[&str], in_lake: bool) -> Bytes {
    let ids = ids.iter().map(|&id| id.to_owned()).collect();
    wire::encode(&ChangeRequest {
        domain: domain.into(),
        kind: Kind::Case.to_proto().into(),
        cause: ChangeCause::Backfill.into(),
        operation_id: "o".into(),
        what: Some(What::Ids(RequestedIds { ids, in_lake })),
    })
}

/// Of three cases one is live, one is deleted, and one HQ has elsewhere.
fn hq() -> Arc<ScriptedHq<()>> {
    let hq = ScriptedHq::new(());
    hq.memory.change(&[case("live", "d", false), case("deleted", "d", true), case("elsewhere", "e", false)]);
    hq
}

const ASKED: [&str; 4] = ["live", "deleted", "elsewhere", "never was"];

type Published = (BTreeSet<String>, BTreeSet<String>);

fn add(published: &mut Published, batch: RecordBatch) {
    published.0.extend(batch.records.into_iter().map(|record| format!("{}/{}", batch.domain, record.id)));
    published.1.extend(batch.tombstones.into_iter().map(|gone| format!("{}/{}", batch.domain, gone.id)));
}

#[tokio::test]
async fn what_is_asked_for_is_read_from_the_primary_and_acknowledged_when_it_is_safe() {
    let hq = hq();
    let mut world = World::start(hq.hq()).await;
    let asked = world.ask(request("d", &ASKED, false));
    let mut published = Published::default();
    let mut receipts = Vec::new();
    while published.0.len() < 2 {
        let (batch, receipt) = world.records().await;
        for lineage in batch.records.iter().filter_map(|record| record.lineage.as_ref()) {
            assert_eq!((lineage.topic.as_str(), lineage.published_us, lineage.fetched_us > 0), ("", 0, true));
        }
        add(&mut published, batch);
        receipts.push(receipt);
    }
    assert!(!asked.is_finished(), "nothing is safe yet");
    for receipt in receipts {
        receipt.acknowledge().await.unwrap();
    }
    tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    // Nothing is said of what the lake has no rows of.
    assert_eq!(published, (["d/live", "e/elsewhere"].map(str::to_owned).into(), BTreeSet::new()));
    let asked = hq.asked();
    let [Question::LatestCases(wanted)] = asked.as_slice() else { panic!("{asked:?}") };
    assert!(wanted.len() == 4 && wanted.iter().all(|one| one.deleted), "no replica is asked: {wanted:?}");
    world.end().await;
}

#[tokio::test]
async fn what_the_lake_has_and_hq_has_not_leaves() {
    let mut world = World::start(hq().hq()).await;
    let asked = world.ask(request("d", &ASKED, true));
    let mut published = Published::default();
    while !asked.is_finished() {
        tokio::select! {
            delivery = world.records.next() => {
                let delivery = delivery.unwrap().unwrap();
                add(&mut published, wire::decode(&delivery.payload).unwrap());
                delivery.receipt.acknowledge().await.unwrap();
            }
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    let gone = ["d/deleted", "d/elsewhere", "d/never was"].map(str::to_owned);
    assert_eq!(published, (["d/live", "e/elsewhere"].map(str::to_owned).into(), gone.into()));
    world.end().await;
}

#[tokio::test]
async fn what_is_not_taken_or_not_understood_is_done_with() {
    let hq = hq();
    let world = World::start(hq.hq()).await;
    tokio::time::timeout(PATIENCE, world.ask(request("f", &["live"], true))).await.unwrap().unwrap();
    let mut quarantine = world.queue.consumer(Stream::Quarantine, options("writer")).await.unwrap();
    let no_kind = wire::encode(&ChangeRequest { domain: "d".into(), ..ChangeRequest::default() });
    for payload in [Bytes::from_static(b"nonsense"), no_kind] {
        let queue = Arc::clone(&world.queue);
        let dedupe_id = format!("{payload:?}");
        let message = Message { subject: "lake.changes.d.case".into(), payload: payload.clone(), dedupe_id };
        let asked = tokio::spawn(async move { queue.publish(message).await });
        let delivery = tokio::time::timeout(PATIENCE, quarantine.next()).await.unwrap().unwrap().unwrap();
        let entry: Quarantined = wire::decode(&delivery.payload).unwrap();
        assert_eq!((entry.reason.as_str(), &entry.payload), ("change_request_malformed", &payload));
        delivery.receipt.acknowledge().await.unwrap();
        tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap().unwrap();
    }
    assert!(hq.asked().is_empty());
    world.end().await;
}

/// HQ panics when it is asked about one id: a bug somewhere on the way.
struct Trap;

#[async_trait::async_trait]
impl Script for Trap {
    async fn before(
        &self,
        question: &Question,
        _: &lake_simulated_hq::memory_hq::MemoryHq,
    ) -> Result<(), lake_hq::source::SourceError> {
        if let Question::LatestCases(wanted) = question {
            assert!(wanted.iter().all(|one| one.id != "trap"), "sprung");
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_id_that_makes_the_fetcher_fail_is_put_aside_and_the_others_come() {
    let hq = ScriptedHq::new(Trap);
    hq.memory.change(&[case("a", "d", false), case("b", "d", false)]);
    let mut world = World::start(hq.hq()).await;
    let mut quarantine = world.queue.consumer(Stream::Quarantine, options("writer")).await.unwrap();
    let asked = world.ask(request("d", &["a", "trap", "b"], false));
    let (mut published, mut aside) = (Published::default(), Vec::new());
    while !asked.is_finished() {
        tokio::select! {
            delivery = world.records.next() => {
                let delivery = delivery.unwrap().unwrap();
                add(&mut published, wire::decode(&delivery.payload).unwrap());
                delivery.receipt.acknowledge().await.unwrap();
            }
            delivery = quarantine.next() => {
                let delivery = delivery.unwrap().unwrap();
                aside.push(wire::decode::<Quarantined>(&delivery.payload).unwrap());
                delivery.receipt.acknowledge().await.unwrap();
            }
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    assert_eq!(published.0, ["d/a", "d/b"].map(str::to_owned).into());
    let aside: Vec<_> = aside.iter().map(|entry| (entry.id.as_str(), entry.reason.as_str())).collect();
    assert_eq!(aside, [("trap", "fetcher_failed")]);
    world.end().await;
}
