//! Limits the records that are read for one domain in a second, so that a domain that floods the feed does not have HQ to itself.
//!
//! Invariants: a domain that has used up its share waits alone: records of other domains in the same batch are read at once, and a batch
//! of which only such a remainder is left gives up its permit among the batches in flight. The records that wait are bounded: when
//! `waiting_records_max` is reached, batches keep their permits, and in the end the feed stops until some have been read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lake_hq::pace::bucket::DomainBuckets;
use lake_shared::identity::Kind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::coalesce::Change;
use crate::fetch::Changes;
use crate::metric_names;
use crate::options::FetchOptions;

/// Changes of several kinds.
pub(crate) type ByKind = BTreeMap<Kind, Changes>;

/// A change with its kind and id.
pub(crate) type DomainChange = (Kind, String, Change);

/// Changes that may be read now, and those that have to wait, by domain.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Admitted {
    pub(crate) now: ByKind,
    pub(crate) later: BTreeMap<String, Vec<DomainChange>>,
}

/// The pace of each domain, and the permits of batches in flight.
pub(crate) struct DomainPace {
    began: Instant,
    /// `None` where domains are not limited.
    buckets: Option<Mutex<DomainBuckets>>,
    batch_permits: Arc<Semaphore>,
    /// Permits for portions that have waited. They are apart from the others, which may all be held by batches that have to wait but find
    /// no room: with one kind of permit, portions that could make room would never be read.
    late_permits: Arc<Semaphore>,
    room: Arc<Semaphore>,
    room_max: usize,
    portion_max: usize,
}

impl DomainPace {
    pub(crate) fn new(options: &FetchOptions) -> Self {
        let rate = options.domain_records_per_second;
        let buckets = (rate > 0).then(|| DomainBuckets::new(f64::from(rate), options.domain_burst_records));
        Self {
            began: Instant::now(),
            portion_max: options.domain_burst_records.min(options.max_records).max(1),
            buckets: buckets.map(Mutex::new),
            batch_permits: Arc::new(Semaphore::new(options.batches_in_flight_max.max(1))),
            late_permits: Arc::new(Semaphore::new(options.batches_in_flight_max.max(1))),
            room: Arc::new(Semaphore::new(options.waiting_records_max.max(1))),
            room_max: options.waiting_records_max.max(1),
        }
    }

    /// Waits for one of the `batches_in_flight_max` permits. `None` never comes, as the semaphore is not closed.
    pub(crate) async fn batch_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.batch_permits).acquire_owned().await.ok()
    }

    /// Whether a batch could be read at once: none waits for those that are in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.batch_permits.available_permits() > 0
    }

    /// Takes as much of a domain's share as its messages can spare, at most `wanted`.
    pub(crate) fn spare(&self, domain: &str, wanted: usize) -> usize {
        let Some(buckets) = &self.buckets else { return wanted };
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take_spare(self.began.elapsed(), domain, wanted)
    }

    /// Waits for a permit to read a portion that has waited.
    pub(crate) async fn late_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.late_permits).acquire_owned().await.ok()
    }

    /// Waits until so many more records may wait. A batch with more than `waiting_records_max` is let in when no other records wait.
    pub(crate) async fn room(&self, records: usize) -> Option<OwnedSemaphorePermit> {
        let records = u32::try_from(records.min(self.room_max)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).acquire_many_owned(records).await.ok()
    }

    /// Divides changes into those that may be read now and those that exceed their domain's share.
    pub(crate) fn admit(&self, changes: ByKind) -> Admitted {
        let Some(buckets) = &self.buckets else { return Admitted { now: changes, later: BTreeMap::new() } };
        admit(&mut buckets.lock().unwrap_or_else(PoisonError::into_inner), self.began.elapsed(), changes)
    }

    /// Takes a portion off the changes that wait, and says how long it has to wait.
    pub(crate) fn next_portion(&self, domain: &str, waiting: &mut Vec<DomainChange>) -> Option<(ByKind, Duration)> {
        let count = waiting.len().min(self.portion_max);
        let portion = by_kind(waiting.drain(..count));
        let wait = match &self.buckets {
            Some(buckets) => {
                let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
                buckets.reserve(self.began.elapsed(), domain, count)
            }
            None => Duration::ZERO,
        };
        (count > 0).then(|| {
            metrics::histogram!(metric_names::DOMAIN_WAIT_SECONDS).record(wait);
            (portion, wait)
        })
    }
}

fn admit(buckets: &mut DomainBuckets, now: Duration, changes: ByKind) -> Admitted {
    let mut by_domain: BTreeMap<String, Vec<DomainChange>> = BTreeMap::new();
    let mut admitted = Admitted::default();
    for (kind, changes) in changes {
        for (id, change) in changes {
            match change.domain.clone() {
                Some(domain) => by_domain.entry(domain).or_default().push((kind, id, change)),
                // It counts for no domain's share; such messages are rare.
                None => {
                    admitted.now.entry(kind).or_default().insert(id, change);
                }
            }
        }
    }
    for (domain, mut entries) in by_domain {
        let rest = entries.split_off(buckets.take(now, &domain, entries.len()));
        for (kind, id, change) in entries {
            admitted.now.entry(kind).or_default().insert(id, change);
        }
        if !rest.is_empty() {
            admitted.later.insert(domain, rest);
        }
    }
    admitted
}

fn by_kind(entries: impl Iterator<Item = DomainChange>) -> ByKind {
    let mut changes = ByKind::new();
    for (kind, id, change) in entries {
        changes.entry(kind).or_default().insert(id, change);
    }
    changes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn changes(of: &[(Kind, &str, usize)]) -> ByKind {
        by_kind(of.iter().flat_map(|&(kind, domain, count)| {
            (0..count).map(move |number| {
                let domain_name = (!domain.is_empty()).then(|| domain.to_owned());
                let change = Change { domain: domain_name, ..Change::default() };
                (kind, format!("{domain}{number}"), change)
            })
        }))
    }

    fn count(changes: &ByKind) -> usize {
        changes.values().map(Changes::len).sum()
    }

    #[test]
    fn a_flood_waits_and_the_others_go_on() {
        let mut buckets = DomainBuckets::new(10.0, 100);
        let batch =
            [(Kind::Case, "flood", 300), (Kind::Form, "flood", 50), (Kind::Form, "quiet", 60), (Kind::Case, "", 70)];
        let admitted = admit(&mut buckets, Duration::ZERO, changes(&batch));
        assert_eq!(count(&admitted.now), 100 + 60 + 70);
        assert_eq!(admitted.later.keys().collect::<Vec<_>>(), ["flood"]);
        assert_eq!(admitted.later["flood"].len(), 250);
        let admitted = admit(&mut buckets, Duration::from_secs(1), changes(&batch));
        assert_eq!(count(&admitted.now), 10 + 50 + 70);
        assert_eq!((admitted.later["flood"].len(), admitted.later["quiet"].len()), (340, 10));
    }

    #[test]
    fn what_waits_comes_in_portions_and_completely() {
        let options =
            FetchOptions { domain_records_per_second: 1, domain_burst_records: 40, ..FetchOptions::default() };
        let pace = DomainPace::new(&options);
        let mut waiting: Vec<DomainChange> = pace.admit(changes(&[(Kind::Case, "d", 130)])).later.remove("d").unwrap();
        let mut seen = Vec::new();
        while let Some(portion) = pace.next_portion("d", &mut waiting) {
            seen.push(portion);
        }
        let sizes: Vec<usize> = seen.iter().map(|(portion, _)| count(portion)).collect();
        assert_eq!(sizes, [40, 40, 10]);
        assert!(seen.is_sorted_by_key(|(_, wait)| *wait), "each later than the one before");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let pace = DomainPace::new(&FetchOptions::default());
        let all = changes(&[(Kind::Case, "d", 10_000)]);
        assert_eq!(pace.admit(all.clone()), Admitted { now: all, later: BTreeMap::new() });
    }
}
