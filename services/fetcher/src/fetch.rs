//! Reading documents of one kind and deciding what they mean. The record decides, never the message.
//!
//! That goes for the domain too: a row goes to, or leaves, the space that it names itself, whatever the message said, and only if that
//! space is taken. Ids are unique over all spaces of HQ, so the two differ only by error, and then the row is right. Limits of that: where there is
//! no row (any more), the domains that messages name are all there is. The id then leaves those spaces; should every message of a hard
//! deletion have named a wrong one, the row stays in its own until the lake is compared with HQ. And a message that names a space that is not
//! taken is not read at all.
//!
//! What the lake itself asks for ([`Origin::Lake`](crate::coalesce::Origin)) is read in the same way. It says whether the lake may have a row of the
//! id: where not, there is nothing to take out, and an id that HQ does not know leaves no tombstone behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chrono::Utc;
use lake_hq::document_rules::{self, Disposition, TombstoneReason};
use lake_hq::documents::{ReadDocument, case};
use lake_hq::source::{CaseRows, Hindrance, Observation, SourceError, Wanted, answer_bytes_max};
use lake_proto::queue::v1::{Lineage, Record, Tombstone};
use lake_shared::byte_budget::Reservation;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Domain, Kind};
use lake_shared::quarantine::{self, DocumentIdentity, QuarantineEntry, Reason, Stage};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::coalesce::{Change, Origin};
use crate::fetcher::{Fetcher, NotFetched, Stopping, Unanswered, unless_stopping};
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
        let entries = fetched.outgoing.entries();
        fetched.outgoing.publish(&*self.queue, self.options.max_records, shutdown).await?;
        self.activity.passed(entries);
        Ok(())
    }

    async fn fetch_cases(&self, changes: &Changes, shutdown: &CancellationToken) -> Result<(), NotFetched> {
        let started = Instant::now();
        let database = &self.hq.database;
        let read = |wanted: Arc<[Wanted]>| async move { database.latest_cases(&wanted).await };
        let (observations, _room) = self.read_rows(wanted(changes), CaseRows::memory, read, shutdown).await?;
        let mut fetched = Fetched::default();
        // One by one: the rows of a case are gone when its document is there, which is smaller.
        for observation in observations {
            self.add_case(&mut fetched, changes, observation);
        }
        metrics::histogram!(metric_names::READ_SECONDS, "kind" => Kind::Case.name()).record(started.elapsed());
        Ok(self.publish(fetched, shutdown).await?)
    }

    /// Reads rows of HQ's tables into memory that was set aside before. The answer about several ids is bounded, and so is that about a single one at
    /// first: only a record that is known to be large waits for the memory of one that is read alone.
    async fn read_rows<T, F>(
        &self,
        mut wanted: Vec<Wanted>,
        memory: impl Fn(&T) -> usize,
        read: impl Fn(Arc<[Wanted]>) -> F,
        shutdown: &CancellationToken,
    ) -> Result<(Vec<Observation<T>>, Reservation), NotFetched>
    where
        F: Future<Output = Result<Vec<Observation<T>>, SourceError>>,
    {
        let mut room = unless_stopping(self.rows_budget.reserve(answer_bytes_max(wanted.len())), shutdown).await?;
        let asked: Arc<[Wanted]> = wanted.clone().into();
        let mut answer = self.until_answered(shutdown, || read(Arc::clone(&asked))).await;
        let is_too_large = |answer: &Result<_, NotFetched>| {
            matches!(answer, Err(NotFetched::AskLess(Unanswered { hindrance: Hindrance::TooLarge, .. })))
        };
        if let ([single], true) = (wanted.as_mut_slice(), is_too_large(&answer)) {
            single.alone = true;
            // Nobody waits for room while holding any.
            drop(room);
            let alone = self.rows_budget.reserve(self.hq.database.record_bytes_max());
            room = unless_stopping(alone, shutdown).await?;
            let asked: Arc<[Wanted]> = wanted.into();
            answer = self.until_answered(shutdown, || read(Arc::clone(&asked))).await;
        }
        let observations = answer?;
        room.shrink(observations.iter().filter_map(|one| one.rows.as_ref()).map(memory).sum());
        Ok((observations, room))
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
        let may_be_in_lake = changes.get(id).is_none_or(Change::may_be_in_lake);
        for wrong in wrong_domains(changes.get(id), &disposition) {
            let destination = Destination { domain: wrong, kind, document_type: None };
            fetched.outgoing.tombstone(destination, tombstone(TombstoneReason::Missing.code(), None));
        }
        match disposition {
            Disposition::Tombstone { .. } if !may_be_in_lake => skipped("not_in_lake"),
            Disposition::Upsert { domain, .. } if !self.take.domain(domain.as_str()) => skipped("domain"),
            Disposition::Upsert { domain, document_type, version_us, .. } => {
                if !self.take.document_type(kind, &document_type) {
                    if !may_be_in_lake {
                        return skipped("not_in_lake");
                    }
                    // It may have been of another type, which is taken: its row must leave that table.
                    let destination = Destination { domain, kind, document_type: None };
                    return fetched.outgoing.tombstone(destination, tombstone("type_not_taken", Some(version_us)));
                }
                let FetchedDocument { members, answers, lacking } = document();
                let incomplete = lacking.as_ref().map(|lacking| lacking.reason.code().to_owned());
                if let Some(lacking) = lacking {
                    let lineage = lineage.clone();
                    fetched.quarantined.push(lacking.into_entry(kind, &domain, &document_type, id, lineage));
                }
                let document = text(&members, answers).into();
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

/// Project spaces in which the lake may hold the id although HQ has it in another one.
fn wrong_domains(change: Option<&Change>, disposition: &Disposition) -> Vec<Domain> {
    let of_row = match disposition {
        Disposition::Upsert { domain, .. } => Some(domain),
        Disposition::Tombstone { domain, .. } => domain.as_ref(),
    };
    let (Some(change), Some(of_row)) = (change, of_row) else { return Vec::new() };
    if change.origin != (Origin::Lake { in_lake: true }) {
        return Vec::new();
    }
    change.domains().filter(|asked| *asked != of_row.as_str()).map(Domain::from).collect()
}

fn skipped(reason: &'static str) {
    metrics::counter!(metric_names::MESSAGES_SKIPPED_TOTAL, "reason" => reason).increment(1);
}

/// The text of a document. Where there are answers, it begins with them.
fn text(members: &Map<String, Value>, answers: Option<Vec<u8>>) -> Vec<u8> {
    // A map of texts as keys can always be written.
    let rest = serde_json::to_vec(members).unwrap_or_default();
    let Some(mut text) = answers else { return rest };
    text.reserve_exact(rest.len());
    // The brace of the others is their comma here.
    let separator: &[u8] = if members.is_empty() { b"" } else { b"," };
    text.extend_from_slice(separator);
    text.extend_from_slice(rest.get(1..).unwrap_or_default());
    // What it needed while it grew may be twice as much, and it waits to be published.
    text.shrink_to_fit();
    text
}

/// What was read of a record.
#[derive(Default)]
pub(crate) struct FetchedDocument {
    pub(crate) members: Map<String, Value>,
    /// The beginning of the document's text where that is written already, an open brace and the member `form`: see [`forms::FormXml::answers`].
    pub(crate) answers: Option<Vec<u8>>,
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
        Self { members: read.members, answers: None, lacking }
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
        alone: false,
    };
    changes.iter().map(wanted).collect()
}

#[cfg(test)]
mod tests;
