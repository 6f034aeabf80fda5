//! Who is newer: the rule that makes duplicates, redelivery and any order of arrival harmless. Plain values, no I/O.
//!
//! A row is ordered by (version, observed). A tombstone with a version is ordered the same way against rows and wins a tie; one
//! without a version (HQ has no row any more) is ordered by the time of observation alone, both ways.

/// Versions that the key index tells apart, microseconds: 56 bits, more than a thousand years on either side of 1970.
const VERSIONS: (i64, i64) = (-(1 << 55), (1 << 55) - 1);

/// The version as it is compared everywhere; an absent one is older than anything.
pub fn comparable_version(version_us: Option<i64>) -> i64 {
    version_us.map_or(VERSIONS.0, |version_us| version_us.clamp(VERSIONS.0, VERSIONS.1))
}

/// Order of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowOrder {
    /// `+_lake_version`, microseconds.
    pub version_us: i64,
    /// `+_lake_observed_at`, microseconds.
    pub observed_us: i64,
}

/// Order of a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TombstoneOrder {
    /// Version of the deleted row, microseconds; `None` where HQ has no row any more.
    pub version_us: Option<i64>,
    /// When its absence was seen, microseconds.
    pub observed_us: i64,
}

impl TombstoneOrder {
    /// Whether this tombstone takes the row away. The opposite is that the row outlives it; there is no third case.
    pub fn beats_row(self, row: RowOrder) -> bool {
        match self.version_us {
            Some(version_us) => (version_us, self.observed_us) >= (row.version_us, row.observed_us),
            None => self.observed_us >= row.observed_us,
        }
    }

    /// Whether the comparison with a row of this version depends on when the row was observed.
    pub fn needs_tie_breaker(self, row_version_us: i64) -> bool {
        self.version_us.is_none_or(|version_us| version_us == row_version_us)
    }

    /// Whether this tombstone says more than the one that is remembered. Two of one sort compare like rows; of two sorts the one
    /// observed later counts, and at the same instant the one with a version, as it knows more.
    pub fn replaces(self, held: Self) -> bool {
        match (self.version_us, held.version_us) {
            (Some(ours), Some(theirs)) => (ours, self.observed_us) > (theirs, held.observed_us),
            (None, None) => self.observed_us > held.observed_us,
            (Some(_), None) => self.observed_us >= held.observed_us,
            (None, Some(_)) => self.observed_us > held.observed_us,
        }
    }
}

/// What is known about an id before an entry arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownOrders {
    /// The row in a table.
    pub row: Option<RowOrder>,
    /// The remembered tombstone. Both are there only between the two steps of a change.
    pub tombstone: Option<TombstoneOrder>,
}

/// Whether an arriving row enters its table. Equal to what is held: no, nothing would change.
pub fn row_enters(held: KnownOrders, row: RowOrder) -> bool {
    held.row.is_none_or(|held| row > held) && held.tombstone.is_none_or(|tombstone| !tombstone.beats_row(row))
}

/// What an arriving tombstone does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TombstoneEffect {
    /// It is to be remembered.
    pub remember: bool,
    /// The held row leaves its table.
    pub delete: bool,
}

/// Decides about an arriving tombstone.
pub fn tombstone_effect(held: KnownOrders, tombstone: TombstoneOrder) -> TombstoneEffect {
    let superseded = held.row.is_some_and(|row| !tombstone.beats_row(row));
    TombstoneEffect {
        remember: !superseded && held.tombstone.is_none_or(|held| tombstone.replaces(held)),
        delete: held.row.is_some() && !superseded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn row(version_us: i64, observed_us: i64) -> RowOrder {
        RowOrder { version_us, observed_us }
    }

    const fn grave(version_us: Option<i64>, observed_us: i64) -> TombstoneOrder {
        TombstoneOrder { version_us, observed_us }
    }

    #[test]
    fn rows_by_version_then_observation() {
        let cases = [
            (row(5, 5), row(6, 1), true),
            (row(5, 5), row(5, 6), true),
            (row(5, 5), row(5, 5), false),
            (row(5, 5), row(5, 4), false),
            (row(5, 5), row(4, 9), false),
        ];
        for (held, came, enters) in cases {
            assert_eq!(row_enters(KnownOrders { row: Some(held), tombstone: None }, came), enters, "{held:?} {came:?}");
        }
        assert!(row_enters(KnownOrders::default(), row(i64::MIN, 0)));
    }

    #[test]
    fn a_tombstone_and_a_row_never_both_win() {
        let cases = [
            // A versioned tombstone wins ties.
            (grave(Some(5), 5), row(5, 5), true),
            (grave(Some(5), 4), row(5, 5), false),
            (grave(Some(4), 9), row(5, 5), false),
            (grave(Some(6), 1), row(5, 5), true),
            // One without version looks at the observation only.
            (grave(None, 5), row(9, 5), true),
            (grave(None, 4), row(1, 5), false),
            (grave(None, 6), row(9, 5), true),
        ];
        for (tombstone, held, wins) in cases {
            let effect = tombstone_effect(KnownOrders { row: Some(held), tombstone: None }, tombstone);
            assert_eq!(effect, TombstoneEffect { remember: wins, delete: wins }, "{tombstone:?} {held:?}");
            let enters = row_enters(KnownOrders { row: None, tombstone: Some(tombstone) }, held);
            assert_eq!(enters, !wins, "late row {held:?} after {tombstone:?}");
        }
    }

    #[test]
    fn a_remembered_tombstone_is_replaced_by_a_newer_one_only() {
        let cases = [
            (grave(Some(5), 5), grave(Some(5), 5), false),
            (grave(Some(5), 5), grave(Some(6), 1), true),
            (grave(Some(5), 5), grave(None, 6), true),
            (grave(Some(5), 5), grave(None, 5), false),
            (grave(None, 5), grave(Some(1), 5), true),
            (grave(None, 5), grave(None, 5), false),
            (grave(None, 5), grave(None, 6), true),
        ];
        for (held, came, remember) in cases {
            let effect = tombstone_effect(KnownOrders { row: None, tombstone: Some(held) }, came);
            assert_eq!(effect, TombstoneEffect { remember, delete: false }, "{held:?} {came:?}");
        }
    }

    #[test]
    fn a_tombstone_that_was_remembered_before_a_crash_still_deletes() {
        let tombstone = grave(None, 9);
        let held = KnownOrders { row: Some(row(5, 5)), tombstone: Some(tombstone) };
        assert_eq!(tombstone_effect(held, tombstone), TombstoneEffect { remember: false, delete: true });
    }
}
