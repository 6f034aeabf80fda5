//! The location tree of one domain, in memory, and paths to the root where the tree is not at hand.
//!
//! How HQ's locations behave (reference §6, §10), and what this module does about it:
//! - Archived locations stay, as ancestors and as rows: HQ archives by `save()`, not by deletion, and its hierarchy still names them.
//! - HQ keeps circles out with application code only, and a parent can be of another domain only by error. So every walk ends: upwards after
//!   [`HOPS_MAX`] or at a repeated node, downwards at a node that it has passed. A parent that is not among the rows counts as none.
//! - A move publishes only the moved location, while the place of everything below changes: a tree holds a parent per node, never a path,
//!   and the fetcher emits what is below again.
//! - Deletions leave no row that `last_modified` could show. [`Refresh`] takes the ids that messages named, and the number of rows shows
//!   that a deletion was missed.
//! - Updates that go past `save()` (bulk SQL) leave neither message nor stamp: only reading the whole tree again shows them.
//! - A renamed type has no message either. Types are known by their codes, which stay, are told anew with every refresh, and locations hold a
//!   type's number.
//! - Types without any location have columns too, so that a column does not come and go with the last location of its type.
//! - Ids are compared as text, untouched; keys of types are used as they are, with spaces and capitals.

mod ancestor_paths;
mod location_types;
mod node_index;
mod nodes;
mod refresh;
mod segments;
mod tree;

pub use self::ancestor_paths::AncestorPaths;
pub use self::refresh::{Refresh, WholeTreeNeeded};
pub use self::tree::{Location, LocationTree, TreeBuilder};

/// Most levels that a walk upwards takes.
pub const HOPS_MAX: usize = 50;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::source::{LocationNode, LocationRow, LocationRows, TreeRow};

    fn tree(of: &[(i64, &str, &str, Option<i64>)]) -> LocationTree {
        let rows = of
            .iter()
            .map(|&(id, location_id, type_name, parent_id)| LocationRow {
                id,
                location_id: location_id.into(),
                domain: "demo".into(),
                type_name: type_name.into(),
                parent_id,
                ..LocationRow::default()
            })
            .collect();
        LocationTree::from_rows(LocationRows { observed_us: 9, rows })
    }

    fn path<'t>(tree: &'t LocationTree, location_id: &str) -> Vec<&'t str> {
        tree.ancestors_or_self(location_id).unwrap().iter().map(|location| location.location_id).collect()
    }

    fn country() -> LocationTree {
        tree(&[
            (5, "v2", "village", Some(3)),
            (1, "s", "State", None),
            (4, "v1", "village", Some(2)),
            (2, "d1", "District", Some(1)),
            (3, "d2", "District", Some(1)),
            (6, "v3", "village", Some(2)),
        ])
    }

    #[test]
    fn ancestors_come_from_the_root_down() {
        let tree = country();
        assert_eq!(path(&tree, "v1"), ["s", "d1", "v1"]);
        assert_eq!(path(&tree, "s"), ["s"]);
        assert!(tree.ancestors_or_self("gone").is_none());
    }

    #[test]
    fn lookups_and_type_keys() {
        let tree = country();
        assert_eq!(tree.get("d2").unwrap().type_index, Some(0));
        assert!(tree.get("D2").is_none());
        let keys: Vec<&str> = tree.type_keys().iter().map(|key| &**key).collect();
        assert_eq!(keys, ["District", "State", "village"]);
        assert_eq!((tree.len(), tree.observed_us()), (6, 9));
    }

    #[test]
    fn a_type_keeps_its_column_when_it_is_renamed() {
        let of = |name: &str, code: Option<&str>| {
            let row = LocationRow {
                location_id: "a".into(),
                type_name: name.into(),
                type_code: code.map(str::to_owned),
                ..LocationRow::default()
            };
            let tree = LocationTree::from_rows(LocationRows { observed_us: 1, rows: vec![row] });
            tree.type_keys()[0].to_string()
        };
        assert_eq!(
            (of("Health Post", Some("health-post")), of("Clinic", Some("health-post"))),
            ("health-post".into(), "health-post".into())
        );
        assert_eq!(
            (of("Old", None), of("Older", Some(""))),
            ("Old".into(), "Older".into()),
            "types of before there were codes"
        );
        assert_eq!(of("supervisor", Some("sup")), "supervisor", "whose column every table has");
    }

    #[test]
    fn types_without_locations_are_there() {
        let mut builder = TreeBuilder::default();
        builder.take(&TreeRow::Type { id: 1, key: "State" });
        builder.take(&TreeRow::Location(LocationNode {
            location_id: "s",
            type_id: 1,
            type_key: "State",
            ..LocationNode::default()
        }));
        builder.take(&TreeRow::Type { id: 2, key: "Health Post" });
        let tree = builder.finish(1);
        let keys: Vec<&str> = tree.type_keys().iter().map(|key| &**key).collect();
        assert_eq!((keys, tree.get("s").unwrap().type_index), (vec!["Health Post", "State"], Some(1)));
    }

    #[test]
    fn cycles_end() {
        let tree =
            tree(&[(1, "a", "t", Some(3)), (2, "b", "t", Some(1)), (3, "c", "t", Some(2)), (4, "self", "t", Some(4))]);
        assert_eq!(path(&tree, "a"), ["b", "c", "a"]);
        assert_eq!(path(&tree, "self"), ["self"]);
    }

    #[test]
    fn a_chain_without_end_is_cut() {
        let names: Vec<String> = (0..200).map(|level| format!("l{level:03}")).collect();
        let rows: Vec<_> = (0..200_i64)
            .map(|level| (level, names[level as usize].as_str(), "t", (level > 0).then(|| level - 1)))
            .collect();
        let tree = tree(&rows);
        let path = path(&tree, "l199");
        assert_eq!((path.len(), path[0], path[HOPS_MAX]), (HOPS_MAX + 1, "l149", "l199"));
    }

    #[test]
    fn orphans_and_repeated_rows_survive() {
        let tree = tree(&[
            (1, "a", "t", Some(99)),
            (2, "b", "t", Some(1)),
            (2, "b", "t", Some(3)),
            (3, "c", "t", None),
            (1, "a", "t", None),
        ]);
        assert_eq!((path(&tree, "a"), path(&tree, "b"), tree.len()), (vec!["a"], vec!["a", "b"], 3));
        let empty = LocationTree::from_rows(LocationRows::default());
        assert!(empty.is_empty() && empty.type_keys().is_empty() && empty.get("a").is_none());
    }
}
