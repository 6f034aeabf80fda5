//! From the stream of reports into the metastore: how far fetchers have come with what backfills asked for. A report is acknowledged when it is kept.
//! Every writer keeps reports, also one that stands by; the one that holds the lease looks there.

use std::sync::Arc;
use std::time::Duration;

use lake_proto::queue::v1::ScanReport;
use lake_shared::error_chain::Chain;
use lake_shared::identity::Kind;
use lake_shared::queue::{ConsumerOptions, Delivery, Queue, Stream};
use lake_shared::retry::Backoff;
use lake_shared::wire;
use tokio_util::sync::CancellationToken;

use crate::metastore::Metastore;
use crate::metastore::backfills::StretchRead;
use crate::metric_names;

/// Most reports that are handed out and not yet kept.
const IN_FLIGHT_MAX: usize = 64;
/// After this time without an acknowledgement the queue hands a report out again.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(30);

/// Keeps reports until `shutdown` or until the queue is closed. Passing trouble is waited out.
pub(crate) async fn run(queue: Arc<dyn Queue>, metastore: Arc<dyn Metastore>, shutdown: CancellationToken) {
    let options = ConsumerOptions {
        durable_name: "backfills".into(),
        in_flight_max: IN_FLIGHT_MAX,
        acknowledge_within: ACKNOWLEDGE_WITHIN,
    };
    let mut backoff = Backoff::default();
    let mut consumer = loop {
        match queue.consumer(Stream::Reports, options.clone()).await {
            Ok(consumer) => break consumer,
            Err(error) => tracing::warn!(%error, "reports of fetchers cannot be read yet"),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await.is_none() {
            return;
        }
    };
    loop {
        match shutdown.run_until_cancelled(consumer.next()).await.flatten() {
            None => return,
            Some(Ok(delivery)) => {
                keep(&*metastore, delivery).await;
                backoff = Backoff::default();
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "reports of fetchers cannot be read now");
                shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await;
            }
        }
    }
}

async fn keep(metastore: &dyn Metastore, delivery: Delivery) {
    let report = match wire::decode::<ScanReport>(&delivery.payload) {
        Ok(report) => report,
        Err(error) => {
            // Nothing is lost: the stretch is asked for again when nothing was heard of it for long.
            let subject = delivery.subject;
            tracing::error!(%error, subject, "a report of a fetcher cannot be understood; have fetcher and writer compatible versions?");
            if let Err(error) = delivery.receipt.acknowledge().await {
                tracing::debug!(%error, "a report will come again");
            }
            return;
        }
    };
    let kind = Kind::from_proto(report.kind).map_or("unknown", Kind::name);
    let documents = report.documents;
    let answered = match metastore.stretch_was_read(&stretch(report)).await {
        Ok(counts) => {
            if counts {
                metrics::counter!(metric_names::BACKFILLED_TOTAL, "kind" => kind).increment(documents);
            }
            delivery.receipt.acknowledge().await
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "a report of a fetcher cannot be kept now");
            delivery.receipt.retry(Duration::from_secs(1)).await
        }
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "a report will come again, which does no harm");
    }
}

fn stretch(report: ScanReport) -> StretchRead {
    let ScanReport { operation_id, shard, after, reached, finished, documents, refused, .. } = report;
    let documents = i64::try_from(documents).unwrap_or(i64::MAX);
    StretchRead { operation_id, part: shard, after, reached, documents, finished, refused }
}
