//! Locations, which are in the main database.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::database::{Database, Key};
use super::records::{sightings, storable};
use super::tables::{Table, TableNeed, find_tables, instant};
use crate::source::{LocationRow, LocationRows, Sighting, SourceError};

const LOCATION: &str = "locations_sqllocation";
const LOCATION_TYPE: &str = "locations_locationtype";

const NEEDS: &[TableNeed] = &[
    TableNeed {
        name: LOCATION,
        columns: &[
            "id",
            "domain",
            "location_id",
            "location_type_id",
            "site_code",
            "is_archived",
            "last_modified",
            "parent_id",
        ],
        optional: false,
    },
    TableNeed { name: LOCATION_TYPE, columns: &["id", "name"], optional: false },
];

/// Locations of one database.
pub(super) struct Places {
    database: Arc<Database>,
    of_domain: Arc<str>,
    domains: Arc<str>,
}

impl Places {
    /// Looks at the tables of the database and prepares the statements' texts.
    pub async fn connect(database: Arc<Database>) -> Result<Self, SourceError> {
        let mut snapshot = database.snapshot("read HQ's tables").await?;
        let tables = find_tables(&mut snapshot, database.name(), NEEDS).await?;
        snapshot.finish().await;
        let of_domain = of_domain_statement(&tables).into();
        let domains =
            format!("select location_id::text, domain::text from {LOCATION} where location_id = any($1)").into();
        Ok(Self { database, of_domain, domains })
    }

    /// All locations of a domain, with their types, in one statement.
    pub async fn of_domain(&self, domain: &str) -> Result<LocationRows, SourceError> {
        let mut snapshot = self.database.snapshot(&format!("read the locations of domain {domain}")).await?;
        let observed_us = snapshot.observed_us()?;
        let mut rows = Vec::new();
        if !domain.contains('\0') {
            snapshot
                .read(&self.of_domain, Key::Domain(domain), |row| {
                    rows.push(location_row(row)?);
                    Ok(())
                })
                .await?;
        }
        snapshot.finish().await;
        Ok(LocationRows { observed_us, rows })
    }

    /// The domain of each location.
    pub async fn domains(&self, ids: &[String]) -> Result<Vec<Sighting<String>>, SourceError> {
        let mut snapshot = self.database.snapshot(&format!("read the domains of {} locations", ids.len())).await?;
        let observed_us = snapshot.observed_us()?;
        let asked = storable(ids);
        let mut found = HashMap::with_capacity(asked.len());
        snapshot
            .read(&self.domains, Key::Ids(&asked), |row| {
                found.insert(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?);
                Ok(())
            })
            .await?;
        snapshot.finish().await;
        Ok(sightings(ids, observed_us, found))
    }
}

/// The order of the columns is that of [`location_row`]. Columns that came late to HQ are null where they are missing.
fn of_domain_statement(tables: &HashMap<&'static str, Table>) -> String {
    let column = |alias: &str, table: &str, name: &str, cast: &str| {
        let there = tables.get(table).is_some_and(|table| table.has(name));
        if there { format!("{alias}.{name}{cast}") } else { format!("null{cast}") }
    };
    let of_location = |name: &str, cast: &str| column("l", LOCATION, name, cast);
    let columns = [
        of_location("id", "::bigint"),
        of_location("location_id", "::text"),
        of_location("domain", "::text"),
        of_location("name", "::text"),
        column("t", LOCATION_TYPE, "name", "::text"),
        column("t", LOCATION_TYPE, "code", "::text"),
        of_location("site_code", "::text"),
        of_location("external_id", "::text"),
        of_location("metadata", "::text"),
        of_location("latitude", "::float8"),
        of_location("longitude", "::float8"),
        of_location("is_archived", "::boolean"),
        of_location("archived_on", "::timestamptz"),
        of_location("last_modified", "::timestamptz"),
        of_location("parent_id", "::bigint"),
    ];
    format!(
        "select {} from {LOCATION} l join {LOCATION_TYPE} t on t.id = l.location_type_id where l.domain = $1",
        columns.join(", ")
    )
}

fn location_row(row: &PgRow) -> Result<LocationRow, sqlx::Error> {
    Ok(LocationRow {
        id: row.try_get(0)?,
        location_id: row.try_get(1)?,
        domain: row.try_get(2)?,
        name: row.try_get(3)?,
        type_name: row.try_get(4)?,
        type_code: row.try_get(5)?,
        site_code: row.try_get(6)?,
        external_id: row.try_get(7)?,
        metadata: row.try_get::<Option<String>, _>(8)?.unwrap_or_default(),
        latitude: row.try_get(9)?,
        longitude: row.try_get(10)?,
        is_archived: row.try_get(11)?,
        archived_on_us: instant(row, 12)?,
        last_modified_us: instant(row, 13)?.unwrap_or(0),
        parent_id: row.try_get(14)?,
    })
}
