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
//! Cases and forms keep the locations they were ingested with: a move in the tree refreshes the rows of locations (the fetcher emits them
//! again), not those of users below.

use std::sync::Arc;

use lake_hq::locations::{Location, LocationTree};

use crate::fields::LakeColumnNames;

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
    columns: Vec<TypeColumns>,
    names: LakeColumnNames,
}

impl DomainLocations {
    /// The locations of a domain whose tree was read.
    pub fn new(tree: LocationTree) -> Arc<Self> {
        let type_keys = || tree.type_keys().iter().map(|key| &**key);
        let columns = type_keys().map(TypeColumns::of).collect();
        let names = LakeColumnNames::of_location_types(type_keys());
        Arc::new(Self { tree, columns, names })
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

    /// Columns of each type, in the order of the types' keys.
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
            if let Some(entry) = location.type_index.and_then(|index| by_type.get_mut(index)) {
                *entry = Some(location);
            }
        }
        by_type
    }
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
        DomainLocations::new(LocationTree::from_rows(LocationRows { observed_us: 7, rows }))
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

    #[test]
    fn coordinates_of_zero_are_none() {
        assert_eq!(coordinate(Some(0.0)), None);
        assert_eq!(coordinate(Some(-0.0)), None);
        assert_eq!(coordinate(None), None);
        assert_eq!(coordinate(Some(-7.5)), Some(-7.5));
    }
}
