//! Paths from some locations up to the root, where the whole tree is not at hand: lineages, and which of several locations are above the
//! others.

use std::collections::{HashMap, HashSet};

use super::HOPS_MAX;
use crate::source::{LocationRow, LocationStep};

/// Some locations and all their ancestors, by primary key.
#[derive(Clone, Debug, Default)]
pub struct AncestorPaths {
    steps: HashMap<i64, LocationStep>,
}

impl AncestorPaths {
    /// Made of the answer to [`crate::source::HqDatabase::location_ancestors`].
    pub fn new(steps: Vec<LocationStep>) -> Self {
        Self { steps: steps.into_iter().map(|step| (step.id, step)).collect() }
    }

    /// Ancestors of a location from its parent up to the root. Ends at a repeated one, at a parent of another domain, and after
    /// [`HOPS_MAX`] hops.
    pub fn above(&self, row: &LocationRow) -> Vec<&LocationStep> {
        let mut path: Vec<&LocationStep> = Vec::new();
        let mut next = row.parent_id;
        while let Some(step) = next.and_then(|id| self.steps.get(&id)) {
            let repeated = step.id == row.id || path.iter().any(|passed| passed.id == step.id);
            if repeated || step.domain != row.domain || path.len() == HOPS_MAX {
                break;
            }
            path.push(step);
            next = step.parent_id;
        }
        path
    }

    /// Those of the locations that have none of the others above them: a walk down from these visits the others. Of a circle, the one with
    /// the least key.
    pub fn topmost<'r>(&self, rows: &'r [LocationRow]) -> Vec<&'r LocationRow> {
        let asked: HashSet<i64> = rows.iter().map(|row| row.id).collect();
        rows.iter().filter(|row| !self.is_below(row, &asked)).collect()
    }

    fn is_below(&self, row: &LocationRow, asked: &HashSet<i64>) -> bool {
        // All that is above, however far: the statement that brought it ends at circles, and so does this.
        let mut passed = HashSet::new();
        let mut next = row.parent_id;
        while let Some(step) = next.and_then(|id| self.steps.get(&id)).filter(|step| step.domain == row.domain) {
            if step.id == row.id {
                // It is part of a circle.
                return passed.iter().any(|id| *id < row.id && asked.contains(id));
            }
            if !passed.insert(step.id) {
                break;
            }
            next = step.parent_id;
        }
        passed.iter().any(|id| asked.contains(id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn rows(of: &[(i64, Option<i64>)]) -> Vec<LocationRow> {
        let row = |&(id, parent_id): &(i64, Option<i64>)| LocationRow {
            id,
            location_id: format!("l{id}"),
            domain: "demo".into(),
            parent_id,
            ..LocationRow::default()
        };
        of.iter().map(row).collect()
    }

    fn ancestor_paths(rows: &[LocationRow]) -> AncestorPaths {
        let step = |row: &LocationRow| LocationStep {
            id: row.id,
            location_id: row.location_id.clone(),
            domain: row.domain.clone(),
            parent_id: row.parent_id,
        };
        AncestorPaths::new(rows.iter().map(step).collect())
    }

    fn above(paths: &AncestorPaths, row: &LocationRow) -> Vec<i64> {
        paths.above(row).iter().map(|step| step.id).collect()
    }

    fn topmost(paths: &AncestorPaths, rows: &[LocationRow], asked: &[i64]) -> Vec<i64> {
        let asked: Vec<LocationRow> = rows.iter().filter(|row| asked.contains(&row.id)).cloned().collect();
        paths.topmost(&asked).iter().map(|row| row.id).collect()
    }

    #[test]
    fn only_the_topmost_stay() {
        let rows = rows(&[(1, None), (2, Some(1)), (3, Some(2)), (4, Some(2)), (5, Some(99)), (6, None)]);
        let paths = ancestor_paths(&rows);
        assert_eq!(above(&paths, &rows[2]), [2, 1]);
        assert_eq!(above(&paths, &rows[4]), [0_i64; 0], "an orphan");
        assert_eq!(topmost(&paths, &rows, &[3, 4, 5]), [3, 4, 5]);
        assert_eq!(topmost(&paths, &rows, &[4, 3, 1, 6]), [1, 6]);
        assert_eq!(topmost(&paths, &rows, &[2, 4]), [2]);
    }

    #[test]
    fn circles_end_and_keep_one() {
        // 1 → 3 → 2 → 1; 4 hangs below 2; 5 is its own parent.
        let rows = rows(&[(1, Some(3)), (2, Some(1)), (3, Some(2)), (4, Some(2)), (5, Some(5))]);
        let paths = ancestor_paths(&rows);
        assert_eq!((above(&paths, &rows[0]), above(&paths, &rows[3])), (vec![3, 2], vec![2, 1, 3]));
        assert!(above(&paths, &rows[4]).is_empty());
        assert_eq!(topmost(&paths, &rows, &[1, 2, 3, 4, 5]), [1, 5]);
        assert_eq!(topmost(&paths, &rows, &[3, 4]), [3]);
        assert_eq!(topmost(&paths, &rows, &[4]), [4]);
    }

    #[test]
    fn a_parent_of_another_domain_is_none_and_long_ways_are_cut() {
        let mut rows = rows(&(0..200_i64).map(|id| (id, id.checked_sub(1))).collect::<Vec<_>>());
        let long = ancestor_paths(&rows);
        assert_eq!(above(&long, &rows[199]).len(), HOPS_MAX);
        assert_eq!(topmost(&long, &rows, &[0, 199]), [0]);
        rows[1].domain = "other".into();
        let paths = ancestor_paths(&rows);
        assert_eq!(above(&paths, &rows[3]), [2]);
        assert_eq!(topmost(&paths, &rows, &[1, 2]), [1, 2]);
    }
}
