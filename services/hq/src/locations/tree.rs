//! The tree itself: what was read as a whole, and what has changed since on top of it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::HOPS_MAX;
use super::location_types::Types;
use super::node_index::NodeIndex;
use super::nodes::{NO_PARENT, Nodes, Unpacked};
use super::segments::Segments;
use crate::source::{LocationNode, LocationRows, TreeRow};

/// Bit that is set in the index of a location that came after the whole was read.
pub(super) const ADDED: u32 = 1 << 31;
/// `parent_id` of a top-level location while the tree is read.
const NO_PARENT_ID: i64 = i64::MIN;
/// How much earlier than the newest known change a changed location may have been stamped: HQ stamps it before it commits, and its
/// application servers' clocks differ.
const LAST_MODIFIED_OVERLAP_US: i64 = 600 * 1_000_000;

/// One location of a tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Location<'t> {
    /// Identity outside the database.
    pub location_id: &'t str,
    /// Name, may be null.
    pub name: Option<&'t str>,
    /// Unique within the domain.
    pub site_code: &'t str,
    /// Latitude in degrees.
    pub latitude: Option<f64>,
    /// Longitude in degrees.
    pub longitude: Option<f64>,
    /// Whether it is archived: hidden in HQ, still an ancestor.
    pub is_archived: bool,
    /// Index of its type's key among [`LocationTree::type_keys`].
    pub type_index: Option<usize>,
}

/// The tree as it was when it was read as a whole. Never changes.
#[derive(Debug, Default)]
pub(super) struct Base {
    pub nodes: Nodes,
    by_location_id: NodeIndex,
    by_id: NodeIndex,
    hasher: RandomState,
    /// Number of different locations.
    count: usize,
}

impl Base {
    pub fn node_index(&self, location_id: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(location_id);
        self.by_location_id.find(hash, |node_index| self.nodes.location_id(node_index) == Some(location_id))
    }

    pub fn node_index_of_id(&self, id: i64) -> Option<u32> {
        self.by_id.find(self.hasher.hash_one(id), |node_index| self.nodes.id(node_index) == Some(id))
    }
}

/// Locations that changed since the whole was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Patch {
    pub nodes: Nodes,
    /// Index of a location → its index in `nodes`; `None` for one that is gone.
    pub replaced: HashMap<u32, Option<u32>>,
    /// Indexes of locations that the base does not have.
    pub added: HashMap<Box<str>, u32>,
    pub added_ids: HashMap<i64, u32>,
}

/// All locations of one domain. About 140 bytes each, of which texts are the larger part; cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct LocationTree {
    pub(super) observed_us: i64,
    pub(super) newest_modified_us: i64,
    pub(super) base: Arc<Base>,
    pub(super) patch: Patch,
    pub(super) types: Types,
}

impl LocationTree {
    /// Makes a tree of rows that are all there at once.
    pub fn from_rows(rows: LocationRows) -> Self {
        let mut builder = TreeBuilder::default();
        let mut type_ids: HashMap<&str, i64> = HashMap::new();
        for row in &rows.rows {
            let next = type_ids.len() as i64;
            let type_id = *type_ids.entry(row.type_key()).or_insert(next);
            builder.take(&TreeRow::Location(row.node(type_id)));
        }
        builder.finish(rows.observed_us)
    }

    /// The database's clock when the rows were read, in microseconds.
    pub fn observed_us(&self) -> i64 {
        self.observed_us
    }

    /// Since when changes have to be asked for, in microseconds of `last_modified`. A stamp from the future, of a server whose clock is
    /// wrong, hides nothing.
    pub fn changed_since_us(&self) -> i64 {
        self.newest_modified_us.min(self.observed_us).saturating_sub(LAST_MODIFIED_OVERLAP_US)
    }

    /// The same for a look between two that go back so far, when the changed locations are named: only what is stamped later than all that is known.
    pub fn stamped_after_us(&self) -> i64 {
        self.newest_modified_us.min(self.observed_us).saturating_add(1)
    }

    /// How many locations there are, archived ones included.
    pub fn len(&self) -> usize {
        let gone = self.patch.replaced.values().filter(|now| now.is_none()).count();
        (self.base.count + self.patch.added.len()).saturating_sub(gone)
    }

    /// Whether the domain has no locations.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the location types of the domain are known by, each once, in the order of their text; also types that no location has.
    pub fn type_keys(&self) -> &[Arc<str>] {
        self.types.keys()
    }

    /// Indexes among [`LocationTree::type_keys`] of at most `most` of them, ascending: of the types that were made first in HQ.
    pub fn oldest_type_indexes(&self, most: usize) -> Vec<usize> {
        self.types.oldest_key_indexes(most)
    }

    /// The location with this id, if the tree has it.
    pub fn get(&self, location_id: &str) -> Option<Location<'_>> {
        self.unpacked(self.node_index(location_id)?).map(|node| self.location(node))
    }

    /// The locations from the root down to the location itself, which is the last; `None` where there is no such location.
    pub fn ancestors_or_self(&self, location_id: &str) -> Option<Vec<Location<'_>>> {
        let mut node_index = self.node_index(location_id)?;
        let mut node = self.unpacked(node_index)?;
        let (mut node_indexes, mut path) = (vec![node_index], vec![self.location(node)]);
        while path.len() <= HOPS_MAX {
            node_index = node.parent;
            if node_index == NO_PARENT || node_indexes.contains(&node_index) {
                break;
            }
            let Some(parent) = self.unpacked(node_index) else { break };
            node = parent;
            node_indexes.push(node_index);
            path.push(self.location(node));
        }
        path.reverse();
        Some(path)
    }

    fn location<'t>(&self, node: Unpacked<'t>) -> Location<'t> {
        Location {
            location_id: node.location_id,
            name: node.name,
            site_code: node.site_code,
            latitude: node.latitude,
            longitude: node.longitude,
            is_archived: node.is_archived,
            type_index: self.types.key_index(node.type_number),
        }
    }

    /// Index of a location, whether it is still there or not.
    pub(super) fn node_index(&self, location_id: &str) -> Option<u32> {
        self.base.node_index(location_id).or_else(|| self.patch.added.get(location_id).copied())
    }

    pub(super) fn node_index_of_id(&self, id: i64) -> Option<u32> {
        self.patch.added_ids.get(&id).copied().or_else(|| self.base.node_index_of_id(id))
    }

    /// The location with this index as it is now; `None` where it is gone.
    pub(super) fn unpacked(&self, node_index: u32) -> Option<Unpacked<'_>> {
        match self.patch.replaced.get(&node_index) {
            Some(now) => self.patch.nodes.get((*now)?),
            None if node_index & ADDED != 0 => self.patch.nodes.get(node_index & !ADDED),
            None => self.base.nodes.get(node_index),
        }
    }
}

/// Makes a tree of rows as they come, in any order.
#[derive(Debug, Default)]
pub struct TreeBuilder {
    nodes: Nodes,
    parent_ids: Segments<i64>,
    types: Types,
    newest_modified_us: i64,
    left_out: usize,
}

impl TreeBuilder {
    /// Takes over one row of the answer.
    pub fn take(&mut self, row: &TreeRow<'_>) {
        match row {
            TreeRow::Type { id, key } => self.types.list(*id, key),
            TreeRow::Location(row) => self.take_location(row),
            TreeRow::Count(_) => {}
        }
    }

    fn take_location(&mut self, row: &LocationNode<'_>) {
        let type_number = self.types.number(row.type_id, row.type_key);
        if self.nodes.push(row, type_number).is_none() {
            self.left_out += 1;
            return;
        }
        self.parent_ids.push(row.parent_id.unwrap_or(NO_PARENT_ID));
        self.newest_modified_us = self.newest_modified_us.max(row.last_modified_us);
    }

    /// The tree. Of a location that came twice the first stays; a parent that did not come is none. Takes a moment for a large tree.
    pub fn finish(self, observed_us: i64) -> LocationTree {
        let Self { mut nodes, parent_ids, mut types, newest_modified_us, left_out } = self;
        if left_out > 0 {
            tracing::error!(left_out, "locations are left out: too many, or ids longer than HQ allows");
        }
        nodes.shrink();
        types.finish();
        let mut base = Base {
            by_location_id: NodeIndex::with_room(nodes.len()),
            by_id: NodeIndex::with_room(nodes.len()),
            hasher: RandomState::new(),
            count: 0,
            nodes,
        };
        let node_indexes = || (0_u32..).take(parent_ids.len());
        for node_index in node_indexes() {
            let Some(location_id) = base.nodes.location_id(node_index) else { continue };
            let same = |held| base.nodes.location_id(held) == Some(location_id);
            if base.by_location_id.insert(base.hasher.hash_one(location_id), node_index, same) {
                base.count += 1;
                let id = base.nodes.id(node_index);
                base.by_id
                    .insert(base.hasher.hash_one(id.unwrap_or_default()), node_index, |held| base.nodes.id(held) == id);
            }
        }
        for node_index in node_indexes() {
            let parent_id = parent_ids.get(node_index as usize).copied().filter(|id| *id != NO_PARENT_ID);
            if let Some(parent) = parent_id.and_then(|id| base.node_index_of_id(id)) {
                base.nodes.set_parent(node_index, parent);
            }
        }
        LocationTree { observed_us, newest_modified_us, base: Arc::new(base), patch: Patch::default(), types }
    }
}
