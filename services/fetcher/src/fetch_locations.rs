//! Locations: a changed one re-emits itself and everything below it, as the rows of its descendants hold its name and place.
//!
//! HQ publishes a move, a rename or a retyping for that location alone (reference §6.4); archiving and deletion are published for each
//! descendant too. So every message means: the location and all below. A location that HQ does not have any more becomes a tombstone, by
//! its own message, as do its former descendants by theirs; one whose delete message is replayed and that is there is emitted.
//! An archived one is live.
//!
//! A message costs memory for chunks, not for the tree ([`crate::subtree`]), and three statements per chunk, none per location. A chunk is
//! read when the one before is safe on the queue; messages are done when all chunks are. Messages of one batch whose subtrees overlap
//! are one walk from the topmost.
//!
//! All that one walk emits is said to be observed when the walk began, though it is read later. This orders as well as the true time — any
//! change after that moment has a message of its own, whose reading has a later clock — and spares the enrichers a newer tree for each chunk.

use std::collections::{BTreeMap, HashSet};

use lake_hq::document_rules;
use lake_hq::documents::location;
use lake_hq::locations::WaysUp;
use lake_hq::source::{LocationKeys, LocationRow};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Domain, Kind};
use tokio_util::sync::CancellationToken;

use crate::collapse::Change;
use crate::fetch::{Changes, Fetched};
use crate::pipeline::{Fetcher, Stopping};
use crate::subtree::{Met, Walk};

impl Fetcher {
    /// Publishes the rows that change with these locations.
    pub(crate) async fn fetch_locations(&self, changes: Changes, shutdown: &CancellationToken) -> Result<(), Stopping> {
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
        let ways = WaysUp::new(self.until_answered(shutdown, || database.location_ways_up(&keys)).await?);
        let mut walk = Walk::new(&changes, taken, ways);
        let mut emitted = 0;
        while let Some(chunk) = walk.chunk() {
            let unread = walk.unread(&chunk);
            let read = if unread.is_empty() {
                Vec::new()
            } else {
                self.until_answered(shutdown, || database.location_rows(LocationKeys::Ids(&unread))).await?.rows
            };
            let met = walk.meet(chunk, read);
            emitted += met.len();
            self.publish_met(&met, &changes, observed_us, shutdown).await?;
            let keys: Vec<i64> = met.iter().map(|met| met.row.id).collect();
            let children = self.until_answered(shutdown, || database.location_children(&keys)).await?;
            walk.descend(met, children);
        }
        tracing::debug!(changed = changes.len(), emitted, "locations and what is below them emitted");
        Ok(())
    }

    /// Caches forget before the records arrive that want the new state.
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
            let none = || Ok(serde_json::Map::new());
            self.add(&mut fetched, Kind::Location, changes, id, observed_us, gone, none);
        }
        self.publish(fetched, shutdown).await
    }

    async fn publish_met(
        &self,
        met: &[Met],
        changes: &Changes,
        observed_us: i64,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let causes: Changes = met.iter().map(|met| (met.row.location_id.clone(), met.cause(changes).clone())).collect();
        let mut fetched = Fetched::default();
        for met in met {
            let disposition = document_rules::of_location(Some(&met.row));
            self.add(&mut fetched, Kind::Location, &causes, &met.row.location_id, observed_us, disposition, || {
                location::to_json(&met.row, &met.lineage()).map_err(|error| Chain(&error).to_string())
            });
        }
        self.publish(fetched, shutdown).await
    }
}

/// What HQ does not have.
fn missing<'c>(changes: &'c Changes, found: &[LocationRow]) -> Vec<(&'c str, &'c Change)> {
    let found: HashSet<&str> = found.iter().map(|row| &*row.location_id).collect();
    let gone = changes.iter().filter(|(id, _)| !found.contains(id.as_str()));
    gone.map(|(id, change)| (id.as_str(), change)).collect()
}
