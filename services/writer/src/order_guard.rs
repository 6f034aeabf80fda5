//! Who is newer: the rule that makes duplicates, redelivery and any order of arrival harmless. Plain values, no I/O.
//!
//! What was read later is newer: a snapshot of HQ's database *is* the state at its time. The version, HQ's time of modification, says less:
//! HQ takes it before it waits for the lock of a case, and takes what a client says, so that a later change may carry an earlier version. It
//! only decides between readings of the same instant.
//!
//! So all that is said about an id has one order: (observed, version, deletion). A deletion without a version (HQ has no row any more) counts as
//! of the greatest version, and between a row and a deletion that agree in all else the deletion is the newer one.

/// Instants that the key index tells apart, microseconds: 56 bits, more than a thousand years on either side of 1970.
const INSTANTS: (i64, i64) = (-(1 << 55), (1 << 55) - 1);

/// The instant of observation as it is compared everywhere; an absent one is older than anything.
pub fn comparable_instant(observed_us: Option<i64>) -> i64 {
    observed_us.map_or(INSTANTS.0, |observed_us| observed_us.clamp(INSTANTS.0, INSTANTS.1))
}

/// Order of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowOrder {
    /// `+_lake_observed_at`, microseconds.
    pub observed_us: i64,
    /// `+_lake_version`, microseconds; the least number where it is NULL.
    pub version_us: i64,
}

/// Order of a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TombstoneOrder {
    /// When it was seen that the id has left, microseconds.
    pub observed_us: i64,
    /// Version of the deleted row, microseconds; `None` where HQ has no row any more.
    pub version_us: Option<i64>,
}

impl TombstoneOrder {
    /// Whether this tombstone takes the row away. The opposite is that the row outlives it; there is no third case.
    pub fn beats_row(self, row: RowOrder) -> bool {
        self.comparable() >= (row.observed_us, row.version_us)
    }

    /// The version with which that of a row observed at this instant has to be compared; `None` where the instants decide.
    pub fn tie_breaker(self, row_observed_us: i64) -> Option<i64> {
        self.version_us.filter(|_| self.observed_us == row_observed_us)
    }

    /// Whether this tombstone is newer than the one that is remembered.
    pub fn replaces(self, held: Self) -> bool {
        self.comparable() > held.comparable()
    }

    fn comparable(self) -> (i64, i64) {
        (self.observed_us, self.version_us.unwrap_or(i64::MAX))
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

    const fn row(observed_us: i64, version_us: i64) -> RowOrder {
        RowOrder { observed_us, version_us }
    }

    const fn grave(observed_us: i64, version_us: Option<i64>) -> TombstoneOrder {
        TombstoneOrder { observed_us, version_us }
    }

    #[test]
    fn rows_by_observation_then_version() {
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
            // A tombstone wins ties.
            (grave(5, Some(5)), row(5, 5), true),
            (grave(5, Some(4)), row(5, 5), false),
            // HQ does not touch the time of a case that it deletes, and the one before may be of a later time.
            (grave(6, Some(1)), row(5, 5), true),
            (grave(4, Some(9)), row(5, 5), false),
            (grave(5, None), row(5, 9), true),
            (grave(4, None), row(5, 1), false),
            (grave(6, None), row(5, 9), true),
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
            (grave(5, Some(5)), grave(5, Some(5)), false),
            (grave(5, Some(5)), grave(6, Some(1)), true),
            (grave(5, Some(5)), grave(4, Some(6)), false),
            (grave(5, Some(5)), grave(6, None), true),
            (grave(5, Some(5)), grave(5, None), true),
            (grave(5, None), grave(5, Some(9)), false),
            (grave(5, None), grave(5, None), false),
            (grave(5, None), grave(6, None), true),
        ];
        for (held, came, remember) in cases {
            let effect = tombstone_effect(KnownOrders { row: None, tombstone: Some(held) }, came);
            assert_eq!(effect, TombstoneEffect { remember, delete: false }, "{held:?} {came:?}");
        }
    }

    #[test]
    fn a_tombstone_that_was_remembered_before_a_crash_still_deletes() {
        let tombstone = grave(9, None);
        let held = KnownOrders { row: Some(row(5, 5)), tombstone: Some(tombstone) };
        assert_eq!(tombstone_effect(held, tombstone), TombstoneEffect { remember: false, delete: true });
    }

    /// Something that is said about an id.
    #[derive(Clone, Copy, Debug)]
    enum Reading {
        Row(RowOrder),
        Gone(TombstoneOrder),
    }

    /// What the engine holds of an id after this has arrived one after the other.
    fn held_after(readings: &[Reading]) -> KnownOrders {
        let mut held = KnownOrders::default();
        for reading in readings {
            match *reading {
                Reading::Row(row) if row_enters(held, row) => held = KnownOrders { row: Some(row), tombstone: None },
                Reading::Row(_) => {}
                Reading::Gone(tombstone) => {
                    let effect = tombstone_effect(held, tombstone);
                    held.row = held.row.filter(|_| !effect.delete);
                    held.tombstone = if effect.remember { Some(tombstone) } else { held.tombstone };
                }
            }
        }
        held
    }

    #[test]
    fn every_order_of_arrival_ends_with_the_same() {
        let readings = [
            Reading::Row(row(1, 10)),
            Reading::Gone(grave(2, None)),
            Reading::Row(row(2, 9)),
            Reading::Gone(grave(3, Some(7))),
            Reading::Row(row(3, 5)),
            Reading::Row(row(3, 8)),
            Reading::Gone(grave(3, None)),
            Reading::Row(row(4, 5)),
        ];
        let of_three = |from: usize| readings.iter().skip(from).take(3).copied().collect::<Vec<_>>();
        for from in 0..=readings.len() - 3 {
            let some = of_three(from);
            let expected = held_after(&some);
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let held = held_after(&order.map(|at| some[at]));
                assert_eq!(
                    (held.row, held.row.is_none().then_some(held.tombstone)),
                    { (expected.row, expected.row.is_none().then_some(expected.tombstone)) },
                    "{order:?} of {some:?}"
                );
            }
        }
    }
}
