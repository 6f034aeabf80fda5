//! Reading documents of one kind and deciding what they mean. The record decides, never the message.
//!
//! That goes for the domain too: a row goes to, or leaves, the space that it names itself, whatever the message said, and only if that
//! space is taken. Ids are unique over all spaces of HQ, so the two differ only by error, and then the row is right. Limits of that: where there is
//! no row (any more), the domains that messages name are all there is. The id then leaves those spaces; should every message of a hard
//! deletion have named a wrong one, the row stays in its own until the lake is compared with HQ. And a message that names a space that is not
//! taken is not read at all.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use chrono::Utc;
use lake_hq::document_rules::{self, Disposition, TombstoneReason};
use lake_hq::documents::{ReadDocument, case};
use lake_hq::source::{CaseRows, Observation, Wanted, answer_bytes_max};
use lake_proto::queue::v1::{Lineage, Record, Tombstone};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Domain, Kind};
use lake_shared::quarantine::{self, DocumentIdentity, QuarantineEntry, Reason, Stage};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::coalesce::Change;
use crate::fetcher::{Fetcher, NotFetched, Stopping, unless_stopping};
use crate::metric_names;
use crate::publisher::{Destination, Outgoing};

mod forms;
mod locations;
pub(crate) mod portions;
mod subtree;
mod type_watch;

/// Ids of a batch, each with what the messages said of it.
pub(crate) type Changes = HashMap<String, Change>;

/// Documents and tombstones of a batch, and the records that cannot be published.
#[derive(Default)]
pub(crate) struct Fetched {
    pub(crate) outgoing: Outgoing,
    pub(crate) quarantined: Vec<QuarantineEntry>,
}

impl Fetched {
    /// Bytes of documents and of what is kept with entries of the quarantine.
    pub(crate) fn bytes(&self) -> usize {
        self.outgoing.bytes() + self.quarantined.iter().map(|entry| entry.payload.len()).sum::<usize>()
    }

    fn is_empty(&self) -> bool {
        self.outgoing.is_empty() && self.quarantined.is_empty()
    }
}

impl Fetcher {
    /// Reads the current state of these ids and publishes it as documents and tombstones, all of them at once.
    async fn fetch_portion(
        &self,
        kind: Kind,
        changes: Changes,
        shutdown: &CancellationToken,
    ) -> Result<(), NotFetched> {
        match kind {
            Kind::Case => self.fetch_cases(&changes, shutdown).await,
            Kind::Form => self.fetch_forms(changes, shutdown).await,
            Kind::Location => self.fetch_locations(changes, shutdown).await,
        }
    }

    /// Quarantines the records that cannot be published, then publishes the others; returns when all of them are safe on the queue.
    pub(crate) async fn publish(&self, fetched: Fetched, shutdown: &CancellationToken) -> Result<(), Stopping> {
        for entry in fetched.quarantined {
            quarantine::publish(&*self.queue, entry, shutdown).await?;
        }
        Ok(fetched.outgoing.publish(&*self.queue, self.options.max_records, shutdown).await?)
    }

    async fn fetch_cases(&self, changes: &Changes, shutdown: &CancellationToken) -> Result<(), NotFetched> {
        let (database, wanted) = (&self.hq.database, wanted(changes));
        let mut room = unless_stopping(self.rows_budget.reserve(answer_bytes_max(wanted.len())), shutdown).await?;
        let started = Instant::now();
        let observations = self.until_answered(shutdown, || database.latest_cases(&wanted)).await?;
        room.shrink(observations.iter().filter_map(|one| one.rows.as_ref()).map(CaseRows::memory).sum());
        let mut fetched = Fetched::default();
        // One by one: the rows of a case are gone when its document is there, which is smaller.
        for observation in observations {
            self.add_case(&mut fetched, changes, observation);
        }
        metrics::histogram!(metric_names::READ_SECONDS, "kind" => Kind::Case.name()).record(started.elapsed());
        Ok(self.publish(fetched, shutdown).await?)
    }

    fn add_case(&self, fetched: &mut Fetched, changes: &Changes, observation: Observation<CaseRows>) {
        let disposition = document_rules::of_case(observation.rows.as_ref());
        self.add(fetched, Kind::Case, changes, &observation.id, observation.observed_us, disposition, || {
            let read = observation.rows.as_ref().map(|rows| case::read(rows, self.case_options));
            read.map(FetchedDocument::from).unwrap_or_default()
        });
    }

    /// Adds what one observation means: a record, a tombstone, or nothing where the domain is not taken.
    #[allow(clippy::too_many_arguments, reason = "one observation, taken apart")]
    pub(crate) fn add(
        &self,
        fetched: &mut Fetched,
        kind: Kind,
        changes: &Changes,
        id: &str,
        observed_us: i64,
        disposition: Disposition,
        document: impl FnOnce() -> FetchedDocument,
    ) {
        let lineage = lineage(changes, id);
        let tombstone = |reason: &str, version_us| Tombstone {
            id: id.to_owned(),
            version_us,
            observed_us,
            reason: reason.to_owned(),
            lineage: Some(lineage.clone()),
        };
        match disposition {
            Disposition::Upsert { domain, .. } if !self.take.domain(domain.as_str()) => skipped("domain"),
            Disposition::Upsert { domain, document_type, version_us, .. } => {
                if !self.take.document_type(kind, &document_type) {
                    // It may have been of another type, which is taken: its row must leave that table.
                    let destination = Destination { domain, kind, document_type: None };
                    return fetched.outgoing.tombstone(destination, tombstone("type_not_taken", Some(version_us)));
                }
                let FetchedDocument { members, lacking } = document();
                let incomplete = lacking.as_ref().map(|lacking| lacking.reason.code().to_owned());
                if let Some(lacking) = lacking {
                    let lineage = lineage.clone();
                    fetched.quarantined.push(lacking.into_entry(kind, &domain, &document_type, id, lineage));
                }
                // A map of texts as keys can always be written.
                let document = serde_json::to_vec(&members).unwrap_or_default().into();
                let record =
                    Record { id: id.to_owned(), version_us, observed_us, document, lineage: Some(lineage), incomplete };
                let destination = Destination { domain, kind, document_type: Some(document_type) };
                fetched.outgoing.record(destination, record);
            }
            Disposition::Tombstone { reason, version_us, domain, document_type } => {
                let announced = || changes.get(id).into_iter().flat_map(Change::domains).map(Domain::from).collect();
                let domains: Vec<Domain> = domain.map_or_else(announced, |domain| vec![domain]);
                if domains.is_empty() {
                    // Neither row nor message names a domain. No live record is without one, so the id never was in the lake.
                    skipped("missing_without_domain");
                }
                let document_type = document_type.filter(|_| reason != TombstoneReason::Missing);
                for domain in domains {
                    if !self.take.domain(domain.as_str()) {
                        skipped("domain");
                        continue;
                    }
                    let destination = Destination { domain, kind, document_type: document_type.clone() };
                    fetched.outgoing.tombstone(destination, tombstone(reason.code(), version_us));
                }
            }
        }
    }
}

fn skipped(reason: &'static str) {
    metrics::counter!(metric_names::MESSAGES_SKIPPED_TOTAL, "reason" => reason).increment(1);
}

/// What was read of a record.
#[derive(Default)]
pub(crate) struct FetchedDocument {
    pub(crate) members: Map<String, Value>,
    /// What the document lacks; `None` where it is whole.
    pub(crate) lacking: Option<LackingPart>,
}

/// Why a document lacks a part of what HQ has. The record is put on the queue without it and marked, and the quarantine says so to an operator.
pub(crate) struct LackingPart {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// What could not be understood.
    pub(crate) payload: Bytes,
}

impl From<ReadDocument> for FetchedDocument {
    fn from(read: ReadDocument) -> Self {
        let lacking = read.unreadable.map(|error| LackingPart {
            reason: Reason::DocumentUnreadable,
            detail: Chain(&error).to_string(),
            payload: Bytes::new(),
        });
        Self { members: read.members, lacking }
    }
}

impl LackingPart {
    fn into_entry(
        self,
        kind: Kind,
        domain: &Domain,
        document_type: &DocumentType,
        id: &str,
        lineage: Lineage,
    ) -> QuarantineEntry {
        let document = DocumentIdentity {
            domain: domain.as_str().into(),
            kind: Some(kind),
            document_type: document_type.as_str().into(),
            id: id.into(),
        };
        let detail = format!("{kind} {id} of domain {domain}: {}", self.detail);
        QuarantineEntry::new(Stage::Fetcher, self.reason, detail)
            .document(document)
            .lineage(Some(lineage))
            .payload(self.payload)
    }
}

/// The lineage of an id whose record was read at this moment.
pub(crate) fn lineage(changes: &Changes, id: &str) -> Lineage {
    changes.get(id).map_or_else(|| lineage_now(&Lineage::default()), |change| lineage_now(&change.lineage))
}

/// The lineage of a record that was read, or could not be read, at this moment.
pub(crate) fn lineage_now(lineage: &Lineage) -> Lineage {
    Lineage { fetched_us: Utc::now().timestamp_micros(), ..lineage.clone() }
}

/// The ids to ask HQ for, each with the time of its newest message: a replica that is older than the message may not have the change.
pub(crate) fn wanted(changes: &Changes) -> Vec<Wanted> {
    let wanted = |(id, change): (&String, &Change)| Wanted {
        id: id.clone(),
        changed_us: change.lineage.published_us,
        deleted: change.deletion,
    };
    changes.iter().map(wanted).collect()
}

#[cfg(test)]
mod tests;
