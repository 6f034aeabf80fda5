//! Backfills of a whole writer, with a fetcher that is played here: it has the documents of two databases.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use futures::StreamExt;
use lake_proto::queue::v1::change_request::What;
use lake_proto::queue::v1::{ChangeRequest, RequestedIds, ScanReport, ScopeAnswer, ScopeQuestion, ShardEstimate};
use lake_shared::queue::memory::MemoryQueue;
use lake_shared::queue::{Broadcast, ConsumerOptions, Message, Stream};
use lake_shared::wire;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;
use crate::handle::test_writer::{PATIENCE, Running, space};
use crate::metastore::steering::{NewOperation, OperationKind, OperationTarget};

/// Documents of each database.
const DOCUMENTS: [(&str, i64); 2] = [("p1", 5), ("p2", 3)];
/// Documents of a stretch, whatever is asked for.
const STRETCH: i64 = 2;

/// What the fetcher was asked for.
#[derive(Default)]
struct Fetcher {
    /// Where stretches began, by database, in order.
    stretches: Mutex<BTreeMap<String, Vec<i64>>>,
    ids: Mutex<Vec<RequestedIds>>,
    /// Stretches that may be read.
    gate: Option<Semaphore>,
    /// Stretches that are reported twice.
    twice: AtomicUsize,
    /// Why nothing is scanned.
    refused: String,
}

impl Fetcher {
    fn gated() -> Self {
        Self { gate: Some(Semaphore::new(0)), ..Self::default() }
    }

    fn allow(&self, stretches: usize) {
        self.gate.as_ref().unwrap().add_permits(stretches);
    }

    fn stretches(&self) -> BTreeMap<String, Vec<i64>> {
        self.stretches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins to answer.
    fn start(self: &Arc<Self>, queue: &Arc<MemoryQueue>) -> [JoinHandle<()>; 2] {
        let (answering, reading) = (Arc::clone(queue), Arc::clone(queue));
        let fetcher = Arc::clone(self);
        let answers = tokio::spawn(async move {
            let mut questions = answering.listen("lake.ask.scope").await.unwrap();
            while let Some(heard) = questions.next().await {
                let Broadcast::Message { payload, .. } = heard else { continue };
                let question: ScopeQuestion = wire::decode(&payload).unwrap();
                let shard = |&(shard, documents): &(&str, i64)| ShardEstimate {
                    shard: shard.to_owned(),
                    documents: documents.unsigned_abs() - 1,
                };
                let answer = ScopeAnswer { shards: DOCUMENTS.iter().map(shard).collect(), refused: String::new() };
                let subject = format!("lake.answer.{}", question.question_id);
                answering.broadcast(&subject, wire::encode(&answer)).await.unwrap();
            }
        });
        let reads = tokio::spawn(async move {
            let options =
                ConsumerOptions { durable_name: "fetcher".into(), in_flight_max: 10, acknowledge_within: PATIENCE };
            let mut consumer = reading.consumer(Stream::Changes, options).await.unwrap();
            while let Some(Ok(delivery)) = consumer.next().await {
                let request: ChangeRequest = wire::decode(&delivery.payload).unwrap();
                fetcher.work(&reading, request).await;
                let _ = delivery.receipt.acknowledge().await;
            }
        });
        [answers, reads]
    }

    async fn work(&self, queue: &MemoryQueue, request: ChangeRequest) {
        let scan = match request.what.unwrap() {
            What::Ids(ids) => return self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(ids),
            What::Scan(scan) => scan,
            What::Compare(compare) => panic!("nothing is compared: {compare:?}"),
        };
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        {
            let mut stretches = self.stretches.lock().unwrap_or_else(PoisonError::into_inner);
            stretches.entry(scan.shard.clone()).or_default().push(scan.after);
        }
        let (_, last) = DOCUMENTS.into_iter().find(|(shard, _)| *shard == scan.shard).unwrap();
        let reached = (scan.after + STRETCH).min(last);
        let mut report = ScanReport {
            operation_id: request.operation_id,
            domain: request.domain,
            kind: request.kind,
            shard: scan.shard,
            after: scan.after,
            reached,
            finished: reached == last,
            documents: (reached - scan.after).unsigned_abs(),
            refused: String::new(),
        };
        if !self.refused.is_empty() {
            report = ScanReport { refused: self.refused.clone(), reached: scan.after, documents: 0, ..report };
        }
        let again = self.twice.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        for number in 0..=usize::from(again) {
            let dedupe_id = format!("{}-{}-{}-{number}", report.operation_id, report.shard, report.after);
            let payload = wire::encode(&report);
            queue.publish(Message { subject: "lake.reports.demo.case".into(), payload, dedupe_id }).await.unwrap();
        }
    }
}

fn asked(request_id: &str, scope: &BackfillScope, consent: Consent) -> NewOperation {
    NewOperation {
        request_id: request_id.into(),
        kind: OperationKind::Backfill,
        target: OperationTarget::space(space()),
        asked_by: "test".into(),
        consent,
        details: scope.details(),
    }
}

async fn until(
    metastore: &dyn Metastore,
    id: &str,
    what: &str,
    is_so: impl Fn(&OperationRecord) -> bool,
) -> OperationRecord {
    let waiting = async {
        loop {
            let now = metastore.operation(id).await.unwrap().unwrap();
            if is_so(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

fn whole_read() -> BTreeMap<String, Vec<i64>> {
    BTreeMap::from([("p1".to_owned(), vec![0, 2, 4]), ("p2".to_owned(), vec![0, 2])])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_database_is_read_to_its_end_stretch_by_stretch() {
    let folder = TempDir::new().unwrap();
    let running = Running::start(&folder, "w", "").await;
    let fetcher = Arc::new(Fetcher { twice: AtomicUsize::new(3), ..Fetcher::default() });
    let played = fetcher.start(&running.queue);
    let metastore = &*running.metastore;
    let planned = metastore.ask_operation(&asked("plan", &BackfillScope::default(), Consent::DryRun)).await.unwrap();
    let planned = until(metastore, &planned.id, "the plan", |now| now.state.is_end()).await;
    assert_eq!(planned.result, r#"{"documents":6,"documents_in_p1":4,"documents_in_p2":2}"#, "{planned:?}");
    assert_eq!(fetcher.stretches(), BTreeMap::new(), "nothing was asked for");
    let begun = metastore.ask_operation(&asked("fill", &BackfillScope::default(), Consent::Given)).await.unwrap();
    let ended = until(metastore, &begun.id, "the end", |now| now.state.is_end()).await;
    // The planner had guessed less than there is, and some reports came twice.
    assert_eq!((ended.state, ended.done, ended.total), (OperationState::Succeeded, 8, Some(8)));
    assert_eq!(ended.result, r#"{"documents":8,"parts":2}"#);
    assert_eq!(fetcher.stretches(), whole_read());
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_rests_and_survives_its_writer_where_it_stands() {
    let folder = TempDir::new().unwrap();
    let running = Running::start(&folder, "first", "").await;
    let fetcher = Arc::new(Fetcher::gated());
    let played = fetcher.start(&running.queue);
    let metastore = Arc::clone(&running.metastore);
    let begun = metastore.ask_operation(&asked("fill", &BackfillScope::default(), Consent::Given)).await.unwrap();
    fetcher.allow(2);
    until(&*metastore, &begun.id, "its beginning", |now| now.done > 0).await;
    metastore.pause_backfill(&begun.id).await.unwrap();
    until(&*metastore, &begun.id, "its rest", |now| now.state == OperationState::Paused).await;
    // What was asked for before is read to its end, and counts.
    fetcher.allow(2);
    let counted = async {
        while metastore.backfill_parts(&begun.id).await.unwrap().iter().map(|part| part.documents).sum::<i64>() < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    metastore.resume_backfill(&begun.id).await.unwrap();
    until(&*metastore, &begun.id, "that it goes on", |now| now.state == OperationState::Running).await;
    // Its writer ends without having heard of the last stretch.
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
    let running = Running::start(&folder, "second", "").await;
    let played = fetcher.start(&running.queue);
    fetcher.allow(100);
    let ended = until(&*running.metastore, &begun.id, "the end", |now| now.state.is_end()).await;
    assert_eq!((ended.state, ended.done), (OperationState::Succeeded, 8), "{ended:?}");
    for (shard, places) in fetcher.stretches() {
        let mut each = places.clone();
        each.dedup();
        assert_eq!(each, whole_read()[&shard], "the last stretch may be read twice, none is left out: {places:?}");
    }
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_be_read_fails_and_one_that_is_cancelled_ends() {
    let folder = TempDir::new().unwrap();
    let running = Running::start(&folder, "w", "").await;
    let metastore = &*running.metastore;
    // Nobody is there who could say how much there is.
    let alone = metastore.ask_operation(&asked("alone", &BackfillScope::default(), Consent::Given)).await.unwrap();
    until(metastore, &alone.id, "its beginning", |now| now.state == OperationState::Running).await;
    metastore.cancel_operation(&alone.id).await.unwrap();
    until(metastore, &alone.id, "its end", |now| now.state == OperationState::Cancelled).await;
    let fetcher = Arc::new(Fetcher { refused: "HQ has no such database".into(), ..Fetcher::default() });
    let played = fetcher.start(&running.queue);
    let begun = metastore.ask_operation(&asked("fill", &BackfillScope::default(), Consent::Given)).await.unwrap();
    let ended = until(metastore, &begun.id, "the end", |now| now.state.is_end()).await;
    assert_eq!(ended.state, OperationState::Failed);
    assert!(ended.reason.contains("HQ has no such database") && ended.reason.starts_with('p'), "{}", ended.reason);
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_asked_for_by_whether_the_lake_has_them() {
    let folder = TempDir::new().unwrap();
    let running = Running::start(&folder, "w", "").await;
    running.publish("person", &["a", "b"], 1).await;
    let fetcher = Arc::new(Fetcher::default());
    let played = fetcher.start(&running.queue);
    let metastore = &*running.metastore;
    let ids = ["a", "never was", "b"].map(str::to_owned).to_vec();
    let scope = BackfillScope { ids, ..BackfillScope::default() };
    let planned = metastore.ask_operation(&asked("plan", &scope, Consent::DryRun)).await.unwrap();
    let planned = until(metastore, &planned.id, "the plan", |now| now.state.is_end()).await;
    assert_eq!(planned.result, r#"{"ids":3,"ids_in_lake":2}"#);
    let begun = metastore.ask_operation(&asked("fill", &scope, Consent::Given)).await.unwrap();
    let ended = until(metastore, &begun.id, "the end", |now| now.state.is_end()).await;
    assert_eq!((ended.state, ended.done), (OperationState::Succeeded, 3));
    let mut asked = fetcher.ids.lock().unwrap_or_else(PoisonError::into_inner).clone();
    asked.sort_by_key(|of| of.in_lake);
    let asked: Vec<(Vec<String>, bool)> = asked.into_iter().map(|of| (of.ids, of.in_lake)).collect();
    let (absent, there) = (vec!["never was".to_owned()], ["a", "b"].map(str::to_owned).to_vec());
    assert_eq!(asked, [(absent, false), (there, true)]);
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
}
