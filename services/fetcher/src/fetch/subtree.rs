//! The walk from changed locations down to everything below them, in chunks. Pure: the rows that are read are handed in.
//!
//! Depth first by chunks, so that what waits to be read is bounded by levels times the children of one chunk, not by the tree. Each location
//! has one parent, so it is visited once; only a circle leads back, and there the walk ends. A location that moves while the walk is under way
//! may be visited twice or not at all: its own message follows.

use std::collections::HashMap;
use std::sync::Arc;

use lake_hq::locations::{AncestorPaths, HOPS_MAX};
use lake_hq::source::LocationRow;

use crate::coalesce::Change;
use crate::fetch::Changes;

/// Locations that are read and published at a time.
const CHUNK_SIZE: usize = 1_000;
/// Most levels that a walk goes down. HQ's trees have less than ten.
const LEVELS_MAX: usize = 1_000;

/// A location above those that the walk visits.
#[derive(Debug)]
pub(crate) struct Ancestor {
    id: i64,
    location_id: Box<str>,
    above: Option<Arc<Ancestor>>,
    /// Levels that the walk came down to here; 0 for what is above where it began.
    level: usize,
    /// The change that the walk began with.
    cause: Arc<Change>,
}

impl Ancestor {
    /// This one, and those above, upwards.
    fn upwards(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |ancestor| ancestor.above.as_ref())
    }
}

/// A location that has not been read yet.
#[derive(Debug)]
pub(crate) struct PendingLocation {
    pub(crate) id: i64,
    /// Its parent; `None` for a location where the walk begins.
    above: Option<Arc<Ancestor>>,
}

impl PendingLocation {
    /// Id of its parent, and the change that the walk began with; `None` for a location where the walk begins.
    pub(crate) fn below(&self) -> Option<(&str, &Change)> {
        self.above.as_ref().map(|above| (&*above.location_id, &*above.cause))
    }
}

/// A location that was read and is to be emitted.
#[derive(Debug)]
pub(crate) struct VisitedLocation {
    pub(crate) row: LocationRow,
    above: Option<Arc<Ancestor>>,
    cause: Arc<Change>,
}

impl VisitedLocation {
    /// Ids from the parent up to the root; ends at a repeated one, as [`AncestorPaths::above`] does.
    pub(crate) fn lineage(&self) -> Vec<&str> {
        let (mut passed, mut lineage) = (vec![self.row.id], Vec::new());
        for above in self.above.iter().flat_map(Ancestor::upwards).take(HOPS_MAX) {
            if passed.contains(&above.id) {
                break;
            }
            passed.push(above.id);
            lineage.push(&*above.location_id);
        }
        lineage
    }

    /// The change that makes it be emitted: its own, or that of the location where the walk began.
    pub(crate) fn cause<'c>(&'c self, changes: &'c Changes) -> &'c Change {
        changes.get(&self.row.location_id).unwrap_or(&self.cause)
    }
}

/// The state of a walk, as the module describes it.
#[derive(Debug)]
pub(crate) struct SubtreeWalk<'c> {
    changes: &'c Changes,
    ancestors: AncestorPaths,
    /// Changed locations that have not been visited, by key.
    known: HashMap<i64, LocationRow>,
    /// Locations still to be read, by level; the deepest level is last and is read first.
    levels: Vec<Vec<PendingLocation>>,
}

impl<'c> SubtreeWalk<'c> {
    /// Begins at the topmost of the changed locations; those below another one of them are visited on the way down.
    pub(crate) fn new(changes: &'c Changes, rows: Vec<LocationRow>, ancestors: AncestorPaths) -> Self {
        let topmost =
            ancestors.topmost(&rows).into_iter().map(|row| PendingLocation { id: row.id, above: None }).collect();
        let known = rows.into_iter().map(|row| (row.id, row)).collect();
        Self { changes, ancestors, known, levels: vec![topmost] }
    }

    /// The locations to be read next; `None` at the end.
    pub(crate) fn chunk(&mut self) -> Option<Vec<PendingLocation>> {
        while let Some(mut level) = self.levels.pop() {
            if level.is_empty() {
                continue;
            }
            let chunk = level.split_off(level.len().saturating_sub(CHUNK_SIZE));
            self.levels.push(level);
            return Some(chunk);
        }
        // Changed locations that were not visited have moved meanwhile, or are deeper than walks go. They are emitted alone.
        let mut rest: Vec<i64> = self.known.keys().copied().collect();
        rest.truncate(CHUNK_SIZE);
        let rest: Vec<PendingLocation> = rest.into_iter().map(|id| PendingLocation { id, above: None }).collect();
        Some(rest).filter(|rest| !rest.is_empty())
    }

    /// The keys of a chunk that have not been read yet.
    pub(crate) fn unread(&self, chunk: &[PendingLocation]) -> Vec<i64> {
        chunk.iter().map(|pending| pending.id).filter(|id| !self.known.contains_key(id)).collect()
    }

    /// Joins the locations of a chunk with their rows. Those that are gone, or have another parent by now, are left out.
    pub(crate) fn visit(&mut self, chunk: Vec<PendingLocation>, read: Vec<LocationRow>) -> Vec<VisitedLocation> {
        let mut read: HashMap<i64, LocationRow> = read.into_iter().map(|row| (row.id, row)).collect();
        let mut visited = Vec::with_capacity(chunk.len());
        for PendingLocation { id, above } in chunk {
            let belongs = |row: &LocationRow| above.as_ref().is_none_or(|above| row.parent_id == Some(above.id));
            let known = self.known.get(&id).is_some_and(belongs).then(|| self.known.remove(&id)).flatten();
            let Some(row) = known.or_else(|| read.remove(&id)).filter(belongs) else { continue };
            let cause = match &above {
                Some(above) => Arc::clone(&above.cause),
                None => Arc::new(self.cause(&row)),
            };
            let above = above.or_else(|| self.above_the_first(&row, &cause));
            visited.push(VisitedLocation { row, above, cause });
        }
        visited
    }

    fn cause(&self, row: &LocationRow) -> Change {
        let nothing = || Change { domain: Some(row.domain.clone()), ..Change::default() };
        self.changes.get(&row.location_id).cloned().unwrap_or_else(nothing)
    }

    fn above_the_first(&self, row: &LocationRow, cause: &Arc<Change>) -> Option<Arc<Ancestor>> {
        self.ancestors.above(row).into_iter().rev().fold(None, |above, step| {
            let location_id = step.location_id.as_str().into();
            Some(Arc::new(Ancestor { id: step.id, location_id, above, level: 0, cause: Arc::clone(cause) }))
        })
    }

    /// Goes one level down. `children` are `(id, parent_id)` of the locations directly below those that were visited.
    pub(crate) fn descend(&mut self, visited: Vec<VisitedLocation>, children: Vec<(i64, i64)>) {
        let ancestors: HashMap<i64, Arc<Ancestor>> = visited
            .into_iter()
            .map(|VisitedLocation { row, above, cause }| {
                let level = above.as_ref().map_or(0, |above| above.level) + 1;
                let ancestor = Ancestor { id: row.id, location_id: row.location_id.into(), above, level, cause };
                (row.id, Arc::new(ancestor))
            })
            .collect();
        let mut pending = Vec::with_capacity(children.len());
        for (id, parent_id) in children {
            let Some(above) = ancestors.get(&parent_id) else { continue };
            let passed = above.upwards().take_while(|above| above.level > 0).any(|above| above.id == id);
            if above.level >= LEVELS_MAX {
                tracing::error!(
                    location = &*above.location_id,
                    "location tree is too deep; the locations below are left out"
                );
            } else if !passed {
                pending.push(PendingLocation { id, above: Some(Arc::clone(above)) });
            }
        }
        self.levels.push(pending);
    }
}

#[cfg(test)]
mod tests;
