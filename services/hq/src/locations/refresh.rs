//! A tree brought up to date with the rows that changed, without reading or copying the others.

use std::collections::HashSet;

use super::nodes::NO_PARENT;
use super::tree::{ADDED, LocationTree};
use crate::source::{LocationNode, TreeRow};

/// Changed locations that a tree carries on top of what was read as a whole, besides a part of that.
const PATCH_MIN: usize = 2_000;
const PATCH_PART: usize = 32;
/// The part of a tree that is worth reading to find out what has changed: after an upload very many rows are stamped within the time that is
/// asked for, and nearly all of them are known.
const READ_PART: usize = 2;

/// Why the whole tree has to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WholeTreeNeeded {
    /// So much has changed that the whole is cheaper.
    #[error("too many locations have changed")]
    ManyChanges,
    /// HQ has another number of locations than the changes explain: a deletion was missed.
    #[error("the number of locations is not the one that HQ has")]
    OtherCount,
    /// An id that was deleted and given again, or a row that cannot be held.
    #[error("a location is another one than before")]
    OtherIdentity,
}

/// Takes the rows of [`crate::source::TreeExtent::Changed`].
#[derive(Debug)]
pub struct Refresh {
    tree: LocationTree,
    /// Ids that were asked for and have not come; those that HQ does not have any more.
    missing: HashSet<String>,
    parent_ids: Vec<(u32, Option<i64>)>,
    rows: usize,
    /// How many of them are not as the tree has them.
    changed: usize,
    count: Option<i64>,
    trouble: Option<WholeTreeNeeded>,
}

impl Refresh {
    /// Begins with the tree as it was; `asked` are the ids that were named as changed.
    pub fn new(tree: &LocationTree, asked: impl IntoIterator<Item = String>) -> Self {
        let mut tree = tree.clone();
        tree.types.begin();
        Self {
            tree,
            missing: asked.into_iter().collect(),
            parent_ids: Vec::new(),
            rows: 0,
            changed: 0,
            count: None,
            trouble: None,
        }
    }

    /// Most rows worth reading: with one more the whole is needed.
    pub fn rows_max(tree: &LocationTree) -> usize {
        PATCH_MIN + tree.base.nodes.len() / READ_PART
    }

    /// Most changed locations worth keeping on top of the others.
    fn changed_max(tree: &LocationTree) -> usize {
        PATCH_MIN + tree.base.nodes.len() / PATCH_PART
    }

    /// Takes over one row of the answer.
    pub fn take(&mut self, row: &TreeRow<'_>) {
        match row {
            TreeRow::Type { id, key } => self.tree.types.list(*id, key),
            TreeRow::Count(count) => self.count = Some(*count),
            TreeRow::Location(row) => {
                let taken = self.take_location(row);
                self.trouble = self.trouble.or(taken.err());
            }
        }
    }

    fn take_location(&mut self, row: &LocationNode<'_>) -> Result<(), WholeTreeNeeded> {
        self.rows += 1;
        if self.rows > Self::rows_max(&self.tree) {
            return Err(WholeTreeNeeded::ManyChanges);
        }
        self.missing.remove(row.location_id);
        let type_number = self.tree.types.number(row.type_id, row.type_key);
        let tree = &mut self.tree;
        tree.newest_modified_us = tree.newest_modified_us.max(row.last_modified_us);
        let known = tree.node_index(row.location_id);
        if known.is_none() && tree.node_index_of_id(row.id).is_some() {
            return Err(WholeTreeNeeded::OtherIdentity);
        }
        if let Some(held) = known.and_then(|node_index| tree.unpacked(node_index)) {
            if held.id != row.id {
                return Err(WholeTreeNeeded::OtherIdentity);
            }
            let parent_id = tree.unpacked(held.parent).filter(|_| held.parent != NO_PARENT).map(|parent| parent.id);
            let same = held.type_number == type_number
                && parent_id == row.parent_id
                && (held.name, held.site_code) == (row.name, row.site_code)
                && (held.latitude, held.longitude, held.is_archived) == (row.latitude, row.longitude, row.is_archived);
            // The overlap brings the same rows again and again.
            if same {
                return Ok(());
            }
        }
        self.changed += 1;
        let changed_max = Self::changed_max(tree);
        if self.changed > changed_max || tree.patch.nodes.len() >= 2 * changed_max {
            return Err(WholeTreeNeeded::ManyChanges);
        }
        let at = tree.patch.nodes.push(row, type_number).ok_or(WholeTreeNeeded::OtherIdentity)?;
        match known {
            Some(node_index) if tree.unpacked(node_index).is_none() => return Err(WholeTreeNeeded::OtherIdentity),
            Some(node_index) => drop(tree.patch.replaced.insert(node_index, Some(at))),
            None => {
                tree.patch.added.insert(row.location_id.into(), at | ADDED);
                tree.patch.added_ids.insert(row.id, at | ADDED);
            }
        }
        self.parent_ids.push((at, row.parent_id));
        Ok(())
    }

    /// The tree with its changes. The tree that it began with is as it was.
    ///
    /// # Errors
    /// Why the whole tree has to be read instead.
    pub fn finish(self, observed_us: i64) -> Result<LocationTree, WholeTreeNeeded> {
        let Self { mut tree, missing, parent_ids, count, trouble, .. } = self;
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        for (at, parent_id) in parent_ids {
            let parent = parent_id.and_then(|id| tree.node_index_of_id(id)).unwrap_or(NO_PARENT);
            tree.patch.nodes.set_parent(at, parent);
        }
        for location_id in missing {
            if let Some(node_index) = tree.node_index(&location_id) {
                tree.patch.replaced.insert(node_index, None);
            }
        }
        if count.is_some_and(|count| usize::try_from(count) != Ok(tree.len())) {
            return Err(WholeTreeNeeded::OtherCount);
        }
        tree.types.finish();
        tree.observed_us = observed_us;
        Ok(tree)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::locations::TreeBuilder;

    fn row<'r>(id: i64, location_id: &'r str, name: &'r str, parent_id: Option<i64>) -> LocationNode<'r> {
        let last_modified_us = 1_000_000_000 + id;
        LocationNode {
            id,
            location_id,
            name: Some(name),
            type_id: 1,
            type_key: "village",
            parent_id,
            last_modified_us,
            ..LocationNode::default()
        }
    }

    /// s ─ d1 ─ v1, v2; s ─ d2.
    fn tree() -> LocationTree {
        let mut builder = TreeBuilder::default();
        builder.take(&TreeRow::Type { id: 1, key: "village" });
        for row in [
            row(1, "s", "S", None),
            row(2, "d1", "D1", Some(1)),
            row(3, "d2", "D2", Some(1)),
            row(4, "v1", "V1", Some(2)),
            row(5, "v2", "V2", Some(2)),
        ] {
            builder.take(&TreeRow::Location(row));
        }
        builder.finish(2_000_000_000)
    }

    fn refreshed(
        tree: &LocationTree,
        asked: &[&str],
        rows: &[LocationNode<'_>],
        count: Option<i64>,
    ) -> Result<LocationTree, WholeTreeNeeded> {
        let mut refresh = Refresh::new(tree, asked.iter().map(|id| (*id).to_owned()));
        refresh.take(&TreeRow::Type { id: 1, key: "village" });
        rows.iter().for_each(|row| refresh.take(&TreeRow::Location(*row)));
        count.into_iter().for_each(|count| refresh.take(&TreeRow::Count(count)));
        refresh.finish(3_000_000_000)
    }

    fn path(tree: &LocationTree, location_id: &str) -> Option<String> {
        let path = tree.ancestors_or_self(location_id)?;
        Some(path.iter().map(|location| location.name.unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn moved_renamed_new_and_deleted_locations_show_and_the_tree_before_does_not_change() {
        let before = tree();
        assert_eq!(before.changed_since_us(), 1_000_000_005 - 600_000_000);
        let rows = [row(2, "d1", "New D1", Some(3)), row(7, "v3", "V3", Some(6)), row(6, "d3", "D3", Some(1))];
        let after = refreshed(&before, &["d1", "v2", "never heard of"], &rows, Some(6)).unwrap();
        assert_eq!(path(&after, "v1").unwrap(), "S D2 New D1 V1");
        assert_eq!(path(&after, "v3").unwrap(), "S D3 V3");
        assert_eq!(path(&after, "v2"), None);
        assert_eq!((after.len(), after.observed_us(), after.get("v2")), (6, 3_000_000_000, None));
        assert_eq!(path(&before, "v1").unwrap(), "S D1 V1");
        assert_eq!((before.len(), path(&before, "v2").unwrap().as_str(), path(&before, "v3")), (5, "S D1 V2", None));

        // Changes on top of changes: what was added is renamed, moved and deleted as well.
        let rows = [row(6, "d3", "Newer D3", None), row(7, "v3", "V3", Some(3))];
        let again = refreshed(&after, &["d3", "v1"], &rows, Some(5)).unwrap();
        assert_eq!(
            (path(&again, "d3").unwrap().as_str(), path(&again, "v3").unwrap().as_str()),
            ("Newer D3", "S D2 V3")
        );
        assert_eq!(path(&again, "v1"), None);
        let last = refreshed(&again, &["d3"], &[], Some(4)).unwrap();
        assert_eq!((path(&last, "d3"), last.len()), (None, 4));
        // A location below one that is gone is on top.
        let orphaned = refreshed(&before, &["s"], &[], None).unwrap();
        assert_eq!(path(&orphaned, "v1").unwrap(), "D1 V1");
    }

    #[test]
    fn rows_that_come_again_cost_nothing() {
        let mut tree = tree();
        for _ in 0..3 * PATCH_MIN {
            tree =
                refreshed(&tree, &[], &[row(4, "v1", "V1", Some(2)), row(5, "v2", "Renamed", Some(2))], None).unwrap();
        }
        assert_eq!(tree.patch.nodes.len(), 1);
    }

    /// A bulk upload stamps very many locations with about one time, which is asked for again and again.
    #[test]
    fn rows_that_are_known_are_no_changes() {
        let ids: Vec<String> = (0..20_000).map(|number| format!("l{number}")).collect();
        let rows: Vec<LocationNode<'_>> = (100..).zip(&ids).map(|(id, name)| row(id, name, name, None)).collect();
        let mut builder = TreeBuilder::default();
        builder.take(&TreeRow::Type { id: 1, key: "village" });
        rows.iter().for_each(|row| builder.take(&TreeRow::Location(*row)));
        let uploaded = builder.finish(2_000_000_000);
        assert!(9_000 > Refresh::changed_max(&uploaded));
        let mut again = rows[..9_000].to_vec();
        again[7].name = Some("renamed");
        let after = refreshed(&uploaded, &[], &again, Some(20_000)).unwrap();
        assert_eq!((path(&after, "l7").as_deref(), after.patch.nodes.len()), (Some("renamed"), 1));
        assert_eq!(refreshed(&uploaded, &[], &rows, None).unwrap_err(), WholeTreeNeeded::ManyChanges);
    }

    #[test]
    fn what_changes_do_not_explain_needs_the_whole_tree() {
        let tree = tree();
        assert_eq!(refreshed(&tree, &[], &[], Some(4)).unwrap_err(), WholeTreeNeeded::OtherCount);
        let again = row(9, "d1", "D1", None);
        assert_eq!(refreshed(&tree, &[], &[again], None).unwrap_err(), WholeTreeNeeded::OtherIdentity);
        let other = row(4, "another", "V1", None);
        assert_eq!(refreshed(&tree, &[], &[other], None).unwrap_err(), WholeTreeNeeded::OtherIdentity);
        let gone = refreshed(&tree, &["v1"], &[], None).unwrap();
        let back = row(4, "v1", "V1", Some(2));
        assert_eq!(refreshed(&gone, &[], &[back], None).unwrap_err(), WholeTreeNeeded::OtherIdentity);
        let ids: Vec<String> = (0..=Refresh::changed_max(&tree)).map(|number| format!("n{number}")).collect();
        let many: Vec<_> = (100..).zip(&ids).map(|(id, name)| row(id, name, name, None)).collect();
        assert_eq!(refreshed(&tree, &[], &many, None).unwrap_err(), WholeTreeNeeded::ManyChanges);
        assert_eq!(refreshed(&tree, &[], &many[1..], None).unwrap().len(), many.len() + 4);
    }

    #[test]
    fn a_type_with_another_code_and_a_new_one_show_without_any_location_having_changed() {
        let tree = tree();
        let mut refresh = Refresh::new(&tree, []);
        refresh.take(&TreeRow::Type { id: 1, key: "Ward" });
        refresh.take(&TreeRow::Type { id: 2, key: "Clinic" });
        let after = refresh.finish(5).unwrap();
        let keys: Vec<&str> = after.type_keys().iter().map(|key| &**key).collect();
        assert_eq!((keys, after.get("v1").unwrap().type_index), (vec!["Clinic", "Ward"], Some(1)));
    }

    #[test]
    fn a_stamp_from_the_future_hides_no_change() {
        let rows = [LocationNode { last_modified_us: i64::MAX, ..row(4, "v1", "V1", None) }];
        let after = refreshed(&tree(), &[], &rows, None).unwrap();
        assert_eq!(after.changed_since_us(), 3_000_000_000 - 600_000_000);
    }
}
