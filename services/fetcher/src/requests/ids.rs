//! Documents that are asked for by their ids.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use lake_proto::queue::v1::RequestedIds;
use lake_shared::panics;
use lake_shared::quarantine::{self, DocumentIdentity, QuarantineEntry, Reason, Stage};

use super::{Asker, RequestReader, behind_live};
use crate::coalesce::Change;
use crate::fetch::lineage_now;
use crate::fetcher::Stopping;
use crate::metric_names;

/// Portions of a message that are read at the same time: while one waits for HQ, another is made into documents.
const PORTIONS_AT_ONCE: usize = 2;

/// A document that is asked for.
pub(super) type Requested = (String, Change);

impl RequestReader {
    /// Reads these ids and publishes what HQ has of them; returns when all of it is safe on the queue.
    pub(super) async fn fetch_ids(&self, asker: &Asker, requested: RequestedIds) -> Result<(), Stopping> {
        let RequestedIds { ids, in_lake } = requested;
        let mut seen = HashSet::with_capacity(ids.len());
        let ids = ids.into_iter().filter(|id| seen.insert(id.clone()));
        let requested = ids.map(|id| (id, Change::of_lake(asker.domain.as_str(), in_lake))).collect();
        self.fetch_requested(asker, requested).await
    }

    /// Reads these documents, in portions, a few of them at the same time.
    pub(super) async fn fetch_requested(&self, asker: &Asker, mut rest: Vec<Requested>) -> Result<(), Stopping> {
        let mut portions = Vec::new();
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(self.fetcher.options.max_records));
            portions.push(std::mem::replace(&mut rest, later));
        }
        let reading = stream::iter(portions).map(|portion| self.fetch_in_turn(asker, portion));
        reading.buffer_unordered(PORTIONS_AT_ONCE).try_collect().await
    }

    /// Reads a portion when it is its turn, or as much of it at a time as is left of its domain's share.
    async fn fetch_in_turn(&self, asker: &Asker, mut rest: Vec<Requested>) -> Result<(), Stopping> {
        while !rest.is_empty() {
            let wanted = rest.len();
            let count = behind_live::turn(&self.pace, &asker.domain, wanted, &self.shutdown).await?;
            let later = rest.split_off(count.min(wanted));
            self.fetch_isolated(asker, std::mem::replace(&mut rest, later)).await?;
        }
        Ok(())
    }

    /// Reads a portion. Should that panic, which is a bug, the portion is halved down to the id that causes it, which goes to quarantine.
    async fn fetch_isolated(&self, asker: &Asker, portion: Vec<Requested>) -> Result<(), Stopping> {
        let count = portion.len() as u64;
        let mut open = vec![portion];
        while let Some(mut portion) = open.pop() {
            let reading = AssertUnwindSafe(self.fetch_portion(asker, portion.clone()));
            match reading.catch_unwind().await.map_err(|panic| panics::text(&*panic).to_owned()) {
                Ok(read) => read?,
                Err(panic) if portion.len() > 1 => {
                    tracing::error!(
                        documents = portion.len(),
                        panic,
                        "bug: documents that were asked for make the fetcher fail; they are halved"
                    );
                    let half = portion.split_off(portion.len() / 2);
                    open.extend([half, portion]);
                }
                Err(panic) => {
                    for (id, change) in portion {
                        let entry = failed(asker, id, &change, &panic);
                        quarantine::publish(&*self.fetcher.queue, entry, &self.shutdown).await?;
                    }
                }
            }
        }
        let (kind, cause) = (asker.kind.name(), asker.cause_name());
        metrics::counter!(metric_names::REQUESTED_TOTAL, "kind" => kind, "cause" => cause).increment(count);
        Ok(())
    }

    async fn fetch_portion(&self, asker: &Asker, portion: Vec<Requested>) -> Result<(), Stopping> {
        let alone = self.fetcher.fetch(asker.kind, portion.into_iter().collect(), &self.shutdown).await?;
        self.fetcher.fetch_alone(alone, &self.shutdown).await
    }
}

/// The quarantine's entry of an id that makes the fetcher fail.
fn failed(asker: &Asker, id: String, change: &Change, panic: &str) -> QuarantineEntry {
    let Asker { domain, kind, .. } = asker;
    let detail = format!("{kind} {id:?} of domain {domain}, which the lake asked for: {panic}");
    let document =
        DocumentIdentity { domain: domain.to_string(), kind: Some(*kind), id, ..DocumentIdentity::default() };
    let lineage = Some(lineage_now(&change.lineage));
    QuarantineEntry::new(Stage::Fetcher, Reason::FetcherFailed, detail).document(document).lineage(lineage)
}
