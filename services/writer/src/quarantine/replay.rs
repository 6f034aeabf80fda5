//! Has the records of entries read again, releases the entries that are healed by it, and gives entries up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lake_proto::queue::v1::ChangeCause;
use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use lake_shared::queue::{PublishError, Queue};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::evidence::{Reading, has_failed_again, heals};
use super::subjects::{Subject, Way, names_its_record, way};
use crate::change_requests::{RequestedDocuments, Requester, request_changes};
use crate::consent::{Consent, StalePlan, plan_id};
use crate::key_index::id_hash;
use crate::metastore::steering::Behind;
use crate::metastore::{
    Metastore, MetastoreError, QuarantineFilter, QuarantineRecord, RememberedTombstone, ReplayMark, Replayed,
};
use crate::metric_names;
use crate::table_store::TableStore;

/// Entries that are worked on at once: a malformed message may name a thousand records.
const PAGE: u32 = 200;

/// Why work on the quarantine was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuarantineError {
    /// The metastore could not be asked.
    #[error(transparent)]
    Metastore(#[from] MetastoreError),
    /// Entries have come or left since the plan was made.
    #[error("{0}; look at a new plan")]
    Stale(#[from] StalePlan),
    /// The queue is closed.
    #[error("the queue is closed, so records cannot be asked for")]
    Closed,
}

/// What is to be done with entries, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selected {
    /// Id of the plan, made of all entries and of when they came last.
    pub(crate) plan: String,
    /// Whether it was done, not only planned.
    pub(crate) done: bool,
    /// Entries.
    pub(crate) entries: u64,
    /// Bytes that they keep.
    pub(crate) bytes: u64,
    /// Records that are read again, for one entry each.
    pub(crate) records: u64,
    /// Entries that were messages about others, which have taken their places.
    pub(crate) replaced: u64,
    /// Entries that cannot be handled again.
    pub(crate) refused: u64,
    /// Fingerprints of those whose records were asked for.
    pub(crate) asked: BTreeSet<String>,
}

/// What a look at all entries found whose records are to be read again, by their fingerprints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    pub(crate) released: BTreeSet<String>,
    pub(crate) waiting: BTreeSet<String>,
    pub(crate) failed_again: BTreeSet<String>,
}

/// The quarantine, as the writer that holds the lease works on it.
pub(crate) struct Quarantine {
    store: Arc<dyn TableStore>,
    metastore: Arc<dyn Metastore>,
    queue: Arc<dyn Queue>,
    /// For entries that are not healed: the reading that was found not to heal them. Held for a look at all of them.
    judged: Mutex<HashMap<String, i64>>,
}

impl Quarantine {
    pub(crate) fn new(store: Arc<dyn TableStore>, metastore: Arc<dyn Metastore>, queue: Arc<dyn Queue>) -> Self {
        Self { store, metastore, queue, judged: Mutex::default() }
    }

    /// Has the records of entries read again, as far as the consent goes. Doing it twice reads them twice, and changes nothing else.
    ///
    /// # Errors
    /// The metastore failed, the plan is stale, or the queue is closed.
    pub(crate) async fn replay(
        &self,
        filter: &QuarantineFilter,
        consent: &Consent,
        operation_id: &str,
    ) -> Result<Selected, QuarantineError> {
        let (mut selected, _) = self.planned("replay", filter).await?;
        let is_allowed = consent.allows(&selected.plan)?;
        let requester = Requester { cause: ChangeCause::Replay, operation_id: operation_id.to_owned() };
        let mut pages = Pages::of(filter.clone());
        while let Some(page) = pages.next(&*self.metastore).await? {
            let ways = self.ways(page).await?;
            for (_, way) in &ways {
                match way {
                    Ok(Way::Records(subjects)) => selected.records += subjects.len() as u64,
                    Ok(Way::Entry(_)) => selected.replaced += 1,
                    Err(_) => selected.refused += 1,
                }
            }
            if is_allowed {
                self.ask(ways, &requester, &mut selected.asked).await?;
            }
        }
        selected.done = is_allowed;
        Ok(selected)
    }

    /// Removes entries, as far as the consent goes. `was_begun`: a writer that ended may have done it, but not told.
    ///
    /// # Errors
    /// The metastore failed, or the plan is stale.
    pub(crate) async fn discard(
        &self,
        filter: &QuarantineFilter,
        consent: &Consent,
        was_begun: bool,
    ) -> Result<Selected, QuarantineError> {
        let (mut selected, entries) = self.planned("discard", filter).await?;
        if was_begun && entries.is_empty() && *consent != Consent::DryRun {
            return Ok(Selected { plan: consent.plan().to_owned(), done: true, ..selected });
        }
        if consent.allows(&selected.plan)? {
            let removed = self.metastore.release(&entries).await?;
            count_released("discarded", removed);
            selected.done = true;
        }
        Ok(selected)
    }

    /// The plan, with the entries that it is about and when they came last.
    async fn planned(
        &self,
        action: &str,
        filter: &QuarantineFilter,
    ) -> Result<(Selected, Vec<(String, i64)>), QuarantineError> {
        let (mut selected, mut entries) = (Selected::default(), Vec::new());
        let mut pages = Pages::of(filter.clone());
        while let Some(page) = pages.next(&*self.metastore).await? {
            selected.bytes += page.iter().map(|record| record.payload_bytes.unsigned_abs()).sum::<u64>();
            entries.extend(page.into_iter().map(|record| (record.fingerprint, record.entry.quarantined_us)));
        }
        selected.entries = entries.len() as u64;
        selected.plan = plan_id(action, entries.iter().map(|(entry, at_us)| format!("{entry} {at_us}")).collect());
        Ok((selected, entries))
    }

    /// How each entry is handled again.
    async fn ways(&self, page: Vec<QuarantineRecord>) -> Result<Vec<Judged>, MetastoreError> {
        let mut ways = Vec::with_capacity(page.len());
        for record in page {
            let found = if names_its_record(&record) {
                way(&record)
            } else {
                let whole = self.metastore.quarantine_entry(&record.fingerprint, u32::MAX).await?;
                way(whole.as_ref().unwrap_or(&record))
            };
            ways.push((record, found));
        }
        Ok(ways)
    }

    /// Keeps what the lake has of the records, then asks for them: what comes of it is later than what is kept.
    async fn ask(
        &self,
        ways: Vec<Judged>,
        requester: &Requester,
        asked: &mut BTreeSet<String>,
    ) -> Result<(), QuarantineError> {
        let observed = self.observed(&ways).await?;
        let (mut marks, mut documents) = (Vec::new(), BTreeMap::<Space, Vec<String>>::new());
        for (QuarantineRecord { fingerprint, stage, entry, .. }, way) in ways {
            let mark = |observed_us, refused| ReplayMark { fingerprint: fingerprint.clone(), observed_us, refused };
            match way {
                Ok(Way::Records(subjects)) => {
                    let observed_us = match subjects.as_slice() {
                        [subject] => observed.get(subject).copied(),
                        _ => None,
                    };
                    marks.push(mark(observed_us, String::new()));
                    for Subject { space, id } in subjects {
                        documents.entry(space).or_default().push(id);
                    }
                    asked.insert(fingerprint);
                }
                Ok(Way::Entry(held)) => {
                    self.metastore.quarantine(&stage, &held).await?;
                    self.metastore.release(&[(fingerprint, entry.quarantined_us)]).await?;
                }
                Err(refused) => marks.push(mark(None, refused)),
            }
        }
        self.metastore.mark_replayed(&marks).await?;
        for (space, ids) in documents {
            let documents = RequestedDocuments { space, ids, in_lake: true };
            let requested = request_changes(&*self.queue, requester, documents, &CancellationToken::new()).await;
            requested.map_err(|_: PublishError| QuarantineError::Closed)?;
        }
        Ok(())
    }

    /// Looks whether entries whose records are to be read again are healed, and releases those; entries that were asked for before an instant
    /// (microseconds) are left out.
    ///
    /// # Errors
    /// The metastore failed.
    pub(crate) async fn sweep(&self, asked_since_us: i64) -> Result<Swept, QuarantineError> {
        let mut judged = self.judged.lock().await;
        let (mut swept, mut judged_now) = (Swept::default(), HashMap::new());
        let mut pages = Pages::of(QuarantineFilter { is_replayed: true, ..QuarantineFilter::default() });
        while let Some(mut page) = pages.next(&*self.metastore).await? {
            page.retain(|record| record.replayed.as_ref().is_some_and(|replayed| replayed.at_us >= asked_since_us));
            let ways = self.ways(page).await?;
            let observed = self.observed(&ways).await?;
            let tombstones = self.tombstones(&ways).await?;
            for (record, way) in ways {
                let Some(replayed) = record.replayed.clone() else { continue };
                let (fingerprint, at_us) = (record.fingerprint.clone(), record.entry.quarantined_us);
                let seen = Seen { observed: &observed, tombstones: &tombstones, not_before: judged.get(&fingerprint) };
                let mut newest = None;
                let is_healed = match way {
                    Ok(Way::Records(subjects)) => {
                        self.are_healed(&record, &replayed, &subjects, &seen, &mut newest).await
                    }
                    Ok(Way::Entry(_)) | Err(_) => false,
                };
                if is_healed && self.metastore.release(&[(fingerprint.clone(), at_us)]).await? > 0 {
                    tracing::info!(
                        entry = fingerprint,
                        reason = record.entry.reason,
                        domain = record.entry.domain,
                        id = record.entry.id,
                        "released from quarantine: a later reading of its record is in the lake"
                    );
                    count_released("replayed", 1);
                    swept.released.insert(fingerprint);
                    continue;
                }
                judged_now.extend(newest.map(|newest_us| (fingerprint.clone(), newest_us)));
                let place =
                    if has_failed_again(&record, &replayed) { &mut swept.failed_again } else { &mut swept.waiting };
                place.insert(fingerprint);
            }
        }
        *judged = judged_now;
        Ok(swept)
    }

    /// Whether all records of an entry are healed. `newest`: the reading by which one of them is not.
    async fn are_healed(
        &self,
        record: &QuarantineRecord,
        replayed: &Replayed,
        subjects: &[Subject],
        seen: &Seen<'_>,
        newest: &mut Option<i64>,
    ) -> bool {
        for subject in subjects {
            if let Some(RememberedTombstone { tombstone, remembered_us, .. }) = seen.tombstones.get(subject) {
                let observed_us = tombstone.order.observed_us;
                if heals(record, replayed, &Reading::Tombstone { observed_us, remembered_us: *remembered_us }) {
                    continue;
                }
            }
            let Some(&observed_us) = seen.observed.get(subject) else { return false };
            let is_old = replayed.observed_us.is_some_and(|before_us| observed_us <= before_us);
            // Its row is not read again before it is another one.
            if is_old || seen.not_before == Some(&observed_us) {
                *newest = Some(observed_us);
                return false;
            }
            match self.store.locate(&subject.space, &subject.id).await {
                Ok(Some(row)) => {
                    let (fetched_us, is_complete) = (row.fetched_us, row.incomplete.is_none());
                    let reading = Reading::Row { observed_us: row.observed_us, fetched_us, is_complete };
                    if !heals(record, replayed, &reading) {
                        *newest = Some(row.observed_us);
                        return false;
                    }
                }
                Ok(None) => return false,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "a row cannot be read now, so its quarantine entry stays for now");
                    return false;
                }
            }
        }
        !subjects.is_empty()
    }

    /// When the rows of the records were observed. A space that cannot be asked now has none.
    async fn observed(&self, ways: &[Judged]) -> Result<HashMap<Subject, i64>, MetastoreError> {
        let known = self.metastore.spaces().await?;
        let mut by_space = BTreeMap::<&Space, Vec<String>>::new();
        for Subject { space, id } in subjects_of(ways) {
            by_space.entry(space).or_default().push(id.clone());
        }
        let mut observed = HashMap::new();
        for (space, ids) in by_space.into_iter().filter(|(space, _)| known.contains(*space)) {
            match self.store.observed(space, &ids).await {
                Ok(found) => observed.extend(
                    ids.into_iter()
                        .zip(found)
                        .filter_map(|(id, observed_us)| Some((Subject { space: space.clone(), id }, observed_us?))),
                ),
                Err(error) => {
                    tracing::warn!(%space, error = %Chain(&error), "rows cannot be looked up now; quarantine entries about them stay for now");
                }
            }
        }
        Ok(observed)
    }

    async fn tombstones(&self, ways: &[Judged]) -> Result<HashMap<Subject, RememberedTombstone>, MetastoreError> {
        let asked: HashMap<_, _> =
            subjects_of(ways).map(|subject| ((subject.space.clone(), id_hash(&subject.id)), subject)).collect();
        let keys: Vec<_> = asked.keys().cloned().collect();
        let found = self.metastore.tombstones_in_spaces(&keys).await?;
        let by_subject = found.into_iter().filter_map(|found| {
            let subject = asked.get(&(found.space.clone(), found.tombstone.id_hash))?;
            Some(((*subject).clone(), found))
        });
        Ok(by_subject.collect())
    }
}

/// An entry, and how it is handled again.
type Judged = (QuarantineRecord, Result<Way, String>);

/// What the lake has of the records of some entries.
struct Seen<'a> {
    observed: &'a HashMap<Subject, i64>,
    tombstones: &'a HashMap<Subject, RememberedTombstone>,
    /// The reading that was found not to heal the entry at hand.
    not_before: Option<&'a i64>,
}

fn subjects_of(ways: &[Judged]) -> impl Iterator<Item = &Subject> {
    let records = ways.iter().filter_map(|(_, way)| match way {
        Ok(Way::Records(subjects)) => Some(subjects),
        Ok(Way::Entry(_)) | Err(_) => None,
    });
    records.flatten()
}

fn count_released(how: &'static str, entries: u64) {
    metrics::counter!(metric_names::QUARANTINE_RELEASED_TOTAL, "how" => how).increment(entries);
}

/// Entries that a filter matches, page by page, without what could not be handled.
struct Pages {
    filter: QuarantineFilter,
    behind: Option<Behind>,
    is_last: bool,
}

impl Pages {
    const fn of(filter: QuarantineFilter) -> Self {
        Self { filter, behind: None, is_last: false }
    }

    async fn next(&mut self, metastore: &dyn Metastore) -> Result<Option<Vec<QuarantineRecord>>, MetastoreError> {
        if self.is_last {
            return Ok(None);
        }
        let page = metastore.quarantine_page(&self.filter, self.behind.as_ref(), PAGE).await?;
        self.is_last = page.len() < PAGE as usize;
        let place = |last: &QuarantineRecord| Behind { at_us: last.entry.quarantined_us, id: last.fingerprint.clone() };
        self.behind = page.last().map(place);
        Ok(Some(page))
    }
}
