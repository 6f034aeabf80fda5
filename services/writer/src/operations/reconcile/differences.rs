//! In what HQ and the lake differ, out of the states of both. Pure.

use std::collections::{BTreeSet, HashMap};

use lake_proto::queue::v1::ComparedState;

use crate::metastore::comparisons::{Difference, DifferenceClass};
use crate::table_store::compared_rows::RowState;

/// What rows of some buckets are, while HQ's documents of the same buckets come one after the other.
pub(super) struct FirstLook {
    /// Fingerprints by id, of the rows of which HQ has told nothing yet.
    rows: HashMap<String, u64>,
    differing: BTreeSet<String>,
}

impl FirstLook {
    pub(super) fn of_rows(rows: Vec<RowState>) -> Self {
        let mut look = Self { rows: HashMap::with_capacity(rows.len()), differing: BTreeSet::new() };
        for RowState { id, fingerprint, .. } in rows {
            // An id lives in one table of its space.
            if look.rows.insert(id.clone(), fingerprint).is_some() {
                look.differing.insert(id);
            }
        }
        look
    }

    /// HQ has this.
    pub(super) fn hear(&mut self, state: ComparedState) {
        if self.rows.remove(&state.id) != Some(state.fingerprint) {
            self.differing.insert(state.id);
        }
    }

    /// The ids that differ, now that HQ has told all that it has.
    pub(super) fn end(self) -> BTreeSet<String> {
        let mut differing = self.differing;
        differing.extend(self.rows.into_keys());
        differing
    }
}

/// The second look at ids that differed: what they are now, in both.
pub(super) fn differences(ids: &BTreeSet<String>, rows: Vec<RowState>, states: Vec<ComparedState>) -> Vec<Difference> {
    let mut in_lake: HashMap<String, RowState> = HashMap::new();
    let mut is_twice = BTreeSet::new();
    for row in rows {
        if let Some(other) = in_lake.insert(row.id.clone(), row) {
            is_twice.insert(other.id);
        }
    }
    let mut in_hq: HashMap<String, ComparedState> = states.into_iter().map(|state| (state.id.clone(), state)).collect();
    let difference = |id: &String| {
        let (row, state) = (in_lake.remove(id), in_hq.remove(id));
        let class = match (&row, &state) {
            (None, None) => return None,
            (None, Some(_)) => DifferenceClass::Missing,
            (Some(_), None) => DifferenceClass::Extra,
            (Some(row), Some(state)) if row.document_type.as_str() != state.r#type => DifferenceClass::Moved,
            // It is in its table, and in another one beside it.
            (Some(_), Some(_)) if is_twice.contains(id) => DifferenceClass::Moved,
            (Some(row), Some(state)) if row.fingerprint != state.fingerprint => DifferenceClass::Stale,
            (Some(_), Some(_)) => return None,
        };
        Some(Difference {
            id: id.clone(),
            class,
            lake_type: row.as_ref().map(|row| row.document_type.to_string()).unwrap_or_default(),
            hq_type: state.as_ref().map(|state| state.r#type.clone()).unwrap_or_default(),
            lake_saved_us: row.and_then(|row| row.saved_us),
            hq_saved_us: state.and_then(|state| state.saved_us),
        })
    };
    ids.iter().filter_map(difference).collect()
}

/// Ids that are to be read again, by whether the lake has rows of them.
pub(super) fn to_heal(differences: &[Difference]) -> [(bool, Vec<String>); 2] {
    let ids = |in_lake: bool| {
        let of = differences.iter().filter(|of| (of.class != DifferenceClass::Missing) == in_lake);
        (in_lake, of.map(|of| of.id.clone()).collect())
    };
    [ids(true), ids(false)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, document_type: &str, fingerprint: u64) -> RowState {
        RowState { id: id.into(), document_type: document_type.into(), fingerprint, saved_us: Some(1) }
    }

    fn state(id: &str, document_type: &str, fingerprint: u64) -> ComparedState {
        ComparedState { id: id.into(), r#type: document_type.into(), fingerprint, saved_us: Some(2) }
    }

    fn ids(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn what_is_equal_is_not_looked_at_again() {
        let rows = [row("same", "t", 1), row("other", "t", 2), row("extra", "t", 3), row("twice", "t", 4)];
        let mut look = FirstLook::of_rows([rows.as_slice(), &[row("twice", "u", 4)]].concat());
        for told in [state("same", "t", 1), state("other", "t", 9), state("missing", "t", 1), state("twice", "u", 4)] {
            look.hear(told);
        }
        assert_eq!(look.end(), ids(&["other", "extra", "missing", "twice"]));
    }

    #[test]
    fn each_has_its_class_and_what_has_settled_has_none() {
        let rows = vec![
            row("stale", "t", 1),
            row("extra", "t", 1),
            row("moved", "t", 1),
            row("settled", "t", 1),
            row("twice", "t", 1),
            row("twice", "u", 1),
        ];
        let states = vec![
            state("stale", "t", 2),
            state("missing", "t", 1),
            state("moved", "u", 2),
            state("settled", "t", 1),
            state("twice", "u", 1),
        ];
        let all = ids(&["stale", "extra", "moved", "settled", "missing", "gone", "twice"]);
        let found = differences(&all, rows, states);
        let classes: Vec<_> = found.iter().map(|of| (of.id.as_str(), of.class.code())).collect();
        assert_eq!(
            classes,
            [("extra", "extra"), ("missing", "missing"), ("moved", "moved"), ("stale", "stale"), ("twice", "moved")]
        );
        let moved = &found[2];
        assert_eq!((moved.lake_type.as_str(), moved.hq_type.as_str()), ("t", "u"));
        assert_eq!((moved.lake_saved_us, moved.hq_saved_us, found[1].lake_saved_us), (Some(1), Some(2), None));
        let [(true, there), (false, absent)] = to_heal(&found) else { panic!("two groups") };
        assert_eq!((there.len(), absent), (4, vec!["missing".to_owned()]));
    }
}
