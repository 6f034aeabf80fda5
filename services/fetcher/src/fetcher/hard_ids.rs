//! Ids that HQ cannot be asked for together with others, so that they do not hold up another batch. Bounded.

use std::collections::{BTreeMap, HashSet};

use lake_shared::identity::Kind;

/// Ids that are remembered; beyond that all are forgotten, and found again where they matter.
const REMEMBERED_MAX: usize = 1_000;

/// Ids that have to be read alone, by kind.
#[derive(Debug, Default)]
pub(crate) struct HardIds(BTreeMap<Kind, HashSet<String>>);

impl HardIds {
    pub(crate) fn has(&self, kind: Kind, id: &str) -> bool {
        self.0.get(&kind).is_some_and(|ids| ids.contains(id))
    }

    pub(crate) fn remember(&mut self, kind: Kind, id: &str) {
        if self.0.values().map(HashSet::len).sum::<usize>() >= REMEMBERED_MAX {
            self.0.clear();
        }
        self.0.entry(kind).or_default().insert(id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut hard = HardIds::default();
        for number in 0..5_000 {
            hard.remember(Kind::Case, &number.to_string());
            assert!(hard.has(Kind::Case, &number.to_string()) && !hard.has(Kind::Form, &number.to_string()));
        }
        assert!(hard.0[&Kind::Case].len() <= REMEMBERED_MAX);
    }
}
