//! Locations: a changed one re-emits itself and everything below it, as its descendants' rows hold its name and place.

use std::collections::{BTreeMap, BTreeSet};

use lake_hq::document_rules::{self, Disposition};
use lake_hq::documents::location;
use lake_hq::locations::LocationTree;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Domain, Kind};
use tokio_util::sync::CancellationToken;

use crate::fetch::{Changes, Fetched};
use crate::pipeline::{Fetcher, Stopping};

impl Fetcher {
    /// Reads the trees that these locations belong to and publishes the rows that change with them.
    pub(crate) async fn fetch_locations(&self, changes: Changes, shutdown: &CancellationToken) -> Result<(), Stopping> {
        let ids: Vec<String> = changes.keys().cloned().collect();
        let sightings = self.until_answered(shutdown, || self.hq.database.location_domains(&ids)).await?;
        let mut by_domain: BTreeMap<Domain, BTreeSet<String>> = BTreeMap::new();
        let mut missing = Fetched::default();
        for sighting in sightings {
            match sighting.rows {
                Some(domain) if self.take.domain(&domain) => {
                    by_domain.entry(Domain::from(domain)).or_default().insert(sighting.id);
                }
                Some(_) => {}
                None => {
                    let announced = changes.get(&sighting.id).and_then(|change| change.domain.as_deref());
                    if let Some(domain) = announced {
                        self.invalidate_locations(&Domain::from(domain), vec![sighting.id.clone()], shutdown).await?;
                    }
                    let gone = document_rules::of_location(None);
                    let none = || Ok(serde_json::Map::new());
                    self.add(&mut missing, Kind::Location, &changes, &sighting.id, sighting.observed_us, gone, none);
                }
            }
        }
        self.publish(missing, shutdown).await?;
        for (domain, ids) in by_domain {
            self.emit_subtrees(&domain, ids, &changes, shutdown).await?;
        }
        Ok(())
    }

    async fn emit_subtrees(
        &self,
        domain: &Domain,
        ids: BTreeSet<String>,
        changes: &Changes,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        self.invalidate_locations(domain, ids.iter().cloned().collect(), shutdown).await?;
        let rows = self.until_answered(shutdown, || self.hq.database.locations(domain.as_str())).await?;
        let observed_us = rows.observed_us;
        let tree = LocationTree::from_rows(rows);
        let mut below: BTreeSet<&str> = BTreeSet::new();
        for id in &ids {
            below.extend(tree.descendants_or_self(id).into_iter().map(|location| &*location.location_id));
        }
        let below: Vec<&str> = below.into_iter().collect();
        for chunk in below.chunks(self.options.max_records) {
            let mut fetched = Fetched::default();
            for id in chunk {
                let Some(location) = tree.get(id) else { continue };
                let disposition = Disposition::Upsert {
                    domain: domain.clone(),
                    document_type: DocumentType::location(),
                    version_us: location.last_modified_us,
                    user_id: None,
                };
                self.add(&mut fetched, Kind::Location, changes, id, observed_us, disposition, || {
                    let document = location::to_json(&tree, id).map_err(|error| Chain(&error).to_string())?;
                    document.ok_or_else(|| "is not in its domain's tree".to_owned())
                });
            }
            self.publish(fetched, shutdown).await?;
        }
        Ok(())
    }
}
