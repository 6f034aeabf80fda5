//! The location tree of one domain, in memory: ancestors for the rows of users, descendants for what a moved location touches.
//!
//! HQ keeps cycles out with application code only, and a parent can be of another domain only by error. So every walk here ends: upwards after
//! [`HOPS_MAX`] or at a repeated node, downwards because no node is visited twice. A parent that is not among the rows counts as none.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::source::{LocationRow, LocationRows};

/// Most levels that a walk upwards takes.
pub const HOPS_MAX: usize = 50;

/// `parent` of a top-level location.
const NO_PARENT: u32 = u32::MAX;

/// One location.
#[derive(Clone, Debug)]
pub struct Location {
    /// Identity outside the database.
    pub location_id: Box<str>,
    /// Name, may be null.
    pub name: Option<Box<str>>,
    /// Name of its type, shared by all locations of that type.
    pub type_name: Arc<str>,
    /// Code of its type.
    pub type_code: Option<Arc<str>>,
    /// Unique within the domain.
    pub site_code: Box<str>,
    /// Id in some other system.
    pub external_id: Option<Box<str>>,
    /// Custom fields: text of a JSON object.
    pub metadata: Box<str>,
    /// Degrees.
    pub latitude: Option<f64>,
    /// Degrees.
    pub longitude: Option<f64>,
    /// Hidden in HQ, still an ancestor.
    pub is_archived: bool,
    /// Microseconds.
    pub archived_on_us: Option<i64>,
    /// Microseconds.
    pub last_modified_us: i64,
    /// Place of the parent in the tree.
    parent: u32,
}

/// All locations of one domain. About 250 bytes per location besides its texts.
#[derive(Clone, Debug, Default)]
pub struct LocationTree {
    domain: String,
    observed_us: i64,
    /// By `location_id`, so that a lookup needs no second copy of the ids.
    locations: Vec<Location>,
    /// Children of location n: `children[child_starts[n]..child_starts[n + 1]]`.
    child_starts: Vec<u32>,
    children: Vec<u32>,
    type_names: Vec<Arc<str>>,
}

impl LocationTree {
    /// Makes the tree of the rows of one domain.
    pub fn from_rows(rows: LocationRows) -> Self {
        let LocationRows { observed_us, mut rows } = rows;
        rows.sort_unstable_by(|one, other| one.location_id.cmp(&other.location_id));
        rows.dedup_by(|later, kept| later.location_id == kept.location_id);
        let places: HashMap<i64, u32> = rows.iter().map(|row| row.id).zip(0..).collect();
        let domain = rows.first().map(|row| row.domain.clone()).unwrap_or_default();
        let mut shared = HashMap::new();
        let locations: Vec<Location> = rows.into_iter().map(|row| location(row, &places, &mut shared)).collect();
        let (child_starts, children) = children_of(&locations);
        let mut type_names: Vec<Arc<str>> = locations.iter().map(|location| location.type_name.clone()).collect();
        type_names.sort_unstable();
        type_names.dedup();
        type_names.shrink_to_fit();
        Self { domain, observed_us, locations, child_starts, children, type_names }
    }

    /// The domain of its locations; empty where there are none.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The database's clock when the rows were read, in microseconds.
    pub fn observed_us(&self) -> i64 {
        self.observed_us
    }

    /// How many locations there are, archived ones included.
    pub fn len(&self) -> usize {
        self.locations.len()
    }

    /// Whether the domain has no locations.
    pub fn is_empty(&self) -> bool {
        self.locations.is_empty()
    }

    /// Names of the types that have a location, each once, in the order of their text. (A type without any location gives no column a value.)
    pub fn type_names(&self) -> &[Arc<str>] {
        &self.type_names
    }

    /// All locations, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Location> {
        self.locations.iter()
    }

    /// One location.
    pub fn get(&self, location_id: &str) -> Option<&Location> {
        self.place(location_id).map(|place| &self.locations[place as usize])
    }

    /// The way from the root down to the location itself, which is the last; `None` where there is no such location.
    pub fn ancestors_or_self(&self, location_id: &str) -> Option<Vec<&Location>> {
        let mut way = vec![self.place(location_id)?];
        while way.len() <= HOPS_MAX {
            let parent = self.locations[way[way.len() - 1] as usize].parent;
            if parent == NO_PARENT || way.contains(&parent) {
                break;
            }
            way.push(parent);
        }
        Some(way.into_iter().rev().map(|place| &self.locations[place as usize]).collect())
    }

    /// The location itself, first, and everything below it, parents before children; empty where there is no such location.
    pub fn descendants_or_self(&self, location_id: &str) -> Vec<&Location> {
        let mut below: Vec<u32> = self.place(location_id).into_iter().collect();
        let mut seen: HashSet<u32> = below.iter().copied().collect();
        let mut next = 0;
        while next < below.len() {
            let place = below[next] as usize;
            let children = &self.children[self.child_starts[place] as usize..self.child_starts[place + 1] as usize];
            below.extend(children.iter().filter(|child| seen.insert(**child)));
            next += 1;
        }
        below.into_iter().map(|place| &self.locations[place as usize]).collect()
    }

    fn place(&self, location_id: &str) -> Option<u32> {
        let place = self.locations.binary_search_by(|location| (*location.location_id).cmp(location_id)).ok()?;
        u32::try_from(place).ok()
    }
}

fn location(row: LocationRow, places: &HashMap<i64, u32>, shared: &mut HashMap<String, Arc<str>>) -> Location {
    let mut share = |text: String| shared.entry(text).or_insert_with_key(|text| Arc::from(text.as_str())).clone();
    Location {
        location_id: row.location_id.into(),
        name: row.name.map(Into::into),
        type_name: share(row.type_name),
        type_code: row.type_code.map(share),
        site_code: row.site_code.into(),
        external_id: row.external_id.map(Into::into),
        metadata: row.metadata.into(),
        latitude: row.latitude,
        longitude: row.longitude,
        is_archived: row.is_archived,
        archived_on_us: row.archived_on_us,
        last_modified_us: row.last_modified_us,
        parent: row.parent_id.and_then(|id| places.get(&id).copied()).unwrap_or(NO_PARENT),
    }
}

/// Children of all locations in one list, and where each location's begin.
fn children_of(locations: &[Location]) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0_u32; locations.len() + 1];
    let parents =
        || locations.iter().map(|location| location.parent).zip(0_u32..).filter(|(parent, _)| *parent != NO_PARENT);
    for (parent, _) in parents() {
        starts[parent as usize + 1] += 1;
    }
    for place in 0..locations.len() {
        starts[place + 1] += starts[place];
    }
    let mut free = starts.clone();
    let mut children = vec![0; parents().count()];
    for (parent, child) in parents() {
        children[free[parent as usize] as usize] = child;
        free[parent as usize] += 1;
    }
    (starts, children)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

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

    fn ids<'t>(of: impl IntoIterator<Item = &'t Location>) -> Vec<&'t str> {
        of.into_iter().map(|location| &*location.location_id).collect()
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
        assert_eq!(ids(tree.ancestors_or_self("v1").unwrap()), ["s", "d1", "v1"]);
        assert_eq!(ids(tree.ancestors_or_self("s").unwrap()), ["s"]);
        assert!(tree.ancestors_or_self("gone").is_none());
    }

    #[test]
    fn descendants_come_parents_first() {
        let tree = country();
        let all = ids(tree.descendants_or_self("s"));
        assert_eq!(all[0], "s");
        assert_eq!(all.iter().copied().collect::<HashSet<_>>(), HashSet::from(["s", "d1", "d2", "v1", "v2", "v3"]));
        assert_eq!(all.len(), 6);
        assert_eq!(ids(tree.descendants_or_self("d1")), ["d1", "v1", "v3"]);
        assert_eq!(ids(tree.descendants_or_self("v2")), ["v2"]);
        assert!(tree.descendants_or_self("gone").is_empty());
    }

    #[test]
    fn lookups_and_type_names() {
        let tree = country();
        assert_eq!(&*tree.get("d2").unwrap().type_name, "District");
        assert!(tree.get("D2").is_none());
        let names: Vec<&str> = tree.type_names().iter().map(|name| &**name).collect();
        assert_eq!(names, ["District", "State", "village"]);
        assert_eq!((tree.len(), tree.domain(), tree.observed_us()), (6, "demo", 9));
        assert!(tree.type_names()[2].eq(&tree.get("v1").unwrap().type_name));
    }

    #[test]
    fn cycles_end() {
        let tree =
            tree(&[(1, "a", "t", Some(3)), (2, "b", "t", Some(1)), (3, "c", "t", Some(2)), (4, "self", "t", Some(4))]);
        assert_eq!(ids(tree.ancestors_or_self("a").unwrap()), ["b", "c", "a"]);
        assert_eq!(ids(tree.descendants_or_self("a")), ["a", "b", "c"]);
        assert_eq!(ids(tree.ancestors_or_self("self").unwrap()), ["self"]);
        assert_eq!(ids(tree.descendants_or_self("self")), ["self"]);
    }

    #[test]
    fn a_chain_without_end_is_cut() {
        let names: Vec<String> = (0..200).map(|level| format!("l{level:03}")).collect();
        let rows: Vec<_> = (0..200_i64)
            .map(|level| (level, names[level as usize].as_str(), "t", (level > 0).then(|| level - 1)))
            .collect();
        let tree = tree(&rows);
        let way = ids(tree.ancestors_or_self("l199").unwrap());
        assert_eq!((way.len(), way[0], way[HOPS_MAX]), (HOPS_MAX + 1, "l149", "l199"));
        assert_eq!(tree.descendants_or_self("l000").len(), 200);
    }

    #[test]
    fn a_parent_of_elsewhere_is_none_and_no_rows_are_a_tree() {
        let tree = tree(&[(1, "a", "t", Some(99))]);
        assert_eq!(ids(tree.ancestors_or_self("a").unwrap()), ["a"]);
        let empty = LocationTree::from_rows(LocationRows::default());
        assert!(empty.is_empty() && empty.type_names().is_empty() && empty.descendants_or_self("a").is_empty());
    }
}
