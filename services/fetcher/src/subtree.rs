//! The walk from changed locations down to everything below them, in chunks. Pure: what has to be read is handed in.
//!
//! Depth first by chunks, so that what waits to be read is bounded by levels times the children of one chunk, not by the tree. Each location
//! has one parent, so it is met once; only a circle leads back, and there the walk ends. A location that moves while the walk is under way
//! may be met twice or not at all: its own message follows.

use std::collections::HashMap;
use std::sync::Arc;

use lake_hq::locations::{HOPS_MAX, WaysUp};
use lake_hq::source::LocationRow;

use crate::collapse::Change;
use crate::fetch::Changes;

/// Locations that are read and published at a time.
const CHUNK_SIZE: usize = 1_000;
/// Most levels that a walk goes down. HQ's trees have less than ten.
const LEVELS_MAX: usize = 1_000;

/// A location that the walk is below of.
#[derive(Debug)]
pub(crate) struct Ancestor {
    id: i64,
    location_id: Box<str>,
    above: Option<Arc<Ancestor>>,
    /// Levels that the walk came down to here; 0 for what is above where it began.
    level: usize,
    /// What made the walk begin.
    cause: Arc<Change>,
}

impl Ancestor {
    /// This one, and those above, upwards.
    fn upwards(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |ancestor| ancestor.above.as_ref())
    }
}

/// A location that waits to be read.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: i64,
    /// `None` where the walk begins.
    above: Option<Arc<Ancestor>>,
}

/// A location that was read.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) row: LocationRow,
    above: Option<Arc<Ancestor>>,
    cause: Arc<Change>,
}

impl Met {
    /// Ids from the parent up to the root; ends at a repeated one, as [`WaysUp::above`] does.
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

    /// What made it be emitted: its own message, or that of the location where the walk began.
    pub(crate) fn cause<'c>(&'c self, changes: &'c Changes) -> &'c Change {
        changes.get(&self.row.location_id).unwrap_or(&self.cause)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Walk<'c> {
    changes: &'c Changes,
    ways: WaysUp,
    /// Changed locations that have not been met, by key.
    known: HashMap<i64, LocationRow>,
    /// What waits on each level, last first.
    levels: Vec<Vec<Waiting>>,
}

impl<'c> Walk<'c> {
    /// Begins at the topmost of the changed locations: who is below another one of them is met on the way.
    pub(crate) fn new(changes: &'c Changes, rows: Vec<LocationRow>, ways: WaysUp) -> Self {
        let topmost = ways.topmost(&rows).into_iter().map(|row| Waiting { id: row.id, above: None }).collect();
        let known = rows.into_iter().map(|row| (row.id, row)).collect();
        Self { changes, ways, known, levels: vec![topmost] }
    }

    /// What is to be read next; `None` at the end.
    pub(crate) fn chunk(&mut self) -> Option<Vec<Waiting>> {
        while let Some(mut level) = self.levels.pop() {
            if level.is_empty() {
                continue;
            }
            let chunk = level.split_off(level.len().saturating_sub(CHUNK_SIZE));
            self.levels.push(level);
            return Some(chunk);
        }
        // What was not met moved away meanwhile, or is deeper than walks go. Its own message was for it alone, then.
        let mut rest: Vec<i64> = self.known.keys().copied().collect();
        rest.truncate(CHUNK_SIZE);
        let rest: Vec<Waiting> = rest.into_iter().map(|id| Waiting { id, above: None }).collect();
        Some(rest).filter(|rest| !rest.is_empty())
    }

    /// The keys of a chunk that have not been read yet.
    pub(crate) fn unread(&self, chunk: &[Waiting]) -> Vec<i64> {
        chunk.iter().map(|waiting| waiting.id).filter(|id| !self.known.contains_key(id)).collect()
    }

    /// Puts together what waited and what was read. What is gone, or is elsewhere by now, is left out.
    pub(crate) fn meet(&mut self, chunk: Vec<Waiting>, read: Vec<LocationRow>) -> Vec<Met> {
        let mut read: HashMap<i64, LocationRow> = read.into_iter().map(|row| (row.id, row)).collect();
        let mut met = Vec::with_capacity(chunk.len());
        for Waiting { id, above } in chunk {
            let belongs = |row: &LocationRow| above.as_ref().is_none_or(|above| row.parent_id == Some(above.id));
            let known = self.known.get(&id).is_some_and(belongs).then(|| self.known.remove(&id)).flatten();
            let Some(row) = known.or_else(|| read.remove(&id)).filter(belongs) else { continue };
            let cause = match &above {
                Some(above) => Arc::clone(&above.cause),
                None => Arc::new(self.cause(&row)),
            };
            let above = above.or_else(|| self.above_the_first(&row, &cause));
            met.push(Met { row, above, cause });
        }
        met
    }

    fn cause(&self, row: &LocationRow) -> Change {
        let nothing = || Change { domain: Some(row.domain.clone()), ..Change::default() };
        self.changes.get(&row.location_id).cloned().unwrap_or_else(nothing)
    }

    fn above_the_first(&self, row: &LocationRow, cause: &Arc<Change>) -> Option<Arc<Ancestor>> {
        self.ways.above(row).into_iter().rev().fold(None, |above, step| {
            let location_id = step.location_id.as_str().into();
            Some(Arc::new(Ancestor { id: step.id, location_id, above, level: 0, cause: Arc::clone(cause) }))
        })
    }

    /// Goes down: `children` are `(id, parent_id)` of what is directly below those that were met.
    pub(crate) fn descend(&mut self, met: Vec<Met>, children: Vec<(i64, i64)>) {
        let ancestors: HashMap<i64, Arc<Ancestor>> = met
            .into_iter()
            .map(|Met { row, above, cause }| {
                let level = above.as_ref().map_or(0, |above| above.level) + 1;
                let ancestor = Ancestor { id: row.id, location_id: row.location_id.into(), above, level, cause };
                (row.id, Arc::new(ancestor))
            })
            .collect();
        let mut waiting = Vec::with_capacity(children.len());
        for (id, parent_id) in children {
            let Some(above) = ancestors.get(&parent_id) else { continue };
            let passed = above.upwards().take_while(|above| above.level > 0).any(|above| above.id == id);
            if above.level >= LEVELS_MAX {
                tracing::error!(location = &*above.location_id, "location tree is too deep; what is below is left out");
            } else if !passed {
                waiting.push(Waiting { id, above: Some(Arc::clone(above)) });
            }
        }
        self.levels.push(waiting);
    }
}

#[cfg(test)]
mod tests;
