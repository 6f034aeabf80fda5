//! Which ids may have tombstones. Pure.
//!
//! The tombstones of a space are in the metastore: there can be many millions, of every deleted or untaken record of a month. A Bloom filter
//! of about ten bits for each tells without asking that nearly all other ids have none.

use std::time::{Duration, Instant};

use fastbloom::BloomFilter;

use crate::boot_clock::BootInstant;
use crate::key_index::IdHash;

/// Share of ids without tombstones of which the metastore is asked all the same.
const FALSE_SHARE: f64 = 0.01;

/// Tombstones that the first part of a filter is made for; each further one is made for so many times as many as the one before it.
const FIRST_CAPACITY: usize = 10_000;
const GROWTH: usize = 4;

/// The tombstones of one space.
#[derive(Debug, Default)]
pub(crate) struct TombstoneFilter {
    parts: Vec<Part>,
    /// When the reading of the metastore began after which all that were there are in here.
    read: Option<BootInstant>,
}

/// A filter of fixed size.
#[derive(Debug)]
struct Part {
    filter: BloomFilter,
    capacity: usize,
    held: usize,
    newest: Instant,
}

impl TombstoneFilter {
    /// From now on this id may have one.
    pub(crate) fn insert(&mut self, id: IdHash, now: Instant) {
        // Said again, as when the metastore is read again: it is kept from now on.
        if let Some(part) = self.parts.last_mut().filter(|part| part.filter.contains(&id)) {
            part.newest = now;
            return;
        }
        let full = self.parts.last().is_none_or(|part| part.held >= part.capacity);
        if full {
            let capacity = self.parts.last().map_or(FIRST_CAPACITY, |part| part.capacity.saturating_mul(GROWTH));
            let filter = BloomFilter::with_false_pos(FALSE_SHARE).expected_items(capacity);
            self.parts.push(Part { filter, capacity, held: 0, newest: now });
        }
        if let Some(part) = self.parts.last_mut() {
            part.filter.insert(&id);
            part.held += 1;
            part.newest = now;
        }
    }

    /// Whether an id may have one; if not, it has none.
    pub(crate) fn may_have(&self, id: IdHash) -> bool {
        self.parts.iter().any(|part| part.filter.contains(&id))
    }

    /// Remembers that all tombstones of the metastore are in here, as of a reading that began then.
    pub(crate) const fn set_read(&mut self, began: BootInstant) {
        self.read = Some(began);
    }

    /// How long ago the last such reading began; `None`: there was none.
    pub(crate) fn read_ago(&self) -> Option<Duration> {
        self.read.map(BootInstant::elapsed)
    }

    /// About how many were inserted and not forgotten since: one that seems to be in here already does not count again.
    pub(crate) fn held(&self) -> usize {
        self.parts.iter().map(|part| part.held).sum()
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.filter.num_bits() / 8).sum()
    }

    /// Forgets what can be forgotten of tombstones that are no longer kept than `retention`.
    pub(crate) fn forget(&mut self, retention: Duration, now: Instant) {
        self.parts.retain(|part| now.saturating_duration_since(part.newest) <= retention);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As hashes are.
    fn id(number: u128) -> IdHash {
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
    }

    #[test]
    fn who_has_one_is_always_asked_about_and_others_seldom() {
        let (mut filter, now) = (TombstoneFilter::default(), Instant::now());
        assert!(!filter.may_have(id(1)) && filter.bytes() == 0);
        (0..200_000).for_each(|number| filter.insert(id(number), now));
        assert!((0..200_000).all(|number| filter.may_have(id(number))));
        let asked = (1_000_000..1_100_000).filter(|number| filter.may_have(id(*number))).count();
        assert!(asked < 4_000, "{asked} of 100,000");
        assert!(filter.bytes() < 2 * 840_000, "{} bytes", filter.bytes());
    }

    #[test]
    fn what_is_too_old_to_be_remembered_is_forgotten() {
        let (mut filter, then) = (TombstoneFilter::default(), Instant::now());
        let later = then + Duration::from_secs(100);
        let mut number = 0;
        while filter.parts.len() < 2 {
            filter.insert(id(number), then);
            number += 1;
        }
        let held = filter.held();
        for _ in 0..2 {
            filter.insert(id(u128::MAX), later);
        }
        assert_eq!(filter.held(), held + 1, "said again, it does not count again");
        filter.forget(Duration::from_secs(100), later);
        assert_eq!(filter.held(), held + 1);
        filter.forget(Duration::from_secs(99), later);
        assert!(filter.held() == 2 && filter.may_have(id(u128::MAX)));
        // Said again, it is kept for as long again.
        let later_still = later + Duration::from_secs(100);
        filter.insert(id(u128::MAX), later_still);
        filter.forget(Duration::from_secs(99), later_still);
        assert!(filter.may_have(id(u128::MAX)));
    }
}
