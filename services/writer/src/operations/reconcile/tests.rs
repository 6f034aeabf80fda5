//! Comparisons of a whole writer, with a fetcher that is played here: it knows what HQ has.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt;
use lake_proto::queue::v1::change_request::What;
use lake_proto::queue::v1::compare::What as Compared;
use lake_proto::queue::v1::{
    ChangeCause, ChangeRequest, Compare, CompareAnswer, ComparedState, ComparedTypes, RequestedIds, ScopeAnswer,
    ScopeQuestion, ShardEstimate,
};
use lake_shared::comparison::{BucketSums, ComparedDocument, bucket};
use lake_shared::queue::memory::MemoryQueue;
use lake_shared::queue::{Broadcast, ConsumerOptions, Stream};
use lake_shared::wire;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::consent::Consent;
use crate::handle::test_writer::{PATIENCE, Running, space};
use crate::metastore::steering::{NewOperation, OperationKind, OperationTarget};

/// Documents of an answer.
const STRETCH: usize = 2;

/// HQ with one database, as a fetcher tells of it.
#[derive(Default)]
struct Fetcher {
    /// Types by id.
    documents: Mutex<BTreeMap<String, String>>,
    /// What was to be read again.
    read: Mutex<Vec<(bool, Vec<String>)>>,
    /// The types that it takes; empty: all.
    takes: Vec<String>,
    refused: String,
}

impl Fetcher {
    fn with(documents: &[(&str, &str)]) -> Self {
        let documents = documents.iter().map(|&(id, name)| (id.to_owned(), name.to_owned())).collect();
        Self { documents: Mutex::new(documents), ..Self::default() }
    }

    fn documents(&self) -> Vec<(String, String)> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter().collect()
    }

    fn read(&self) -> Vec<(bool, Vec<String>)> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins to answer.
    fn start(self: &Arc<Self>, queue: &Arc<MemoryQueue>) -> [JoinHandle<()>; 2] {
        let (answering, reading, fetcher) = (Arc::clone(queue), Arc::clone(queue), Arc::clone(self));
        let documents = self.documents().len() as u64;
        let answers = tokio::spawn(async move {
            let mut questions = answering.listen("lake.ask.scope").await.unwrap();
            while let Some(heard) = questions.next().await {
                let Broadcast::Message { payload, .. } = heard else { continue };
                let question: ScopeQuestion = wire::decode(&payload).unwrap();
                let shards = vec![ShardEstimate { shard: "p1".into(), documents }];
                let answer = wire::encode(&ScopeAnswer { shards, refused: String::new() });
                answering.broadcast(&format!("lake.answer.{}", question.question_id), answer).await.unwrap();
            }
        });
        let reads = tokio::spawn(async move {
            let options =
                ConsumerOptions { durable_name: "fetcher".into(), in_flight_max: 10, acknowledge_within: PATIENCE };
            let mut consumer = reading.consumer(Stream::Changes, options).await.unwrap();
            while let Some(Ok(delivery)) = consumer.next().await {
                let request: ChangeRequest = wire::decode(&delivery.payload).unwrap();
                assert_eq!(request.cause(), ChangeCause::Reconcile);
                match request.what.unwrap() {
                    What::Compare(compare) => {
                        let subject = format!("lake.answer.{}", compare.question_id);
                        let answer = wire::encode(&fetcher.answer(compare));
                        reading.broadcast(&subject, answer).await.unwrap();
                    }
                    What::Ids(RequestedIds { ids, in_lake }) => {
                        fetcher.read.lock().unwrap_or_else(PoisonError::into_inner).push((in_lake, ids));
                    }
                    What::Scan(scan) => panic!("{scan:?}"),
                }
                let _ = delivery.receipt.acknowledge().await;
            }
        });
        [answers, reads]
    }

    fn answer(&self, asked: Compare) -> CompareAnswer {
        let types = (!self.takes.is_empty()).then(|| ComparedTypes { names: self.takes.clone() });
        let is_taken = |name: &String| self.takes.is_empty() || self.takes.contains(name);
        let all: Vec<_> = self.documents().into_iter().filter(|(_, name)| is_taken(name)).collect();
        let state = |(id, name): &(String, String)| {
            let fingerprint = ComparedDocument { id, document_type: name, times_us: [None, None] }.fingerprint();
            ComparedState { id: id.clone(), r#type: name.clone(), fingerprint, saved_us: None }
        };
        let answer = CompareAnswer { refused: self.refused.clone(), types, ..CompareAnswer::default() };
        match asked.what.unwrap() {
            Compared::Ids(wanted) => {
                let states = all.iter().filter(|(id, _)| wanted.ids.contains(id)).map(state).collect();
                CompareAnswer { states, finished: true, ..answer }
            }
            Compared::Stretch(stretch) => {
                let first = usize::try_from(stretch.after).unwrap();
                let of_stretch: Vec<_> = all.iter().skip(first).take(STRETCH).collect();
                let mut sums = BucketSums::new(stretch.bucket_count);
                let is_meant = |id: &str| stretch.buckets.contains(&bucket(id, stretch.bucket_count));
                for (id, name) in of_stretch.iter().copied().filter(|_| stretch.buckets.is_empty()) {
                    sums.add(&ComparedDocument { id, document_type: name, times_us: [None, None] });
                }
                let states = of_stretch.iter().copied().filter(|(id, _)| is_meant(id)).map(state).collect();
                let reached = (first + of_stretch.len()) as i64;
                let finished = reached as usize == all.len();
                CompareAnswer { sums: sums.to_proto(), states, reached, finished, ..answer }
            }
        }
    }
}

async fn compared(running: &Running, request_id: &str, scope: &ReconcileScope) -> OperationRecord {
    let new = NewOperation {
        request_id: request_id.into(),
        kind: OperationKind::Reconcile,
        target: OperationTarget::space(space()),
        asked_by: "test".into(),
        consent: Consent::Given,
        details: scope.details(),
    };
    let asked = running.metastore.ask_operation(&new).await.unwrap();
    let waiting = async {
        loop {
            let now = running.metastore.operation(&asked.id).await.unwrap().unwrap();
            if now.state.is_end() {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap()
}

async fn classes(running: &Running, ended: &OperationRecord) -> Vec<(String, &'static str)> {
    let found = running.metastore.differences(&ended.id, "", 1_000).await.unwrap();
    found.into_iter().map(|of| (of.id, of.class.code())).collect()
}

fn figure(ended: &OperationRecord, name: &str) -> u64 {
    let figures: Figures = serde_json::from_str(&ended.result).unwrap();
    figures[name]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_found_and_asked_for_only_when_it_is_to_be_healed() {
    let folder = TempDir::new().unwrap();
    let running = Running::start(&folder, "w", "").await;
    running.publish("person", &["same", "extra", "moved", "same too"], 1).await;
    let hq = [("missing", "person"), ("moved", "child"), ("same", "person"), ("same too", "person")];
    let fetcher = Arc::new(Fetcher::with(&hq));
    let played = fetcher.start(&running.queue);
    let ended = compared(&running, "look", &ReconcileScope::default()).await;
    assert_eq!((ended.state, ended.done), (OperationState::Succeeded, 4), "{ended:?}");
    let expected = [("extra", "extra"), ("missing", "missing"), ("moved", "moved")];
    let expected = expected.map(|(id, class)| (id.to_owned(), class));
    assert_eq!(classes(&running, &ended).await, expected);
    let figures = ["documents_in_hq", "documents_in_lake", "differences", "missing", "buckets_left", "read_again"];
    assert_eq!(figures.map(|name| figure(&ended, name)), [4, 4, 3, 1, 0, 0]);
    assert!(ended.reason.contains("3 documents differ; nothing was changed"), "{}", ended.reason);
    assert_eq!(fetcher.read(), [], "nothing is read");
    let healed = compared(&running, "heal", &ReconcileScope { heal: true, ..ReconcileScope::default() }).await;
    assert_eq!((healed.state, figure(&healed, "read_again")), (OperationState::Succeeded, 3), "{healed:?}");
    let mut read = fetcher.read();
    read.sort();
    let ids = |of: &[&str]| of.iter().map(|&id| id.to_owned()).collect::<Vec<_>>();
    assert_eq!(read, [(false, ids(&["missing"])), (true, ids(&["extra", "moved"]))]);
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_taken_and_asked_for_is_compared() {
    let folder = TempDir::new().unwrap();
    let running = Running::start(&folder, "w", "").await;
    running.publish("person", &["a", "b", "c"], 1).await;
    running.publish("left out", &["d"], 1).await;
    let hq = [("a", "person"), ("b", "person"), ("c", "person"), ("e", "of no interest")];
    let fetcher = Arc::new(Fetcher { takes: vec!["person".into()], ..Fetcher::with(&hq) });
    let played = fetcher.start(&running.queue);
    let ended = compared(&running, "look", &ReconcileScope::default()).await;
    assert_eq!((ended.state, ended.reason.as_str()), (OperationState::Succeeded, ""), "{ended:?}");
    assert_eq!((figure(&ended, "differences"), figure(&ended, "documents_in_lake")), (0, 3));
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_refused_fails_and_one_that_nobody_answers_is_cancelled() {
    let folder = TempDir::new().unwrap();
    let running = Running::start(&folder, "w", "").await;
    let metastore = Arc::clone(&running.metastore);
    let alone = async {
        loop {
            let open = metastore.requested_operation("alone").await.unwrap();
            if let Some(open) = open.filter(|open| open.state == OperationState::Running) {
                return metastore.cancel_operation(&open.id).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let scope = ReconcileScope::default();
    let (ended, _) = tokio::join!(compared(&running, "alone", &scope), alone);
    assert_eq!(ended.state, OperationState::Cancelled, "{ended:?}");
    let fetcher = Arc::new(Fetcher { refused: "HQ has no such database".into(), ..Fetcher::with(&[("a", "t")]) });
    let played = fetcher.start(&running.queue);
    let ended = compared(&running, "refused", &scope).await;
    assert_eq!((ended.state, ended.reason.as_str()), (OperationState::Failed, "HQ has no such database"));
    running.end().await;
    played.iter().for_each(JoinHandle::abort);
}
