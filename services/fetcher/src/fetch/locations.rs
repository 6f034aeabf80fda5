//! Locations: a changed one re-emits itself and everything below it, as the rows of its descendants hold its name and place.
//!
//! HQ publishes a move, a rename or a retyping for that location alone (reference §6.4); archiving and deletion are published for each
//! descendant too. So every message means: the location and all below. A location that HQ no longer has becomes a tombstone because of its
//! own message, and its former descendants because of theirs. A location that is there is emitted, even when its message says that it was
//! deleted: such messages are replayed. An archived location is live.
//!
//! A message costs memory for chunks, not for the tree ([`crate::fetch::subtree`]), and three statements per chunk, none per location. A chunk is
//! read when the one before is safe on the queue; messages are done when all chunks are. Messages of one batch whose subtrees overlap
//! are one walk from the topmost.
//!
//! All that one walk emits is said to be observed when the walk began, though it is read later. This orders as well as the true time — any
//! change after that moment has a message of its own, whose reading has a later clock — and spares the enrichers a newer tree for each chunk.

use std::collections::{BTreeMap, HashSet};

use lake_hq::document_rules;
use lake_hq::documents::location;
use lake_hq::locations::AncestorPaths;
use lake_hq::source::{LocationKeys, LocationRow};
use lake_shared::identity::{Domain, Kind};
use lake_shared::quarantine;
use tokio_util::sync::CancellationToken;

use crate::coalesce::Change;
use crate::fetch::portions::{in_portions, put_aside};
use crate::fetch::subtree::{PendingLocation, SubtreeWalk, VisitedLocation};
use crate::fetch::{Changes, Fetched, FetchedDocument};
use crate::fetcher::{Fetcher, NotFetched, Stopping};

impl Fetcher {
    /// Publishes the rows that change with these locations.
    pub(crate) async fn fetch_locations(
        &self,
        changes: Changes,
        shutdown: &CancellationToken,
    ) -> Result<(), NotFetched> {
        let ids: Vec<String> = changes.keys().cloned().collect();
        let database = &self.hq.database;
        let asked = || database.location_rows(LocationKeys::LocationIds(&ids));
        let found = self.until_answered(shutdown, asked).await?;
        let observed_us = found.observed_us;
        self.tell_caches(&changes, &found.rows, shutdown).await?;
        self.publish_missing(&changes, &found.rows, observed_us, shutdown).await?;
        let taken: Vec<LocationRow> = found.rows.into_iter().filter(|row| self.take.domain(&row.domain)).collect();
        if taken.is_empty() {
            return Ok(());
        }
        let keys: Vec<i64> = taken.iter().map(|row| row.id).collect();
        let ancestors = AncestorPaths::new(self.until_answered(shutdown, || database.location_ancestors(&keys)).await?);
        let mut walk = SubtreeWalk::new(&changes, taken, ancestors);
        let mut emitted = 0;
        while let Some(chunk) = walk.chunk() {
            let read = self.rows_of(walk.unread(&chunk), &chunk, shutdown).await?;
            let visited = walk.visit(chunk, read);
            emitted += visited.len();
            self.publish_visited(&visited, &changes, observed_us, shutdown).await?;
            let children = self.children_of(&visited, &changes, shutdown).await?;
            walk.descend(visited, children);
        }
        tracing::debug!(changed = changes.len(), emitted, "locations and what is below them emitted");
        Ok(())
    }

    /// Rows of locations of a chunk. One that cannot be read is put aside, and the walk goes on without it and what is below it.
    async fn rows_of(
        &self,
        unread: Vec<i64>,
        chunk: &[PendingLocation],
        shutdown: &CancellationToken,
    ) -> Result<Vec<LocationRow>, Stopping> {
        let database = &self.hq.database;
        let handle = |ids: Vec<i64>| async move {
            let read = self.until_answered(shutdown, || database.location_rows(LocationKeys::Ids(&ids))).await?;
            Ok::<_, NotFetched>(read.rows)
        };
        let (rows, unreadable) = in_portions(unread, handle).await?;
        for (id, mut why) in unreadable {
            let Some((parent, cause)) = chunk.iter().find(|one| one.id == id).and_then(PendingLocation::below) else {
                continue;
            };
            why.detail = format!("the row with id {id} below location {parent}: {}", why.detail);
            quarantine::publish(&*self.queue, put_aside(Kind::Location, "", cause, &why), shutdown).await?;
        }
        Ok(rows.into_iter().flatten().collect())
    }

    /// `(id, parent_id)` of what is directly below these locations. Where that cannot be read, the upper one is put aside.
    async fn children_of(
        &self,
        visited: &[VisitedLocation],
        changes: &Changes,
        shutdown: &CancellationToken,
    ) -> Result<Vec<(i64, i64)>, Stopping> {
        let database = &self.hq.database;
        let handle =
            |ids: Vec<i64>| async move { self.until_answered(shutdown, || database.location_children(&ids)).await };
        let keys = visited.iter().map(|location| location.row.id).collect();
        let (children, unreadable) = in_portions(keys, handle).await?;
        for (id, mut why) in unreadable {
            let Some(location) = visited.iter().find(|one| one.row.id == id) else { continue };
            why.detail = format!("what is below it: {}", why.detail);
            let entry = put_aside(Kind::Location, &location.row.location_id, location.cause(changes), &why);
            quarantine::publish(&*self.queue, entry, shutdown).await?;
        }
        Ok(children.into_iter().flatten().collect())
    }

    /// Tells the caches first, so that they have forgotten the old state when the records arrive.
    async fn tell_caches(
        &self,
        changes: &Changes,
        found: &[LocationRow],
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let mut by_domain: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for row in found {
            by_domain.entry(&row.domain).or_default().push(row.location_id.clone());
        }
        for (id, change) in missing(changes, found) {
            change.domains().for_each(|domain| by_domain.entry(domain).or_default().push(id.to_owned()));
        }
        for (domain, ids) in by_domain {
            if self.take.domain(domain) {
                self.invalidate_locations(&Domain::from(domain), ids, shutdown).await?;
            }
        }
        Ok(())
    }

    async fn publish_missing(
        &self,
        changes: &Changes,
        found: &[LocationRow],
        observed_us: i64,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let mut fetched = Fetched::default();
        for (id, _) in missing(changes, found) {
            let gone = document_rules::of_location(None);
            let none = FetchedDocument::default;
            self.add(&mut fetched, Kind::Location, changes, id, observed_us, gone, none);
        }
        self.publish(fetched, shutdown).await
    }

    async fn publish_visited(
        &self,
        visited: &[VisitedLocation],
        changes: &Changes,
        observed_us: i64,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let causes: Changes =
            visited.iter().map(|one| (one.row.location_id.clone(), one.cause(changes).clone())).collect();
        let mut fetched = Fetched::default();
        for location in visited {
            let disposition = document_rules::of_location(Some(&location.row));
            self.add(
                &mut fetched,
                Kind::Location,
                &causes,
                &location.row.location_id,
                observed_us,
                disposition,
                || location::read(&location.row, &location.lineage()).into(),
            );
        }
        self.publish(fetched, shutdown).await
    }
}

/// Changed locations that HQ does not have.
fn missing<'c>(changes: &'c Changes, found: &[LocationRow]) -> Vec<(&'c str, &'c Change)> {
    let found: HashSet<&str> = found.iter().map(|row| &*row.location_id).collect();
    let gone = changes.iter().filter(|(id, _)| !found.contains(id.as_str()));
    gone.map(|(id, change)| (id.as_str(), change)).collect()
}
