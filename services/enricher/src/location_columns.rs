//! The location columns of a row: where it belongs in its domain's location tree. Pure.
//!
//! A case or form belongs to the location of its user; a case whose user has none in the tree (a web user, an import, a location that is gone) to its
//! owner, where that is itself a location, as it is with case sharing.
//!
//! A type is known by its code, which stays when it is renamed ([`lake_hq::source::location_type_key`]): so it has the same columns for ever.
//! A case or form gets `+<type>_id` of every ancestor-or-self of its user's location, archived ones included; a location row more
//! about each of its own ancestors. There is a column for every type of the domain, whether a location has it or not; where a type occurs
//! twice among the ancestors, the nearest wins. A location that is not (or no longer) in the tree gives NULLs, never an error.
//!
//! Where a domain has more types than `location_types_max`, those that were made last have no columns, so that the columns that are there stay
//! when more types come. `supervisor` always has its own. Nothing is lost by that: a location row names its type and its parent itself.
//!
//! Cases and forms keep the locations they were ingested with: a move in the tree refreshes the rows of locations (the fetcher emits them
//! again), not those of users below.

use std::sync::Arc;

use lake_hq::locations::{Location, LocationTree};

use crate::fields::LakeColumnNames;

/// Key of the type that always has columns, where the domain has it.
const SUPERVISOR: &str = "supervisor";

/// Source path of the column that every row has, whether the domain has a type `supervisor` or not.
pub const SUPERVISOR_ID: &str = "+supervisor_id";

/// Source paths of the columns of one location type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeColumns {
    /// `+T_id`, text: `location_id` of the ancestor of type T.
    pub id: Box<str>,
    /// `+T_name`, text: its name.
    pub name: Box<str>,
    /// `+T_site_code`, text: its site code, unique within the domain.
    pub site_code: Box<str>,
    /// `+T_latitude`, double: its latitude in degrees.
    pub latitude: Box<str>,
    /// `+T_longitude`, double: its longitude in degrees.
    pub longitude: Box<str>,
    /// `+T_is_archived`, boolean: whether it is archived in HQ.
    pub is_archived: Box<str>,
}

impl TypeColumns {
    fn of(type_key: &str) -> Self {
        let path = |suffix: &str| format!("+{type_key}_{suffix}").into_boxed_str();
        Self {
            id: path("id"),
            name: path("name"),
            site_code: path("site_code"),
            latitude: path("latitude"),
            longitude: path("longitude"),
            is_archived: path("is_archived"),
        }
    }
}

/// The location tree of a domain and the columns that follow from it.
#[derive(Debug)]
pub struct DomainLocations {
    tree: LocationTree,
    /// Indexes of the types that have columns, among those of the tree; ascending.
    type_indexes: Vec<usize>,
    /// Columns of each of them.
    columns: Vec<TypeColumns>,
    names: LakeColumnNames,
}

impl DomainLocations {
    /// The locations of a domain whose tree was read. At most `types_max` types have columns.
    pub fn new(tree: LocationTree, types_max: usize) -> Arc<Self> {
        let type_indexes = type_indexes(&tree, types_max);
        let type_keys = || type_indexes.iter().filter_map(|index| tree.type_keys().get(*index)).map(|key| &**key);
        let columns = type_keys().map(TypeColumns::of).collect();
        let names = LakeColumnNames::of_location_types(type_keys());
        Arc::new(Self { type_indexes, columns, names, tree })
    }

    /// How many location types of the domain have no columns, because there are too many.
    pub fn types_left_out(&self) -> usize {
        self.tree.type_keys().len().saturating_sub(self.columns.len())
    }

    /// The location tree itself.
    pub fn tree(&self) -> &LocationTree {
        &self.tree
    }

    /// The database's clock when the tree was read, in microseconds.
    pub fn observed_us(&self) -> i64 {
        self.tree.observed_us()
    }

    /// How many locations the tree has.
    pub fn nodes(&self) -> usize {
        self.tree.len()
    }

    /// Columns of each type that has some, in the order of the types' keys.
    pub fn type_columns(&self) -> &[TypeColumns] {
        &self.columns
    }

    /// Names that the lake takes in cases of this domain.
    pub fn column_names(&self) -> &LakeColumnNames {
        &self.names
    }

    /// The first of these that is a location of the tree.
    pub fn first_known<'l, const N: usize>(&self, location_ids: [Option<&'l str>; N]) -> Option<&'l str> {
        location_ids.into_iter().flatten().find(|id| self.tree.get(id).is_some())
    }

    /// For each type, in the order of [`DomainLocations::type_columns`], the ancestor-or-self of this location.
    pub fn ancestors_by_type(&self, location_id: Option<&str>) -> Vec<Option<Location<'_>>> {
        let mut by_type = vec![None; self.columns.len()];
        let path = location_id.and_then(|id| self.tree.ancestors_or_self(id)).unwrap_or_default();
        // From the root down: the nearest comes last and stays.
        for location in path {
            let place = location.type_index.and_then(|index| self.type_indexes.binary_search(&index).ok());
            if let Some(entry) = place.and_then(|place| by_type.get_mut(place)) {
                *entry = Some(location);
            }
        }
        by_type
    }
}

/// The types that get columns, as indexes among those of the tree: the oldest, and `supervisor` whatever its age.
fn type_indexes(tree: &LocationTree, types_max: usize) -> Vec<usize> {
    let keys = tree.type_keys();
    let supervisor = keys.binary_search_by(|key| (**key).cmp(SUPERVISOR)).ok();
    let mut indexes = tree.oldest_type_indexes(types_max);
    if let Some(supervisor) = supervisor.filter(|index| indexes.binary_search(index).is_err()) {
        indexes = tree.oldest_type_indexes(types_max.saturating_sub(1));
        indexes.push(supervisor);
        indexes.sort_unstable();
    }
    indexes
}

/// A coordinate as a cell: HQ shows 0 as null.
pub fn coordinate(degrees: Option<f64>) -> Option<f64> {
    degrees.filter(|degrees| *degrees != 0.0 && degrees.is_finite())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_hq::source::{LocationRow, LocationRows};

    use super::*;

    fn locations() -> Arc<DomainLocations> {
        let row = |id: i64, location_id: &str, type_name: &str, parent_id: Option<i64>| LocationRow {
            id,
            location_id: location_id.into(),
            type_name: type_name.into(),
            parent_id,
            is_archived: location_id == "d",
            ..LocationRow::default()
        };
        let rows = vec![
            row(1, "s", "State", None),
            row(2, "d", "district", Some(1)),
            row(3, "a", "area", Some(2)),
            row(4, "a2", "area", Some(3)),
            row(5, "x", "supervisor", None),
        ];
        DomainLocations::new(LocationTree::from_rows(LocationRows { observed_us: 7, rows }), 200)
    }

    fn ids(location_id: Option<&str>) -> Vec<Option<String>> {
        let locations = locations();
        let ancestors = locations.ancestors_by_type(location_id);
        ancestors.into_iter().map(|location| Some(location?.location_id.to_string())).collect()
    }

    #[test]
    fn every_type_of_the_domain_has_columns() {
        let locations = locations();
        let of_ids: Vec<&str> = locations.type_columns().iter().map(|columns| &*columns.id).collect();
        assert_eq!(of_ids, ["+State_id", "+area_id", "+district_id", SUPERVISOR_ID]);
        assert_eq!(&*locations.type_columns()[1].is_archived, "+area_is_archived");
        assert!(locations.column_names().contains("State_id") && !locations.column_names().contains("state_id"));
        assert_eq!((locations.observed_us(), locations.nodes()), (7, 5));
    }

    #[test]
    fn ancestors_and_the_location_itself_are_found_archived_ones_included() {
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(ids(Some("a")), [some("s"), some("a"), some("d"), None]);
        assert_eq!(ids(Some("x")), [None, None, None, some("x")]);
    }

    #[test]
    fn the_nearest_of_two_ancestors_of_one_type_wins() {
        assert_eq!(ids(Some("a2"))[1].as_deref(), Some("a2"));
    }

    /// The predecessor crashed here.
    #[test]
    fn a_location_that_is_gone_gives_nulls() {
        assert_eq!(ids(Some("gone")), vec![None; 4]);
        assert_eq!(ids(Some("")), vec![None; 4]);
        assert_eq!(ids(None), vec![None; 4]);
    }

    /// Types are made in the order of their numbers, so their keys do not sort as they came.
    #[test]
    fn twenty_thousand_types_make_no_more_columns_than_the_limit_and_supervisor_is_among_them() {
        let row = |id: i64| LocationRow {
            id,
            location_id: format!("l{id}"),
            type_name: if id == 19_999 { "supervisor".into() } else { format!("type {id}") },
            parent_id: id.checked_sub(1).filter(|parent| parent % 10 != 9),
            ..LocationRow::default()
        };
        let of = |count: i64, types_max| {
            let rows = LocationRows { observed_us: 7, rows: (0..count).map(row).collect() };
            DomainLocations::new(LocationTree::from_rows(rows), types_max)
        };
        let locations = of(20_000, 100);
        assert_eq!((locations.type_columns().len(), locations.types_left_out()), (100, 19_900));
        let of_ids: Vec<&str> = locations.type_columns().iter().map(|columns| &*columns.id).collect();
        assert!(of_ids.contains(&SUPERVISOR_ID) && of_ids.contains(&"+type 98_id") && !of_ids.contains(&"+type 99_id"));
        // What is left out takes no name from the properties of cases.
        assert!(locations.column_names().contains("type 98_id") && !locations.column_names().contains("type 99_id"));
        let found = |location_id| {
            let ancestors = locations.ancestors_by_type(Some(location_id));
            let ids = ancestors.into_iter().flatten().map(|location| location.location_id.to_owned());
            ids.collect::<std::collections::BTreeSet<String>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(found("l12"), ["l10", "l11", "l12"]);
        assert_eq!((found("l15000"), found("l19999")), (vec![], vec!["l19999".to_owned()]));
        // The same types have columns when more come.
        let fewer = of(5_000, 99);
        assert!(fewer.type_columns().iter().all(|columns| of_ids.contains(&&*columns.id)));
        assert_eq!((of(5, 5).types_left_out(), of(5, 1).type_columns().len()), (0, 1));
    }

    #[test]
    fn coordinates_of_zero_are_none() {
        assert_eq!(coordinate(Some(0.0)), None);
        assert_eq!(coordinate(Some(-0.0)), None);
        assert_eq!(coordinate(None), None);
        assert_eq!(coordinate(Some(-7.5)), Some(-7.5));
    }
}
