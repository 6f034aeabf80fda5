//! Asks fetchers to read documents from HQ again: [`request_changes`].

use futures::{StreamExt, TryStreamExt};
use lake_proto::queue::v1::change_request::What;
use lake_proto::queue::v1::{ChangeCause, ChangeRequest, RequestedIds};
use lake_shared::identity::Space;
use lake_shared::queue::{Message, PublishError, Queue, publish_until_safe};
use lake_shared::{escaped_names, wire};
use tokio_util::sync::CancellationToken;

use crate::metric_names;

/// Most ids of a message.
const IDS_MAX: usize = 1_000;
/// Most bytes of ids of a message, unless it has a single one.
const IDS_BYTES_MAX: usize = 256 << 10;
/// Messages that are published at the same time: in one process each waits until its records are in the lake.
const PUBLISHED_AT_ONCE: usize = 4;

/// Who asks, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// What for.
    pub cause: ChangeCause,
    /// The operation that asks; empty where none does.
    pub operation_id: String,
}

impl Requester {
    /// Value of a metric's label.
    fn cause_name(&self) -> &'static str {
        match self.cause {
            ChangeCause::Unspecified => "unknown",
            ChangeCause::Backfill => "backfill",
            ChangeCause::Replay => "replay",
            ChangeCause::Reconcile => "reconcile",
            ChangeCause::Restore => "restore",
        }
    }
}

/// Documents that are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedDocuments {
    /// Project space and kind that they belong to, or should.
    pub space: Space,
    /// Their ids, in any order.
    pub ids: Vec<String>,
    /// Whether the lake may have rows of them: then an id that HQ does not have, or not live, leaves the lake. Otherwise nothing comes of it.
    pub in_lake: bool,
}

/// Asks fetchers to read these documents from HQ, behind HQ's own messages; returns when the requests are safe. Where the queue is in one process,
/// that is when everything that came of them is in the lake. The same request again by the same operation changes nothing; within the
/// queue's dedupe window it is not even read again. Answers with the number of ids.
///
/// # Errors
/// [`PublishError::Closed`] when `shutdown` comes first or the queue is closed; [`PublishError::TooLarge`] for an id that fits into no message.
pub async fn request_changes(
    queue: &dyn Queue,
    requester: &Requester,
    documents: RequestedDocuments,
    shutdown: &CancellationToken,
) -> Result<usize, PublishError> {
    let RequestedDocuments { space, mut ids, in_lake } = documents;
    // The same ids make the same messages, whatever their order.
    ids.sort_unstable();
    ids.dedup();
    let count = ids.len();
    let publish = |ids: Vec<String>| publish_until_safe(queue, message(requester, &space, ids, in_lake), shutdown);
    let publishing = futures::stream::iter(portions(ids)).map(publish).buffer_unordered(PUBLISHED_AT_ONCE);
    publishing.try_collect::<()>().await?;
    let (kind, cause) = (space.kind.name(), requester.cause_name());
    metrics::counter!(metric_names::REQUESTED_TOTAL, "kind" => kind, "cause" => cause).increment(count as u64);
    Ok(count)
}

/// Ids in portions that fit into a message.
fn portions(ids: Vec<String>) -> Vec<Vec<String>> {
    let (mut portions, mut bytes) = (Vec::<Vec<String>>::new(), 0);
    for id in ids {
        bytes += id.len();
        match portions.last_mut() {
            Some(last) if last.len() < IDS_MAX && bytes <= IDS_BYTES_MAX => last.push(id),
            _ => {
                bytes = id.len();
                portions.push(vec![id]);
            }
        }
    }
    portions
}

fn message(requester: &Requester, space: &Space, ids: Vec<String>, in_lake: bool) -> Message {
    let Requester { cause, operation_id } = requester;
    let identity = format!("{}\0{operation_id}\0{space}\0{in_lake}\0{}", cause.as_str_name(), ids.join("\0"));
    let request = ChangeRequest {
        domain: space.domain.as_str().to_owned(),
        kind: space.kind.to_proto().into(),
        cause: (*cause).into(),
        operation_id: operation_id.clone(),
        what: Some(What::Ids(RequestedIds { ids, in_lake })),
    };
    Message {
        subject: escaped_names::changes_subject(&space.domain, space.kind),
        payload: wire::encode(&request),
        dedupe_id: format!("ids-{}", escaped_names::fingerprint(&identity)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use lake_shared::identity::Kind;
    use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
    use lake_shared::queue::{ConsumerOptions, Stream};
    use lake_test_kit::recording_queue::RecordingQueue;

    use super::*;

    fn requester() -> Requester {
        Requester { cause: ChangeCause::Reconcile, operation_id: "o".into() }
    }

    fn documents(ids: impl IntoIterator<Item = String>) -> RequestedDocuments {
        let space = Space { domain: "d.x".into(), kind: Kind::Case };
        RequestedDocuments { space, ids: ids.into_iter().collect(), in_lake: true }
    }

    #[tokio::test]
    async fn every_id_is_asked_for_once_in_messages_that_fit() {
        let queue = RecordingQueue::default();
        let long = |number: usize| format!("{}{number}", "x".repeat(1_000));
        let ids = (0..2_500).map(|number| number.to_string()).chain((0..600).map(long)).chain(["7".to_owned()]);
        let asked = request_changes(&queue, &requester(), documents(ids), &CancellationToken::new()).await.unwrap();
        let requests = queue.payloads("lake.changes.d~2Ex.case");
        let requests: Vec<ChangeRequest> = requests.iter().map(|payload| wire::decode(payload).unwrap()).collect();
        let ids_of = |request: &ChangeRequest| match &request.what {
            Some(What::Ids(RequestedIds { ids, in_lake: true })) => ids.clone(),
            other => panic!("{other:?}"),
        };
        let all: Vec<String> = requests.iter().flat_map(ids_of).collect();
        assert_eq!((asked, all.len(), all.iter().collect::<BTreeSet<_>>().len()), (3_100, 3_100, 3_100));
        for request in &requests {
            let bytes: usize = ids_of(request).iter().map(String::len).sum();
            assert!(ids_of(request).len() <= IDS_MAX && bytes <= IDS_BYTES_MAX);
            assert_eq!((request.cause(), request.operation_id.as_str()), (ChangeCause::Reconcile, "o"));
        }
    }

    #[tokio::test]
    async fn the_same_request_again_is_not_read_again_and_that_of_another_operation_is() {
        let queue = MemoryQueue::new(MemoryQueueOptions::default());
        let options = ConsumerOptions {
            durable_name: "fetcher".into(),
            in_flight_max: 10,
            acknowledge_within: std::time::Duration::from_secs(60),
        };
        let mut consumer = queue.consumer(Stream::Changes, options).await.unwrap();
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            while let Some(Ok(delivery)) = consumer.next().await {
                read.push(wire::decode::<ChangeRequest>(&delivery.payload).unwrap().operation_id);
                delivery.receipt.acknowledge().await.unwrap();
            }
            read
        });
        let other = Requester { operation_id: "other".into(), ..requester() };
        let shutdown = CancellationToken::new();
        for (who, ids) in [(requester(), ["a", "b"]), (requester(), ["b", "a"]), (other, ["a", "b"])] {
            request_changes(&*queue, &who, documents(ids.map(str::to_owned)), &shutdown).await.unwrap();
        }
        queue.close();
        assert_eq!(reading.await.unwrap(), ["o", "other"]);
    }
}
