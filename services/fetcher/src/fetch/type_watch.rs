//! Location types that are renamed. HQ says nothing of it, while every location of the type shows its name: they are emitted again.
//!
//! Columns need nothing: they follow the type's code, which stays. A type that was renamed while no fetcher ran is not noticed; its locations
//! show the new name when they change.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use lake_hq::document_rules;
use lake_hq::documents::location;
use lake_hq::locations::AncestorPaths;
use lake_hq::source::{LocationKeys, LocationTypeRow};
use lake_proto::queue::v1::Lineage;
use lake_shared::identity::{Domain, Kind};
use lake_shared::quarantine;
use tokio_util::sync::CancellationToken;

use crate::coalesce::Change;
use crate::fetch::portions::{in_portions, put_aside};
use crate::fetch::{Changes, Fetched, FetchedDocument};
use crate::fetcher::{Fetcher, NotFetched, Stopping, Unanswered};

/// Time between two looks at the types.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How much earlier than the newest known change a changed type may have been stamped, microseconds: HQ stamps it before it commits, and its
/// application servers' clocks differ.
const STAMP_OVERLAP_US: i64 = 600 * 1_000_000;

/// The types as they were when they were looked at.
#[derive(Debug, Default)]
pub(crate) struct KnownTypes {
    /// Name and code, by primary key; `None` before the first look.
    types: Option<HashMap<i64, (String, Option<String>)>>,
    newest_us: i64,
}

impl KnownTypes {
    /// Since when changes are to be asked for, microseconds; everything at the first look.
    fn since_us(&self) -> i64 {
        if self.types.is_none() { i64::MIN } else { self.newest_us.saturating_sub(STAMP_OVERLAP_US) }
    }

    /// Takes over what was seen. Answers the types that were known by another name or code.
    fn take(&mut self, seen: Vec<LocationTypeRow>) -> Vec<LocationTypeRow> {
        let types = self.types.get_or_insert_default();
        self.newest_us = seen.iter().map(|row| row.last_modified_us).fold(self.newest_us, i64::max);
        let mut renamed = seen;
        renamed.retain(|row| {
            let now = (row.name.clone(), row.code.clone());
            types.insert(row.id, now.clone()).is_some_and(|before| before != now)
        });
        renamed
    }
}

impl Fetcher {
    /// Looks at the types again and again, until the process stops.
    pub(crate) async fn watch_location_types(&self, shutdown: CancellationToken) {
        let mut known = KnownTypes::default();
        while self.look_at_location_types(&mut known, &shutdown).await.is_ok() {
            let rest = tokio::time::sleep(LOOK_EVERY);
            if shutdown.run_until_cancelled(rest).await.is_none() {
                return;
            }
        }
    }

    /// Looks at the types once, and emits the locations of those that were renamed.
    pub(crate) async fn look_at_location_types(
        &self,
        known: &mut KnownTypes,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let (database, since_us) = (&self.hq.database, known.since_us());
        let seen = match self.until_answered(shutdown, || database.location_types(since_us)).await {
            Ok(seen) => seen,
            Err(NotFetched::Stopping) => return Err(Stopping),
            // Less cannot be asked. What was not seen now is seen at another look.
            Err(NotFetched::AskLess(why)) => {
                tracing::warn!(reason = why.detail, "location types cannot be read; they are looked at again later");
                return Ok(());
            }
        };
        for renamed in known.take(seen) {
            if self.take.domain(&renamed.domain) {
                self.emit_locations_of_type(&renamed, shutdown).await?;
            }
        }
        Ok(())
    }

    async fn emit_locations_of_type(
        &self,
        renamed: &LocationTypeRow,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let database = &self.hq.database;
        // Everything of the domain: the trees in memory know the types as they were.
        self.invalidate_locations(&Domain::from(renamed.domain.as_str()), Vec::new(), shutdown).await?;
        let lineage = Lineage { published_us: renamed.last_modified_us, ..Lineage::default() };
        let cause = Change { domain: Some(renamed.domain.clone()), lineage, ..Change::default() };
        // All are said to be observed at the first reading, which spares the enrichers a newer tree for each of the others.
        let (mut after, first_observed_us, mut emitted) = (i64::MIN, OnceLock::new(), 0);
        loop {
            let ids = match self.until_answered(shutdown, || database.locations_of_type(renamed.id, after)).await {
                Ok(ids) => ids,
                Err(NotFetched::Stopping) => return Err(Stopping),
                Err(NotFetched::AskLess(why)) => {
                    let what = format!("the locations of type {} after the row with id {after}", renamed.name);
                    self.put_aside_of_type(&what, why, &cause, shutdown).await?;
                    break;
                }
            };
            let Some(last) = ids.last() else { break };
            after = *last;
            let handle = |portion: Vec<i64>| self.emit_locations(portion, &cause, &first_observed_us, shutdown);
            let (counts, unreadable) = in_portions(ids, handle).await?;
            emitted += counts.into_iter().sum::<usize>();
            for (id, why) in unreadable {
                let what = format!("the row with id {id} of type {}", renamed.name);
                self.put_aside_of_type(&what, why, &cause, shutdown).await?;
            }
        }
        tracing::info!(
            domain = renamed.domain,
            location_type = renamed.name,
            emitted,
            "location type was renamed; its locations are emitted again"
        );
        Ok(())
    }

    /// Emits the locations with these primary keys; their number. The first reading of all sets `first_observed_us`.
    pub(crate) async fn emit_locations(
        &self,
        ids: Vec<i64>,
        cause: &Change,
        first_observed_us: &OnceLock<i64>,
        shutdown: &CancellationToken,
    ) -> Result<usize, NotFetched> {
        let database = &self.hq.database;
        let found = self.until_answered(shutdown, || database.location_rows(LocationKeys::Ids(&ids))).await?;
        let steps = self.until_answered(shutdown, || database.location_ancestors(&ids)).await?;
        let (ancestors, observed_us) =
            (AncestorPaths::new(steps), *first_observed_us.get_or_init(|| found.observed_us));
        let causes: Changes = found.rows.iter().map(|row| (row.location_id.clone(), cause.clone())).collect();
        let mut fetched = Fetched::default();
        for row in &found.rows {
            let lineage: Vec<&str> = ancestors.above(row).into_iter().map(|step| step.location_id.as_str()).collect();
            let disposition = document_rules::of_location(Some(row));
            let read = || FetchedDocument::from(location::read(row, &lineage));
            self.add(&mut fetched, Kind::Location, &causes, &row.location_id, observed_us, disposition, read);
        }
        self.publish(fetched, shutdown).await?;
        Ok(found.rows.len())
    }

    /// Tells the quarantine what cannot be read; the lake goes on to show the earlier name there.
    async fn put_aside_of_type(
        &self,
        what: &str,
        why: Unanswered,
        cause: &Change,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let why = Unanswered { detail: format!("{what}: {}", why.detail), ..why };
        Ok(quarantine::publish(&*self.queue, put_aside(Kind::Location, "", cause, &why), shutdown).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, name: &str, last_modified_us: i64) -> LocationTypeRow {
        LocationTypeRow { id, domain: "d".into(), name: name.into(), code: None, last_modified_us }
    }

    #[test]
    fn only_types_that_were_known_by_another_name_are_renamed() {
        let mut known = KnownTypes::default();
        assert_eq!(known.since_us(), i64::MIN);
        assert!(known.take(vec![row(1, "village", 700_000_000), row(2, "district", 5)]).is_empty());
        assert_eq!(known.since_us(), 100_000_000);
        let seen = vec![row(1, "ward", 800_000_000), row(2, "district", 800_000_000), row(3, "new", 800_000_000)];
        assert_eq!(known.take(seen), [row(1, "ward", 800_000_000)]);
        assert!(known.take(vec![row(1, "ward", 800_000_000)]).is_empty());
        let code = LocationTypeRow { code: Some("w".into()), ..row(1, "ward", 9) };
        assert_eq!(known.take(vec![code.clone()]), [code]);
    }

    #[test]
    fn an_hq_without_types_is_asked_for_changes_from_then_on() {
        let mut known = KnownTypes::default();
        assert!(known.take(Vec::new()).is_empty());
        assert!(known.since_us() > i64::MIN);
        assert!(known.take(vec![row(1, "village", 1)]).is_empty());
    }
}
