//! Whether a record that is in quarantine has been read well since. Pure.
//!
//! What counts is what is in the lake: a complete row, or that the id has no place in it, by a reading that was made after the one that is in quarantine.
//! A row says when its record was read, by the clock of the fetcher, as the entry does; where the entry does not, when it was asked to be read
//! again counts. All readings have their order by the clock of HQ's database, which the replay has noted of the row that was there before.

use crate::metastore::{QuarantineRecord, Replayed};

/// What the lake has of a record. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// A row.
    Row {
        /// When it was observed, by the clock of HQ's database.
        observed_us: i64,
        /// When it was read, by the clock of the fetcher; `None` where the row does not say.
        fetched_us: Option<i64>,
        /// Whether nothing of the record is missing.
        is_complete: bool,
    },
    /// That the id has no place.
    Tombstone {
        /// When that was observed, by the clock of HQ's database.
        observed_us: i64,
        /// When it was remembered, by the metastore's clock.
        remembered_us: i64,
    },
}

/// Whether a reading is later than what is in quarantine, and leaves nothing to be wished for.
pub(crate) fn heals(record: &QuarantineRecord, replayed: &Replayed, reading: &Reading) -> bool {
    let is_later = |observed_us: i64| replayed.observed_us.is_none_or(|before_us| observed_us > before_us);
    match *reading {
        Reading::Row { observed_us, fetched_us, is_complete } => {
            let failed_us = record.entry.lineage.as_ref().map_or(0, |lineage| lineage.fetched_us);
            let after_us = if failed_us > 0 { failed_us } else { replayed.at_us };
            is_complete && is_later(observed_us) && fetched_us.is_none_or(|fetched_us| fetched_us > after_us)
        }
        Reading::Tombstone { observed_us, remembered_us } => is_later(observed_us) && remembered_us >= replayed.at_us,
    }
}

/// Whether a record has failed again since it was to be read again.
pub(crate) const fn has_failed_again(record: &QuarantineRecord, replayed: &Replayed) -> bool {
    record.attempts > replayed.attempts
}

#[cfg(test)]
mod tests {
    use lake_proto::queue::v1::{Lineage, Quarantined};

    use super::*;

    /// An entry that was read at 100 where that is known, and asked to be read again at 200, when the lake had a reading of 10, or none.
    fn entry(fetched_us: i64, observed_us: Option<i64>) -> (QuarantineRecord, Replayed) {
        let lineage = Some(Lineage { fetched_us, ..Lineage::default() });
        let entry = Quarantined { id: "1".into(), lineage, quarantined_us: 101, ..Quarantined::default() };
        let replayed = Replayed { at_us: 200, attempts: 1, observed_us, refused: String::new() };
        let record = QuarantineRecord {
            fingerprint: "f".into(),
            stage: "fetcher".into(),
            entry,
            attempts: 1,
            payload_bytes: 0,
            first_us: 101,
            replayed: Some(replayed.clone()),
        };
        (record, replayed)
    }

    #[test]
    fn only_a_later_and_complete_reading_is_evidence() {
        let row = |observed_us, fetched_us, is_complete| Reading::Row { observed_us, fetched_us, is_complete };
        let gone = |observed_us, remembered_us| Reading::Tombstone { observed_us, remembered_us };
        for (fetched_us, before_us, reading, is_evidence) in [
            (100, Some(10), row(11, Some(250), true), true),
            (100, Some(10), row(11, Some(250), false), false),
            // The row that was there before.
            (100, Some(10), row(10, Some(250), true), false),
            // The very reading that is in quarantine, and one that was still on its way.
            (100, Some(10), row(11, Some(100), true), false),
            (100, Some(10), row(11, Some(90), true), false),
            // A change of HQ that came in between is as good.
            (100, Some(10), row(11, Some(150), true), true),
            (0, Some(10), row(11, Some(150), true), false),
            (0, Some(10), row(11, Some(201), true), true),
            (100, None, row(1, Some(250), true), true),
            (100, Some(10), row(11, None, true), true),
            (100, Some(10), gone(11, 200), true),
            (100, Some(10), gone(11, 199), false),
            (100, Some(10), gone(10, 300), false),
            (0, None, gone(1, 300), true),
        ] {
            let (record, replayed) = entry(fetched_us, before_us);
            assert_eq!(heals(&record, &replayed, &reading), is_evidence, "{fetched_us} {before_us:?} {reading:?}");
        }
    }

    #[test]
    fn a_second_failure_is_told_from_the_first() {
        let (record, replayed) = entry(100, None);
        assert!(!has_failed_again(&record, &replayed));
        assert!(has_failed_again(&QuarantineRecord { attempts: 2, ..record }, &replayed));
    }
}
